/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_run.c: which segments of new data may leave the outer leg as one packet, which the device
 * cuts (TSO).
 *
 * The wire must see, byte for byte, the segments that would have been pulled one by one at that
 * moment. So each is chosen, paced and put on the scoreboard by itself (tcp_out.c); what is saved
 * is the making of their packets. That a device can make the same ones is asked here: from the
 * header of the first it makes the others with the sequence number and the IPv4 identification
 * counted on, PSH and FIN on the last alone, CWR on the first alone, all else as it is
 * (include/net/tso.h, net/ipv4/tcp_offload.c). So nothing may go whose options differ or whose
 * urgent pointer counts from its own segment, and nothing whose CWR is a bit of accurate ECN's
 * counter, which the device would take for the other meaning.
 *
 * Refuses also new data that F-RTO counts.
 */
#include "tcp_int.h"

uint32_t run_most(const struct env *env, const struct tcb *t, const struct wire_seg *seg,
		  uint32_t cap)
{
	uint32_t headers = wire_ip_len(tcb_ends(t)->f.pair.family) + WIRE_TCP_LEN + seg->opt_len;
	const struct offload *offload = env_offload(env, tcb_ends(t)->link);
	uint32_t gso = min_u32(min_u32(offload->gso_max, cap), 65535);

	if (!offload->csum_partial || gso < headers + 2u * t->mss)
		return 0;
	if (tcb_outer(t)->frto != FRTO_OFF || t->snd_up > t->snd_una)
		return 0;
	if ((t->flags & TF_ACCECN) && (seg->flags & TH_CWR))
		return 0;
	if (seg->opt_len != (t->flags & TF_TS ? WIRE_OPT_TS_LEN : 0))
		return 0;
	return (uint32_t)min_u64((gso - headers) / t->mss * t->mss, pace_burst_bytes(t)) - t->mss;
}

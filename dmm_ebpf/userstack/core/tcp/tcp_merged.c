/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_merged.c: segments of the outer leg that came as one packet (GRO, LRO): one header, one
 * payload.
 *
 * What is put together has the same acknowledgment, window, options and ECN code point
 * (net/ipv4/tcp_offload.c), so in order and without marks it may be taken as one, if it counts for
 * as many segments as it was. Else what each segment does matters: one out of order is answered by
 * an ACK of its own (RFC 5681 section 4.2), a mark counts by packet (RFC 9768 section 3.2.2.5.1).
 * Then it is cut again, and the segments are taken one after the other.
 */
#include "tcp_int.h"

uint32_t merged_count(const struct pkt *pkt)
{
	return pkt->segment_bytes ? (pkt->payload_len + pkt->segment_bytes - 1) / pkt->segment_bytes
				  : 1;
}

bool merged_is_plain(const struct tcb *t, const struct pkt *pkt)
{
	if (t->state == TCP_CLOSE || t->state == TCP_SYN_SENT)
		return true;	      /* refused, whatever it is */
	if (t->state == TCP_SYN_RECV) /* it ends the handshake, before which nothing was counted */
		return pkt->seq == t->irs + (uint32_t)t->rcv_nxt;
	if (t->state != TCP_ESTABLISHED && t->state != TCP_FIN_WAIT1 && t->state != TCP_FIN_WAIT2)
		return false;
	if (t->ooo || t->rcv_fin || pkt->n_agree || pkt->seq != t->irs + (uint32_t)t->rcv_nxt ||
	    pkt->payload_len > t->rcv_adv - t->rcv_nxt)
		return false;
	return (pkt->tos & WIRE_ECN_MASK) != ECN_CE && tcb_outer(t)->frto == FRTO_OFF;
}

void merged_piece(const struct tcb *t, const struct pkt *pkt, uint32_t off, struct pkt *piece)
{
	*piece = *pkt;
	piece->segment_bytes = 0;
	piece->payload = pkt->payload + off;
	piece->payload_len = min_u32(pkt->segment_bytes, pkt->payload_len - off);
	piece->seq = pkt->seq + off;
	if (off + piece->payload_len < pkt->payload_len)
		piece->flags &= (uint16_t) ~(TH_FIN | TH_PSH);
	if (off && !(t->flags & TF_ACCECN)) /* with RFC 3168 only the first can have had it */
		piece->flags &= (uint16_t)~TH_CWR;
}

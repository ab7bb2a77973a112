/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_urg.c: urgent data (RFC 9293 section 3.8.5, RFC 6093): the mark that one leg's peer sets is
 * set for the other's.
 *
 * The bytes stay in line here, only the pointer is carried: it names the octet behind the urgent
 * data (as all stacks have it, RFC 6093 section 3.1) and may lie beyond what has arrived. Both legs
 * count a stream's bytes alike, so the position needs no translation.
 *
 * Invariants: snd_up only grows. A leg is in urgent mode while snd_una < snd_up. The notice does
 * not wait for the window: a pure ACK carries it when no data may go.
 */
#include "tcp_int.h"

void urg_input(struct env *env, struct tcb *t, const struct pkt *pkt, int64_t seq)
{
	struct end *peer = tcb_peer(t);
	int64_t up = seq + pkt->urg;

	if (!(pkt->flags & TH_URG) || !pkt->urg ||
	    up <= (int64_t)max_u64(peer->snd_up, peer->snd_una))
		return;
	peer->snd_up = (uint64_t)up;
	/* before it is open it goes with the first data */
	if (peer->phase == END_OPEN && end_ops_of(env, peer)->urgent)
		end_ops_of(env, peer)->urgent(env, peer);
}

void tcp_urgent(struct env *env, struct end *e)
{
	tcb_of(e)->flags |= TF_ACK_NOW;
	end_ready(env, e);
}

void urg_mark(const struct tcb *t, struct wire_seg *seg, uint64_t seq)
{
	if (t->snd_una >= t->snd_up || seq >= t->snd_up)
		return;
	if (t->snd_up - seq <= 65535)
		seg->urg = (uint16_t)(t->snd_up - seq);
	else if (seq + 65535 > t->snd_nxt)
		/* beyond what was sent: the peer will hear more before it gets there */
		seg->urg = 65535;
	else
		return;
	seg->flags |= TH_URG;
}

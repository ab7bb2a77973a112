/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_undo.c: loss recovery that turns out to be needless is taken back, on the outer leg.
 *
 * Three proofs are accepted. Eifel (RFC 3522): the peer's timestamp echo is older than our first
 * retransmission, so originals were acknowledged. DSACK (RFC 3708): the peer has reported each
 * retransmission as a duplicate. F-RTO (RFC 5682), after a timeout without timestamps: after the
 * first retransmission two new segments go, and an ACK then covers an original that was never sent
 * again.
 *
 * Invariants: what is undone is the last reduction only (cc_ops.on_undo); undo_una != 0 while one
 * can be; segments that a timeout had marked lost go back to the tx list only when they were sent
 * once, so its order by time holds.
 */
#include "tcp_int.h"

static void undo_arm(struct tcb *t, bool timeout)
{
	struct outer *o = tcb_outer(t);

	o->undo_una = t->snd_una;
	o->undo_end = t->snd_nxt;
	o->undo_retrans = 0;
	o->retrans_ts_known = 0;
	o->undo_timeout = timeout;
	o->frto = FRTO_OFF;
}

void undo_on_recovery(struct tcb *t)
{
	undo_arm(t, false);
}

void undo_on_timeout(struct tcb *t)
{
	struct outer *o = tcb_outer(t);

	if ((t->flags & TF_RECOVERY) && o->undo_timeout) {
		o->frto = FRTO_OFF;
		if (o->undo_una != t->snd_una)
			/* there was progress and another timeout: the trouble is real */
			o->undo_una = 0;
		return;
	}
	undo_arm(t, true);
	if (!(t->flags & TF_TS)) /* timestamps tell sooner */
		o->frto = FRTO_FIRST;
}

void undo_on_resend(struct tcb *t, const struct seg *s, uint64_t now_ns)
{
	struct outer *o = tcb_outer(t);

	if (!o->undo_una || s->seq < o->undo_una || seg_end(s) > o->undo_end)
		return;
	o->undo_retrans++;
	if (o->retrans_ts_known)
		return;
	o->retrans_ts = tcp_ts_now(t, now_ns);
	o->retrans_ts_known = 1;
}

bool undo_on_dsack(struct tcb *t, uint64_t start, uint64_t end)
{
	struct outer *o = tcb_outer(t);
	uint64_t n = (end - start + t->mss - 1) / t->mss;

	if (!o->undo_una || !o->undo_retrans || start < o->undo_una || end > o->undo_end)
		return false;
	o->undo_retrans -= (uint32_t)min_u64(n, o->undo_retrans);
	return !o->undo_retrans;
}

/*
 * Eifel: on a timeout the first ACK that advances tells, else the one that covers all
 * that was resent
 */
bool undo_by_echo(const struct tcb *t, const struct pkt *pkt)
{
	const struct outer *o = tcb_outer(t);

	if (!o->undo_una || !o->retrans_ts_known || !(t->flags & TF_TS) || !pkt->has_ts ||
	    !pkt->tsecr)
		return false;
	if ((int32_t)(pkt->tsecr - o->retrans_ts) >= 0)
		return false;
	return o->undo_timeout || t->snd_una >= o->undo_end;
}

/* RFC 5682 section 2.1 steps 2 and 3; original: a segment never sent again was acknowledged */
bool undo_frto(struct tcb *t, bool advanced, bool delivered, bool original, bool has_payload)
{
	struct outer *o = tcb_outer(t);

	if (o->frto == FRTO_OFF || (!delivered && has_payload))
		return false;
	if (o->frto == FRTO_FIRST) {
		o->frto = advanced && t->snd_una < o->undo_end ? FRTO_NEW_DATA : FRTO_OFF;
		return false;
	}
	o->frto = FRTO_OFF;
	return delivered && original;
}

/* The last reduction was needless */
void undo_reduction(struct env *env, struct tcb *t, uint64_t now_ns)
{
	struct outer *o = tcb_outer(t);
	struct cc *cc = &o->cc;

	if (o->undo_timeout && t->fl) {
		flight_unlose(t->fl, o->undo_end);
		/* what RACK learned from the retransmission is about the original */
		t->fl->rack_xmit_ns = t->fl->rack_order = 0;
	}
	if ((t->flags & TF_RECOVERY) && (!t->fl || !t->fl->lost_bytes))
		tcp_exit_recovery(t, now_ns);
	prr_end(t);
	o->undo_una = 0;
	o->frto = FRTO_OFF;
	env->counters[DMM_CORE_UNDONE]++;
	cc->inflight_bytes = tcp_inflight(t);
	if (cc->ops->on_undo)
		cc->ops->on_undo(cc, now_ns);
	tcp_ready(env, t);
}

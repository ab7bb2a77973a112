/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_prr.c: how fast a recovery sends: Proportional Rate Reduction (RFC 9937), on the outer leg.
 *
 * What arrives at the peer clocks out what may go: in proportion while more is in flight than the
 * congestion control wants, so that the flight shrinks to its ssthresh over the round trip instead
 * of after a silence; as much as arrives (PRR-CRB), and a segment more while recovery makes good
 * progress (PRR-SSRB), when losses have left less in flight. For congestion controls that say so
 * (cc_ops.prr): those that pace by a model have no use for it, and a timeout slow-starts instead.
 *
 * Invariants: an episode lives in the flight and ends with it, with the recovery, or by undo or
 * timeout. cc.cwnd_bytes is the episode's ssthresh throughout, so its end needs no act. What may be
 * sent is a budget, not a window: a segment that is marked lost between two ACKs leaves the flight
 * and must not let another one out.
 */
#include "tcp_int.h"

void prr_start(struct tcb *t, uint64_t delivered_bytes)
{
	const struct cc *cc = &tcb_outer(t)->cc;

	if (!t->fl || !cc->ops->prr)
		return;
	/*
	 * what this ACK reports belongs to the episode, what was SACKed before does not (section 6)
	 */
	t->fl->prr = (struct prr){
		.ssthresh_bytes = cc->cwnd_bytes,
		.recover_fs_bytes = tcp_inflight(t) + t->fl->lost_bytes + delivered_bytes,
	};
}

void prr_end(struct tcb *t)
{
	if (t->fl)
		t->fl->prr.ssthresh_bytes = 0;
}

void prr_ack(struct tcb *t, uint64_t delivered_bytes, bool safe)
{
	struct prr *p = t->fl ? &t->fl->prr : NULL;
	uint64_t inflight = tcp_inflight(t), out;

	if (!p || !p->ssthresh_bytes || !delivered_bytes)
		return;
	p->delivered_bytes += delivered_bytes;
	if (inflight > p->ssthresh_bytes) {
		out = (p->delivered_bytes * p->ssthresh_bytes + p->recover_fs_bytes - 1) /
		      p->recover_fs_bytes;
		p->snd_cnt_bytes = out - min_u64(out, p->out_bytes);
	} else {
		out = p->delivered_bytes - min_u64(p->delivered_bytes, p->out_bytes);
		out = max_u64(out, delivered_bytes) + (safe ? t->mss : 0);
		p->snd_cnt_bytes = min_u64(p->ssthresh_bytes - inflight, out);
	}
}

void prr_sent(struct tcb *t, uint32_t len)
{
	struct prr *p = &t->fl->prr;

	p->out_bytes += len;
	p->snd_cnt_bytes -= min_u64(p->snd_cnt_bytes, len);
}

void tcp_exit_recovery(struct tcb *t, uint64_t now_ns)
{
	struct cc *cc = &tcb_outer(t)->cc;

	t->flags &= ~(uint32_t)(TF_RECOVERY | TF_FORCE_RTX);
	if (t->rack_persist && !--t->rack_persist)
		t->rack_mult = 1;
	if (!tcb_is_outer(t)) {
		inner_recovered(t);
		return;
	}
	prr_end(t);
	cc->in_recovery = 0;
	cc->ops->on_exit_recovery(cc, now_ns);
}

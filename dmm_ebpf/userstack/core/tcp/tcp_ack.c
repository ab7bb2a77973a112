/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_ack.c: what an acknowledgment tells: how far the peer is, what it holds beyond (SACK, RFC
 * 2018 and 6675), its window, the delivery rate (draft-ietf-ccwg-bbr, delivery rate samples).
 *
 * Refuses: an ACK of what was never sent; one older than the largest window (tcp_ack_ok(), which
 * the caller asks before anything of the segment counts); SACK blocks outside what is in flight.
 */
#include "tcp_int.h"
#include "tcp_parity.h"

/* What one ACK adds up to */
struct ack_ctx {
	struct cc_sample s;
	struct seg best; /* newest segment delivered by this ACK */
	bool has_best;
	bool advanced;
	bool dsack;
	bool undo;     /* proof that the last reduction was needless */
	bool probe;    /* the MTU probe arrived */
	bool original; /* a segment below undo_end that was sent once was delivered */
	bool reordered;
	uint64_t old_fack; /* before this ACK */
	uint32_t popped_segs;
	uint64_t arrived; /* before this ACK, see arrived_without_sack() */
	/* RFC 9937's DeliveredData: acked_bytes, and what duplicates stand for */
	uint64_t delivered_bytes;
	uint32_t delivered_segs;
	uint32_t plain_segs; /* of them, sent once and not copied */
	bool alone;	     /* one segment was on the way before */
	struct ack_told told;
};

/* A segment has arrived at the peer, by cumulative ACK or SACK, for the first time we hear of it */
static void delivered(struct env *env, struct tcb *t, struct ack_ctx *ctx, const struct seg *s,
		      uint64_t now_ns)
{
	struct outer *o = tcb_outer(t);
	bool told_late = rack_told_late(t, s, now_ns);
	uint64_t sent_ns = s->xmit_ns;

	ctx->s.acked_bytes += s->len;
	ctx->delivered_segs++;
	ctx->plain_segs += !(s->flags & SEG_AMBIGUOUS);
	if (unlikely(s->flags & SEG_COPIED))
		sent_ns = copies_arrived(env, t, s, &ctx->told, now_ns);
	if (!(s->flags & SEG_RETRANS) && sent_ns) {
		uint64_t rtt_ns = now_ns - sent_ns;

		if (!ctx->s.rtt_ns || rtt_ns < ctx->s.rtt_ns)
			ctx->s.rtt_ns = max_u64(rtt_ns, 1);
	}
	if (tcb_is_outer(t)) {
		o->delivered_bytes += s->len;
		o->delivered_ns = now_ns;
		if ((s->flags & (SEG_PROBE | SEG_RETRANS)) == SEG_PROBE)
			ctx->probe = true;
		ctx->original |= !(s->flags & SEG_AMBIGUOUS) && seg_end(s) <= o->undo_end;
	}
	if (!told_late && (!ctx->has_best || s->delivered_bytes > ctx->best.delivered_bytes ||
			   (s->delivered_bytes == ctx->best.delivered_bytes &&
			    s->xmit_ns >= ctx->best.xmit_ns))) {
		ctx->best = *s;
		ctx->has_best = true;
	}
	ctx->reordered |= rack_update(t, s, told_late, ctx->old_fack, now_ns);
}

static int64_t snd_unwrap(const struct tcb *t, uint32_t seq)
{
	return (int64_t)t->snd_una + (int32_t)(seq - t->iss - (uint32_t)t->snd_una);
}

/*
 * RFC 2883: the first block reports a duplicate if it lies below the ACK or inside the second block
 */
static bool is_dsack(const struct tcb *t, const struct pkt *pkt, int64_t ack)
{
	int64_t s0 = snd_unwrap(t, pkt->sack[0].start), e0 = snd_unwrap(t, pkt->sack[0].end);

	if (e0 <= s0)
		return false;
	if (e0 <= ack)
		return true;
	return pkt->n_sack > 1 && s0 >= snd_unwrap(t, pkt->sack[1].start) &&
	       e0 <= snd_unwrap(t, pkt->sack[1].end);
}

static void sack_block(struct env *env, struct tcb *t, struct ack_ctx *ctx, uint64_t start,
		       uint64_t end, uint64_t now_ns)
{
	struct flight *fl = t->fl;
	uint32_t nth = flight_lower_bound(fl, start);

	for (;;) {
		uint32_t idx;
		struct seg *s;

		nth = flight_next_unsacked(fl, nth);
		if (nth >= fl->count)
			return;
		idx = flight_idx(fl, nth);
		s = flight_seg(fl, idx);
		if (seg_end(s) > end)
			return;
		delivered(env, t, ctx, s, now_ns);
		flight_mark_sacked(fl, idx);
	}
}

/* By a copy of ours: it does not say that anything was sent again for nothing */
static bool dsack_explained(struct tcb *t, const struct ack_told *told, uint64_t now_ns)
{
	if (!tcb_is_outer(t))
		return false;
	if (copies_explain(t, told->dsack_start, told->dsack_end) ||
	    spare_explains_dsack(t, now_ns))
		return true;
	loss_was_none(t);
	return false;
}

static void sack_process(struct env *env, struct tcb *t, struct ack_ctx *ctx, const struct pkt *pkt,
			 int64_t ack, uint64_t now_ns)
{
	for (uint32_t i = 0; i < pkt->n_sack; i++) {
		int64_t start = snd_unwrap(t, pkt->sack[i].start),
			end = snd_unwrap(t, pkt->sack[i].end);

		if (i == 0 && is_dsack(t, pkt, ack)) {
			ctx->dsack = true;
			ctx->told.dsack_start = start > 0 ? (uint64_t)start : 0;
			ctx->told.dsack_end = end > 0 ? (uint64_t)end : 0;
			if (dsack_explained(t, &ctx->told, now_ns))
				continue;
			rack_dsack(t);
			if (tcb_is_outer(t) && start > 0)
				ctx->undo |= undo_on_dsack(t, (uint64_t)start, (uint64_t)end);
			continue;
		}
		if (!t->fl || start >= end || start < (int64_t)t->snd_una ||
		    end > (int64_t)t->snd_nxt)
			continue;
		sack_block(env, t, ctx, (uint64_t)start, (uint64_t)end, now_ns);
	}
}

static void cumulative(struct env *env, struct tcb *t, struct ack_ctx *ctx, uint64_t ack,
		       uint64_t now_ns)
{
	struct flight *fl = t->fl;
	struct end *peer = tcb_peer(t);

	while (fl && fl->count) {
		struct seg *s = flight_seg(fl, fl->head);

		if (seg_end(s) > ack) {
			if (s->seq < ack) {
				struct seg part = *s;

				part.len = (uint32_t)(ack - s->seq);
				if (!(s->flags & SEG_SACKED))
					delivered(env, t, ctx, &part, now_ns);
				flight_trim_head(fl, ack);
			}
			break;
		}
		if (!(s->flags & SEG_SACKED))
			delivered(env, t, ctx, s, now_ns);
		flight_pop(fl);
		ctx->popped_segs++;
	}
	ctx->advanced = true;
	t->snd_una = ack;
	hold_app_answers(env, t);
	t->retries = t->backoff = 0;
	stream_drop(&env->mem, &t->snd, min_u64(ack - 1, t->snd.tail));
	if (!stream_held(&t->snd) && !peer->ooo)
		stream_release(&env->mem, &t->snd);
	end_ops_of(env, peer)->passed(env, peer);
}

static void window_update(struct env *env, struct tcb *t, const struct pkt *pkt, uint64_t seq,
			  uint64_t ack)
{
	uint32_t wnd = (uint32_t)pkt->wnd << t->snd_wscale;

	if (ack <= t->snd_una && seq <= t->snd_wl1 &&
	    !(seq == t->snd_wl1 && (wnd > t->snd_wnd || !wnd)))
		return;
	if (wnd > t->snd_wnd || ack > t->snd_una)
		tcp_ready(env, t);
	t->snd_wnd = wnd;
	t->snd_wl1 = seq;
	if (wnd > t->max_wnd)
		t->max_wnd = wnd;
}

/* RFC 8985 section 7.4.2 */
static void tlp_process(struct tcb *t, const struct ack_ctx *ctx, const struct pkt *pkt,
			uint64_t ack, uint64_t now_ns)
{
	struct flight *fl = t->fl;
	struct cc *cc = &tcb_outer(t)->cc;

	if (!fl->tlp_end || ack < fl->tlp_end)
		return;
	if (!fl->tlp_is_retrans || ctx->dsack) {
		fl->tlp_end = 0;
	} else if (ack > fl->tlp_end) {
		fl->tlp_end = 0;
		/* the probe repaired a loss that nothing else will report */
		if (tcb_is_outer(t) && !(t->flags & TF_RECOVERY)) {
			if (tcb_outer(t)->copying && !(t->flags & TF_TS))
				loss_count(t, 1, 1, 0, 0);
			cc->ops->on_enter_recovery(cc, now_ns);
			cc->ops->on_exit_recovery(cc, now_ns);
		}
	} else if (!pkt->n_sack && !pkt->payload_len && !ctx->advanced) {
		fl->tlp_end = 0;
	}
}

static void rate_sample(struct outer *o, struct ack_ctx *ctx, uint64_t min_rtt_ns, uint64_t now_ns)
{
	struct cc_sample *s = &ctx->s;
	uint64_t send_ns, ack_ns;

	s->delivered_bytes = o->delivered_bytes;
	if (o->app_limited_until && o->delivered_bytes > o->app_limited_until)
		o->app_limited_until = 0;
	if (!ctx->has_best)
		return;
	s->prior_delivered_bytes = ctx->best.delivered_bytes;
	s->interval_delivered_bytes = o->delivered_bytes - ctx->best.delivered_bytes;
	s->interval_lost_bytes = o->lost_bytes - ctx->best.lost_total_bytes;
	s->tx_inflight_bytes = ctx->best.tx_inflight_bytes;
	s->app_limited = !!(ctx->best.flags & SEG_APP_LIMITED);
	o->first_tx_ns = ctx->best.xmit_ns;
	send_ns = ctx->best.xmit_ns - ctx->best.first_tx_ns;
	ack_ns = now_ns - ctx->best.delivered_ns;
	s->interval_ns = max_u64(send_ns, ack_ns);
	if (min_rtt_ns != NEVER && s->interval_ns < min_rtt_ns)
		s->interval_ns = 0; /* faster than light: ACKs were compressed */
	if (s->interval_ns)
		o->delivery_Bps = (uint64_t)((double)s->interval_delivered_bytes * 1e9 /
					     (double)s->interval_ns);
}

static void cc_inputs(struct tcb *t)
{
	struct cc *cc = &tcb_outer(t)->cc;

	cc->mss = t->mss;
	cc->srtt_ns = t->srtt_ns;
	cc->min_rtt_ns = tcp_min_rtt_ns(t);
	cc->inflight_bytes = tcp_inflight(t);
	cc->in_recovery = !!(t->flags & TF_RECOVERY);
}

/*
 * What a copy repaired was lost all the same (RFC 9265 section 3). Nothing has to be sent again, so
 * it is a recovery that is over when it begins, once in a round trip.
 */
static void tell_repaired(struct tcb *t, struct ack_ctx *ctx, uint64_t now_ns)
{
	struct outer *o = tcb_outer(t);

	ctx->s.lost_bytes += ctx->told.repaired_bytes;
	if ((t->flags & TF_RECOVERY) || t->snd_una < o->copy_told_end)
		return;
	o->copy_told_end = t->snd_nxt;
	o->cc.ops->on_enter_recovery(&o->cc, now_ns);
	o->cc.ops->on_exit_recovery(&o->cc, now_ns);
}

/* Everything is known: tell the congestion control, in the order cc.h promises */
static void cc_tell(struct env *env, struct tcb *t, struct ack_ctx *ctx, uint64_t now_ns)
{
	struct outer *o = tcb_outer(t);
	bool safe;

	if (tcb_is_outer(t)) {
		o->lost_bytes += ctx->s.lost_bytes + ctx->told.repaired_bytes;
		rate_sample(o, ctx, tcp_min_rtt_ns(t), now_ns);
	}
	if ((t->flags & TF_RECOVERY) && (!t->fl || t->snd_una >= t->fl->recovery_end))
		tcp_exit_recovery(t, now_ns);
	if (tcb_is_outer(t))
		cc_inputs(t);
	if (ctx->undo)
		undo_reduction(env, t, now_ns);
	if (ctx->s.lost_bytes && !(t->flags & TF_RECOVERY))
		tcp_enter_recovery(env, t, ctx->delivered_bytes, now_ns);
	ctx->s.in_order = ctx->advanced || (t->flags & TF_REORD);
	if (!tcb_is_outer(t)) {
		if (ctx->s.lost_bytes)
			inner_lost(t, ctx->s.acked_bytes);
		else
			inner_acked(t, ctx->s.acked_bytes);
		return;
	}
	ctx->s.loss_delay_ns = t->fl ? rack_window_ns(t) : 0;
	safe = ctx->advanced && !ctx->s.lost_bytes;
	if (unlikely(ctx->told.repaired_bytes))
		tell_repaired(t, ctx, now_ns);
	if (ctx->s.acked_bytes || ctx->s.lost_bytes || ctx->s.ece)
		o->cc.ops->on_ack(&o->cc, &ctx->s);
	prr_ack(t, ctx->delivered_bytes, safe);
}

/*
 * Each duplicate stands for a segment, up to what is outstanding: a peer may send any
 * number of them
 */
static uint64_t arrived_without_sack(const struct tcb *t)
{
	uint64_t dups = t->fl ? (uint64_t)t->fl->reno_dups * t->mss : 0;

	return t->snd_una + min_u64(dups, t->snd_nxt - t->snd_una);
}

/* NewReno (RFC 6582) stands in for RACK with a peer that has no SACK */
static uint64_t reno_detect(struct tcb *t, const struct ack_ctx *ctx)
{
	struct flight *fl = t->fl;
	struct seg *s;

	if (ctx->advanced)
		fl->reno_dups -= min_u32(fl->reno_dups, ctx->popped_segs);
	if (!fl->count)
		return 0;
	s = flight_seg(fl, fl->head);
	if (s->flags & SEG_LOST)
		return 0;
	if (t->flags & TF_RECOVERY) {
		/* a partial ACK: the next hole was lost too */
		if (!ctx->advanced || t->snd_una >= fl->recovery_end || (s->flags & SEG_RETRANS))
			return 0;
		/* RFC 6582 section 3.2 step 3, however little has arrived */
		t->flags |= TF_FORCE_RTX;
	} else if (fl->reno_dups < TCP_DUP_THRESH) {
		return 0;
	}
	flight_mark_lost(fl, fl->head, true);
	return s->len;
}

static void after_flight(struct env *env, struct tcb *t, struct ack_ctx *ctx, uint64_t now_ns)
{
	uint64_t wait_ns = 0;

	if (ctx->reordered)
		rack_reordered(t);
	if (t->flags & TF_SACK) {
		ctx->s.lost_bytes = rack_detect(t, now_ns, &wait_ns);
		ctx->delivered_bytes = ctx->s.acked_bytes;
	} else {
		ctx->s.lost_bytes = reno_detect(t, ctx);
		ctx->delivered_bytes =
			max_u64(arrived_without_sack(t), ctx->arrived) - ctx->arrived;
	}
	if (!t->fl->count) {
		flight_destroy(&env->mem, t->fl);
		t->fl = NULL;
		tcp_set_rtx(env, t, RTX_NONE, NEVER);
	}
	cc_tell(env, t, ctx, now_ns);
	if (ctx->delivered_bytes || ctx->s.acked_bytes || ctx->s.lost_bytes)
		tcp_ready(env, t);
	if (!t->fl)
		return;
	if (ctx->advanced || ctx->s.acked_bytes)
		t->fl->rto_ns = now_ns + tcp_rto_ns(env, t);
	if (wait_ns)
		tcp_set_rtx(env, t, RTX_REO, min_u64(now_ns + wait_ns, t->fl->rto_ns));
	else if (ctx->advanced || ctx->s.acked_bytes || ctx->s.lost_bytes)
		tcp_rearm(env, t, now_ns);
}

/* A tail loss probe arrived, and not what it repeats, says the echo; nothing else tells of that
 * loss when nothing follows */
static bool probe_was_needed(const struct tcb *t, const struct ack_ctx *ctx)
{
	const struct flight *fl = t->fl;

	return fl && fl->tlp_end && fl->tlp_is_retrans && ctx->advanced &&
	       t->snd_una >= fl->tlp_end && (t->flags & TF_TS) && ctx->has_best &&
	       ctx->told.pkt->tsecr == tcp_ts_now(t, ctx->best.xmit_ns);
}

static void tell_loss(struct env *env, struct tcb *t, const struct ack_ctx *ctx, uint64_t now_ns)
{
	bool lone;

	if (ctx->s.ece)
		loss_marked(t, now_ns);
	if (unlikely(probe_was_needed(t, ctx)))
		loss_count(t, 1, 1, 0, 0);
	lone = ctx->alone && ctx->has_best && ctx->best.tx_inflight_bytes <= ctx->best.len;
	loss_ack(env, t, ctx->plain_segs, ctx->s.rtt_ns, lone, now_ns);
}

bool tcp_ack_ok(const struct tcb *t, uint32_t field)
{
	int64_t ack = snd_unwrap(t, field);

	return ack <= (int64_t)t->snd_nxt && ack >= (int64_t)t->snd_una - (int64_t)t->max_wnd;
}

void tcp_ack(struct env *env, struct tcb *t, const struct pkt *pkt, uint64_t seq, uint64_t now_ns)
{
	int64_t ack = snd_unwrap(t, pkt->ack);
	uint32_t old_wnd = t->snd_wnd;
	struct ack_ctx ctx = {.s.now_ns = now_ns,
			      .alone = t->fl && t->fl->count == 1,
			      .told = {.pkt = pkt, .ack = (uint64_t)(ack < 0 ? 0 : ack)}};

	ctx.s.prior_inflight_bytes = tcp_inflight(t);
	ctx.arrived = arrived_without_sack(t);
	ctx.old_fack = t->fl ? t->fl->fack : 0;
	if (ack >= (int64_t)t->snd_una) {
		window_update(env, t, pkt, seq, (uint64_t)ack);
		if (!t->fl) { /* an answer to a zero-window probe */
			hold_app_answers(env, t);
			t->retries = 0;
		}
	}
	if (t->fl && !(t->flags & TF_SACK) && ack == (int64_t)t->snd_una && !pkt->payload_len &&
	    !(pkt->flags & TH_FIN) && t->snd_wnd == old_wnd)
		t->fl->reno_dups++;
	if ((t->flags & TF_SACK) && pkt->n_sack)
		sack_process(env, t, &ctx, pkt, ack, now_ns);
	if (ack > (int64_t)t->snd_una)
		cumulative(env, t, &ctx, (uint64_t)ack, now_ns);
	if (ctx.probe)
		pmtu_probe_arrived(env, t);
	if (tcb_is_outer(t)) {
		ctx.s.ece = ecn_echoed(env, t, pkt, ctx.delivered_segs);
		ctx.undo |= ctx.advanced && undo_by_echo(t, pkt);
		ctx.undo |= undo_frto(t, ctx.advanced, ctx.s.acked_bytes, ctx.original,
				      pkt->payload_len);
	}
	if (tcb_is_outer(t) && tcb_outer(t)->copying)
		tell_loss(env, t, &ctx, now_ns);
	if (!t->fl) {
		if (ctx.undo) /* a DSACK after all is acknowledged */
			undo_reduction(env, t, now_ns);
		return;
	}
	ctx.told.repaired_bytes += parity_told(env, t, pkt);
	if (ctx.s.rtt_ns) {
		tcp_rtt_sample(env, t, ctx.s.rtt_ns, now_ns);
		t->backoff = 0; /* a new measurement ends it (RFC 6298 section 5), by SACK, too */
	}
	tlp_process(t, &ctx, pkt, (uint64_t)(ack < 0 ? 0 : ack), now_ns);
	after_flight(env, t, &ctx, now_ns);
}

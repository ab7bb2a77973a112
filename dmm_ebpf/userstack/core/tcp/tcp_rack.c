/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_rack.c: loss detection by time (RACK-TLP, RFC 8985).
 *
 * A segment is lost when one sent later has arrived and the reordering window has passed since. The
 * tx list of struct flight is ordered by the last transmission, so retransmissions that were lost
 * are found like first transmissions, and each look stops at the first segment that is not old
 * enough.
 */
#include "tcp_int.h"
#include "tcp_parity.h"

/*
 * Reordering is no chance when it was seen so often, each time within so many segments of the last;
 * what is seen sooner than after a few segments is the same event; and it is over when none was
 * seen for long. And how far the window grows by DSACKs then.
 */
enum {
	REORD_EVENTS = 8,
	REORD_SEGS = 500,
	REORD_EVENT_SEGS = 32,
	REORD_OVER_SEGS = 10 * REORD_SEGS,
	MULT_MAX = 200,
	TOLERANT_MULT_MAX = 2,
};

/* What arrived last, by time of transmission, was sent after s? */
static bool sent_before_rack(const struct flight *fl, const struct seg *s)
{
	return fl->rack_xmit_ns > s->xmit_ns ||
	       (fl->rack_xmit_ns == s->xmit_ns && fl->rack_order > s->order);
}

/*
 * A retransmission is acknowledged sooner than what was sent only once, just now: through the same
 * queue it cannot have come faster, so the ACK is for an earlier transmission. Believed, it would
 * make all that was sent between the two look lost.
 */
static bool faster_than_others(const struct flight *fl, uint64_t rtt_ns, uint64_t now_ns)
{
	return now_ns - fl->sure_ns <= fl->sure_rtt_ns / 4 &&
	       rtt_ns + fl->sure_rtt_ns / 64 < fl->sure_rtt_ns;
}

static bool faster_than_light(const struct tcb *t, uint64_t rtt_ns)
{
	uint64_t min_rtt_ns = tcp_min_rtt_ns(t);

	return min_rtt_ns != NEVER && rtt_ns < min_rtt_ns;
}

bool rack_told_late(const struct tcb *t, const struct seg *s, uint64_t now_ns)
{
	uint64_t rtt_ns = now_ns - s->xmit_ns;

	return s->flags & SEG_RETRANS &&
	       (faster_than_light(t, rtt_ns) || faster_than_others(t->fl, rtt_ns, now_ns));
}

/*
 * RFC 8985 section 6.2 steps 1 to 3; true: reordering. Only what an earlier ACK had overtaken came
 * out of order: the blocks of one ACK stand in no order, and one that stands for several lost ones
 * brings older segments besides newer. A retransmission is ambiguous, unless it is acknowledged
 * sooner than it can have arrived: then the first transmission came late.
 */
bool rack_update(struct tcb *t, const struct seg *s, bool told_late, uint64_t old_fack,
		 uint64_t now_ns)
{
	struct flight *fl = t->fl;
	uint64_t rtt_ns = now_ns - s->xmit_ns;
	uint64_t end = seg_end(s);
	bool overtaken = end < old_fack && !(s->flags & SEG_COPIED);

	if (s->flags & SEG_RETRANS) {
		overtaken = overtaken && faster_than_light(t, rtt_ns);
	} else if (!(s->flags & SEG_COPIED)) {
		fl->sure_rtt_ns = rtt_ns;
		fl->sure_ns = now_ns;
	}
	if (told_late)
		return overtaken;
	if (end > fl->fack)
		fl->fack = end;
	if (!sent_before_rack(fl, s)) {
		fl->rack_xmit_ns = s->xmit_ns;
		fl->rack_order = s->order;
		fl->rack_rtt_ns = rtt_ns;
	}
	return overtaken;
}

static bool tolerates_loss(const struct tcb *t)
{
	return tcb_is_outer(t) && tcb_outer(t)->cc.ops->loss_tolerant;
}

/*
 * From now on a reordering window is waited for. Where ACKs are lost as well, a SACK block may be
 * told of late, when three ACKs with it were lost, and look like reordering; then every loss would
 * cost a quarter of a round trip more, and one that is lost again and again, several. A congestion
 * control that takes no single loss for congestion is not hurt by a few needless retransmissions:
 * with it seldom is never.
 */
void rack_reordered(struct tcb *t)
{
	struct outer *o = tcb_outer(t);
	uint32_t since_bytes;

	if (!tolerates_loss(t)) {
		t->flags |= TF_REORD;
		return;
	}
	since_bytes = (uint32_t)o->delivered_bytes - o->reord_delivered;
	if (o->reord_events && since_bytes < REORD_EVENT_SEGS * (uint64_t)t->mss)
		return;
	o->reord_delivered = (uint32_t)o->delivered_bytes;
	o->reord_events = since_bytes <= REORD_SEGS * (uint64_t)t->mss ? o->reord_events + 1 : 1;
	if (o->reord_events >= REORD_EVENTS)
		t->flags |= TF_REORD;
}

/* One lump of late ACKs must not cost every loss a longer wait from then on */
static void reordering_over(struct tcb *t)
{
	struct outer *o = tcb_outer(t);

	if (!(t->flags & TF_REORD) || !tolerates_loss(t) ||
	    (uint32_t)o->delivered_bytes - o->reord_delivered <= REORD_OVER_SEGS * (uint64_t)t->mss)
		return;
	t->flags &= ~(uint32_t)TF_REORD;
	t->rack_mult = 1;
	o->reord_events = 0;
}

/* Step 4: without reordering, wait no longer than three duplicates did, or than parity may take */
uint64_t rack_window_ns(const struct tcb *t)
{
	uint64_t least_ns = parity_patience_ns(t);
	uint64_t min_rtt_ns = tcp_min_rtt_ns(t);
	uint32_t mult = t->rack_mult ? t->rack_mult : 1;

	if (!(t->flags & TF_REORD) &&
	    ((t->flags & TF_RECOVERY) || t->fl->n_sacked >= TCP_DUP_THRESH))
		return least_ns;
	if (min_rtt_ns == NEVER)
		min_rtt_ns = t->srtt_ns;
	return max_u64(min_u64(mult * (min_rtt_ns / 4), t->srtt_ns), least_ns);
}

/* Step 5 */
uint64_t rack_detect(struct tcb *t, uint64_t now_ns, uint64_t *wait_ns)
{
	struct flight *fl = t->fl;
	uint64_t window_ns, lost = 0;

	*wait_ns = 0;
	if (!fl->rack_order)
		return 0;
	reordering_over(t);
	window_ns = rack_window_ns(t);
	while (fl->tx.head != FLIGHT_NIL) {
		uint32_t idx = fl->tx.head;
		struct seg *s = flight_seg(fl, idx);
		uint64_t deadline_ns = s->xmit_ns + fl->rack_rtt_ns + window_ns;

		if (!sent_before_rack(fl, s))
			break;
		if (deadline_ns > now_ns) {
			*wait_ns = deadline_ns - now_ns;
			break;
		}
		lost += s->len;
		if (tcb_is_outer(t))
			copies_lost(t, s);
		flight_mark_lost(fl, idx, s->flags & SEG_RETRANS);
	}
	return lost;
}

/*
 * A duplicate arrived: the window was too small; once a round trip is enough (section 6.2 step 4)
 */
void rack_dsack(struct tcb *t)
{
	uint32_t most = tolerates_loss(t) ? TOLERANT_MULT_MAX : MULT_MAX;

	if (t->snd_una < t->rack_dsack_round)
		return;
	t->rack_dsack_round = t->snd_nxt;
	/*
	 * where many ACKs are lost there are duplicates in every round trip, however long one waits
	 */
	t->rack_mult = (uint8_t)(t->rack_mult ? min_u32(t->rack_mult + 1u, most) : 2);
	t->rack_persist = 16;
}

/*
 * After a timeout (section 6.3, RFC 6298): all that is not SACKed is sent again, in sequence order
 */
uint64_t rack_mark_all_lost(struct tcb *t)
{
	struct flight *fl = t->fl;
	uint64_t lost = 0;

	if (flight_seg(fl, fl->head)->flags & SEG_SACKED)
		flight_renege(fl);
	for (uint32_t i = 0; i < fl->count; i++) {
		uint32_t idx = flight_idx(fl, i);
		struct seg *s = flight_seg(fl, idx);

		if (s->flags & SEG_SACKED)
			continue;
		if (!(s->flags & SEG_LOST))
			lost += s->len;
		flight_mark_lost(fl, idx, false);
	}
	fl->reno_dups = 0;
	return lost;
}

void tcp_enter_recovery(struct env *env, struct tcb *t, uint64_t delivered_bytes, uint64_t now_ns)
{
	struct cc *cc = &tcb_outer(t)->cc;

	t->flags |= TF_RECOVERY | TF_FORCE_RTX;
	if (t->fl)
		t->fl->recovery_end = t->snd_nxt;
	tcp_ready(env, t);
	if (!tcb_is_outer(t))
		return;
	undo_on_recovery(t);
	ecn_reduced(t);
	cc->in_recovery = 1;
	cc->ops->on_enter_recovery(cc, now_ns);
	prr_start(t, delivered_bytes);
}

void tcp_report_loss(struct env *env, struct tcb *t, uint64_t lost_bytes, uint64_t now_ns)
{
	struct outer *o = tcb_outer(t);
	struct cc_sample s = {.now_ns = now_ns, .lost_bytes = lost_bytes};

	if (!lost_bytes)
		return;
	if (!(t->flags & TF_RECOVERY))
		tcp_enter_recovery(env, t, 0, now_ns);
	tcp_ready(env, t);
	if (!tcb_is_outer(t)) {
		inner_lost(t, 0);
		return;
	}
	o->lost_bytes += lost_bytes;
	o->cc.inflight_bytes = tcp_inflight(t);
	s.prior_inflight_bytes = o->cc.inflight_bytes + lost_bytes;
	s.delivered_bytes = o->delivered_bytes;
	o->cc.ops->on_ack(&o->cc, &s);
}

/* RFC 8985 section 7.2 */
uint64_t tcp_pto_ns(const struct tcb *t)
{
	uint64_t pto_ns = t->srtt_ns ? 2 * t->srtt_ns : NS_PER_S;

	/* one segment alone: its ACK may be delayed at the peer */
	if (t->fl && t->fl->count == 1)
		pto_ns += TCP_MIN_RTO_MS * NS_PER_MS;
	return max_u64(pto_ns, 2 * NS_PER_MS);
}

bool tcp_tlp_allowed(const struct tcb *t)
{
	return (t->flags & TF_SACK) && !(t->flags & TF_RECOVERY) && t->fl && !t->fl->n_sacked &&
	       !t->fl->lost_bytes && !t->fl->tlp_end && !t->backoff;
}

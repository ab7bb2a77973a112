/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cc_bbr.c: BBR as draft-ietf-ccwg-bbr-06 has it (version 3).
 *
 * Function by function the draft's pseudocode; quoted words are its section titles. Where cc.h
 * tells less than the draft assumes:
 * - Losses come as a sum for each ACK, not packet by packet. HandleLostPacket() therefore works on
 * the rate sample: RS.lost and RS.tx_in_flight are those of the newest packet acknowledged, which
 * was sent after the lost ones and with no less in flight; InflightAtLoss() has nothing left to
 * solve.
 * - C.is_cwnd_limited is inferred: a send quantum more would not have fitted in cwnd before this
 * ACK.
 * - MarkConnectionAppLimited() in ProbeRTT is a mark of its own (limited_until).
 * The draft leaves ECN open; an echo is taken for a loss above the threshold, once a round trip.
 *
 * By design it holds more than 2 % loss in a round for congestion: on paths that lose more at
 * random use wan.
 *
 * Invariants: cwnd_bytes >= 1 mss, >= 4 mss after the next ACK; pacing_Bps >= 1 after init.
 * Refuses: floating point, clocks, allocation, any state outside struct cc.
 */
#include "cc_bbr_model.h"

static uint32_t bbr_pacing_gain(const struct bbr *b)
{
	switch (b->state) {
	case STARTUP:
		return STARTUP_PACING_GAIN;
	case DRAIN:
		return DRAIN_PACING_GAIN;
	case PROBE_BW_DOWN:
		return DOWN_PACING_GAIN;
	case PROBE_BW_UP:
		return UP_PACING_GAIN;
	default:
		return UNIT;
	}
}

static uint32_t bbr_cwnd_gain(const struct bbr *b)
{
	if (b->state == PROBE_BW_UP)
		return UP_CWND_GAIN;
	return b->state == PROBE_RTT ? PROBE_RTT_CWND_GAIN : DEFAULT_CWND_GAIN;
}

/* "Send Quantum: C.send_quantum" */
static uint64_t bbr_send_quantum(const struct cc *cc)
{
	return max_u64(min_u64(cc->pacing_Bps / 1000, 65536), 2ull * cc->mss);
}

/* BDPMultiple(); without an RTT sample as much as cwnd is now, the initial one */
static uint64_t bbr_bdp(const struct cc *cc, const struct bbr *b, uint64_t bw, uint32_t gain)
{
	if (b->min_rtt_ns == INFINITE)
		return cc->cwnd_bytes;
	return mul_div(mul_div(bw, b->min_rtt_ns, NS_PER_S), gain, UNIT);
}

/* QuantizationBudget() */
static uint64_t bbr_quantized(const struct cc *cc, const struct bbr *b, uint64_t inflight)
{
	inflight = max_u64(inflight, 3 * bbr_send_quantum(cc));
	inflight = max_u64(inflight, (uint64_t)MIN_PIPE_SEGS * cc->mss);
	return inflight + (b->state == PROBE_BW_UP ? 2ull * cc->mss : 0);
}

/* TargetInflight() */
static uint64_t bbr_target_inflight(const struct cc *cc, const struct bbr *b)
{
	return min_u64(bbr_bdp(cc, b, b->bw, UNIT), cc->cwnd_bytes);
}

/* InflightWithHeadroom(): Headroom is 0.15 */
static uint64_t bbr_inflight_with_headroom(const struct cc *cc, const struct bbr *b)
{
	uint64_t headroom;

	if (b->inflight_longterm == INFINITE)
		return INFINITE;
	headroom = max_u64(cc->mss, mul_div(b->inflight_longterm, 15, 100));
	return max_u64(b->inflight_longterm - min_u64(b->inflight_longterm, headroom),
		       (uint64_t)MIN_PIPE_SEGS * cc->mss);
}

/* ---- cwnd across recovery: "Modulating cwnd in Loss Recovery" ---- */

static void bbr_save_cwnd(const struct cc *cc, struct bbr *b)
{
	if (b->flags & F_IN_RECOVERY || b->state == PROBE_RTT)
		b->prior_cwnd = max_u64(b->prior_cwnd, cc->cwnd_bytes);
	else
		b->prior_cwnd = cc->cwnd_bytes;
}

static void bbr_restore_cwnd(struct cc *cc, const struct bbr *b)
{
	cc->cwnd_bytes = max_u64(cc->cwnd_bytes, b->prior_cwnd);
}

/* "Saving State Upon Loss Recovery" */
static void bbr_save_state_upon_loss(const struct cc *cc, struct bbr *b)
{
	bbr_save_cwnd(cc, b);
	b->undo_state = UNDO_NONE;
	b->undo_bw_shortterm = b->bw_shortterm;
	b->undo_inflight_shortterm = b->inflight_shortterm;
	b->undo_inflight_longterm = b->inflight_longterm;
}

/* ---- "ProbeBW Algorithm Details" ---- */

static void bbr_pick_probe_wait(struct cc *cc, struct bbr *b)
{
	uint64_t r = xorshift64(&cc->rng);

	b->rounds_since_probe_up = r & 1;
	b->bw_probe_wait_ns = 2 * NS_PER_S + (r >> 1) % NS_PER_S;
}

static void bbr_start_down(struct cc *cc, struct bbr *b, uint64_t now_ns)
{
	bbr_reset_congestion_signals(b);
	b->probe_up_acked_per_inc = INFINITE;
	bbr_pick_probe_wait(cc, b);
	b->cycle_stamp_ns = now_ns;
	b->ack_phase = ACKS_PROBE_STOPPING;
	bbr_start_round(b);
	b->state = PROBE_BW_DOWN;
}

static void bbr_start_refill(struct bbr *b)
{
	bbr_reset_short_term(b);
	b->bw_probe_up_rounds = 0;
	b->bw_probe_up_acked = 0;
	b->flags &= ~(uint32_t)F_PREV_PROBE_PRECAUTIONARY;
	b->ack_phase = ACKS_REFILLING;
	bbr_start_round(b);
	b->state = PROBE_BW_REFILL;
}

static void bbr_raise_longterm_slope(const struct cc *cc, struct bbr *b)
{
	uint64_t growth_this_round = 1ull << b->bw_probe_up_rounds;

	b->bw_probe_up_rounds = (uint8_t)min_u32(b->bw_probe_up_rounds + 1u, 30);
	b->probe_up_acked_per_inc = max_u64(cc->cwnd_bytes / growth_this_round, cc->mss);
}

static void bbr_start_up(const struct cc *cc, struct bbr *b, const struct cc_sample *s)
{
	b->ack_phase = ACKS_PROBE_STARTING;
	bbr_start_round(b);
	bbr_reset_full_bw(b, bbr_delivery_rate(s));
	b->state = PROBE_BW_UP;
	bbr_raise_longterm_slope(cc, b);
}

/* IsTimeToProbeBW(), which begins the probe */
static bool bbr_time_to_probe(const struct cc *cc, struct bbr *b, const struct cc_sample *s)
{
	uint64_t reno_rounds = min_u64(bbr_target_inflight(cc, b) / cc->mss, RENO_ROUNDS_MAX);

	if (s->now_ns <= b->cycle_stamp_ns + b->bw_probe_wait_ns &&
	    b->rounds_since_probe_up < reno_rounds)
		return false;
	bbr_start_refill(b);
	return true;
}

static bool bbr_time_to_cruise(const struct cc *cc, const struct bbr *b)
{
	return cc->inflight_bytes <= bbr_inflight_with_headroom(cc, b) &&
	       cc->inflight_bytes <= bbr_quantized(cc, b, bbr_bdp(cc, b, bbr_max_bw(b), UNIT));
}

static bool bbr_time_to_go_down(const struct cc *cc, struct bbr *b, const struct cc_sample *s)
{
	/* "Precautionary Bandwidth Probing": deceleration */
	if (b->flags & F_PREV_PROBE_TOO_HIGH && cc->inflight_bytes >= b->inflight_longterm) {
		b->flags |= F_PREV_PROBE_PRECAUTIONARY;
		return true;
	}
	if (b->flags & F_CWND_LIMITED && cc->cwnd_bytes >= b->inflight_longterm) {
		bbr_reset_full_bw(b, bbr_delivery_rate(s)); /* the limit is ours, not the path's */
		return false;
	}
	return b->flags & F_FULL_BW_NOW;
}

static void bbr_probe_longterm_upward(const struct cc *cc, struct bbr *b, const struct cc_sample *s)
{
	uint64_t steps;

	if (!(b->flags & F_CWND_LIMITED) || cc->cwnd_bytes < b->inflight_longterm)
		return;
	b->bw_probe_up_acked += s->acked_bytes;
	if (b->bw_probe_up_acked >= b->probe_up_acked_per_inc) {
		steps = b->bw_probe_up_acked / b->probe_up_acked_per_inc;
		b->bw_probe_up_acked -= steps * b->probe_up_acked_per_inc;
		b->inflight_longterm += steps * cc->mss;
	}
	if (b->flags & F_ROUND_START)
		bbr_raise_longterm_slope(cc, b);
}

/* "Probing for Bandwidth In ProbeBW" */
static void bbr_handle_inflight_too_high(struct cc *cc, struct bbr *b, const struct cc_sample *s)
{
	b->flags |= F_PREV_PROBE_TOO_HIGH;
	b->flags &= ~(uint32_t)F_BW_PROBE_SAMPLE;
	if (!(b->flags & F_APP_LIMITED))
		b->inflight_longterm =
			max_u64(s->tx_inflight_bytes, bbr_beta(bbr_target_inflight(cc, b)));
	if (b->state == PROBE_BW_UP) {
		b->undo_state = PROBE_BW_UP;
		bbr_start_down(cc, b, s->now_ns);
	}
}

/* AdaptLongTermModel() up to the judgement of losses; true: it decided a state transition */
static bool bbr_advance_ack_phase(struct bbr *b)
{
	if (!(b->flags & F_ROUND_START))
		return false;
	if (b->ack_phase == ACKS_PROBE_STARTING)
		b->ack_phase = ACKS_PROBE_FEEDBACK;
	if (b->ack_phase != ACKS_PROBE_STOPPING)
		return false;
	b->flags &= ~(uint32_t)F_BW_PROBE_SAMPLE;
	b->ack_phase = ACKS_INIT;
	if (!bbr_in_probe_bw(b))
		return false;
	if (!(b->flags & F_APP_LIMITED))
		bbr_advance_max_bw(b);
	/* "Precautionary Bandwidth Probing": acceleration */
	if (!(b->flags & F_PREV_PROBE_PRECAUTIONARY) || b->flags & F_PREV_PROBE_TOO_HIGH)
		return false;
	bbr_start_refill(b);
	return true;
}

static bool bbr_adapt_long_term(struct cc *cc, struct bbr *b, const struct cc_sample *s)
{
	if (bbr_advance_ack_phase(b))
		return true;
	if (!s->acked_bytes)
		return false;
	if (bbr_inflight_too_high(b, s)) {
		if (!(b->flags & F_BW_PROBE_SAMPLE))
			return false;
		bbr_handle_inflight_too_high(cc, b, s);
		return true;
	}
	if (b->inflight_longterm == INFINITE)
		return false;
	b->inflight_longterm = max_u64(b->inflight_longterm, s->tx_inflight_bytes);
	if (b->state == PROBE_BW_UP)
		bbr_probe_longterm_upward(cc, b, s);
	return false;
}

static void bbr_update_cycle_phase(struct cc *cc, struct bbr *b, const struct cc_sample *s)
{
	if (!(b->flags & F_FULL_BW_REACHED) || bbr_adapt_long_term(cc, b, s))
		return;
	switch (b->state) {
	case PROBE_BW_DOWN:
		if (!bbr_time_to_probe(cc, b, s) && bbr_time_to_cruise(cc, b))
			b->state = PROBE_BW_CRUISE;
		break;
	case PROBE_BW_CRUISE:
		bbr_time_to_probe(cc, b, s);
		break;
	case PROBE_BW_REFILL:
		if (!(b->flags & F_ROUND_START))
			break;
		b->flags |= F_BW_PROBE_SAMPLE;
		bbr_start_up(cc, b, s);
		break;
	case PROBE_BW_UP:
		if (!bbr_time_to_go_down(cc, b, s))
			break;
		b->flags &= ~(uint32_t)F_PREV_PROBE_TOO_HIGH;
		bbr_start_down(cc, b, s->now_ns);
		break;
	}
}

/* ---- "Startup" and "Drain" ---- */

/* "Exiting Startup Based on Packet Loss" */
static void bbr_check_startup_high_loss(const struct cc *cc, struct bbr *b,
					const struct cc_sample *s)
{
	/*
	 * recovery and the loss round begin with the same loss, so this one saw a full
	 * round of recovery
	 */
	bool enough = b->loss_events >= STARTUP_FULL_LOSS_CNT && b->flags & F_IN_RECOVERY;

	if (!(b->flags & F_LOSS_ROUND_START))
		return;
	if (b->state == STARTUP && (enough || b->flags & F_ECE_IN_ROUND) &&
	    bbr_inflight_too_high(b, s)) {
		b->undo_state = STARTUP;
		b->flags |= F_FULL_BW_REACHED;
		b->inflight_longterm = max_u64(bbr_bdp(cc, b, b->bw, UNIT), b->inflight_latest);
	}
	b->loss_events = 0;
	b->flags &= ~(uint32_t)F_ECE_IN_ROUND;
}

static void bbr_check_startup_done(const struct cc *cc, struct bbr *b, const struct cc_sample *s)
{
	bbr_check_startup_high_loss(cc, b, s);
	if (b->state != STARTUP || !(b->flags & F_FULL_BW_REACHED))
		return;
	b->state = DRAIN;
	b->drain_start_round = (uint32_t)b->round_count;
}

static void bbr_check_drain_done(struct cc *cc, struct bbr *b, const struct cc_sample *s)
{
	if (b->state != DRAIN)
		return;
	if (cc->inflight_bytes <= bbr_quantized(cc, b, bbr_bdp(cc, b, b->bw, UNIT)) ||
	    (uint32_t)b->round_count - b->drain_start_round > 3)
		bbr_start_down(cc, b, s->now_ns);
}

/* ---- "ProbeRTT Logic" ---- */

static uint64_t bbr_probe_rtt_cwnd(const struct cc *cc, const struct bbr *b)
{
	return max_u64(bbr_bdp(cc, b, b->bw, PROBE_RTT_CWND_GAIN),
		       (uint64_t)MIN_PIPE_SEGS * cc->mss);
}

/* CheckProbeRTTDone() and "Exiting ProbeRTT" */
static void bbr_check_probe_rtt_done(struct cc *cc, struct bbr *b, uint64_t now_ns)
{
	if (!b->probe_rtt_done_stamp_ns || now_ns <= b->probe_rtt_done_stamp_ns)
		return;
	b->probe_rtt_min_stamp_ns = now_ns;
	bbr_restore_cwnd(cc, b);
	bbr_reset_short_term(b);
	if (b->flags & F_FULL_BW_REACHED) {
		bbr_start_down(cc, b, now_ns);
		b->state = PROBE_BW_CRUISE;
	} else {
		b->state = STARTUP;
	}
}

static void bbr_handle_probe_rtt(struct cc *cc, struct bbr *b, const struct cc_sample *s)
{
	b->limited_until = s->delivered_bytes + cc->inflight_bytes;
	if (!b->probe_rtt_done_stamp_ns) {
		if (cc->inflight_bytes > bbr_probe_rtt_cwnd(cc, b))
			return;
		b->probe_rtt_done_stamp_ns = s->now_ns + PROBE_RTT_DURATION_NS;
		b->flags &= ~(uint32_t)F_PROBE_RTT_ROUND_DONE;
		bbr_start_round(b);
		return;
	}
	if (b->flags & F_ROUND_START)
		b->flags |= F_PROBE_RTT_ROUND_DONE;
	if (b->flags & F_PROBE_RTT_ROUND_DONE)
		bbr_check_probe_rtt_done(cc, b, s->now_ns);
}

static void bbr_check_probe_rtt(struct cc *cc, struct bbr *b, const struct cc_sample *s)
{
	if (b->state != PROBE_RTT && b->flags & F_PROBE_RTT_EXPIRED &&
	    !(b->flags & F_IDLE_RESTART)) {
		bbr_save_cwnd(cc, b);
		b->state = PROBE_RTT;
		b->probe_rtt_done_stamp_ns = 0;
		b->ack_phase = ACKS_PROBE_STOPPING;
		bbr_start_round(b);
	}
	if (b->state == PROBE_RTT)
		bbr_handle_probe_rtt(cc, b, s);
	if (s->interval_delivered_bytes)
		b->flags &= ~(uint32_t)F_IDLE_RESTART;
}

/* ---- "Updating Control Parameters" ---- */

static void bbr_set_pacing_with_gain(struct cc *cc, const struct bbr *b, uint32_t gain)
{
	uint64_t rate = mul_div(b->bw, gain * (100ull - PACING_MARGIN_PERCENT), UNIT * 100);

	if (rate && (b->flags & F_FULL_BW_REACHED || rate > cc->pacing_Bps))
		cc->pacing_Bps = rate;
}

/* "Bounding cwnd Based on Recent Congestion" */
static void bbr_bound_cwnd_for_model(struct cc *cc, const struct bbr *b)
{
	uint64_t cap = INFINITE;

	if (b->state == PROBE_RTT || b->state == PROBE_BW_CRUISE)
		cap = bbr_inflight_with_headroom(cc, b);
	else if (bbr_in_probe_bw(b))
		cap = b->inflight_longterm;
	cap = max_u64(min_u64(cap, b->inflight_shortterm), (uint64_t)MIN_PIPE_SEGS * cc->mss);
	cc->cwnd_bytes = min_u64(cc->cwnd_bytes, cap);
}

/* "cwnd Adjustment Mechanism"; ten segments stand for C.InitialCwnd (RFC 6928) */
static void bbr_set_cwnd(struct cc *cc, struct bbr *b, const struct cc_sample *s)
{
	uint64_t max_inflight = bbr_bdp(cc, b, b->bw, bbr_cwnd_gain(b)) + b->extra_acked[0].value;

	max_inflight = bbr_quantized(cc, b, max_inflight);
	if (b->flags & F_FULL_BW_REACHED)
		cc->cwnd_bytes = min_u64(cc->cwnd_bytes + s->acked_bytes, max_inflight);
	else if (cc->cwnd_bytes < max_inflight || s->delivered_bytes < 10ull * cc->mss)
		cc->cwnd_bytes += s->acked_bytes;
	cc->cwnd_bytes = max_u64(cc->cwnd_bytes, (uint64_t)MIN_PIPE_SEGS * cc->mss);
	if (b->state == PROBE_RTT)
		cc->cwnd_bytes = min_u64(cc->cwnd_bytes, bbr_probe_rtt_cwnd(cc, b));
	bbr_bound_cwnd_for_model(cc, b);
}

/* NoteLoss() */
static void bbr_note_loss(const struct cc *cc, struct bbr *b, const struct cc_sample *s)
{
	if (!s->lost_bytes && !s->ece)
		return;
	if (!(b->flags & F_LOSS_IN_ROUND)) {
		b->loss_round_delivered = s->delivered_bytes;
		bbr_save_state_upon_loss(cc, b);
	}
	b->loss_events += b->loss_events < UINT8_MAX && s->lost_bytes;
	b->flags |= F_LOSS_IN_ROUND | (s->ece ? F_ECE_IN_ROUND : 0);
}

/* "Per-ACK Steps" */
static void bbr_on_ack(struct cc *cc, const struct cc_sample *s)
{
	struct bbr *b = bbr_of(cc);

	b->delivered = s->delivered_bytes;
	b->flags &= ~(uint32_t)(F_CWND_LIMITED | F_APP_LIMITED);
	if (s->prior_inflight_bytes + bbr_send_quantum(cc) > cc->cwnd_bytes)
		b->flags |= F_CWND_LIMITED;
	if (s->app_limited || s->prior_delivered_bytes < b->limited_until)
		b->flags |= F_APP_LIMITED;
	bbr_note_loss(cc, b, s);
	bbr_update_latest(b, s);
	bbr_update_congestion_signals(cc, b, s);
	bbr_update_ack_aggregation(cc, b, s);
	bbr_check_full_bw(b, s);
	bbr_check_startup_done(cc, b, s);
	bbr_check_drain_done(cc, b, s);
	bbr_update_cycle_phase(cc, b, s);
	bbr_update_min_rtt(b, s);
	bbr_check_probe_rtt(cc, b, s);
	bbr_advance_latest(b, s);
	b->bw = min_u64(bbr_max_bw(b), b->bw_shortterm);
	bbr_set_pacing_with_gain(cc, b, bbr_pacing_gain(b));
	bbr_set_cwnd(cc, b, s);
}

/* "Initialization" */
static void bbr_init(struct cc *cc, uint64_t now_ns)
{
	struct bbr *b = bbr_of(cc);
	uint64_t rtt_ns = cc->srtt_ns ? cc->srtt_ns : NS_PER_MS;

	memset(b, 0, sizeof(*b));
	b->state = STARTUP;
	b->undo_state = UNDO_NONE;
	b->min_rtt_ns = cc->srtt_ns ? cc->srtt_ns : INFINITE;
	b->min_rtt_stamp_ns = now_ns;
	b->probe_rtt_min_delay_ns = b->min_rtt_ns;
	b->probe_rtt_min_stamp_ns = now_ns;
	b->extra_acked_interval_start_ns = now_ns;
	b->inflight_longterm = INFINITE;
	b->probe_up_acked_per_inc = INFINITE;
	bbr_reset_short_term(b);
	cc->pacing_Bps =
		mul_div(mul_div(cc->cwnd_bytes, NS_PER_S, rtt_ns), STARTUP_PACING_GAIN, UNIT);
	cc->pacing_Bps = max_u64(cc->pacing_Bps, 1);
}

static void bbr_on_enter_recovery(struct cc *cc, uint64_t now_ns)
{
	struct bbr *b = bbr_of(cc);

	(void)now_ns;
	bbr_save_state_upon_loss(cc, b);
	b->flags |= F_IN_RECOVERY;
}

static void bbr_on_exit_recovery(struct cc *cc, uint64_t now_ns)
{
	struct bbr *b = bbr_of(cc);

	(void)now_ns;
	bbr_restore_cwnd(cc, b);
	b->flags &= ~(uint32_t)F_IN_RECOVERY;
}

/* OnEnterRTO() */
static void bbr_on_rto(struct cc *cc, uint64_t now_ns)
{
	struct bbr *b = bbr_of(cc);

	(void)now_ns;
	bbr_save_state_upon_loss(cc, b);
	b->flags |= F_IN_RECOVERY | F_LOSS_IN_ROUND;
	cc->cwnd_bytes = cc->inflight_bytes + cc->mss;
}

/* "Handling a Spurious Loss Recovery" */
static void bbr_on_undo(struct cc *cc, uint64_t now_ns)
{
	struct bbr *b = bbr_of(cc);

	(void)now_ns;
	bbr_restore_cwnd(cc, b);
	b->flags &= ~(uint32_t)F_LOSS_IN_ROUND;
	bbr_reset_full_bw(b, 0);
	b->bw_shortterm = max_u64(b->bw_shortterm, b->undo_bw_shortterm);
	b->inflight_shortterm = max_u64(b->inflight_shortterm, b->undo_inflight_shortterm);
	b->inflight_longterm = max_u64(b->inflight_longterm, b->undo_inflight_longterm);
	if (b->undo_state == STARTUP && b->state != STARTUP) {
		b->flags &= ~(uint32_t)F_FULL_BW_REACHED;
		if (b->state != PROBE_RTT)
			b->state = STARTUP;
	} else if (b->undo_state == PROBE_BW_UP && b->state != PROBE_BW_UP &&
		   b->state != PROBE_RTT) {
		bbr_start_refill(b);
	}
	b->undo_state = UNDO_NONE;
}

/* "Actions when Restarting from Idle" */
static void bbr_on_restart(struct cc *cc, uint64_t idle_ns, uint64_t now_ns)
{
	struct bbr *b = bbr_of(cc);

	(void)idle_ns;
	b->flags |= F_IDLE_RESTART;
	b->extra_acked_interval_start_ns = now_ns;
	b->extra_acked_delivered = 0;
	if (bbr_in_probe_bw(b))
		bbr_set_pacing_with_gain(cc, b, UNIT);
	else if (b->state == PROBE_RTT)
		bbr_check_probe_rtt_done(cc, b, now_ns);
}

const struct cc_ops cc_bbr = {
	.name = "bbr",
	.loss_tolerant = 1,
	.init = bbr_init,
	.on_ack = bbr_on_ack,
	.on_enter_recovery = bbr_on_enter_recovery,
	.on_exit_recovery = bbr_on_exit_recovery,
	.on_rto = bbr_on_rto,
	.on_restart = bbr_on_restart,
	.on_undo = bbr_on_undo,
};

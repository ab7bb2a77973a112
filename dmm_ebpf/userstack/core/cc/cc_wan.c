/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cc_wan.c: `wan`, a model-based congestion control for long and lossy paths.
 *
 * Lineage: BBR (draft-ietf-ccwg-bbr, "the draft" below): a model of the path, the largest delivery
 * rate and the smallest RTT, sets pacing and cwnd, through STARTUP, DRAIN, PROBE_BW (DOWN, CRUISE,
 * UP) and PROBE_RTT. What is different:
 *
 * - bw is what the bottleneck forwards, not what arrives. Behind a bottleneck of rate C random loss
 * p leaves C(1-p); the draft paces at that and loses p again. Here a rate sample is delivered plus
 * lost bytes, where of the loss no more is credited than p_hat explains, so bw converges to C with
 * p_hat and to the delivered rate without.
 * - p_hat is an experiment, not an average. It is learned only from packets sent slower than the
 * model allows (DOWN) and from STARTUP rounds that a later round outran by a quarter. Loss that our
 * own rate causes goes away when we slow down; random loss does not. A queue that is there all the
 * same voids the experiment; beside somebody else's (or on a path that has become longer, which
 * looks alike) p_hat may only fall; an ECN echo clears it. An estimate that was too high shrinks by
 * the gain of DOWN each time, so it cannot feed on itself.
 * - Loss that comes in bursts is no congestion either. By how much it varies more than
 * independent loss would is learned in the same experiment, from how many packets in a row are lost
 * while no queue is seen; judgements whether loss is in excess, unless a queue was seen, or gone,
 * allow for it.
 * - Loss in excess of p_hat (draft: BBRLossThresh) ends UP, makes later probes smaller, and in
 * CRUISE starts the experiment. If the experiment makes it vanish, bw is bounded (bw_lo, draft:
 * BBRBeta) until the next UP.
 * - cwnd is 1.25 BDP in CRUISE, the draft's 2 BDP only while probing or while somebody else keeps
 * the queue full; a small queue seen in CRUISE is paced away. PROBE_RTT is rare, since DOWN empties
 * our own queue.
 *
 * Invariants: cwnd_bytes >= 4 mss, pacing_Bps >= 1 segment a second after init; p_hat <= P_MAX; bw
 * >= bw_lo > 0 once sampled. Refuses: floating point, clocks, allocation, any state outside struct
 * cc. Rates are bytes of payload a second.
 */
#include "cc_wan_model.h"
#include "cc_wan_send.h"

#include <stddef.h>
#include <string.h>

static void wan_enter(struct wan *w, uint8_t mode, const struct cc_sample *s)
{
	w->mode = mode;
	w->phase_ns = s->now_ns;
	w->phase_delivered = s->delivered_bytes;
	w->phase_rtt_ns = UINT64_MAX;
	w->phase_rounds = 0;
	w->win_from_ns = 0;
	w->pool_ns = 0;
	w->flags &= ~F_LEARNING;
}

static void wan_enter_down(struct wan *w, const struct cc_sample *s)
{
	/*
	 * where the app or the peer's window was the limit, nothing was measured to replace the old
	 */
	if (w->bw_max[0]) {
		w->bw_max[1] = w->bw_max[0];
		w->bw_max[0] = 0;
	}
	w->extra_max[1] = w->extra_max[0];
	w->extra_max[0] = 0;
	w->cycle++;
	wan_enter(w, WAN_DOWN, s);
}

static void wan_enter_cruise(struct cc *cc, struct wan *w, const struct cc_sample *s)
{
	uint64_t base = max_u64(6 * w->min_rtt_ns, NS_PER_S / 2);

	w->flags &= ~F_PROBED;
	w->calm = w->flags & F_RIVAL ? 0 : w->calm;
	if (w->flags & F_TIGHT)
		base *= 3;
	wan_enter(w, WAN_CRUISE, s);
	w->pool_rtt_ns = UINT64_MAX;
	w->cruise_ns = base + wan_random(cc, base / 4);
}

static void wan_enter_up(const struct cc *cc, struct wan *w, const struct cc_sample *s)
{
	wan_enter(w, WAN_UP, s);
	w->bw_lo = UINT64_MAX;
	w->full_bw = wan_bw(w);
	w->up_stage = 0;
	w->up_rtt_ns = w->last_round_rtt_ns == UINT64_MAX ? w->min_rtt_ns : w->last_round_rtt_ns;
	w->flags = (w->flags & ~(F_SUSPECT | F_TIGHT | F_ALONE)) | F_PROBED;
	if (!(w->flags & F_RIVAL) && w->calm >= 2 &&
	    w->last_round_rtt_ns <= wan_rtt_plus(cc, w, 40))
		w->flags |= F_ALONE;
}

/*
 * The loss experiment. Opens when ACKs of packets sent at the low rate come in and RACK has had its
 * reordering window (a quarter of an RTT, or more) to mark what was sent before.
 */
static void wan_window(struct wan *w, const struct cc_sample *s)
{
	if (!s->rtt_ns || s->prior_delivered_bytes < w->phase_delivered)
		return;
	w->phase_rtt_ns = min_u64(w->phase_rtt_ns, s->rtt_ns);
	if (w->flags & F_LEARNING || w->mode != WAN_DOWN)
		return;
	if (!w->win_from_ns)
		w->win_from_ns =
			s->now_ns + max_u64(w->min_rtt_ns / 4, s->loss_delay_ns) + NS_PER_MS;
	if (s->now_ns < w->win_from_ns)
		return;
	w->flags |= F_LEARNING;
	w->win_delivered = s->delivered_bytes;
	w->win_lost = w->lost_total;
	w->cluster = 0;
	w->flags &= ~F_QUEUED;
}

/* Closes the experiment at the end of a slow phase; says what it proved. */
static void wan_conclude(const struct cc *cc, struct wan *w, const struct cc_sample *s)
{
	uint64_t lost, delivered, expect;

	if (!(w->flags & F_LEARNING))
		return;
	w->flags &= ~F_LEARNING;
	lost = w->lost_total - w->win_lost;
	delivered = s->delivered_bytes - w->win_delivered;
	if (lost + delivered < 8ull * cc->mss)
		return;
	if (w->phase_rtt_ns <= wan_rtt_plus(cc, w, 20) ||
	    (w->flags & F_RIVAL && mul_div(lost, PPM, lost + delivered) < w->p_ppm))
		wan_learn(cc, w, lost, delivered);
	if (!(w->flags & F_SUSPECT))
		return;
	w->flags &= ~F_SUSPECT;
	/* gone, and not by chance */
	expect = mul_div(lost + delivered, w->suspect_ppm, PPM) / cc->mss;
	if (lost / cc->mss + 2 * sqrt64(wan_variance(w, expect)) < expect)
		w->bw_lo = mul_div(wan_bw(w), BETA_BW_LO, UNIT);
}

static void wan_startup_done(struct wan *w, const struct cc_sample *s)
{
	w->flags |= F_FULL_BW;
	w->bw_max[1] = w->bw_max[0];
	wan_enter(w, WAN_DRAIN, s);
}

/*
 * A queue of a quarter of the RTT that lasts a quarter of an RTT ends STARTUP at once (the idea of
 * HyStart++, RFC 9406): the bottleneck is found. bw may still be short by what the sample remembers
 * of slower times; DRAIN's samples mend that. An app that sends less than the path carries builds
 * none: what is late there are ACKs that the peer put off, and an end would make the app's rate the
 * path's, by which its messages are then held back.
 */
static void wan_startup_queue(struct wan *w, const struct cc_sample *s)
{
	if (!s->rtt_ns)
		return;
	if (s->app_limited || s->rtt_ns <= w->min_rtt_ns + w->min_rtt_ns / 4 + NS_PER_MS) {
		w->queue_from_ns = 0;
		return;
	}
	if (!w->queue_from_ns)
		w->queue_from_ns = s->now_ns;
	if (s->now_ns - w->queue_from_ns > w->min_rtt_ns / 4)
		wan_startup_done(w, s);
}

/*
 * End of a round in STARTUP. A round that a later one outran by a quarter was not limited by the
 * bottleneck, so its loss was random; it waits one round (win_*) for that proof. Draft:
 * BBRCheckFullBWReached, BBRCheckStartupHighLoss: a shallow queue overflows; the more we send, the
 * more is lost, and no more arrives. Where no queue was seen that much may be one burst: then more
 * did arrive, or of the round hardly anything is known yet.
 */
static void wan_startup_round(const struct cc *cc, struct wan *w, const struct cc_sample *s,
			      uint64_t lost, uint64_t delivered)
{
	uint64_t bw = w->delivered_max_Bps;
	int limited = !!(w->flags & F_ROUND_LIMITED);

	if (!limited && bw < w->full_bw + w->full_bw / (w->flags & F_ROUND_QUEUED ? 2 : 4) &&
	    4 * (lost + delivered) >= cc->cwnd_bytes && wan_excess_loss(cc, w, lost, delivered)) {
		wan_startup_done(w, s);
		return;
	}
	if (bw >= w->startup_bw + w->startup_bw / 4 && w->round_rtt_ns <= wan_rtt_plus(cc, w, 20)) {
		wan_learn(cc, w, w->win_lost, w->win_delivered);
		w->win_lost = lost;
		w->win_delivered = delivered;
		w->startup_bw = bw;
	}
	if (bw >= w->full_bw + w->full_bw / 4) {
		w->full_bw = bw;
		w->full_bw_count = 0;
	} else if (!limited && ++w->full_bw_count >= 3) {
		wan_startup_done(w, s);
	}
}

/*
 * Loss in excess, in UP or just after it: the next probe is to be smaller, and CRUISE leaves room.
 */
static int wan_probe_lost(const struct cc *cc, struct wan *w, uint64_t lost, uint64_t delivered)
{
	if (!(w->flags & F_PROBED) || !wan_excess_loss(cc, w, lost, delivered))
		return 0;
	w->gain_up = (uint32_t)max_u64(UNIT + (w->gain_up - UNIT) / 2, GAIN_UP_MIN);
	w->flags = (w->flags | F_TIGHT) & ~F_PROBED;
	w->suspect_ppm = mul_div(lost, PPM, lost + delivered);
	return 1;
}

static void wan_up_round(const struct cc *cc, struct wan *w, const struct cc_sample *s)
{
	uint64_t lost = w->lost_total - w->round_lost,
		 delivered = s->delivered_bytes - w->round_delivered;
	uint32_t asked = wan_gain_up(cc, w) - UNIT;
	uint64_t bw = wan_bw(w);
	int grew, empty;

	if (wan_probe_lost(cc, w, lost, delivered)) {
		wan_enter_down(w, s);
		return;
	}
	/* the first round of UP brings ACKs of packets sent before it */
	if (w->phase_rounds < 2)
		return;
	grew = bw >= w->full_bw + mul_div(w->full_bw, asked, 2ull * UNIT);
	empty = s->rtt_ns && s->rtt_ns <= wan_rtt_plus(cc, w, 50);
	if (!grew && (!empty || asked > UP_BLIND)) {
		w->gain_up = (uint32_t)min_u64(w->gain_up + 8,
					       w->flags & F_RIVAL ? GAIN_UP_MAX : GAIN_UP_INIT);
		wan_enter_down(w, s);
		return;
	}
	/*
	 * With no queue and no loss ask for more: a little may hide in the noise. What is more than
	 * a little must be seen to be delivered. With a queue go on as long as we are given most of
	 * what we ask for.
	 */
	w->up_stage += empty && w->up_stage < UP_STAGES;
	w->full_bw = max_u64(w->full_bw, bw);
}

/*
 * CRUISE, after enough packets. Loss in excess starts the experiment. And where a queue stood all
 * the while the bottleneck was never idle, so the mean rate is the rate: it corrects the upward
 * bias of a maximum over noisy samples, which on short paths with loss is several per cent and
 * would keep the queue standing. What stands and does not become shorter by it is no queue of ours:
 * then once a CRUISE is enough.
 */
static void wan_cruise_pool(const struct cc *cc, struct wan *w, const struct cc_sample *s)
{
	uint64_t lost, delivered, total, mean;

	wan_trim(cc, w);
	if (w->flags & F_ROUND_LIMITED || w->round_rtt_ns == UINT64_MAX)
		w->flags |= F_POOL_IDLE; /* as far as is known */
	if (w->round_rtt_ns <= wan_rtt_plus(cc, w, 50)) {
		w->flags |= F_POOL_IDLE;
		/* who fills the queue does not let it run empty for long: these were others of our
		 * kind, or they are gone */
		if (w->flags & F_RIVAL && ++w->calm >= RIVAL_CALM)
			w->flags &= ~F_RIVAL;
	}
	if (!w->pool_ns) {
		w->pool_ns = s->now_ns;
		w->pool_delivered = s->delivered_bytes;
		w->pool_lost = w->lost_total;
		w->flags &= ~F_POOL_IDLE;
		return;
	}
	lost = w->lost_total - w->pool_lost;
	delivered = s->delivered_bytes - w->pool_delivered;
	total = lost + delivered;
	if (total < POOL_SEGS * (uint64_t)cc->mss)
		return;
	/* with room left and no queue as much is lost as in the probe: it was not the probe, p_hat
	 * is out of date */
	if ((w->flags & F_TIGHT && w->flags & F_POOL_IDLE && lost > 8ull * cc->mss &&
	     lost >= mul_div(total, w->suspect_ppm - w->suspect_ppm / 4, PPM)) ||
	    wan_excess_loss(cc, w, lost, delivered)) {
		w->flags &= ~F_TIGHT;
		wan_enter_down(w, s);
		w->flags |= F_SUSPECT;
		w->suspect_ppm = mul_div(lost, PPM, total);
		return;
	}
	if (!(w->flags & (F_POOL_IDLE | F_RIVAL)) && w->round_rtt_ns < w->pool_rtt_ns) {
		w->pool_rtt_ns = w->round_rtt_ns;
		mean = mul_div(delivered + min_u64(lost, mul_div(total, w->p_ppm, PPM)), NS_PER_S,
			       s->now_ns - w->pool_ns);
		w->bw_max[0] = min_u64(w->bw_max[0], mean);
		w->bw_max[1] = min_u64(w->bw_max[1], mean);
	}
	w->pool_ns = 0;
}

/* RFC 3168: an echo asks for less, once a round trip */
static void wan_ece_round(struct wan *w, const struct cc_sample *s)
{
	if (!(w->flags & F_ECE))
		return;
	w->flags = (w->flags | F_TIGHT) & ~F_ECE;
	if (w->mode == WAN_STARTUP)
		wan_startup_done(w, s);
	else if (w->mode == WAN_UP)
		wan_enter_down(w, s);
	w->bw_lo = mul_div(wan_bw(w), BETA_BW_LO, UNIT);
}

static void wan_end_round(struct cc *cc, struct wan *w, const struct cc_sample *s)
{
	w->phase_rounds++;
	wan_ece_round(w, s);
	switch (w->mode) {
	case WAN_STARTUP:
		wan_startup_round(cc, w, s, w->lost_total - w->round_lost,
				  s->delivered_bytes - w->round_delivered);
		break;
	case WAN_UP:
		wan_up_round(cc, w, s);
		break;
	case WAN_DOWN:
		wan_probe_lost(cc, w, w->lost_total - w->round_lost,
			       s->delivered_bytes - w->round_delivered);
		break;
	case WAN_CRUISE:
		wan_cruise_pool(cc, w, s);
		break;
	}
	w->round_delivered = s->delivered_bytes;
	w->round_lost = w->lost_total;
	w->last_round_rtt_ns = w->round_rtt_ns;
	w->round_rtt_ns = UINT64_MAX;
	w->flags &= ~F_ROUND_LIMITED;
	if (w->flags & F_RTO) /* it was sent by a window that had begun anew */
		w->flags |= F_ROUND_LIMITED;
	if (w->mode != WAN_CRUISE || !w->pool_ns || w->pool_ns == s->now_ns)
		w->flags &= ~F_ROUND_QUEUED;
}

/*
 * How long DOWN stays: to empty the queue, and with loss to see enough packets of the experiment;
 * the first one, after DRAIN, does not stay for it, short transfers would pay.
 */
static int wan_down_done(const struct cc *cc, const struct wan *w, const struct cc_sample *s)
{
	uint64_t held = s->now_ns - w->phase_ns, bdp = wan_bdp(w, UNIT), seen;
	int lossy = w->p_ppm || w->lost_total > w->round_lost;
	int need = w->flags & F_SUSPECT ||
		   (lossy && w->cycle > 1 && (w->cycle % 2 || w->p_total < 1000ull * cc->mss));

	if (held > 4 * w->min_rtt_ns + 20 * NS_PER_MS)
		return 1;
	/* a queue of others cannot be emptied; one DOWN in four looks whether it is still there */
	if (w->flags & F_RIVAL && w->cycle % 4 && w->phase_rounds >= 2)
		return 1;
	if (cc->inflight_bytes > bdp || !s->rtt_ns || s->rtt_ns > wan_rtt_plus(cc, w, 50))
		return 0;
	if (!need)
		return 1;
	if (!(w->flags & F_LEARNING))
		return 0;
	seen = s->delivered_bytes - w->win_delivered;
	return seen >= max_u64(min_u64(128ull * cc->mss, bdp * 3), bdp / 2);
}

static void wan_phases(struct cc *cc, struct wan *w, const struct cc_sample *s)
{
	switch (w->mode) {
	case WAN_STARTUP:
		wan_startup_queue(w, s);
		break;
	case WAN_DRAIN:
		if (cc->inflight_bytes <= wan_drained_bytes(cc, w))
			wan_enter_down(w, s);
		break;
	case WAN_DOWN:
		if (!wan_down_done(cc, w, s))
			break;
		wan_judge_rival(cc, w);
		wan_conclude(cc, w, s);
		wan_enter_cruise(cc, w, s);
		break;
	case WAN_CRUISE:
		if (s->now_ns - w->phase_ns > w->cruise_ns)
			wan_enter_up(cc, w, s);
		break;
	case WAN_UP:
		/* the queue that this probe made came back: it has found the bottleneck, no need to
		 * wait for the round; beside a rival it is to be seen first what share we are given
		 */
		if (!(w->flags & F_RIVAL) && s->prior_delivered_bytes >= w->phase_delivered &&
		    s->rtt_ns > w->up_rtt_ns + wan_rtt_plus(cc, w, 24) - w->min_rtt_ns)
			wan_enter_down(w, s);
		break;
	}
}

/* Draft: BBRCheckProbeRTT, at half a BDP instead of four segments */
static void wan_probe_rtt(struct cc *cc, struct wan *w, const struct cc_sample *s)
{
	uint64_t rtt;

	if (w->mode != WAN_PROBE_RTT) {
		if (s->now_ns - w->min_rtt_stamp_ns <= MIN_RTT_WIN_NS ||
		    w->flags & F_IDLE_RESTART || !s->rtt_ns)
			return;
		w->prior_cwnd_bytes = cc->cwnd_bytes;
		w->probe_rtt_done_ns = 0;
		wan_enter(w, WAN_PROBE_RTT, s);
		return;
	}
	if (!w->probe_rtt_done_ns) {
		/* cwnd is that of PROBE_RTT since the ACK that began it */
		if (cc->inflight_bytes > cc->cwnd_bytes)
			return;
		w->probe_rtt_done_ns = s->now_ns + max_u64(PROBE_RTT_NS, w->min_rtt_ns);
		w->phase_rounds = 0;
		w->round_rtt_ns = UINT64_MAX;
		w->last_round_rtt_ns = UINT64_MAX;
		return;
	}
	if (s->now_ns < w->probe_rtt_done_ns || !w->phase_rounds)
		return;
	/* what was seen here replaces the old minimum: a longer path must be believed */
	rtt = min_u64(w->round_rtt_ns, w->last_round_rtt_ns);
	if (rtt == UINT64_MAX)
		rtt = w->min_rtt_ns;
	/* a rival of our own kind slows down at the same time and lets us see the path empty;
	 * others do not
	 */
	w->base_rtt_ns = min_u64(w->base_rtt_ns, w->min_rtt_ns);
	w->calm = 0;
	w->strikes = 0;
	if (rtt > w->base_rtt_ns + w->base_rtt_ns / 8 + 2 * NS_PER_MS)
		w->flags |= F_RIVAL;
	else
		w->flags &= ~F_RIVAL;
	w->min_rtt_ns = rtt;
	w->min_rtt_stamp_ns = s->now_ns;
	cc->cwnd_bytes = max_u64(cc->cwnd_bytes, w->prior_cwnd_bytes);
	if (w->flags & F_FULL_BW)
		wan_enter_cruise(cc, w, s);
	else
		wan_enter(w, WAN_STARTUP, s);
}

static void wan_on_ack(struct cc *cc, const struct cc_sample *s)
{
	struct wan *w = wan_of(cc);

	w->lost_total += s->lost_bytes;
	if (s->ece) {
		wan_forget(w);
		w->flags |= F_ECE;
	}
	wan_update_round(cc, w, s);
	wan_update_min_rtt(w, s);
	wan_update_bw(w, s);
	wan_update_extra(cc, w, s);
	if (w->flags & F_LEARNING)
		wan_learn_dispersion(cc, w, s);
	wan_window(w, s);
	if (w->flags & F_ROUND_START)
		wan_end_round(cc, w, s);
	wan_phases(cc, w, s);
	wan_probe_rtt(cc, w, s);
	w->flags &= ~F_IDLE_RESTART;
	wan_set_pacing(cc, w);
	wan_set_cwnd(cc, w, s);
	wan_set_spare(cc, w);
}

static void wan_init(struct cc *cc, uint64_t now_ns)
{
	struct wan *w = wan_of(cc);
	uint64_t rtt = cc->srtt_ns ? cc->srtt_ns : NS_PER_MS;

	memset(w, 0, sizeof(*w));
	w->mode = WAN_STARTUP;
	w->gain_up = GAIN_UP_INIT;
	w->bw_lo = UINT64_MAX;
	w->dispersion = UNIT;
	w->min_rtt_ns = cc->srtt_ns ? cc->srtt_ns : UINT64_MAX;
	w->base_rtt_ns = UINT64_MAX;
	w->round_rtt_ns = UINT64_MAX;
	w->last_round_rtt_ns = UINT64_MAX;
	w->min_rtt_stamp_ns = now_ns;
	w->phase_ns = now_ns;
	w->extra_ns = now_ns;
	cc->pacing_Bps = mul_div(mul_div(cc->cwnd_bytes, NS_PER_S, rtt), GAIN_STARTUP, UNIT);
}

/* Loss as such says nothing here; wan_end_round() judges it by the round. */
static void wan_on_recovery(struct cc *cc, uint64_t now_ns)
{
	(void)cc;
	(void)now_ns;
}

static void wan_on_exit_recovery(struct cc *cc, uint64_t now_ns)
{
	struct wan *w = wan_of(cc);

	(void)now_ns;
	if (!(w->flags & F_RTO))
		return;
	w->flags &= ~F_RTO;
	cc->cwnd_bytes = max_u64(cc->cwnd_bytes, w->prior_cwnd_bytes);
}

/* Draft: BBROnEnterRTO: the model stays, cwnd starts again and is restored when recovery ends. */
static void wan_on_rto(struct cc *cc, uint64_t now_ns)
{
	struct wan *w = wan_of(cc);

	(void)now_ns;
	if (!(w->flags & F_RTO))
		w->prior_cwnd_bytes = cc->cwnd_bytes;
	w->flags |= F_RTO | F_ROUND_LIMITED;
	cc->cwnd_bytes = max_u64(cc->inflight_bytes + cc->mss, CWND_MIN_SEGS * (uint64_t)cc->mss);
}

/* The recovery was needless; the model took no harm, only cwnd after a timeout did. */
static void wan_on_undo(struct cc *cc, uint64_t now_ns)
{
	wan_on_exit_recovery(cc, now_ns);
}

/*
 * Draft: BBRHandleRestartFromIdle: at bw, no burst, and no PROBE_RTT: the idle queue
 * was empty anyway.
 */
static void wan_on_restart(struct cc *cc, uint64_t idle_ns, uint64_t now_ns)
{
	struct wan *w = wan_of(cc);
	uint64_t bw = wan_bw(w);

	(void)idle_ns;
	w->extra_ns = now_ns;
	w->extra_delivered = 0;
	w->flags |= F_IDLE_RESTART;
	if (w->flags & F_FULL_BW && w->mode != WAN_PROBE_RTT && bw)
		cc->pacing_Bps = max_u64(bw, cc->mss);
}

const struct cc_ops cc_wan = {
	.name = "wan",
	.loss_tolerant = 1,
	.init = wan_init,
	.on_ack = wan_on_ack,
	.on_enter_recovery = wan_on_recovery,
	.on_exit_recovery = wan_on_exit_recovery,
	.on_rto = wan_on_rto,
	.on_restart = wan_on_restart,
	.on_undo = wan_on_undo,
};

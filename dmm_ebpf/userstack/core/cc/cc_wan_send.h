/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cc_wan_send.h: what `wan` makes of its model: pacing, cwnd, and what idle time may be used for.
 * cc_wan.c decides on the phase; only that file includes this one.
 */
#ifndef DMM_CC_WAN_SEND_H
#define DMM_CC_WAN_SEND_H

#include "cc_wan_model.h"

/*
 * What CRUISE leaves free: a maximum is the less too high the more packets there are in
 * a round trip
 */
static inline uint32_t wan_margin(const struct cc *cc, const struct wan *w)
{
	if (wan_untroubled(w))
		return 0;
	return MARGIN - (uint32_t)min_u64(wan_bdp(w, UNIT) / cc->mss / MARGIN_SEGS, MARGIN / 2);
}

static inline uint32_t wan_cruise_gain(const struct cc *cc, const struct wan *w)
{
	uint64_t empty = wan_rtt_plus(cc, w, 50), excess = 0;

	if (w->flags & F_TIGHT)
		return GAIN_TIGHT;
	if (w->flags & F_RIVAL)
		return UNIT;
	/* a queue of ours: away with it, half of it in a round */
	if (w->last_round_rtt_ns != UINT64_MAX && w->last_round_rtt_ns > empty)
		excess = mul_div(w->last_round_rtt_ns - empty, UNIT / 2, w->min_rtt_ns);
	return UNIT - wan_margin(cc, w) - w->trim - (uint32_t)min_u64(excess, GAIN_QUEUE_MAX);
}

static inline uint32_t wan_pacing_gain(const struct cc *cc, const struct wan *w)
{
	switch (w->mode) {
	case WAN_STARTUP:
		return GAIN_STARTUP;
	case WAN_DRAIN:
		return GAIN_DRAIN;
	case WAN_DOWN:
		if (wan_untroubled(w))
			return cc->inflight_bytes > wan_drained_bytes(cc, w) ? GAIN_DOWN_FAST
									     : UNIT;
		return cc->inflight_bytes > wan_bdp(w, UNIT) ? GAIN_DOWN_FAST : GAIN_DOWN;
	case WAN_UP:
		return wan_gain_up(cc, w);
	case WAN_CRUISE:
		return wan_cruise_gain(cc, w);
	default:
		return UNIT;
	}
}

static inline uint32_t wan_cwnd_gain(const struct wan *w)
{
	switch (w->mode) {
	case WAN_STARTUP:
	case WAN_DRAIN:
		return CWND_STARTUP;
	case WAN_UP:
		return CWND_UP;
	case WAN_PROBE_RTT:
		return CWND_PROBE_RTT;
	default:
		return w->flags & F_RIVAL ? CWND_RIVAL : CWND_CRUISE;
	}
}

static inline void wan_set_pacing(struct cc *cc, const struct wan *w)
{
	uint64_t rate = mul_div(wan_bw(w), wan_pacing_gain(cc, w), UNIT);

	if (!rate)
		return;
	if (w->flags & F_FULL_BW || rate > cc->pacing_Bps)
		cc->pacing_Bps = max_u64(rate, cc->mss);
}

/*
 * Draft: BBRSetCwnd. Lost packets stay in flight for RACK's reordering window, hence the term with
 * p_hat. And they bring no ACKs: without credit for those that p_hat explains, STARTUP would grow
 * by 2(1-p) a round. It does not grow while there is a queue.
 */
static inline void wan_set_cwnd(struct cc *cc, struct wan *w, const struct cc_sample *s)
{
	uint64_t target = wan_bdp(w, wan_cwnd_gain(w));

	target += mul_div(target, w->p_ppm, 4ull * PPM) + 3ull * cc->mss;
	if (w->mode != WAN_PROBE_RTT)
		target += max_u64(w->extra_max[0], w->extra_max[1]);
	if (w->flags & F_FULL_BW)
		cc->cwnd_bytes = min_u64(cc->cwnd_bytes + s->acked_bytes, target);
	else if (!w->queue_from_ns &&
		 (cc->cwnd_bytes < target || s->delivered_bytes < 20ull * cc->mss))
		cc->cwnd_bytes += mul_div(s->acked_bytes, PPM, PPM - w->p_ppm);
	cc->cwnd_bytes = max_u64(cc->cwnd_bytes, CWND_MIN_SEGS * (uint64_t)cc->mss);
}

/* What copies may fill idle time: loss is known to be random, or nothing is known yet */
static inline uint32_t wan_spare(const struct wan *w)
{
	if (w->flags & (F_RIVAL | F_TIGHT | F_SUSPECT))
		return CC_SPARE_NONE;
	if (w->p_ppm >= SPARE_ALL_PPM)
		return CC_SPARE_ALL;
	return !(w->flags & F_FULL_BW) || w->p_ppm >= SPARE_MIN_PPM ? CC_SPARE_HOLES
								    : CC_SPARE_NONE;
}

static inline void wan_set_spare(struct cc *cc, const struct wan *w)
{
	cc->spare = wan_spare(w);
	if (cc->spare != CC_SPARE_NONE)
		cc->spare_bytes = wan_bdp(w, SPARE_GAIN);
}

#endif /* DMM_CC_WAN_SEND_H */

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cc_bbr_model.h: what `bbr` knows of a path: its state in cc.priv and the estimators of
 * draft-ietf-ccwg-bbr-06, "Updating Network Path Model Parameters". cc_bbr.c is the state machine;
 * only that file includes this one.
 *
 * Names are the draft's without their prefix; bytes, bytes of payload a second, nanoseconds.
 * Infinity is UINT64_MAX. Invariants: bw <= max_bw; inflight_longterm and inflight_shortterm are 0
 * never.
 */
#ifndef DMM_CC_BBR_MODEL_H
#define DMM_CC_BBR_MODEL_H

#include "cc.h"
#include "../base/util.h"

#define INFINITE UINT64_MAX
#define UNIT 256u /* gains are in 1/256 */

/* The draft, "Constants" of each kind */
#define STARTUP_PACING_GAIN 709u /* 2.77 */
#define DRAIN_PACING_GAIN 128u	 /* 0.5 */
#define DOWN_PACING_GAIN 230u	 /* 0.9 */
#define UP_PACING_GAIN 320u	 /* 1.25 */
#define DEFAULT_CWND_GAIN 512u	 /* 2 */
#define UP_CWND_GAIN 576u	 /* 2.25 */
#define PROBE_RTT_CWND_GAIN 128u /* 0.5 */
#define PACING_MARGIN_PERCENT 1u
#define LOSS_THRESH_DIV 50u /* LossThresh, 2 % */
#define STARTUP_FULL_LOSS_CNT 6u
#define EXTRA_ACKED_FILTER_LEN 10u /* rounds */
#define MIN_RTT_FILTER_LEN_NS (10 * NS_PER_S)
#define PROBE_RTT_INTERVAL_NS (5 * NS_PER_S)
#define PROBE_RTT_DURATION_NS (200 * NS_PER_MS)
#define MIN_PIPE_SEGS 4u
#define RENO_ROUNDS_MAX 63u

enum bbr_state {
	STARTUP,
	DRAIN,
	PROBE_BW_DOWN,
	PROBE_BW_CRUISE,
	PROBE_BW_REFILL,
	PROBE_BW_UP,
	PROBE_RTT,
	UNDO_NONE /* of undo_state only */
};

enum bbr_ack_phase {
	ACKS_INIT,
	ACKS_REFILLING,
	ACKS_PROBE_STARTING,
	ACKS_PROBE_FEEDBACK,
	ACKS_PROBE_STOPPING
};

enum bbr_flag {
	F_ROUND_START = 1 << 0,
	F_LOSS_ROUND_START = 1 << 1,
	F_LOSS_IN_ROUND = 1 << 2,
	F_FULL_BW_NOW = 1 << 3,
	F_FULL_BW_REACHED = 1 << 4,
	F_BW_PROBE_SAMPLE = 1 << 5,
	F_PREV_PROBE_TOO_HIGH = 1 << 6,
	F_PREV_PROBE_PRECAUTIONARY = 1 << 7,
	F_IDLE_RESTART = 1 << 8,
	F_PROBE_RTT_ROUND_DONE = 1 << 9,
	F_PROBE_RTT_EXPIRED = 1 << 10,
	F_IN_RECOVERY = 1 << 11, /* as of before the event that is being handled */
	F_CWND_LIMITED = 1 << 13,
	F_APP_LIMITED = 1 << 14, /* this sample */
	F_ECE_IN_ROUND = 1 << 15
};

struct bbr_max {
	uint64_t value;
	uint64_t round;
};

struct bbr {
	uint8_t state;
	uint8_t undo_state;
	uint8_t ack_phase;
	uint8_t full_bw_count;
	uint32_t flags;
	uint8_t bw_probe_up_rounds;
	uint8_t loss_events; /* of this round; stands for discontiguous ranges, as in Linux */
	uint16_t rounds_since_probe_up;
	uint32_t drain_start_round; /* low 32 bits of round_count */
	uint64_t round_count;
	uint64_t delivered; /* C.delivered, as of the last ACK */
	uint64_t next_round_delivered;
	uint64_t loss_round_delivered;
	/* data rate */
	uint64_t max_bw_filter[2]; /* this ProbeBW cycle and the one before */
	uint64_t bw_shortterm;
	uint64_t bw_latest;
	uint64_t bw;
	uint64_t full_bw;
	/* volume */
	uint64_t min_rtt_ns;
	uint64_t min_rtt_stamp_ns;
	uint64_t inflight_longterm;
	uint64_t inflight_shortterm;
	uint64_t inflight_latest;
	uint64_t extra_acked_interval_start_ns;
	uint64_t extra_acked_delivered;
	struct bbr_max extra_acked[3]; /* best, second best, third best of the window */
	/* ProbeBW */
	uint64_t cycle_stamp_ns;
	uint64_t bw_probe_wait_ns;
	uint64_t bw_probe_up_acked;
	uint64_t probe_up_acked_per_inc;
	/* ProbeRTT */
	uint64_t probe_rtt_min_delay_ns;
	uint64_t probe_rtt_min_stamp_ns;
	uint64_t probe_rtt_done_stamp_ns; /* 0: inflight is not low yet */
	uint64_t limited_until;		  /* delivered_bytes up to which samples are ProbeRTT's */
	/* recovery */
	uint64_t prior_cwnd;
	uint64_t undo_bw_shortterm;
	uint64_t undo_inflight_shortterm;
	uint64_t undo_inflight_longterm;
} __attribute__((may_alias));

_Static_assert(sizeof(struct bbr) <= sizeof(((struct cc *)0)->priv),
	       "the state must fit in cc.priv");

static inline struct bbr *bbr_of(struct cc *cc)
{
	return (struct bbr *)cc->priv;
}

/* Beta, 0.7: no deeper a cut than CUBIC's */
static inline uint64_t bbr_beta(uint64_t v)
{
	return mul_div(v, 7, 10);
}

static inline bool bbr_in_probe_bw(const struct bbr *b)
{
	return b->state >= PROBE_BW_DOWN && b->state <= PROBE_BW_UP;
}

/* IsProbingBW() */
static inline bool bbr_probing(const struct bbr *b)
{
	return b->state == STARTUP || b->state == PROBE_BW_REFILL || b->state == PROBE_BW_UP;
}

static inline uint64_t bbr_delivery_rate(const struct cc_sample *s)
{
	return s->interval_ns ? mul_div(s->interval_delivered_bytes, NS_PER_S, s->interval_ns) : 0;
}

static inline uint64_t bbr_max_bw(const struct bbr *b)
{
	return max_u64(b->max_bw_filter[0], b->max_bw_filter[1]);
}

/* "BBR.max_bw Max Filter" */
static inline void bbr_advance_max_bw(struct bbr *b)
{
	if (!b->max_bw_filter[0])
		return; /* nothing was measured in this cycle: what is known is all there is */
	b->max_bw_filter[1] = b->max_bw_filter[0];
	b->max_bw_filter[0] = 0;
}

static inline void bbr_start_round(struct bbr *b)
{
	b->next_round_delivered = b->delivered;
}

/* "BBR.round_count: Tracking Packet-Timed Round Trips" */
static inline void bbr_update_round(struct bbr *b, const struct cc_sample *s)
{
	b->flags &= ~(uint32_t)F_ROUND_START;
	if (!s->acked_bytes || s->prior_delivered_bytes < b->next_round_delivered)
		return;
	bbr_start_round(b);
	b->round_count++;
	b->rounds_since_probe_up += b->rounds_since_probe_up < UINT16_MAX;
	b->flags |= F_ROUND_START;
}

/* "Updating the BBR.max_bw Max Filter" */
static inline void bbr_update_max_bw(struct bbr *b, const struct cc_sample *s)
{
	uint64_t rate = bbr_delivery_rate(s);

	bbr_update_round(b, s);
	if (rate && (rate >= bbr_max_bw(b) || !(b->flags & F_APP_LIMITED)))
		b->max_bw_filter[0] = max_u64(b->max_bw_filter[0], rate);
}

/* "Exiting Acceleration Based on Bandwidth Plateau" */
static inline void bbr_reset_full_bw(struct bbr *b, uint64_t full_bw)
{
	b->full_bw = full_bw;
	b->full_bw_count = 0;
	b->flags &= ~(uint32_t)F_FULL_BW_NOW;
}

static inline void bbr_check_full_bw(struct bbr *b, const struct cc_sample *s)
{
	uint64_t rate = bbr_delivery_rate(s);

	if ((b->flags & (F_FULL_BW_NOW | F_APP_LIMITED)) || !(b->flags & F_ROUND_START) || !rate)
		return;
	if (rate >= mul_div(b->full_bw, 5, 4)) {
		bbr_reset_full_bw(b, rate);
		return;
	}
	if (++b->full_bw_count >= 3)
		b->flags |= F_FULL_BW_NOW | F_FULL_BW_REACHED;
}

/*
 * A windowed maximum as in Linux' lib/win_minmax.c (Kathleen Nichols): three
 * candidates, newest last
 */
static inline void bbr_max_update(struct bbr_max m[3], uint64_t value, uint64_t round,
				  uint64_t window)
{
	struct bbr_max now = {value, round};
	uint64_t age;

	if (value >= m[0].value || round - m[2].round > window) {
		m[0] = m[1] = m[2] = now;
		return;
	}
	if (value >= m[1].value)
		m[1] = m[2] = now;
	else if (value >= m[2].value)
		m[2] = now;
	age = round - m[0].round;
	if (age > window) {
		m[0] = m[1];
		m[1] = m[2];
		m[2] = now;
		if (round - m[0].round > window) {
			m[0] = m[1];
			m[1] = m[2];
		}
	} else if (m[1].round == m[0].round && age > window / 4) {
		m[1] = m[2] = now;
	} else if (m[2].round == m[1].round && age > window / 2) {
		m[2] = now;
	}
}

/* "BBR.extra_acked" */
static inline void bbr_update_ack_aggregation(const struct cc *cc, struct bbr *b,
					      const struct cc_sample *s)
{
	uint64_t expected = mul_div(b->bw, s->now_ns - b->extra_acked_interval_start_ns, NS_PER_S);
	uint64_t window = b->flags & F_FULL_BW_REACHED ? EXTRA_ACKED_FILTER_LEN : 1;

	if (b->extra_acked_delivered <= expected) {
		b->extra_acked_delivered = 0;
		b->extra_acked_interval_start_ns = s->now_ns;
		expected = 0;
	}
	b->extra_acked_delivered += s->acked_bytes;
	bbr_max_update(b->extra_acked, min_u64(b->extra_acked_delivered - expected, cc->cwnd_bytes),
		       b->round_count, window);
}

/* "ProbeRTT Logic": UpdateMinRTT() */
static inline void bbr_update_min_rtt(struct bbr *b, const struct cc_sample *s)
{
	bool expired = s->now_ns > b->probe_rtt_min_stamp_ns + PROBE_RTT_INTERVAL_NS;

	b->flags &= ~(uint32_t)F_PROBE_RTT_EXPIRED;
	b->flags |= expired ? F_PROBE_RTT_EXPIRED : 0;
	if (s->rtt_ns && (s->rtt_ns < b->probe_rtt_min_delay_ns || expired)) {
		b->probe_rtt_min_delay_ns = s->rtt_ns;
		b->probe_rtt_min_stamp_ns = s->now_ns;
	}
	if (b->probe_rtt_min_delay_ns < b->min_rtt_ns ||
	    s->now_ns > b->min_rtt_stamp_ns + MIN_RTT_FILTER_LEN_NS) {
		b->min_rtt_ns = b->probe_rtt_min_delay_ns;
		b->min_rtt_stamp_ns = b->probe_rtt_min_stamp_ns;
	}
}

/* "When not Probing for Bandwidth" */
static inline void bbr_update_latest(struct bbr *b, const struct cc_sample *s)
{
	b->flags &= ~(uint32_t)F_LOSS_ROUND_START;
	b->bw_latest = max_u64(b->bw_latest, bbr_delivery_rate(s));
	b->inflight_latest = max_u64(b->inflight_latest, s->interval_delivered_bytes);
	if (s->acked_bytes && s->prior_delivered_bytes >= b->loss_round_delivered) {
		b->loss_round_delivered = s->delivered_bytes;
		b->flags |= F_LOSS_ROUND_START;
	}
}

static inline void bbr_advance_latest(struct bbr *b, const struct cc_sample *s)
{
	if (!(b->flags & F_LOSS_ROUND_START))
		return;
	b->bw_latest = bbr_delivery_rate(s);
	b->inflight_latest = s->interval_delivered_bytes;
}

static inline void bbr_reset_congestion_signals(struct bbr *b)
{
	b->flags &= ~(uint32_t)(F_LOSS_IN_ROUND | F_ECE_IN_ROUND);
	b->loss_events = 0;
	b->bw_latest = 0;
	b->inflight_latest = 0;
}

static inline void bbr_reset_short_term(struct bbr *b)
{
	b->bw_shortterm = INFINITE;
	b->inflight_shortterm = INFINITE;
}

/* InitLowerBounds() and LossLowerBounds() */
static inline void bbr_lower_bounds(const struct cc *cc, struct bbr *b)
{
	uint64_t bw = b->bw_shortterm == INFINITE ? bbr_max_bw(b) : b->bw_shortterm;
	uint64_t inflight =
		b->inflight_shortterm == INFINITE ? cc->cwnd_bytes : b->inflight_shortterm;

	b->bw_shortterm = max_u64(b->bw_latest, bbr_beta(bw));
	b->inflight_shortterm = max_u64(b->inflight_latest, bbr_beta(inflight));
}

static inline void bbr_update_congestion_signals(const struct cc *cc, struct bbr *b,
						 const struct cc_sample *s)
{
	bbr_update_max_bw(b, s);
	if (!(b->flags & F_LOSS_ROUND_START))
		return;
	if (!bbr_probing(b) && b->flags & F_LOSS_IN_ROUND)
		bbr_lower_bounds(cc, b);
	b->flags &= ~(uint32_t)F_LOSS_IN_ROUND;
}

/* IsInflightTooHigh(); an ECN echo counts as loss does ("ECN") */
static inline bool bbr_inflight_too_high(const struct bbr *b, const struct cc_sample *s)
{
	return s->interval_lost_bytes > s->tx_inflight_bytes / LOSS_THRESH_DIV ||
	       b->flags & F_ECE_IN_ROUND;
}

#endif /* DMM_CC_BBR_MODEL_H */

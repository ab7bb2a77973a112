/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cc_wan_model.h: what `wan` knows of a path: its state in cc.priv, the bandwidth and RTT filters,
 * p_hat, and the judgement whether loss is more than p_hat explains. cc_wan.c decides what to do
 * about it; only that file includes this one.
 *
 * Invariants: p_ppm <= P_MAX_PPM; p_lost / p_total is p_hat; dispersion is from 1 to
 * DISPERSION_MAX; min_rtt_ns is UINT64_MAX until the first sample and never 0.
 */
#ifndef DMM_CC_WAN_MODEL_H
#define DMM_CC_WAN_MODEL_H

#include "cc.h"
#include "../base/util.h"

#define UNIT 1024u	       /* gains and ratios are in 1/1024 */
#define PPM 1000000u	       /* loss is in parts per million */
#define P_MAX_PPM 200000u      /* more loss than this is never held for random */
#define LOSS_THRESH_PPM 20000u /* draft: BBRLossThresh, here above p_hat */
#define MIN_RTT_WIN_NS (10 * NS_PER_S)
#define PROBE_RTT_NS (200 * NS_PER_MS)
#define CWND_MIN_SEGS 4u
#define RIVAL_STRIKES 3u    /* DOWNs in a row with a foreign queue that begin F_RIVAL */
#define RIVAL_CALM 4u	    /* DOWNs without a foreign queue that end F_RIVAL */
#define SPARE_MIN_PPM 5000u /* p_hat from which a retransmission is worth a copy in idle time */
#define SPARE_GAIN (UNIT + 307u) /* copies and the rest, in BDP a round trip */
#define SPARE_ALL_PPM 20000u	 /* and from which every segment is */
#define P_KNOWN_SEGS 100u	 /* p_hat of fewer packets is no knowledge */
#define POOL_SEGS 256u		 /* fewer packets than this say little about loss */
#define DISPERSION_MAX 64u	 /* what more is lost in a row does not count for more */
#define DISPERSION_SEGS 64u	 /* so many lost segments, and half of dispersion is theirs */
#define CLUSTER_CHANCE 3u	 /* so many in a row may be lost independently */

#define GAIN_STARTUP                                                                               \
	3072u		/* 3; cwnd still doubles, so this only sends a window sooner. Draft: 2.77 */
#define GAIN_DRAIN 512u /* draft: BBRDrainPacingGain */
#define GAIN_DOWN 922u	/* 0.9 */
#define GAIN_DOWN_FAST 768u /* 0.75, while more than a BDP is in flight */
#define MARGIN 10u /* 0.01, draft: BBRPacingMarginPercent; half of it on paths of many packets */
#define MARGIN_SEGS 256u    /* so many in flight take 1/1024 off it */
#define TRIM_UP 16u	    /* a round of CRUISE that saw a queue */
#define TRIM_DOWN 2u	    /* one that saw none */
#define BIAS_MAX 82u	    /* 0.08 */
#define GAIN_QUEUE_MAX 102u /* 0.1: what CRUISE slows down by at most to empty a queue of ours */
#define GAIN_TIGHT 973u /* 0.95: in CRUISE after a probe that ended by loss; draft: BBRHeadroom */
#define GAIN_UP_MIN (UNIT + 32u) /* 1.03 */
#define GAIN_UP_INIT (UNIT + 128u)
#define GAIN_UP_MAX (UNIT + 256u)
/* a probe up to this amplitude may be followed by a larger one before it is seen to be delivered */
#define UP_BLIND 140u
#define UP_STAGES 5u /* an UP that finds no limit doubles its amplitude so often, up to 2.0 */
#define CWND_STARTUP (2 * UNIT)
#define CWND_UP (2 * UNIT)
#define CWND_CRUISE (UNIT + 256u)
#define CWND_RIVAL (2 * UNIT)
#define CWND_PROBE_RTT (UNIT / 2)
#define BETA_BW_LO 870u /* 0.85 */

enum wan_mode { WAN_STARTUP, WAN_DRAIN, WAN_DOWN, WAN_CRUISE, WAN_UP, WAN_PROBE_RTT };

enum wan_flag {
	F_FULL_BW = 1 << 0,	/* STARTUP has found the bottleneck */
	F_ROUND_START = 1 << 1, /* this ACK began a round */
	F_RIVAL = 1 << 2,	/* a queue that our draining does not empty: somebody else's */
	F_SUSPECT = 1 << 3,	/* DOWN was entered because of loss in excess of p_hat */
	F_LEARNING = 1 << 4,	/* the loss window below is open */
	F_RTO = 1 << 5,		/* prior_cwnd_bytes is to be restored */
	F_IDLE_RESTART = 1 << 6,
	F_ROUND_LIMITED = 1 << 7, /* by the app, or by the window after a timeout */
	F_POOL_IDLE = 1 << 8,	  /* a round of the pool saw no queue */
	F_TIGHT = 1 << 9,	  /* the last probe ended by loss: leave room */
	F_PROBED = 1 << 10,	  /* loss seen now may be the last probe's */
	F_ALONE = 1 << 11,	  /* this UP began with the path empty */
	F_ECE = 1 << 12,	  /* an ECN echo came in this round */
	F_QUEUED = 1 << 13,	  /* the open window of the experiment has seen a queue */
	F_ROUND_QUEUED = 1 << 14, /* so has the round; in CRUISE, one since the pool was opened */
};

struct wan {
	uint8_t mode;
	uint8_t full_bw_count;
	uint8_t strikes; /* DOWNs in a row that found a queue of somebody else's */
	uint8_t calm;	 /* DOWNs in a row that did not */
	uint32_t flags;
	uint32_t gain_up; /* amplitude of the next probe */
	uint8_t cycle;	  /* of PROBE_BW */
	uint8_t up_stage; /* UP: how often its amplitude was doubled */
	uint16_t trim;	  /* what CRUISE paces below bw, in 1/1024, for the bias of a maximum */
	uint32_t phase_rounds;
	uint32_t p_ppm;		    /* p_hat */
	uint64_t bw_max[2];	    /* draft: BBR.max_bw filter: this cycle and the one before */
	uint64_t bw_lo;		    /* UINT64_MAX: no bound */
	uint64_t delivered_max_Bps; /* STARTUP: largest sample without credit for loss */
	uint64_t full_bw;
	uint64_t min_rtt_ns;
	uint64_t base_rtt_ns; /* smallest ever, or since RTT proved to be calm */
	uint64_t min_rtt_stamp_ns;
	uint64_t probe_rtt_done_ns;
	uint64_t phase_ns;	  /* when the mode was entered */
	uint64_t phase_delivered; /* delivered_bytes then */
	uint64_t phase_rtt_ns;	  /* smallest RTT of packets sent in it */
	uint64_t cruise_ns;	  /* length of this CRUISE */
	uint64_t prior_cwnd_bytes;
	/* rounds */
	uint64_t next_round_delivered;
	uint64_t round_delivered; /* delivered_bytes when the round began */
	uint64_t round_lost;	  /* lost_total then */
	uint64_t round_rtt_ns;	  /* smallest of the round, and of the last one */
	uint64_t last_round_rtt_ns;
	/* a pool of rounds, large enough to judge loss and rate by */
	uint64_t pool_delivered;
	uint64_t pool_lost;
	uint64_t pool_ns;     /* 0: closed */
	uint64_t pool_rtt_ns; /* what bw was last corrected at, in this CRUISE */
	/* random loss: an exponentially forgotten pair of counts */
	uint64_t lost_total;
	uint64_t p_lost;
	uint64_t p_total;
	/* the open window's start; STARTUP: the round that waits for proof */
	uint64_t win_delivered;
	uint64_t win_lost;
	uint64_t win_from_ns; /* 0: not known yet */
	union {
		uint64_t startup_bw;  /* STARTUP: what a later round must outrun */
		uint64_t suspect_ppm; /* the loss that F_SUSPECT or F_TIGHT is about */
	};
	union {
		uint64_t queue_from_ns; /* STARTUP: RTT has been high since; 0: it is not */
		uint64_t up_rtt_ns;	/* UP: smallest RTT of the round before it */
	};
	/* aggregation of ACKs, draft: BBR.extra_acked */
	uint64_t extra_ns;
	uint64_t extra_delivered;
	uint64_t extra_max[2];
	/* bursts */
	uint32_t cluster;    /* bytes lost in a row, less half of what arrived among them */
	uint32_t dispersion; /* variance of a count of losses / if they were independent, in UNIT */
} __attribute__((may_alias));

_Static_assert(sizeof(struct wan) <= sizeof(((struct cc *)0)->priv),
	       "the state must fit in cc.priv");

static inline struct wan *wan_of(struct cc *cc)
{
	return (struct wan *)cc->priv;
}

static inline uint64_t sqrt64(uint64_t v)
{
	uint64_t root = 0, bit = 1ull << 62;

	while (bit > v)
		bit >>= 2;
	for (; bit; bit >>= 2) {
		if (v >= root + bit) {
			v -= root + bit;
			root = (root >> 1) + bit;
		} else {
			root >>= 1;
		}
	}
	return root;
}

static inline uint64_t wan_random(struct cc *cc, uint64_t below)
{
	uint64_t r = xorshift64(&cc->rng);

	return below ? r % below : 0;
}

static inline uint64_t wan_bw(const struct wan *w)
{
	return min_u64(max_u64(w->bw_max[0], w->bw_max[1]), w->bw_lo);
}

static inline uint64_t wan_bdp(const struct wan *w, uint32_t gain)
{
	if (w->min_rtt_ns == UINT64_MAX)
		return 0;
	return mul_div(mul_div(wan_bw(w), w->min_rtt_ns, NS_PER_S), gain, UNIT);
}

/* The path's own RTT with room for pacing quanta, ACK timing, and 1/share of it for jitter */
static inline uint64_t wan_rtt_plus(const struct cc *cc, const struct wan *w, uint32_t share)
{
	uint64_t segs_ns = mul_div(4ull * cc->mss, NS_PER_S, max_u64(wan_bw(w), 1));

	return w->min_rtt_ns + max_u64(w->min_rtt_ns / share, min_u64(segs_ns, w->min_rtt_ns / 4)) +
	       NS_PER_MS / 4;
}

static inline void wan_set_p(struct wan *w)
{
	uint64_t ppm = w->p_total ? mul_div(w->p_lost, PPM, w->p_total) : 0;

	w->p_ppm = (uint32_t)min_u64(ppm, P_MAX_PPM);
}

/*
 * Losses in rows vary more from count to count than independent ones: the variance is greater by
 * the length of the row in which a lost segment stands, on average. It is learned in the experiment
 * only, and until that sees a queue: one that overflows drops in rows as well, but whoever sent at
 * that time saw it full. Half of what arrives is taken off, so that neither a stretched ACK
 * nor independent losses make a row.
 */
static inline void wan_learn_dispersion(const struct cc *cc, struct wan *w,
					const struct cc_sample *s)
{
	uint64_t row = w->cluster + s->lost_bytes, lost = s->lost_bytes / cc->mss, segs;

	if (s->rtt_ns > wan_rtt_plus(cc, w, 50))
		w->flags |= F_QUEUED;
	if (w->flags & (F_QUEUED | F_RIVAL))
		return;
	row -= min_u64(row, s->acked_bytes / 2);
	w->cluster = (uint32_t)min_u64(row, DISPERSION_MAX * (uint64_t)cc->mss);
	segs = w->cluster <= CLUSTER_CHANCE * cc->mss ? 1 : w->cluster / cc->mss;
	w->dispersion =
		(uint32_t)((w->dispersion * (uint64_t)DISPERSION_SEGS + segs * UNIT * lost) /
			   (DISPERSION_SEGS + lost));
}

/* Of a count of lost packets, of which so many were expected */
static inline uint64_t wan_variance(const struct wan *w, uint64_t expect)
{
	return mul_div(expect, w->dispersion, UNIT);
}

/*
 * Takes a finished experiment into p_hat; one that contradicts the past by three sigma replaces it.
 * Bursts excuse more loss than was expected, never less: what is too high must fall soon.
 */
static inline void wan_learn(const struct cc *cc, struct wan *w, uint64_t lost, uint64_t delivered)
{
	uint64_t total = lost + delivered, limit = 4000ull * cc->mss, expect, diff, variance;

	if (total < 8ull * cc->mss)
		return;
	expect = mul_div(total, w->p_ppm, PPM);
	diff = lost > expect ? lost - expect : expect - lost;
	variance = max_u64(expect, lost) / cc->mss + 1;
	if (lost > expect)
		variance = wan_variance(w, variance);
	if (diff > 3 * cc->mss * sqrt64(variance) && total > 50ull * cc->mss) {
		w->p_lost = 0;
		w->p_total = 0;
	}
	w->p_lost += lost;
	w->p_total += total;
	if (w->p_total > limit) {
		w->p_lost = mul_div(w->p_lost, limit, w->p_total);
		w->p_total = limit;
	}
	wan_set_p(w);
}

/*
 * Just after STARTUP, and nothing was lost yet: whoever sends a megabyte is done before the model
 * has settled. To give way then would only lengthen that; the bottleneck is kept busy until the
 * first probe.
 */
static inline int wan_untroubled(const struct wan *w)
{
	return w->cycle == 1 && !w->lost_total;
}

/*
 * In flight when DRAIN has emptied the queue. min_rtt may be that of a small packet: a segment is
 * on the wire besides, and another waits for its ACK.
 */
static inline uint64_t wan_drained_bytes(const struct cc *cc, const struct wan *w)
{
	return wan_bdp(w, UNIT) + 2ull * cc->mss;
}

static inline void wan_forget(struct wan *w)
{
	w->p_lost = 0;
	wan_set_p(w);
}

static inline uint64_t wan_sample_bw(const struct wan *w, const struct cc_sample *s)
{
	uint64_t total = s->interval_delivered_bytes + s->interval_lost_bytes;
	uint64_t credit = min_u64(s->interval_lost_bytes, mul_div(total, w->p_ppm, PPM));

	return mul_div(s->interval_delivered_bytes + credit, NS_PER_S, s->interval_ns);
}

static inline void wan_update_bw(struct wan *w, const struct cc_sample *s)
{
	uint64_t bw;

	if (!s->interval_ns)
		return;
	bw = wan_sample_bw(w, s);
	if (s->app_limited && bw < wan_bw(w))
		return;
	w->bw_max[0] = max_u64(w->bw_max[0], bw);
	if (!(w->flags & F_FULL_BW))
		w->delivered_max_Bps =
			max_u64(w->delivered_max_Bps,
				mul_div(s->interval_delivered_bytes, NS_PER_S, s->interval_ns));
}

static inline void wan_update_round(const struct cc *cc, struct wan *w, const struct cc_sample *s)
{
	w->flags &= ~F_ROUND_START;
	if (s->app_limited)
		w->flags |= F_ROUND_LIMITED;
	if (s->rtt_ns)
		w->round_rtt_ns = min_u64(w->round_rtt_ns, s->rtt_ns);
	if (s->rtt_ns > wan_rtt_plus(cc, w, 50))
		w->flags |= F_ROUND_QUEUED;
	if (s->acked_bytes && s->prior_delivered_bytes >= w->next_round_delivered) {
		w->next_round_delivered = s->delivered_bytes;
		w->flags |= F_ROUND_START;
	}
}

/* Draft: BBRUpdateACKAggregation, with two halves of a window for its ten rounds */
static inline void wan_update_extra(const struct cc *cc, struct wan *w, const struct cc_sample *s)
{
	uint64_t expected, bw = mul_div(wan_bw(w), PPM - w->p_ppm, PPM);

	expected = mul_div(bw, s->now_ns - w->extra_ns, NS_PER_S);
	if (w->extra_delivered <= expected) {
		w->extra_delivered = 0;
		w->extra_ns = s->now_ns;
		expected = 0;
	}
	w->extra_delivered += s->acked_bytes;
	w->extra_max[0] = max_u64(
		w->extra_max[0], min_u64(w->extra_delivered - min_u64(w->extra_delivered, expected),
					 cc->cwnd_bytes));
}

static inline void wan_update_min_rtt(struct wan *w, const struct cc_sample *s)
{
	if (!s->rtt_ns)
		return;
	if (s->rtt_ns < w->min_rtt_ns) {
		w->min_rtt_ns = s->rtt_ns;
		w->min_rtt_stamp_ns = s->now_ns;
	} else if (s->rtt_ns <= w->min_rtt_ns + w->min_rtt_ns / 64 + NS_PER_MS / 10) {
		/* near enough to prove that the path has not become longer: no need of PROBE_RTT */
		w->min_rtt_stamp_ns = s->now_ns;
	}
}

/*
 * Loss of the round that ended, in excess of what p_hat explains by three sigma and the threshold?
 * Where a queue was seen it may have overflowed, and then bursts are no excuse.
 */
static inline int wan_excess_loss(const struct cc *cc, const struct wan *w, uint64_t lost,
				  uint64_t delivered)
{
	uint64_t total = (lost + delivered) / cc->mss, segs = lost / cc->mss,
		 known = w->p_total / cc->mss;
	/* before anything is known of the path, all that can be random may be */
	uint64_t expect = mul_div(total, known < P_KNOWN_SEGS ? P_MAX_PPM : w->p_ppm, PPM);
	/* the sample's variance and that of p_hat */
	uint64_t variance = expect + mul_div(expect, total, known + 1);

	if (!(w->flags & F_ROUND_QUEUED))
		variance = wan_variance(w, variance);

	return segs > 2 + expect + mul_div(total, LOSS_THRESH_PPM, PPM) + 3 * sqrt64(variance);
}

/*
 * A maximum over noisy samples is too high. The noise comes from losses that are counted later than
 * they happened, by up to a quarter of an RTT: over an interval of n packets about sqrt(p * n / 2)
 * packets; a maximum of some ten rounds is about 1.5 sigma above the mean. How much of that is real
 * depends on how RACK waits, so CRUISE trims by what keeps the queue empty, up to this.
 */
static inline uint32_t wan_bias(const struct cc *cc, const struct wan *w)
{
	uint64_t segs = max_u64(wan_bdp(w, UNIT) / cc->mss, 4);
	uint64_t variance = mul_div((uint64_t)UNIT * UNIT, w->p_ppm, 2ull * PPM * segs);

	return (uint32_t)min_u64(3 * sqrt64(variance) / 2, BIAS_MAX);
}

static inline void wan_trim(const struct cc *cc, struct wan *w)
{
	uint64_t seg_ns = mul_div(cc->mss, NS_PER_S, max_u64(wan_bw(w), 1));
	uint64_t empty = w->min_rtt_ns + w->min_rtt_ns / 64 + seg_ns + NS_PER_MS / 10;

	if (w->round_rtt_ns == UINT64_MAX)
		return;
	if (w->round_rtt_ns > empty)
		w->trim = (uint16_t)min_u64(w->trim + TRIM_UP, wan_bias(cc, w));
	else
		w->trim -= (uint16_t)min_u64(w->trim, TRIM_DOWN);
}

/*
 * Slow and with no more than a BDP in flight we have no queue of our own. One that stands
 * nevertheless is somebody else's, and to keep yielding to it would be to starve.
 */
static inline void wan_judge_rival(const struct cc *cc, struct wan *w)
{
	if (w->phase_rtt_ns == UINT64_MAX)
		return;
	if (w->phase_rtt_ns > w->min_rtt_ns + w->min_rtt_ns / 8 + 2 * NS_PER_MS) {
		w->calm = 0;
		w->strikes = (uint8_t)min_u64(w->strikes + 1u, RIVAL_STRIKES);
		if (w->strikes >= RIVAL_STRIKES) {
			w->flags |= F_RIVAL;
			/* every time: those who share a queue must probe alike, or who lost a probe
			 * stays small */
			w->gain_up = GAIN_UP_MAX;
		}
	} else if (w->phase_rtt_ns <= wan_rtt_plus(cc, w, 16)) {
		w->strikes = 0;
		w->calm = (uint8_t)min_u64(w->calm + 1u, RIVAL_CALM);
		if (w->calm >= RIVAL_CALM) {
			w->flags &= ~F_RIVAL;
			w->base_rtt_ns = w->min_rtt_ns;
		}
	}
}

/* A probe asks for four segments more at least: what a percentage of a few segments can find is
 * less than noise. */
static inline uint32_t wan_gain_up(const struct cc *cc, const struct wan *w)
{
	uint64_t gain = w->gain_up - UNIT;
	uint64_t floor = mul_div(4ull * cc->mss, UNIT, max_u64(wan_bdp(w, UNIT), 4ull * cc->mss));

	gain = w->flags & F_ALONE ? gain / 2 : max_u64(gain, floor);
	return UNIT + (uint32_t)min_u64(gain << w->up_stage, UNIT);
}

#endif /* DMM_CC_WAN_MODEL_H */

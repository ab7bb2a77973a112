/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cc_cubic.c: CUBIC (RFC 9438) with HyStart++ (RFC 9406).
 *
 * Window-limited, never paced. Windows in bytes, time in seconds, so C keeps the RFC's value with
 * windows counted in segments. Growth needs a full window: a sender that the application or the
 * peer's window limits learns nothing.
 */
#include "cc.h"
#include "hystart.h"
#include "../base/util.h"

#define CUBIC_BETA 0.7
#define CUBIC_C 0.4

struct cubic {
	uint64_t ssthresh_bytes;
	uint64_t epoch_ns; /* start of the congestion avoidance stage; 0: none */
	double w_max;	   /* segments */
	double k_s;
	double cwnd_epoch;	/* segments, when the epoch began */
	double w_est;		/* what Reno would have, segments */
	double cwnd_frac;	/* bytes of growth not yet added */
	uint64_t after_rto;	/* recovery after a timeout slow-starts */
	uint64_t ece_end_bytes; /* delivered_bytes that ends the round of the last answer to ECN */
	struct hystart hystart;
	struct cubic_prior {
		uint64_t cwnd_bytes; /* 0: none */
		uint64_t ssthresh_bytes;
		uint64_t epoch_ns;
		double w_max;
		double k_s;
		double w_est;
	} prior; /* before the last reduction */
} __attribute__((may_alias));

_Static_assert(sizeof(struct cubic) <= sizeof(((struct cc *)0)->priv), "fits in cc.priv");

static struct cubic *cubic_of(struct cc *cc)
{
	return (struct cubic *)cc->priv;
}

/* Newton; the core links without libm */
static double cube_root(double x)
{
	double r = x > 1 ? x / 3 : 1;

	if (x <= 0)
		return 0;
	for (int i = 0; i < 64; i++) {
		double next = (2 * r + x / (r * r)) / 3;
		double d = next > r ? next - r : r - next;

		r = next;
		if (d < 1e-9 * r)
			break;
	}
	return r;
}

static void cubic_init(struct cc *cc, uint64_t now_ns)
{
	struct cubic *q = cubic_of(cc);

	(void)now_ns;
	memset(q, 0, sizeof(*q));
	q->ssthresh_bytes = UINT64_MAX;
	hystart_init(&q->hystart);
	cc->pacing_Bps = 0;
}

static void cubic_epoch(struct cc *cc, struct cubic *q, uint64_t now_ns)
{
	double cwnd = (double)cc->cwnd_bytes / cc->mss;

	q->epoch_ns = now_ns;
	q->cwnd_epoch = cwnd;
	q->w_est = cwnd;
	q->cwnd_frac = 0;
	if (cwnd < q->w_max) {
		q->k_s = cube_root((q->w_max - cwnd) / CUBIC_C);
	} else {
		q->k_s = 0;
		q->w_max = cwnd;
	}
}

/* Section 4.2 to 4.5 */
static void cubic_avoid(struct cc *cc, struct cubic *q, const struct cc_sample *s)
{
	double cwnd = (double)cc->cwnd_bytes / cc->mss, acked = (double)s->acked_bytes / cc->mss;
	double t, target, alpha, add;

	if (!q->epoch_ns)
		cubic_epoch(cc, q, s->now_ns);
	t = (double)(s->now_ns - q->epoch_ns + cc->srtt_ns) / 1e9 - q->k_s;
	target = CUBIC_C * t * t * t + q->w_max;
	if (target < cwnd)
		target = cwnd;
	if (target > 1.5 * cwnd)
		target = 1.5 * cwnd;
	add = (target - cwnd) / cwnd * acked;
	alpha = q->w_est >= q->w_max ? 1 : 3 * (1 - CUBIC_BETA) / (1 + CUBIC_BETA);
	q->w_est += alpha * acked / cwnd;
	if (q->w_est > cwnd + add)
		add = q->w_est - cwnd;
	q->cwnd_frac += add * cc->mss;
	if (q->cwnd_frac >= 1) {
		cc->cwnd_bytes += (uint64_t)q->cwnd_frac;
		q->cwnd_frac -= (double)(uint64_t)q->cwnd_frac;
	}
}

static void cubic_slow_start(struct cc *cc, struct cubic *q, const struct cc_sample *s)
{
	bool done;

	cc->cwnd_bytes += hystart_on_ack(&q->hystart, s, &done);
	if (done)
		q->ssthresh_bytes = cc->cwnd_bytes;
	cc->cwnd_bytes = min_u64(cc->cwnd_bytes, q->ssthresh_bytes);
}

/* Section 4.6 and 4.7: multiplicative decrease and fast convergence */
static void cubic_reduce(struct cc *cc, struct cubic *q, uint64_t flight_bytes)
{
	double cwnd = (double)cc->cwnd_bytes / cc->mss;
	uint64_t least = 2ull * cc->mss;

	q->prior = (struct cubic_prior){cc->cwnd_bytes, q->ssthresh_bytes, q->epoch_ns, q->w_max,
					q->k_s,		q->w_est};
	hystart_finish(&q->hystart);
	q->w_max = cwnd < q->w_max ? cwnd * (1 + CUBIC_BETA) / 2 : cwnd;
	q->epoch_ns = 0;
	q->ssthresh_bytes = max_u64((uint64_t)((double)flight_bytes * CUBIC_BETA), least);
}

/* RFC 3168 section 6.1.2: as for a loss, once per round */
static void cubic_on_ece(struct cc *cc, struct cubic *q, const struct cc_sample *s)
{
	if (s->prior_delivered_bytes < q->ece_end_bytes)
		return;
	q->ece_end_bytes = s->delivered_bytes;
	if (cc->in_recovery)
		return;
	cubic_reduce(cc, q, cc->cwnd_bytes);
	q->prior.cwnd_bytes = 0; /* a mark is no guess */
	cc->cwnd_bytes = q->ssthresh_bytes;
}

static void cubic_on_ack(struct cc *cc, const struct cc_sample *s)
{
	struct cubic *q = cubic_of(cc);
	bool slow_start = cc->cwnd_bytes < q->ssthresh_bytes;
	bool limited = s->prior_inflight_bytes + 2ull * cc->mss >= cc->cwnd_bytes;

	if (s->ece)
		cubic_on_ece(cc, q, s);
	if (!s->acked_bytes || s->ece || (cc->in_recovery && !(q->after_rto && slow_start)))
		return;
	if (!s->in_order) /* RFC 5681 section 3.2 step 1: not on duplicates */
		return;
	if (slow_start) {
		/* half a window in use is enough while it doubles */
		if (limited || s->prior_inflight_bytes * 2 > cc->cwnd_bytes || q->after_rto)
			cubic_slow_start(cc, q, s);
		return;
	}
	if (limited)
		cubic_avoid(cc, q, s);
	else
		q->epoch_ns = 0; /* time without a full window must not count as growth */
}

static void cubic_enter_recovery(struct cc *cc, uint64_t now_ns)
{
	struct cubic *q = cubic_of(cc);

	(void)now_ns;
	cubic_reduce(cc, q, cc->cwnd_bytes);
	cc->cwnd_bytes = q->ssthresh_bytes;
}

static void cubic_exit_recovery(struct cc *cc, uint64_t now_ns)
{
	(void)now_ns;
	cubic_of(cc)->after_rto = 0;
}

static void cubic_on_rto(struct cc *cc, uint64_t now_ns)
{
	struct cubic *q = cubic_of(cc);

	(void)now_ns;
	if (!q->after_rto) /* a second timeout in a row says nothing new about the path */
		cubic_reduce(cc, q, cc->cwnd_bytes);
	q->after_rto = 1;
	cc->cwnd_bytes = cc->mss;
}

/* RFC 5681 section 4.1 */
static void cubic_on_restart(struct cc *cc, uint64_t idle_ns, uint64_t now_ns)
{
	struct cubic *q = cubic_of(cc);

	(void)idle_ns;
	(void)now_ns;
	q->ssthresh_bytes = max_u64(q->ssthresh_bytes, cc->cwnd_bytes / 4 * 3);
	cc->cwnd_bytes = min_u64(cc->cwnd_bytes, 10ull * cc->mss);
	q->epoch_ns = 0;
}

/* Section 4.9.1 */
static void cubic_on_undo(struct cc *cc, uint64_t now_ns)
{
	struct cubic *q = cubic_of(cc);

	(void)now_ns;
	if (!q->prior.cwnd_bytes)
		return;
	cc->cwnd_bytes = max_u64(cc->cwnd_bytes, q->prior.cwnd_bytes);
	q->ssthresh_bytes = max_u64(q->ssthresh_bytes, q->prior.ssthresh_bytes);
	q->w_max = q->prior.w_max;
	q->k_s = q->prior.k_s;
	q->w_est = q->prior.w_est;
	q->epoch_ns = q->prior.epoch_ns;
	q->after_rto = 0;
	q->prior.cwnd_bytes = 0;
}

const struct cc_ops cc_cubic = {
	.name = "cubic",
	.prr = 1,
	.init = cubic_init,
	.on_ack = cubic_on_ack,
	.on_enter_recovery = cubic_enter_recovery,
	.on_exit_recovery = cubic_exit_recovery,
	.on_rto = cubic_on_rto,
	.on_restart = cubic_on_restart,
	.on_undo = cubic_on_undo,
};

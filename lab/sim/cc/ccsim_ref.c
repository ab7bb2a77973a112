/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ccsim_ref.c: the neighbours `wan` is measured against: CUBIC (RFC 9438, with slow start to the
 * first loss) and BBR as Linux's tcp_bbr.c has it (version 1, here `bbr1`). Reference behaviour in
 * floating point; never part of the product.
 */
#include "../../../dmm_ebpf/kit/sim/ccsim.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

struct cubic {
	double cwnd, ssthresh, w_max, k, w_est; /* segments, seconds */
	uint64_t epoch_ns;
	uint32_t delayed; /* RTT samples above the HyStart threshold, in a row */
};

_Static_assert(sizeof(struct cubic) <= sizeof(((struct cc *)0)->priv), "fits");

static void cubic_init(struct cc *cc, uint64_t now_ns)
{
	struct cubic *c = (struct cubic *)cc->priv;

	(void)now_ns;
	memset(c, 0, sizeof(*c));
	c->cwnd = (double)cc->cwnd_bytes / cc->mss;
	c->ssthresh = 1e9;
}

static void cubic_on_ack(struct cc *cc, const struct cc_sample *s)
{
	struct cubic *c = (struct cubic *)cc->priv;
	double acked = (double)s->acked_bytes / cc->mss, t, target;
	uint64_t thresh;

	if (cc->in_recovery || s->prior_inflight_bytes + 3ull * cc->mss < cc->cwnd_bytes)
		return;
	if (c->cwnd < c->ssthresh) {
		c->cwnd += acked;
		/*
		 * the delay half of HyStart: eight samples, so that a delayed ACK does not
		 * end slow start
		 */
		thresh = cc->min_rtt_ns / 8 < 16 * CCSIM_MS ? cc->min_rtt_ns / 8 : 16 * CCSIM_MS;
		thresh = thresh < 4 * CCSIM_MS ? 4 * CCSIM_MS : thresh;
		c->delayed = s->rtt_ns > cc->min_rtt_ns + thresh ? c->delayed + 1 : 0;
		if (c->delayed >= 8)
			c->ssthresh = c->cwnd;
	} else {
		if (!c->epoch_ns) {
			c->epoch_ns = s->now_ns;
			if (c->w_max < c->cwnd)
				c->w_max = c->cwnd;
			c->k = cbrt((c->w_max - c->cwnd) / 0.4);
			c->w_est = c->cwnd;
		}
		t = (double)(s->now_ns - c->epoch_ns + cc->srtt_ns) / 1e9;
		target = c->w_max + 0.4 * pow(t - c->k, 3);
		c->w_est += 0.53 * acked / c->cwnd;
		if (target < c->w_est)
			target = c->w_est;
		if (target > 1.5 * c->cwnd)
			target = 1.5 * c->cwnd;
		if (target > c->cwnd)
			c->cwnd += (target - c->cwnd) / c->cwnd * acked;
	}
	cc->cwnd_bytes = (uint64_t)(c->cwnd * cc->mss);
}

static void cubic_on_enter_recovery(struct cc *cc, uint64_t now_ns)
{
	struct cubic *c = (struct cubic *)cc->priv;

	(void)now_ns;
	c->w_max = c->cwnd < c->w_max ? c->cwnd * 0.85 : c->cwnd;
	c->cwnd = c->cwnd * 0.7 > 2 ? c->cwnd * 0.7 : 2;
	c->ssthresh = c->cwnd;
	c->epoch_ns = 0;
	cc->cwnd_bytes = (uint64_t)(c->cwnd * cc->mss);
}

static void cubic_on_exit_recovery(struct cc *cc, uint64_t now_ns)
{
	(void)cc;
	(void)now_ns;
}

static void cubic_on_rto(struct cc *cc, uint64_t now_ns)
{
	struct cubic *c = (struct cubic *)cc->priv;

	cubic_on_enter_recovery(cc, now_ns);
	c->cwnd = 1;
	cc->cwnd_bytes = cc->mss;
}

const struct cc_ops ref_cubic = {
	.name = "cubic",
	.init = cubic_init,
	.on_ack = cubic_on_ack,
	.on_enter_recovery = cubic_on_enter_recovery,
	.on_exit_recovery = cubic_on_exit_recovery,
	.on_rto = cubic_on_rto,
};

enum { BBR_STARTUP, BBR_DRAIN, BBR_PROBE_BW, BBR_PROBE_RTT };

struct bbr {
	double bw[10]; /* maximum of each of the last 10 rounds, bytes a second */
	double full_bw, bw_now;
	uint64_t round, next_round_delivered;
	uint64_t min_rtt_ns, min_rtt_stamp_ns, phase_ns, probe_rtt_done_ns, prior_cwnd;
	int mode, phase, full_count, full, round_start;
};

_Static_assert(sizeof(struct bbr) <= sizeof(((struct cc *)0)->priv), "fits");

static const double bbr_cycle[8] = {1.25, 0.75, 1, 1, 1, 1, 1, 1};

static double bbr_bdp(const struct bbr *b, double gain)
{
	return b->min_rtt_ns == UINT64_MAX ? 0 : gain * b->bw_now * (double)b->min_rtt_ns / 1e9;
}

static void bbr_init(struct cc *cc, uint64_t now_ns)
{
	struct bbr *b = (struct bbr *)cc->priv;

	memset(b, 0, sizeof(*b));
	b->min_rtt_ns = UINT64_MAX;
	b->min_rtt_stamp_ns = now_ns;
	cc->pacing_Bps = (uint64_t)(2.885 * (double)cc->cwnd_bytes * 1000);
}

static void bbr_model(struct bbr *b, const struct cc_sample *s)
{
	double rate;

	b->round_start = 0;
	if (s->acked_bytes && s->prior_delivered_bytes >= b->next_round_delivered) {
		b->next_round_delivered = s->delivered_bytes;
		b->round++;
		b->round_start = 1;
		b->bw[b->round % 10] = 0;
	}
	if (s->interval_ns) {
		rate = (double)s->interval_delivered_bytes * 1e9 / (double)s->interval_ns;
		if ((!s->app_limited || rate > b->bw_now) && rate > b->bw[b->round % 10])
			b->bw[b->round % 10] = rate;
	}
	b->bw_now = 0;
	for (int i = 0; i < 10; i++)
		if (b->bw[i] > b->bw_now)
			b->bw_now = b->bw[i];
}

static void bbr_modes(struct cc *cc, struct bbr *b, const struct cc_sample *s)
{
	uint64_t since = s->now_ns - b->phase_ns;
	double gain = bbr_cycle[b->phase];

	if (b->mode == BBR_PROBE_BW &&
	    ((since > b->min_rtt_ns && (gain <= 1 || s->lost_bytes ||
					(double)s->prior_inflight_bytes >= bbr_bdp(b, gain))) ||
	     (gain < 1 && (double)s->prior_inflight_bytes <= bbr_bdp(b, 1)))) {
		b->phase = (b->phase + 1) % 8;
		b->phase_ns = s->now_ns;
	}
	if (!b->full && b->round_start && !s->app_limited) {
		if (b->bw_now >= 1.25 * b->full_bw) {
			b->full_bw = b->bw_now;
			b->full_count = 0;
		} else {
			b->full = ++b->full_count >= 3;
		}
	}
	if (b->mode == BBR_STARTUP && b->full)
		b->mode = BBR_DRAIN;
	if (b->mode == BBR_DRAIN && (double)cc->inflight_bytes <= bbr_bdp(b, 1)) {
		b->mode = BBR_PROBE_BW;
		b->phase = (int)((cc->rng >> 20) % 7);
		b->phase += b->phase >= 1;
		b->phase_ns = s->now_ns;
	}
}

static void bbr_min_rtt(struct cc *cc, struct bbr *b, const struct cc_sample *s)
{
	int expired = s->now_ns - b->min_rtt_stamp_ns > 10 * CCSIM_S;

	if (s->rtt_ns && (s->rtt_ns <= b->min_rtt_ns || expired)) {
		b->min_rtt_ns = s->rtt_ns;
		b->min_rtt_stamp_ns = s->now_ns;
	}
	if (expired && b->mode != BBR_PROBE_RTT) {
		b->mode = BBR_PROBE_RTT;
		b->prior_cwnd = cc->cwnd_bytes;
		b->probe_rtt_done_ns = 0;
	}
	if (b->mode != BBR_PROBE_RTT)
		return;
	if (!b->probe_rtt_done_ns && cc->inflight_bytes <= 4ull * cc->mss) {
		b->probe_rtt_done_ns = s->now_ns + 200 * CCSIM_MS;
	} else if (b->probe_rtt_done_ns && s->now_ns > b->probe_rtt_done_ns) {
		b->min_rtt_stamp_ns = s->now_ns;
		cc->cwnd_bytes = b->prior_cwnd;
		b->mode = b->full ? BBR_PROBE_BW : BBR_STARTUP;
		b->phase = 2;
		b->phase_ns = s->now_ns;
	}
}

static void bbr_on_ack(struct cc *cc, const struct cc_sample *s)
{
	struct bbr *b = (struct bbr *)cc->priv;
	double pacing = 1, gain = 2, target;

	bbr_model(b, s);
	bbr_modes(cc, b, s);
	bbr_min_rtt(cc, b, s);
	if (b->mode == BBR_STARTUP)
		pacing = gain = 2.885;
	else if (b->mode == BBR_DRAIN)
		pacing = 1 / 2.885;
	else if (b->mode == BBR_PROBE_BW)
		pacing = bbr_cycle[b->phase];
	if (b->bw_now > 0 && (b->full || pacing * b->bw_now * 0.99 > (double)cc->pacing_Bps))
		cc->pacing_Bps = (uint64_t)(pacing * b->bw_now * 0.99);
	target = bbr_bdp(b, gain) + 3 * cc->mss * (cc->pacing_Bps > 1000000 ? 2 : 1);
	if (b->full && (double)(cc->cwnd_bytes + s->acked_bytes) > target)
		cc->cwnd_bytes = (uint64_t)target;
	else if (b->full || (double)cc->cwnd_bytes < target)
		cc->cwnd_bytes += s->acked_bytes;
	if (cc->cwnd_bytes < 4ull * cc->mss || b->mode == BBR_PROBE_RTT)
		cc->cwnd_bytes = 4ull * cc->mss;
}

static void bbr_nothing(struct cc *cc, uint64_t now_ns)
{
	(void)cc;
	(void)now_ns;
}

static void bbr_on_rto(struct cc *cc, uint64_t now_ns)
{
	(void)now_ns;
	cc->cwnd_bytes = cc->inflight_bytes + cc->mss;
}

const struct cc_ops ref_bbr = {
	.name = "bbr1",
	.init = bbr_init,
	.on_ack = bbr_on_ack,
	.on_enter_recovery = bbr_nothing,
	.on_exit_recovery = bbr_nothing,
	.on_rto = bbr_on_rto,
};

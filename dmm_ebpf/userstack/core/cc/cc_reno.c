/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cc_reno.c: the standard congestion control: RFC 5681 with the byte counting of RFC 3465, halved
 * once per round by loss (RFC 6582) or ECN (RFC 3168), HyStart++ in the initial slow start (RFC
 * 9406).
 *
 * Window-limited, never paced. Growth needs a full window, as in cubic.
 */
#include "cc.h"
#include "hystart.h"
#include "../base/util.h"

struct reno {
	uint64_t ssthresh_bytes;
	uint64_t acked_bytes;	/* in congestion avoidance, since the window last grew */
	uint64_t after_rto;	/* recovery after a timeout slow-starts */
	uint64_t ece_end_bytes; /* delivered_bytes that ends the round of the last answer to ECN */
	struct hystart hystart;
	uint64_t prior_cwnd_bytes; /* before the last reduction; 0: none */
	uint64_t prior_ssthresh_bytes;
} __attribute__((may_alias));

_Static_assert(sizeof(struct reno) <= sizeof(((struct cc *)0)->priv), "fits in cc.priv");

static struct reno *reno_of(struct cc *cc)
{
	return (struct reno *)cc->priv;
}

static void reno_init(struct cc *cc, uint64_t now_ns)
{
	struct reno *r = reno_of(cc);

	(void)now_ns;
	memset(r, 0, sizeof(*r));
	r->ssthresh_bytes = UINT64_MAX;
	hystart_init(&r->hystart);
	cc->pacing_Bps = 0;
}

static void reno_slow_start(struct cc *cc, struct reno *r, const struct cc_sample *s)
{
	bool done;

	cc->cwnd_bytes += hystart_on_ack(&r->hystart, s, &done);
	if (done)
		r->ssthresh_bytes = cc->cwnd_bytes;
	cc->cwnd_bytes = min_u64(cc->cwnd_bytes, r->ssthresh_bytes);
}

static void reno_avoid(struct cc *cc, struct reno *r, const struct cc_sample *s)
{
	r->acked_bytes += s->acked_bytes;
	if (r->acked_bytes < cc->cwnd_bytes)
		return;
	r->acked_bytes -= cc->cwnd_bytes;
	cc->cwnd_bytes += cc->mss;
}

static void reno_reduce(struct cc *cc, struct reno *r)
{
	hystart_finish(&r->hystart);
	r->acked_bytes = 0;
	r->prior_cwnd_bytes = cc->cwnd_bytes;
	r->prior_ssthresh_bytes = r->ssthresh_bytes;
	r->ssthresh_bytes = max_u64(cc->cwnd_bytes / 2, 2ull * cc->mss);
}

/* RFC 3168 section 6.1.2: as for a loss, once per round */
static void reno_on_ece(struct cc *cc, struct reno *r, const struct cc_sample *s)
{
	if (s->prior_delivered_bytes < r->ece_end_bytes)
		return;
	r->ece_end_bytes = s->delivered_bytes;
	if (cc->in_recovery)
		return;
	reno_reduce(cc, r);
	r->prior_cwnd_bytes = 0; /* a mark is no guess */
	cc->cwnd_bytes = r->ssthresh_bytes;
}

static void reno_on_ack(struct cc *cc, const struct cc_sample *s)
{
	struct reno *r = reno_of(cc);
	bool slow_start = cc->cwnd_bytes < r->ssthresh_bytes;
	bool limited = s->prior_inflight_bytes + 2ull * cc->mss >= cc->cwnd_bytes;

	if (s->ece)
		reno_on_ece(cc, r, s);
	if (!s->acked_bytes || s->ece || (cc->in_recovery && !(r->after_rto && slow_start)))
		return;
	if (!s->in_order) /* RFC 5681 section 3.2 step 1: not on duplicates */
		return;
	if (slow_start) {
		if (limited || s->prior_inflight_bytes * 2 > cc->cwnd_bytes || r->after_rto)
			reno_slow_start(cc, r, s);
	} else if (limited) {
		reno_avoid(cc, r, s);
	}
}

static void reno_enter_recovery(struct cc *cc, uint64_t now_ns)
{
	struct reno *r = reno_of(cc);

	(void)now_ns;
	reno_reduce(cc, r);
	cc->cwnd_bytes = r->ssthresh_bytes;
}

static void reno_exit_recovery(struct cc *cc, uint64_t now_ns)
{
	(void)now_ns;
	reno_of(cc)->after_rto = 0;
}

static void reno_on_rto(struct cc *cc, uint64_t now_ns)
{
	struct reno *r = reno_of(cc);

	(void)now_ns;
	/* RFC 5681 section 3.1: ssthresh stays when the retransmission is lost too */
	if (!r->after_rto)
		reno_reduce(cc, r);
	r->after_rto = 1;
	cc->cwnd_bytes = cc->mss;
}

/* RFC 5681 section 4.1 */
static void reno_on_restart(struct cc *cc, uint64_t idle_ns, uint64_t now_ns)
{
	struct reno *r = reno_of(cc);

	(void)idle_ns;
	(void)now_ns;
	r->ssthresh_bytes = max_u64(r->ssthresh_bytes, cc->cwnd_bytes / 4 * 3);
	cc->cwnd_bytes = min_u64(cc->cwnd_bytes, 10ull * cc->mss);
}

static void reno_on_undo(struct cc *cc, uint64_t now_ns)
{
	struct reno *r = reno_of(cc);

	(void)now_ns;
	if (!r->prior_cwnd_bytes)
		return;
	cc->cwnd_bytes = max_u64(cc->cwnd_bytes, r->prior_cwnd_bytes);
	r->ssthresh_bytes = max_u64(r->ssthresh_bytes, r->prior_ssthresh_bytes);
	r->after_rto = 0;
	r->prior_cwnd_bytes = 0;
}

const struct cc_ops cc_reno = {
	.name = "reno",
	.prr = 1,
	.init = reno_init,
	.on_ack = reno_on_ack,
	.on_enter_recovery = reno_enter_recovery,
	.on_exit_recovery = reno_exit_recovery,
	.on_rto = reno_on_rto,
	.on_restart = reno_on_restart,
	.on_undo = reno_on_undo,
};

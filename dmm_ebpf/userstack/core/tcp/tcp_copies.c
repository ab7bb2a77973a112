/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_copies.c: copies of segments that nothing else would repair soon, on the outer leg, for
 * receivers as they are (any TCP).
 *
 * Theory of operation. Who writes little and waits loses a round trip with each segment that is
 * lost, or a timeout when nothing is sent behind it. Where the path loses at random, a copy a few
 * milliseconds later costs less than that wait. So when the app has no more to send, the segments
 * of the burst that has just gone (all of a short one, the end of a longer one) are planned for as
 * many copies as leave no more than cfg.redundancy_residual_ppm lost, by the loss that was measured
 * (tcp_loss.c): none where nothing is lost. They go one after the other, so far apart that a burst
 * of losses has passed, unless the segment was acknowledged or marked lost meanwhile. Proactive
 * redundancy for TCP: Flach et al., "Reducing Web Latency: the Virtue of Gentle Aggression",
 * SIGCOMM 2013; RDB: Petlund et al.
 *
 * What keeps them harmless: nothing is copied while anything new waits to be sent, so what the path
 * or the peer does not take makes no copies; nor while loss may be congestion (loss_is_random()).
 * The congestion window counts them as what is in flight (flight.copy_bytes). Their bytes, headers
 * included, are drawn from buckets that fill at a share of the path's rate (tcp_budget.c); a second
 * copy wants twice as much in them as the first, so that first copies come first. The congestion
 * control's pacing does not hold them, nor do they hold back data by it: of a flow that is limited
 * by its app it only knows the app's rate, at which a copy would take as long as the next message.
 * The bucket and the gap pace them.
 *
 * A copy changes nothing of what is known about its segment: RACK, TLP, F-RTO and the timers go on
 * from the transmission proper. Which transmission has arrived is told by the echoed timestamp, so
 * a copied segment gives a round trip only when that is known (Karn). A loss that a copy repaired
 * is told to the congestion control all the same (RFC 9265 section 3): it was one. A DSACK
 * of a segment is explained by a copy of it, once for each, and proves nothing about
 * retransmissions; one that nothing explains does.
 *
 * Owns: struct copies, which exists from the first plan until the connection ends or is put away.
 * Invariants: what is planned is in flight and on the tx list, or is dropped when its time comes;
 * copy_wake_ns is no later than the first that is due.
 */
#include "tcp_int.h"
#include "../cc/redundancy.h"

enum {
	BURST_SEGS = 10, /* a burst up to the initial window of RFC 6928 is short: all of it */
	TAIL_SEGS = 3,	 /* of a longer one: behind them RACK needs no help (TCP_DUP_THRESH) */
	GAP_SHARE = 32,	 /* between two copies: min_rtt by this, ... */
	GAP_MIN_MS = 1,	 /* ... at least a tick of the timestamps' clock, which tells them apart */
	GAP_MAX_MS = 3,
	GAP_MOST_SHIFT = 3, /* doubled so often at most, for bursts */
	LATE_MS = 20,	    /* a copy that could not go for so long is not worth it any more */
	HEADERS_BYTES = 72, /* of IPv6 and of TCP with timestamps */
	SYN_MOST = 3,	    /* copies of a SYN */
	SYN_WAITS = 2,	    /* for a round trip that others have measured */
	SYN_LOOK_MS = 100,  /* whether the path is known by now */
	SYN_ACK_MOST = 1,   /* who is said to have sent the SYN may know nothing of it */
};

struct copy {
	uint64_t seq; /* of the segment */
	uint64_t sent_ns;
	uint64_t due_ns;		/* of the next copy; NEVER: there is none */
	uint32_t after_ns[COPIES_MOST]; /* when each went, after sent_ns */
	uint32_t len;			/* 0: this place is free */
	uint8_t want;
	uint8_t sent;
	uint8_t tried; /* sent, or not for want of budget or window */
	uint8_t told;  /* DSACKs that they explained */
};

struct copies {
	struct copy v[COPIES_KEPT]; /* a ring */
	uint32_t next;
};

static struct copies *copies_of(const struct tcb *t)
{
	return tcb_outer(t)->copies;
}

/* The newest of a segment, or NULL */
static struct copy *copy_find(const struct tcb *t, uint64_t seq)
{
	struct copies *c = copies_of(t);

	for (uint32_t i = 1; c && i <= COPIES_KEPT; i++) {
		struct copy *one = &c->v[(c->next - i) % COPIES_KEPT];

		if (one->len && one->seq == seq)
			return one;
	}
	return NULL;
}

bool copies_wanted(const struct env *env, const struct tcb *t)
{
	return tcb_is_outer(t) && redundancy_is_wanted(env);
}

void copies_release(struct env *env, struct outer *o)
{
	if (o->copies)
		mem_free(&env->mem, o->copies, sizeof(*o->copies));
	o->copies = NULL;
	o->copy_wake_ns = NEVER;
}

/* So many that no more than the residual loss is left; 0: none is needed */
static uint32_t copies_needed(const struct env *env, uint64_t left, uint64_t soon)
{
	uint32_t n = 0;

	for (; n < COPIES_MOST && left > env->cfg.redundancy_residual_ppm; n++)
		left = left * soon / 1000000;
	return n;
}

static uint64_t gap_of(uint64_t rtt_ns, uint32_t shift)
{
	uint64_t gap_ns = min_u64(rtt_ns / GAP_SHARE, GAP_MAX_MS * NS_PER_MS);

	return max_u64(gap_ns, GAP_MIN_MS * NS_PER_MS) << shift;
}

static uint64_t gap_ns(const struct tcb *t)
{
	return gap_of(tcp_min_rtt_ns(t), tcb_outer(t)->copy_gap_shift);
}

/* Burst losses that outlast the gap: farther apart, and what was seen of the old gap is forgotten
 */
static void space_out(struct tcb *t)
{
	struct outer *o = tcb_outer(t);

	if (!loss_is_bursty(t) || o->copy_gap_shift >= GAP_MOST_SHIFT)
		return;
	o->copy_gap_shift++;
	loss_spaced_out(t);
}

/*
 * A transmission is planned for once: what was sent again may also be part of a burst that is
 * looked at later. If the segment was cut meanwhile, its plan is for what is left of it.
 */
static void plan_one(struct env *env, struct tcb *t, const struct seg *s, uint32_t want)
{
	struct outer *o = tcb_outer(t);
	struct copy *one = copy_find(t, s->seq);

	if (one && one->sent_ns == s->xmit_ns) {
		one->len = s->len;
		return;
	}
	one = &o->copies->v[o->copies->next++ % COPIES_KEPT];
	*one = (struct copy){
		.seq = s->seq,
		.sent_ns = s->xmit_ns,
		.due_ns = s->xmit_ns + gap_ns(t),
		.len = s->len,
		.want = (uint8_t)want,
	};
	tcp_set_deadline(env, t, &o->copy_wake_ns, min_u64(o->copy_wake_ns, one->due_ns));
}

/* How many copies what goes now is to have */
static uint32_t worth(struct env *env, struct tcb *t, uint64_t now_ns)
{
	struct outer *o = tcb_outer(t);
	uint32_t n;

	if (!o->copying || !loss_is_random(t, now_ns))
		return 0;
	n = copies_needed(env, loss_ppm(t), loss_soon_ppm(t));
	if (!n)
		return 0;
	space_out(t);
	if (!o->copies) {
		o->copies = mem_alloc(&env->mem, sizeof(*o->copies));
		if (!o->copies)
			return 0;
		memset(o->copies, 0, sizeof(*o->copies));
	}
	return n;
}

void copies_plan(struct env *env, struct tcb *t, uint64_t now_ns)
{
	struct outer *o = tcb_outer(t);
	uint32_t first, want;

	first = flight_lower_bound(t->fl, o->copy_planned);
	o->copy_planned = t->snd_nxt;
	want = worth(env, t, now_ns);
	if (!want)
		return;
	if (t->fl->count - first > BURST_SEGS)
		first = t->fl->count - TAIL_SEGS;
	for (; first < t->fl->count; first++) {
		const struct seg *s = flight_seg(t->fl, flight_idx(t->fl, first));

		if (!(s->flags & (SEG_SACKED | SEG_LOST | SEG_PROBE)))
			plan_one(env, t, s, want);
	}
}

void copies_plan_again(struct env *env, struct tcb *t, const struct seg *s, uint64_t now_ns)
{
	uint32_t want = worth(env, t, now_ns);

	if (want && !(s->flags & SEG_PROBE))
		plan_one(env, t, s, want);
}

static bool window_allows(const struct tcb *t, uint32_t len)
{
	const struct flight *fl = t->fl;

	/* what the app writes next must find room */
	return tcp_inflight(t) + fl->copy_bytes + 2 * len <= tcb_outer(t)->cc.cwnd_bytes;
}

/* Its segment, if that is still on the way as it was sent then; else NULL */
static struct seg *on_the_way(const struct tcb *t, const struct copy *one, uint32_t *idx)
{
	uint32_t nth = flight_lower_bound(t->fl, one->seq);
	struct seg *s;

	if (nth >= t->fl->count)
		return NULL;
	*idx = flight_idx(t->fl, nth);
	s = flight_seg(t->fl, *idx);
	if (s->seq != one->seq || s->len != one->len || s->xmit_ns != one->sent_ns ||
	    s->flags & (SEG_SACKED | SEG_LOST))
		return NULL;
	return s;
}

/* Now, or its turn is over */
static bool may_go(struct env *env, struct tcb *t, struct copy *one, uint64_t now_ns)
{
	bool late = now_ns > one->due_ns + LATE_MS * NS_PER_MS, may;

	one->tried++;
	one->due_ns = one->tried < one->want ? now_ns + gap_ns(t) : NEVER;
	may = !late && loss_is_random(t, now_ns) && window_allows(t, one->len) &&
	      budget_allows(env, t, one->len + HEADERS_BYTES, one->tried, now_ns);
	env->counters[DMM_CORE_COPIES_HELD] += !may;
	return may;
}

/* The one that is due first, by now; *next_ns: when the one behind it is */
static struct copy *first_due(const struct tcb *t, uint64_t now_ns, uint64_t *next_ns)
{
	struct copies *c = copies_of(t);
	struct copy *first = NULL;

	*next_ns = NEVER;
	for (uint32_t i = 0; i < COPIES_KEPT; i++) {
		struct copy *one = &c->v[(c->next + i) % COPIES_KEPT];

		if (!one->len || one->due_ns == NEVER)
			continue;
		if (one->due_ns <= now_ns && (!first || one->due_ns < first->due_ns))
			first = one;
		else
			*next_ns = min_u64(*next_ns, one->due_ns);
	}
	return first;
}

bool copies_next(struct env *env, struct tcb *t, uint64_t now_ns, uint32_t *idx)
{
	struct outer *o = tcb_outer(t);
	uint64_t next_ns;
	struct copy *one;

	if (!o->copies || !t->fl)
		return false;
	while ((one = first_due(t, now_ns, &next_ns))) {
		struct seg *s = on_the_way(t, one, idx);

		if (!s)
			one->due_ns = NEVER;
		else if (may_go(env, t, one, now_ns))
			return true;
	}
	o->copy_wake_ns = NEVER;
	tcp_set_deadline(env, t, &o->copy_wake_ns, next_ns);
	return false;
}

bool copies_are_enough(const struct tcb *t)
{
	return !t->fl || t->fl->count <= BURST_SEGS;
}

void copies_sent(struct env *env, struct tcb *t, struct seg *s, uint64_t now_ns)
{
	struct outer *o = tcb_outer(t);
	struct copy *one = copy_find(t, s->seq);

	flight_copied(t->fl, s);
	one->after_ns[one->sent++] = (uint32_t)min_u64(now_ns - one->sent_ns, UINT32_MAX);
	budget_spend(env, t, s->len + HEADERS_BYTES, now_ns);
	o->copies_sent++;
	env->counters[DMM_CORE_COPIES]++;
}

static uint64_t sent_at(const struct copy *one, uint32_t n)
{
	return one->sent_ns + (n ? one->after_ns[n - 1] : 0);
}

/* Which transmission it was whose timestamp came back; -1: none of these */
static int by_echo(const struct tcb *t, const struct copy *one, const struct pkt *pkt)
{
	for (uint32_t n = 0; n <= one->sent; n++) {
		if (tcp_ts_now(t, sent_at(one, n)) == pkt->tsecr)
			return (int)n;
	}
	return -1;
}

/* Without timestamps: the one whose round trip would be the most usual */
static int by_time(const struct tcb *t, const struct copy *one, uint64_t now_ns)
{
	uint32_t n = 0;

	while (n < one->sent &&
	       now_ns - sent_at(one, n) > t->srtt_ns + (sent_at(one, n + 1) - sent_at(one, n)) / 2)
		n++;
	return (int)n;
}

/*
 * An echo is of the segment that moved the ACK last. A DSACK of this one beside it: two arrived at
 * least, and the ACK of the first was lost or delayed.
 */
static int which(const struct tcb *t, const struct copy *one, const struct ack_told *told,
		 uint64_t now_ns)
{
	if (told->dsack_start <= one->seq && told->dsack_end > one->seq)
		return 0;
	if (!(t->flags & TF_TS))
		return by_time(t, one, now_ns);
	if (one->seq + one->len != told->ack)
		return -1;
	return by_echo(t, one, told->pkt);
}

uint64_t copies_arrived(struct env *env, struct tcb *t, const struct seg *s, struct ack_told *told,
			uint64_t now_ns)
{
	struct copy *one = copy_find(t, s->seq);
	struct outer *o = tcb_outer(t);
	int n;

	if (!one)
		return s->xmit_ns;
	one->due_ns = NEVER;
	n = which(t, one, told, now_ns);
	if (n < 0)
		return 0;
	loss_count(t, (uint32_t)n + 1, (uint32_t)n, (uint32_t)n, (uint32_t)(n ? n - 1 : 0));
	if (n) {
		o->copies_needed++;
		env->counters[DMM_CORE_COPIES_NEEDED]++;
		told->repaired_bytes += s->len;
	}
	if (!(t->flags & TF_TS))
		return one->sent_ns;
	if (told->dsack_end > one->seq && told->dsack_start <= one->seq)
		n = by_echo(t, one, told->pkt);
	return n < 0 ? 0 : sent_at(one, (uint32_t)n);
}

void copies_lost(struct tcb *t, const struct seg *s)
{
	const struct copy *one = s->flags & SEG_COPIED ? copy_find(t, s->seq) : NULL;
	uint32_t copies = one ? one->sent : 0;

	if (tcb_outer(t)->copying)
		loss_count(t, copies + 1, copies + 1, copies, copies);
}

bool copies_explain(struct tcb *t, uint64_t start, uint64_t end)
{
	struct copies *c = copies_of(t);

	for (uint32_t i = 1; c && i <= COPIES_KEPT; i++) {
		struct copy *one = &c->v[(c->next - i) % COPIES_KEPT];

		if (!one->len || one->seq >= end || one->seq + one->len <= start ||
		    one->told >= one->sent)
			continue;
		one->told++;
		return true;
	}
	return false;
}

void copies_plan_syn(struct env *env, struct tcb *t, uint64_t now_ns)
{
	struct outer *o = tcb_outer(t);
	const struct path *p;
	uint64_t gap_ns;
	uint32_t most;

	if (!copies_wanted(env, t))
		return;
	p = paths_find(env, t, now_ns);
	if (!p)
		return;
	paths_recall(env, t, now_ns);
	most = t->state == TCP_SYN_SENT ? SYN_MOST : SYN_ACK_MOST;
	o->syn_copies = (uint8_t)min_u32(copies_needed(env, loss_ppm(t), loss_soon_ppm(t)), most);
	if (!o->syn_copies)
		return;
	gap_ns = gap_of(p->srtt_us * 1000ull, p->gap_shift);
	o->syn_copy_ns = now_ns + gap_ns;
	o->syn_gap_us = (uint32_t)(gap_ns / 1000);
	tcp_set_deadline(env, t, &o->copy_wake_ns, o->syn_copy_ns);
}

bool copies_syn_due(struct env *env, struct tcb *t, uint64_t now_ns)
{
	struct outer *o = tcb_outer(t);

	if (!tcb_is_outer(t) || !o->syn_copies || now_ns < o->syn_copy_ns)
		return false;
	o->syn_copied = true;
	o->syn_copy_ns += o->syn_gap_us * 1000ull;
	o->syn_gap_us *= 2;
	o->copy_wake_ns = NEVER;
	if (--o->syn_copies)
		tcp_set_deadline(env, t, &o->copy_wake_ns, o->syn_copy_ns);
	o->copies_sent++;
	env->counters[DMM_CORE_COPIES]++;
	return true;
}

void copies_syn_acked(struct tcb *t, const struct pkt *pkt, uint64_t now_ns)
{
	struct outer *o = tcb_outer(t);
	uint32_t after_ms = pkt->tsecr - tcp_ts_now(t, t->syn_ns);

	if (!tcb_is_outer(t) || !o->syn_copied)
		return;
	o->syn_copies = 0;
	o->copy_wake_ns = NEVER;
	if (!pkt->has_ts || after_ms * NS_PER_MS > now_ns - t->syn_ns)
		t->flags |= TF_SYN_RTX; /* which one was answered cannot be told */
	else
		t->syn_ns += after_ms * NS_PER_MS;
}

/*
 * RFC 6298 section 2 has a second until a round trip was measured. One that earlier connections
 * have measured on the path may stand for it (RFC 9040); for the first two waits, so that
 * connect() gives up two seconds sooner at most.
 */
uint64_t copies_syn_rto_ns(struct env *env, const struct tcb *t, uint64_t now_ns)
{
	uint64_t rto_ns = tcp_rto_ns(env, t), shared_ns;
	const struct path *p;

	if (t->backoff >= SYN_WAITS || !copies_wanted(env, t))
		return rto_ns;
	p = paths_find(env, t, now_ns);
	if (!p || !p->srtt_us)
		return rto_ns;
	shared_ns =
		p->srtt_us * 1000ull + max_u64(4000ull * p->rttvar_us, TCP_MIN_RTO_MS * NS_PER_MS);
	return min_u64(rto_ns, shared_ns << t->backoff);
}

/*
 * From now until our SYN has timed out, or it is to be asked again whether it has: of many that
 * went at once over a path of which nothing was known some have come back soon. 0: it has.
 */
uint64_t copies_syn_wait_ns(struct env *env, const struct tcb *t, uint64_t now_ns)
{
	uint64_t rto_ns = copies_syn_rto_ns(env, t, now_ns), since_ns = now_ns - t->syn_ns;

	if (t->backoff || !copies_wanted(env, t))
		return 0;
	return since_ns < rto_ns ? min_u64(rto_ns - since_ns, SYN_LOOK_MS * NS_PER_MS) : 0;
}

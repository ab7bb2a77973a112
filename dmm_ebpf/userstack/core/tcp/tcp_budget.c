/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_budget.c: how many bytes of copies and parity may go (cfg.redundancy_budget_ppm of the path's
 * rate), on the outer leg.
 *
 * Theory of operation. Each connection has a bucket that fills at its share of the path's rate, or,
 * as long as that is not known, of a rate that is assumed. That does no harm while there is room;
 * but twenty connections have twenty buckets, and one path. So while one of them is bulk, all
 * connections to the same network (tcp_paths.c) draw from one bucket besides their own, and what
 * they deliver together is the rate by which it fills.
 *
 * Bulk is what had more to send, for many round trips, than the path took, and was held back by
 * nothing but the path: not by its peer's window; and not by losses at random, which halve the
 * window of some controls where there is room. Theirs counts while a queue stands.
 *
 * All is noted once in a connection's round trip, and asked when a copy is about to go. Of others
 * that fill the path, the kernel's flows and those of other processes and hosts, nothing is known
 * here. A queue shows them only to some: the round trip of a lone segment is up to TCP_DELACK_MS
 * longer without any.
 *
 * A peer that makes bulk slow on purpose leaves fewer copies to its own network, and does no other
 * harm.
 *
 * Owns: of struct path what is marked there. A path that has lost its place in the table to another
 * is known again a round trip later; until then each connection has its own bucket alone.
 */
#include "tcp_int.h"
#include "../cc/redundancy.h"

enum {
	BUCKET_MS = 250, /* what a bucket holds, in time of filling */
	BUCKET_SEGS = 4, /* and at least */
	LOAD_MS = 500,	 /* a stretch of time in which what is delivered is counted */
	LOAD_OLD_MS = 5000,
	BULK_ROUNDS = 16, /* a page has come by then */
	BULK_MS = 2000,	  /* and four round trips: so long it is remembered */
};

static void note_load(struct outer *o, struct path *p, uint64_t now_ns)
{
	uint64_t since_ns = now_ns - p->load_ns, Bps;

	p->load_bytes += o->delivered_bytes - o->load_told;
	o->load_told = o->delivered_bytes;
	if (since_ns < LOAD_MS * NS_PER_MS)
		return;
	Bps = mul_div(p->load_bytes, NS_PER_S, since_ns);
	p->load_Bps[1] = p->load_Bps[0];
	p->load_Bps[0] = Bps;
	if (since_ns > LOAD_OLD_MS * NS_PER_MS)
		p->load_Bps[0] = p->load_Bps[1] = 0;
	p->load_ns = now_ns;
	p->load_bytes = 0;
}

static void note_bulk(struct env *env, const struct tcb *t, struct path *p, uint64_t now_ns)
{
	struct outer *o = tcb_outer(t);
	struct loss *l = &o->loss;
	bool peer_limits = t->snd_nxt + t->mss > t->snd_una + t->snd_wnd;

	if (o->app_limited_until || peer_limits) {
		l->bulk_rounds = 0;
		return;
	}
	l->bulk_rounds = (uint8_t)min_u32(l->bulk_rounds + 1u, BULK_ROUNDS);
	if (l->bulk_rounds < BULK_ROUNDS || !(o->cc.ops->loss_tolerant || l->queue))
		return;
	p->bulk_until_ns = now_ns + BULK_MS * NS_PER_MS + 4 * t->srtt_ns;
	env->bulk_until_ns = max_u64(env->bulk_until_ns, p->bulk_until_ns);
}

void budget_note(struct env *env, struct tcb *t, struct path *p, uint64_t now_ns)
{
	note_load(tcb_outer(t), p, now_ns);
	note_bulk(env, t, p, now_ns);
}

/* Of a path that is shared */
static uint64_t shared_Bps(const struct path *p)
{
	return max_u64(p->load_Bps[0], p->load_Bps[1]);
}

static uint64_t own_Bps(const struct outer *o)
{
	return o->path_Bps ? o->path_Bps : max_u64(o->delivery_Bps, REDUNDANCY_ASSUMED_Bps);
}

/* One of path_Bps; what it holds now */
static uint64_t fill(const struct env *env, const struct tcb *t, struct bucket *b,
		     uint64_t path_Bps, uint64_t now_ns)
{
	uint64_t rate = mul_div(path_Bps, env->cfg.redundancy_budget_ppm, 1000000), most;

	most = max_u64(rate * BUCKET_MS / 1000, (uint64_t)BUCKET_SEGS * t->mss);
	b->bytes = min_u64(most, b->bytes + mul_div(rate, now_ns - b->filled_ns, NS_PER_S));
	b->filled_ns = now_ns;
	return b->bytes;
}

/* The path, while somebody there is bulk; else NULL */
static struct path *shared(struct env *env, const struct tcb *t, uint64_t now_ns)
{
	struct path *p;

	if (now_ns >= env->bulk_until_ns)
		return NULL;
	p = paths_find(env, t, now_ns);
	return p && now_ns < p->bulk_until_ns && shared_Bps(p) ? p : NULL;
}

bool budget_is_known(struct env *env, const struct tcb *t, uint64_t now_ns)
{
	return tcb_outer(t)->path_Bps || shared(env, t, now_ns);
}

bool budget_allows(struct env *env, struct tcb *t, uint32_t bytes, uint32_t n, uint64_t now_ns)
{
	struct outer *o = tcb_outer(t);
	struct path *p = shared(env, t, now_ns);
	uint64_t wanted = (uint64_t)bytes * n;

	if (fill(env, t, &o->copy_bucket, own_Bps(o), now_ns) < wanted)
		return false;
	return !p || fill(env, t, &p->copy_bucket, shared_Bps(p), now_ns) >= wanted;
}

static void take(struct bucket *b, uint32_t bytes)
{
	b->bytes -= min_u64(bytes, b->bytes);
}

void budget_spend(struct env *env, struct tcb *t, uint32_t bytes, uint64_t now_ns)
{
	struct path *p = shared(env, t, now_ns);

	take(&tcb_outer(t)->copy_bucket, bytes);
	if (p)
		take(&p->copy_bucket, bytes);
}

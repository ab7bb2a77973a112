/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_loss.c: how much of what is sent the path loses at random, and whether it may be congestion
 * instead; of the outer leg, for tcp_copies.c.
 *
 * Theory of operation. Transmissions are counted, not segments: of a segment that was sent several
 * times it is known of some which arrived (tcp_copies.c). A second pair of counts is of those that
 * were sent soon after a lost one: losses come in bursts, and a copy is worth what it adds. Both
 * forget: what is counted is the last few hundred. Nothing is counted while a queue stands, for
 * what is lost then may be congestion.
 *
 * Whether a queue stands the shortest round trip of the last two says (loss_cause.h). A single
 * sample proves nothing: it may be jitter, or a delayed ACK.
 */
#include "tcp_int.h"

enum {
	SOON_PRIOR = 4,
	BURST_PROOF = 16,      /* fewer transmissions prove no bursts */
	MARKED_CALM_MS = 1000, /* after a mark of ECN, a second and eight round trips at least */
	MARKED_CALM_RTTS = 8,
};

void loss_count(struct tcb *t, uint32_t sent, uint32_t lost, uint32_t soon, uint32_t soon_lost)
{
	struct loss *l = &tcb_outer(t)->loss;

	if (l->queue)
		return;
	loss_pair_add(&l->all, sent, lost);
	loss_pair_add(&l->soon, soon, soon_lost);
	loss_pair_add(&l->fresh, sent, lost);
	loss_pair_add(&l->fresh_soon, soon, soon_lost);
}

void loss_was_none(struct tcb *t)
{
	struct loss *l = &tcb_outer(t)->loss;

	l->all.lost -= !!l->all.lost;
	l->fresh.lost -= !!l->fresh.lost;
}

/* loss_ack() has counted them */
void loss_was_repaired(struct tcb *t, uint32_t n)
{
	struct loss *l = &tcb_outer(t)->loss;

	if (l->queue)
		return;
	l->all.lost = (uint16_t)min_u32(l->all.lost + n, l->all.sent);
	l->fresh.lost = (uint16_t)min_u32(l->fresh.lost + n, l->fresh.sent);
}

uint32_t loss_ppm(const struct tcb *t)
{
	return loss_pair_ppm(&tcb_outer(t)->loss.all, LOSS_PRIOR, 0);
}

uint32_t loss_soon_ppm(const struct tcb *t)
{
	return loss_pair_ppm(&tcb_outer(t)->loss.soon, SOON_PRIOR, loss_ppm(t));
}

/* Twice as much as at any other time, by three sigma */
bool loss_is_bursty(const struct tcb *t)
{
	const struct loss_pair *p = &tcb_outer(t)->loss.soon;
	uint64_t expect = (uint64_t)p->sent * loss_ppm(t) / 1000, lost = p->lost * 1000ull, more;

	if (p->sent < BURST_PROOF || lost <= 2 * expect)
		return false;
	more = lost - 2 * expect;
	return more * more >= 9 * expect * 1000;
}

void loss_spaced_out(struct tcb *t)
{
	tcb_outer(t)->loss.soon = (struct loss_pair){0, 0};
}

bool loss_is_random(const struct tcb *t, uint64_t now_ns)
{
	const struct loss *l = &tcb_outer(t)->loss;

	return !l->queue && now_ns >= l->off.until_ns && now_ns >= l->marked_until_ns;
}

void loss_marked(struct tcb *t, uint64_t now_ns)
{
	uint64_t calm_ns = max_u64(MARKED_CALM_MS * NS_PER_MS, MARKED_CALM_RTTS * t->srtt_ns);

	tcb_outer(t)->loss.marked_until_ns = now_ns + calm_ns;
}

/* Once in a round trip */
static void loss_round(struct env *env, struct tcb *t, struct loss *l, uint64_t now_ns)
{
	struct outer *o = tcb_outer(t);
	uint64_t shortest_ns;
	struct path *p;

	shortest_ns = min_u64(l->rtt_ns[0], l->rtt_ns[1]);
	l->queue = shortest_ns != NEVER && !loss_is_calm(shortest_ns, tcp_min_rtt_ns(t));
	if (l->queue && !o->app_limited_until)
		o->path_Bps = o->delivery_Bps;
	p = paths_place(env, t, now_ns);
	budget_note(env, t, p, now_ns);
	l->rtt_ns[1] = l->rtt_ns[0];
	l->rtt_ns[0] = NEVER;
	l->round_ns = now_ns + max_u64(t->srtt_ns, NS_PER_MS);
	if (loss_was_too_much(&l->off, &l->all, now_ns))
		l->soon = (struct loss_pair){0, 0};
	else
		paths_note(t, p, now_ns);
}

void loss_start(struct env *env, struct tcb *t, uint64_t now_ns)
{
	struct loss *l = &tcb_outer(t)->loss;

	memset(l, 0, sizeof(*l));
	l->rtt_ns[0] = l->rtt_ns[1] = NEVER;
	tcb_outer(t)->load_told = tcb_outer(t)->delivered_bytes;
	if (tcb_outer(t)->copying)
		paths_recall(env, t, now_ns);
}

/* A lone segment's ACK may be one that the peer delayed */
void loss_ack(struct env *env, struct tcb *t, uint32_t arrived, uint64_t rtt_ns, bool lone,
	      uint64_t now_ns)
{
	struct loss *l = &tcb_outer(t)->loss;
	uint64_t least_ns = tcp_min_rtt_ns(t);

	if (arrived)
		loss_count(t, arrived, 0, 0, 0);
	if (lone && rtt_ns > least_ns)
		rtt_ns -= min_u64(rtt_ns - least_ns, TCP_DELACK_MS * NS_PER_MS);
	if (rtt_ns) {
		l->rtt_ns[0] = min_u64(l->rtt_ns[0], rtt_ns);
		l->queue = l->queue && !loss_is_calm(rtt_ns, least_ns);
	}
	if (now_ns >= l->round_ns)
		loss_round(env, t, l, now_ns);
}

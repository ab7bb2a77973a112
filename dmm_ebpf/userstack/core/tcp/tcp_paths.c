/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_paths.c: what connections learn of a path, for those that open later (RFC 9040): how much it
 * loses (tcp_loss.c), its round trip and its rate. So a short connection knows from its SYN on.
 *
 * A path is named by the peer's network, /24 of IPv4 and /48 of IPv6. A connection adds what it has
 * seen of losses once in a round trip; round trip and rate are the latest. What it is told when it
 * begins counts for no more than PATH_SENT transmissions beside its own; and until it has seen as
 * many, as of those that many connections were opened at once, it is told each time. The table has
 * a fixed size: the oldest of four places gives way. What nobody has noted for ten minutes is not
 * believed.
 *
 * Only connections that send copies note and ask.
 */
#include "tcp_int.h"

enum {
	PATH_SENT = 64,
	PATH_WINDOW = 1024, /* transmissions; arrivals are known before losses, of all alike */
	PATH_OLD_S = 600,
};

static uint64_t key_of(const struct tcb *t)
{
	const struct dmm_core_addr_pair *pair = &tcb_ends(t)->f.pair;
	const uint8_t *addr = pair->raddr;

	if (pair->family == WIRE_AF_INET)
		return 1ull << 62 | (uint64_t)get_be32(addr + 12) >> 8;
	return 1ull << 63 | (uint64_t)get_be32(addr) << 16 | get_be16(addr + 4);
}

static struct path *set_of(struct env *env, uint64_t key)
{
	return &env->paths[siphash(env->isn_secret, &key, 1) % (PATHS / PATH_WAYS) * PATH_WAYS];
}

/* The one of that name, or NULL */
static struct path *find(struct path *set, uint64_t key)
{
	for (uint32_t i = 0; i < PATH_WAYS; i++) {
		if (set[i].key == key)
			return &set[i];
	}
	return NULL;
}

struct path *paths_find(struct env *env, const struct tcb *t, uint64_t now_ns)
{
	uint64_t key = key_of(t);
	struct path *p = find(set_of(env, key), key);

	return p && now_ns / NS_PER_S - p->at_s <= PATH_OLD_S ? p : NULL;
}

/* Its own place, or the oldest one, emptied */
struct path *paths_place(struct env *env, const struct tcb *t, uint64_t now_ns)
{
	uint64_t key = key_of(t);
	struct path *set = set_of(env, key), *p = find(set, key);

	if (p && now_ns / NS_PER_S - p->at_s <= PATH_OLD_S)
		return p;
	if (!p) {
		p = set;
		for (uint32_t i = 1; i < PATH_WAYS; i++) {
			if (set[i].at_s < p->at_s)
				p = &set[i];
		}
	}
	*p = (struct path){.key = key,
			   .at_s = (uint32_t)(now_ns / NS_PER_S),
			   .gap_shift = tcb_outer(t)->copy_gap_shift};
	return p;
}

/* Of sent transmissions the most that may count, and as many of them lost as before */
static struct loss_pair scaled(struct loss_pair pair)
{
	uint32_t most = min_u32(pair.sent, PATH_SENT);

	return (struct loss_pair){
		.sent = (uint16_t)most,
		.lost = (uint16_t)(pair.sent ? (pair.lost * most + pair.sent / 2) / pair.sent : 0),
	};
}

static void take(struct outer *o, const struct path *p)
{
	o->loss.all = scaled(p->all);
	o->loss.soon = scaled(p->soon);
	o->copy_gap_shift = (uint8_t)p->gap_shift;
	o->path_Bps = p->rate_Bps;
}

void paths_note(struct tcb *t, struct path *p, uint64_t now_ns)
{
	struct outer *o = tcb_outer(t);
	struct loss *l = &o->loss;

	if (!l->all.sent)
		return;
	loss_pair_add_of(&p->all, l->fresh.sent, l->fresh.lost, PATH_WINDOW);
	if (p->gap_shift == o->copy_gap_shift)
		loss_pair_add_of(&p->soon, l->fresh_soon.sent, l->fresh_soon.lost, PATH_WINDOW);
	else if (p->gap_shift < o->copy_gap_shift)
		p->soon = l->soon;
	l->told = (uint16_t)min_u32(l->told + l->fresh.sent, PATH_SENT);
	l->fresh = l->fresh_soon = (struct loss_pair){0, 0};
	p->at_s = (uint32_t)(now_ns / NS_PER_S);
	p->srtt_us = (uint32_t)(t->srtt_ns / 1000);
	p->rttvar_us = (uint32_t)(t->rttvar_ns / 1000);
	p->gap_shift = max_u32(p->gap_shift, o->copy_gap_shift);
	p->rate_Bps = o->path_Bps ? o->path_Bps : p->rate_Bps;
	if (l->told < PATH_SENT && l->told < p->all.sent)
		take(o, p);
}

void paths_recall(struct env *env, struct tcb *t, uint64_t now_ns)
{
	const struct path *p = paths_find(env, t, now_ns);

	if (p)
		take(tcb_outer(t), p);
}

void paths_lend_rtt(struct env *env, struct tcb *t, uint64_t now_ns)
{
	const struct path *p = paths_find(env, t, now_ns);

	if (!p || !p->srtt_us || t->srtt_ns)
		return;
	t->srtt_ns = p->srtt_us * 1000ull;
	t->rttvar_ns = max_u64(p->rttvar_us * 1000ull, t->srtt_ns / 4);
}

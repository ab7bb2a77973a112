/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_paths.c: what connections learn of a path, for those that open later (RFC 9040): how much it
 * loses (tcp_loss.c), its round trip and its rate. So a short connection knows from its SYN on.
 *
 * A path is named by the peer's network, /24 of IPv4 and /48 of IPv6. A connection notes what it
 * knows once in a round trip, over what was there; what it was told when it began counts for no
 * more than PATH_SENT transmissions beside its own. The table has a fixed size: the oldest of four
 * places gives way. What nobody has noted for ten minutes is not believed.
 *
 * Only connections that send copies note and ask.
 */
#include "tcp_int.h"

enum { PATH_SENT = 64, PATH_OLD_S = 600 };

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

const struct path *paths_find(struct env *env, const struct tcb *t, uint64_t now_ns)
{
	uint64_t key = key_of(t);
	const struct path *p = find(set_of(env, key), key);

	return p && now_ns / NS_PER_S - p->at_s <= PATH_OLD_S ? p : NULL;
}

void paths_note(struct env *env, const struct tcb *t, uint64_t now_ns)
{
	const struct outer *o = tcb_outer(t);
	uint64_t key = key_of(t);
	struct path *set = set_of(env, key), *p = find(set, key);

	if (!o->loss.all.sent)
		return;
	if (!p) {
		p = set;
		for (uint32_t i = 1; i < PATH_WAYS; i++) {
			if (set[i].at_s < p->at_s)
				p = &set[i];
		}
	}
	*p = (struct path){
		.key = key,
		.at_s = (uint32_t)(now_ns / NS_PER_S),
		.srtt_us = (uint32_t)(t->srtt_ns / 1000),
		.rttvar_us = (uint32_t)(t->rttvar_ns / 1000),
		.sent = o->loss.all.sent,
		.lost = o->loss.all.lost,
		.soon = o->loss.soon.sent,
		.soon_lost = o->loss.soon.lost,
		.gap_shift = o->copy_gap_shift,
		.rate_Bps = o->path_Bps,
	};
}

/* Of sent transmissions the most that may count, and as many of them lost as before */
static struct loss_pair scaled(uint16_t sent, uint16_t lost)
{
	uint32_t most = min_u32(sent, PATH_SENT);

	return (struct loss_pair){
		.sent = (uint16_t)most,
		.lost = (uint16_t)(sent ? (lost * most + sent / 2) / sent : 0),
	};
}

void paths_recall(struct env *env, struct tcb *t, uint64_t now_ns)
{
	struct outer *o = tcb_outer(t);
	const struct path *p = paths_find(env, t, now_ns);

	if (!p)
		return;
	o->loss.all = scaled(p->sent, p->lost);
	o->loss.soon = scaled(p->soon, p->soon_lost);
	o->copy_gap_shift = p->gap_shift;
	o->path_Bps = p->rate_Bps;
}

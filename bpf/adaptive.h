/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * adaptive.h: routes whose stack the RD chooses by what paths do.
 *
 * Such a route's stack has the bit DMM_STACK_ADAPTIVE, so a look at a register is what it costs
 * others. Who serves is looked up by the peer; a share of connections tries another candidate, by
 * lot. What this host opens draws it; of what a peer opens to a listener the 5-tuple is the lot, so
 * that each of its SYNs, and the socket when it is open, find the same. Datagrams draw none, since
 * a socket's go one way, nor does what is forwarded, of which the kernel tells nothing that could
 * be learnt from.
 */
#ifndef DMM_ADAPTIVE_H
#define DMM_ADAPTIVE_H

#include "decide.h"

static __always_inline const struct dmm_adaptive *adaptive_find(__u32 half, const __u32 *addr,
								__u32 stack)
{
	struct dmm_adaptive_key key = {.prefixlen = 160};

	key.route = half * DMM_MAX_STACKS + (stack & (DMM_MAX_STACKS - 1));
	addr_copy((__u32 *)key.addr, addr);
	return map_lookup(DMM_MAP(adaptive), &key);
}

#define ADAPTIVE_NO_LOT ((__u32)-1)

/*
 * Who serves a peer where a route names candidates; 0, the kernel: nobody is known. lot: who is
 * below the share of those that try another does.
 */
static __always_inline __u32 adaptive_pick(__u32 half, const __u32 *addr, __u32 stack, __u32 lot)
{
	const struct dmm_adaptive *found = adaptive_find(half, addr, stack);

	if (!found)
		return 0;
	return lot < found->share ? found->explores : found->chosen;
}

/* Puts the stack that serves now in the place of an adaptive route's. */
static __always_inline void adaptive_settle(struct dmm_search *search)
{
	struct dmm_verdict *verdict = &search->verdict;
	__u32 lot = ADAPTIVE_NO_LOT;

	if (likely(!(verdict->stack & DMM_STACK_ADAPTIVE)))
		return;
	search->query.adaptive = 1;
	if (search->query.proto == IPPROTO_TCP)
		lot = bpf_get_prandom_u32();
	verdict->stack = adaptive_pick(search->query.half, search->query.addr, verdict->stack, lot);
}

/* The same for a connection that the peer opens; query has its address. */
static __always_inline void adaptive_settle_opened(struct dmm_query *query,
						   const struct dmm_addr_pair *pair,
						   struct dmm_verdict *verdict)
{
	__u32 hash;

	if (likely(!(verdict->stack & DMM_STACK_ADAPTIVE)))
		return;
	query->adaptive = 1;
	/* Another number than the one by which a process is picked */
	hash = pair_hash(pair);
	verdict->stack = adaptive_pick(query->half, query->addr, verdict->stack,
				       hash_spread(hash ^ hash >> 15));
}

#endif /* DMM_ADAPTIVE_H */

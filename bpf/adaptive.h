/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * adaptive.h: routes whose stack the RD chooses by what paths do.
 *
 * Such a route's stack has the bit DMM_STACK_ADAPTIVE, so a look at a register is what it costs
 * others. Who serves is looked up by the peer; a share of connections tries another candidate, by
 * lot. Datagrams draw none, since a socket's go one way. What somebody else opens is the kernel's:
 * with that bit no stack is a user stack (stack_get()), and the choice is not what a SYN flood may
 * make the programs look up.
 */
#ifndef DMM_ADAPTIVE_H
#define DMM_ADAPTIVE_H

#include "decide.h"

static __always_inline const struct dmm_adaptive *adaptive_find(const struct dmm_query *query,
								__u32 stack)
{
	struct dmm_adaptive_key key = {.prefixlen = 160};

	key.route = query->half * DMM_MAX_STACKS + (stack & (DMM_MAX_STACKS - 1));
	addr_copy((__u32 *)key.addr, query->addr);
	return map_lookup(DMM_MAP(adaptive), &key);
}

/* Puts the stack that serves now in the place of an adaptive route's. */
static __always_inline void adaptive_settle(struct dmm_search *search)
{
	struct dmm_verdict *verdict = &search->verdict;
	const struct dmm_adaptive *found;

	if (likely(!(verdict->stack & DMM_STACK_ADAPTIVE)))
		return;
	found = adaptive_find(&search->query, verdict->stack);
	search->query.adaptive = 1;
	verdict->stack = found ? found->chosen : 0;
	if (search->query.proto == IPPROTO_TCP && found && found->share &&
	    bpf_get_prandom_u32() < found->share)
		verdict->stack = found->explores;
}

#endif /* DMM_ADAPTIVE_H */

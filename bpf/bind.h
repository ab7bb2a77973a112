/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * bind.h: cgroup/bind4 and bind6: remember who bound a TCP socket, and the table its peers would be
 * looked up in.
 *
 * Needed because kernels before 6.10 or so give sock_ops programs no helper that names the current
 * task: there, what bind() saw is all that TCP_LISTEN_CB knows. Where they have it, nothing is done
 * here. bind() itself is never refused.
 */
#ifndef DMM_BIND_H
#define DMM_BIND_H

#include "decide.h"

/* The body of step rule_listen. */
static __always_inline int rule_listen(struct dmm_search *search)
{
	const struct dmm_rule *rule = rule_next(search, DMM_DIR_LISTEN);

	if (!rule)
		return 0;
	search->verdict.rule = search->next;
	search->verdict.table = rule->table;
	return 1;
}

/*
 * search: facts alone. The first rule that matches a listener gives the table; peers are not known
 * yet, so there is no second chance.
 */
static __always_inline void decision_listen(struct dmm_decision *decision,
					    struct dmm_search *search, __u32 generation)
{
	search->query.half = generation & 1;
	if (generation)
		dmm_loop(rules_count(generation & 1), DMM_STEP(rule_listen), search, 0);
	decision_facts(decision, &search->facts);
	decision->generation = generation;
	decision->direction = DMM_DIR_LISTEN;
	decision->route = DMM_ROUTE_NONE;
	decision->stack = 0;
	decision->wanted = 0;
	decision->rule = search->verdict.rule;
	decision->table = search->verdict.table;
}

static __always_inline int bind_remember(struct bpf_sock_addr *ctx)
{
#ifdef DMM_SOCKOPS_CURRENT
	(void)ctx;
#else
	const struct dmm_control *control = control_get();
	struct bpf_sock *sk = ctx->sk;
	struct dmm_search search = {};
	struct dmm_decision *decision;

	if (!control || !sk || CTX_LOAD(u32, ctx, type) != SOCK_STREAM ||
	    CTX_LOAD(u32, ctx, protocol) != IPPROTO_TCP)
		return 1;
	search.facts.netns_cookie = bpf_get_netns_cookie(ctx);
	if (search.facts.netns_cookie != control->netns_cookie)
		return 1;
	decision = storage_get(DMM_MAP(decisions), sk, BPF_SK_STORAGE_GET_F_CREATE);
	if (!decision)
		return 1;
	facts_current(&search.facts);
	search.facts.mark = sk->mark;
	decision_listen(decision, &search, control->generation);
#endif
	return 1;
}

#endif /* DMM_BIND_H */

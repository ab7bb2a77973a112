/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * bind.h: cgroup/bind4 and bind6: remember who bound a TCP socket, and the table its peers would be looked up
 * in.
 *
 * Needed because kernels before 6.10 or so give sock_ops programs no helper that names the current task:
 * there, what bind() saw is all that TCP_LISTEN_CB knows. Where they have it, nothing is done here. bind()
 * itself is never refused.
 */
#ifndef DMM_BIND_H
#define DMM_BIND_H

#include "decide.h"

/* The first rule that matches a listener gives the table; peers are not known yet, so there is no second
 * chance. */
static __always_inline void listen_rule_find(const struct dmm_facts *facts, __u32 generation,
					     struct dmm_decision *decision)
{
	__u32 half = generation & 1;
	__u32 n_rules = generation ? rules_count(half) : 0;
	__u32 i;

	decision->rule = 0;
	decision->table = 0;
#pragma clang loop unroll(disable)
	for (i = 0; i < DMM_MAX_RULES; i++) {
		const struct dmm_rule *rule;

		if (i >= n_rules)
			break;
		rule = rule_get(half, i);
		if (!rule)
			break;
		if (!rule_matches(rule, facts, DMM_DIR_LISTEN))
			continue;
		decision->rule = i + 1;
		decision->table = rule->table;
		break;
	}
}

static __always_inline void decision_listen(struct dmm_decision *decision, const struct dmm_facts *facts,
					    __u32 generation)
{
	decision_facts(decision, facts);
	decision->generation = generation;
	decision->direction = DMM_DIR_LISTEN;
	decision->route = DMM_ROUTE_NONE;
	decision->stack = 0;
	decision->wanted = 0;
	listen_rule_find(facts, generation, decision);
}

static __always_inline int bind_remember(struct bpf_sock_addr *ctx)
{
#ifdef DMM_SOCKOPS_CURRENT
	(void)ctx;
#else
	const struct dmm_control *control = control_get();
	struct bpf_sock *sk = ctx->sk;
	struct dmm_facts facts = {};
	struct dmm_decision *decision;

	if (!control || !sk || CTX_LOAD(u32, ctx, type) != SOCK_STREAM ||
	    CTX_LOAD(u32, ctx, protocol) != IPPROTO_TCP)
		return 1;
	facts.netns_cookie = bpf_get_netns_cookie(ctx);
	if (facts.netns_cookie != control->netns_cookie)
		return 1;
	decision = bpf_sk_storage_get(DMM_MAP(decisions), sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!decision)
		return 1;
	facts_current(&facts);
	facts.mark = sk->mark;
	decision_listen(decision, &facts, control->generation);
#endif
	return 1;
}

#endif /* DMM_BIND_H */

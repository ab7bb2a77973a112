/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * protocol.h: fmod_ret/update_socket_protocol: a TCP socket becomes one of MPTCP as socket(2) makes
 * it, where the policy's rules lead to a stack with mptcp.
 *
 * The kernel asks once for each socket(2), of whatever cgroup, so the instance's own cgroup and
 * namespace are looked at here. Nothing is known of the socket but who makes it: the mark, DSCP,
 * local port and device that rules may ask for are those of a socket that nobody has touched. The
 * first rule that matches decides, of those for connect() and else of those for listen(): whatever
 * becomes of the socket, it is in that one's table that it is looked up first.
 */
#ifndef DMM_PROTOCOL_H
#define DMM_PROTOCOL_H

#include "group.h"

#define SOCK_TYPE_MASK 0xf /* linux/net.h: behind it SOCK_CLOEXEC and SOCK_NONBLOCK */
#define DMM_IPPROTO_MPTCP 262

/* The arguments of update_socket_protocol(), as the kernel gives them to a program. */
struct dmm_protocol_arguments {
	__u64 family;
	__u64 type;
	__u64 protocol;
};

#if defined(DMM_NET_COOKIE) && defined(DMM_TASK_COMM)
/* verdict.directions: of which rules. The body of step rule_protocol. */
static __always_inline int rule_protocol(struct dmm_search *search)
{
	const struct dmm_rule *rule = rule_next(search, search->verdict.directions);

	if (!rule || !rule->table)
		return 0;
	search->verdict.rule = rule->number;
	search->verdict.stack = !!(rule->flags & DMM_RULE_MPTCP);
	return 1;
}

/* The instance's namespace alone: in another one MPTCP may be switched off, and socket(2) fail. */
static __always_inline bool maker_is_meant(const struct dmm_control *control,
					   const struct dmm_facts *facts)
{
	const void *proxy = KERNEL_LOAD(void *, dmm_current_task(), DMM_TASK_NSPROXY);
	const void *net = KERNEL_LOAD(void *, proxy, DMM_NSPROXY_NET);

	if (facts->kernel || KERNEL_LOAD(__u64, net, DMM_NET_COOKIE) != control->netns_cookie)
		return false;
	return current_is_own(control);
}

static __always_inline bool rules_want_mptcp(struct dmm_search *search, __u32 direction)
{
	search->verdict.directions = direction;
	search->next = 0;
	dmm_loop(rules_begin(search), DMM_STEP(rule_protocol), search, 0);
	return search->verdict.rule;
}

static __always_inline bool is_plain_stream(struct dmm_protocol_arguments *ctx)
{
	__u32 family = CTX_LOAD(u64, ctx, family), protocol = CTX_LOAD(u64, ctx, protocol);

	return (family == AF_INET || family == AF_INET6) &&
	       (CTX_LOAD(u64, ctx, type) & SOCK_TYPE_MASK) == SOCK_STREAM &&
	       (!protocol || protocol == IPPROTO_TCP);
}

/* Returns the protocol instead, or 0: as the program has asked. */
static __always_inline int protocol_asked(struct dmm_protocol_arguments *ctx)
{
	const struct dmm_control *control = control_get();
	struct dmm_search search = {};

	if (!is_plain_stream(ctx) || !control || !control->generation)
		return 0;
	facts_current(&search.facts);
	if (!maker_is_meant(control, &search.facts))
		return 0;
	search.facts.netns_cookie = control->netns_cookie;
	search.generation = control->generation;
	search.query.half = search.generation & 1;
	if (!rules_want_mptcp(&search, DMM_DIR_CONNECT))
		rules_want_mptcp(&search, DMM_DIR_LISTEN);
	return search.verdict.stack ? DMM_IPPROTO_MPTCP : 0;
}
#else
/* This kernel lets no program change it. */
static __always_inline int rule_protocol(struct dmm_search *search)
{
	(void)search;
	return 1;
}

static __always_inline int protocol_asked(struct dmm_protocol_arguments *ctx)
{
	(void)ctx;
	return 0;
}
#endif

#endif /* DMM_PROTOCOL_H */

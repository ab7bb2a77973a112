/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * served.h: exchanges of datagrams that a peer begins, with a socket that its program has bound
 * (bind.h): what policy says of them.
 *
 * As of a TCP listener's peers, rules for listeners decide, and the peer's address with the port of
 * this host. Who has begun an exchange decides for as long as it goes on: so where peers may begin
 * some at all, those that are the kernel's are noted in udp_flows[], too, with stack 0. Else a
 * peer's answer to what this host has sent by the kernel would be taken for a beginning.
 */
#ifndef DMM_SERVED_H
#define DMM_SERVED_H

#include "adaptive.h"
#include "datagram.h"
#include "listener.h"
#include "steer.h"
#include "tunnel.h"

static __always_inline bool udp_is_served(const struct dmm_udp_flow *udp)
{
	return udp->flow.decision.direction == DMM_DIR_LISTEN;
}

/* Whether the policy gives to a user stack anything that peers may begin */
static __always_inline bool serves_at_all(__u32 generation)
{
	__u32 half = generation & 1;
	const struct dmm_policy_head *head = map_lookup(DMM_MAP(heads), &half);

	return head && (head->datagrams & DMM_DATAGRAMS_SERVED);
}

/* The user stack that carries a peer's exchange with the listener, in verdict; false: none. */
static __always_inline bool served_route(const struct dmm_listener *listener,
					 const struct dmm_addr_pair *pair, __u32 generation,
					 struct dmm_verdict *verdict)
{
	__u32 half = generation & 1;
	struct dmm_query query = {.proto = IPPROTO_UDP, .port_be = pair->lport_be, .half = half};
	__u32 table = half ? listener->tables[1] : listener->tables[0];
	const struct dmm_stack *stack;

	addr_copy(query.addr, (const __u32 *)pair->raddr);
	if (!table || !route_find(table, &query, generation, verdict))
		return false;
	if (unlikely(verdict->stack & DMM_STACK_ADAPTIVE))
		verdict->stack = adaptive_pick(half, query.addr, verdict->stack, ADAPTIVE_NO_LOT);
	stack = stack_get(half, verdict->stack);
	return stack && stack->kind == DMM_STACK_USER && (stack->flags & DMM_CARRIES_UDP);
}

static __always_inline struct dmm_udp_flow *udp_fresh(const struct dmm_addr_pair *pair)
{
	__u32 zero = 0;
	const struct dmm_udp_flow *blank = map_lookup(DMM_MAP(udp_blank), &zero);

	if (!blank || map_update(DMM_MAP(udp_flows), pair, blank, BPF_ANY))
		return NULL;
	return map_lookup(DMM_MAP(udp_flows), pair);
}

static __always_inline void served_decide(struct dmm_udp_flow *udp,
					  const struct dmm_listener *listener,
					  const struct dmm_addr_pair *pair, __u32 generation)
{
	struct dmm_decision *decision = &udp->flow.decision;
	struct dmm_verdict verdict = {};
	__u32 half = generation & 1;

	if (!served_route(listener, pair, generation, &verdict))
		verdict_none(&verdict);
	if (decision->stack != verdict.stack)
		decision->taken = 0;
	decision->direction = DMM_DIR_LISTEN;
	decision->generation = generation;
	decision->rule = half ? listener->rules[1] : listener->rules[0];
	decision->table = verdict.table;
	decision->route = verdict.route;
	decision->stack = verdict.stack;
	decision->wanted = verdict.stack;
	decision->why = 0;
	decision->cgroup_id = listener->cgroup_id;
	decision->pid = listener->pid;
	decision->uid = listener->uid;
	__builtin_memcpy(decision->comm, listener->comm, sizeof(decision->comm));
	udp->generation = generation;
}

/*
 * What the policy says of an exchange that a peer has begun: its entry, made if udp is NULL. NULL:
 * nobody is known to serve there, and nothing is there any more.
 */
static __always_inline struct dmm_udp_flow *served_settle(const struct dmm_addr_pair *pair,
							  struct dmm_udp_flow *udp,
							  __u32 generation, __u64 now)
{
	const struct dmm_listener *listener = listener_find(pair);

	if (!listener) {
		if (udp)
			map_delete(DMM_MAP(udp_flows), pair);
		return NULL;
	}
	if (!udp) {
		udp = udp_fresh(pair);
		if (!udp)
			return NULL;
		udp->flow.opened_ns = now;
		udp->flow.netns_cookie = listener->netns_cookie;
		udp->flow.state = BPF_TCP_CLOSE;
		udp->flow.pair = *pair;
	}
	served_decide(udp, listener, pair, generation);
	return udp;
}

/* Whether a datagram of no known exchange may begin one: here, where it is for this host, and not
 * in a tunnel of which its bytes say nothing. */
static __always_inline bool served_may_begin(struct __sk_buff *skb,
					     const struct dmm_addr_pair *pair, __u32 generation)
{
	return unlikely(serves_at_all(generation)) && !has_tunnel_key(skb) && !was_protected(skb) &&
	       !is_forwarded(skb, skb->ifindex, pair);
}

/* The kernel serves what this host sends; udp: what is known of that exchange. */
static __always_inline void kernel_serves(const struct dmm_addr_pair *pair,
					  struct dmm_udp_flow *udp, __u64 cookie, __u32 generation,
					  __u64 now)
{
	if (likely(!serves_at_all(generation))) {
		if (udp)
			map_delete(DMM_MAP(udp_flows), pair);
		return;
	}
	if (!udp || udp->flow.decision.stack || !udp_is_open(udp, now))
		udp = udp_fresh(pair);
	if (!udp)
		return;
	udp->flow.cookie = cookie;
	udp->generation = generation;
	udp->out_ns = now;
}

#endif /* DMM_SERVED_H */

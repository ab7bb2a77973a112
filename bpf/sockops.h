/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * sockops.h: the sock_ops program: flow records, listeners, and the options of accepted connections.
 *
 * ctx->reply is never written, so other sock_ops programs of the host keep their say. Callback flags are
 * added to those that are set, never taken away. Sockets of other network namespaces are left alone.
 */
#ifndef DMM_SOCKOPS_H
#define DMM_SOCKOPS_H

#include "bind.h"
#include "flow.h"
#include "listener.h"

/* Before a connection is up only its end matters; every callback costs the handshake time. */
#define OPENING_CB_FLAGS BPF_SOCK_OPS_STATE_CB_FLAG
#define FLOW_CB_FLAGS (BPF_SOCK_OPS_RTT_CB_FLAG | BPF_SOCK_OPS_RETRANS_CB_FLAG | BPF_SOCK_OPS_STATE_CB_FLAG)

static __always_inline void flags_add(struct bpf_sock_ops *ctx, int flags)
{
	bpf_sock_ops_cb_flags_set(ctx, CTX_LOAD(u32, ctx, bpf_sock_ops_cb_flags) | flags);
}

static __always_inline struct dmm_decision *decision_get(struct bpf_sock *sk, __u64 flags)
{
	return bpf_sk_storage_get(DMM_MAP(decisions), sk, NULL, flags);
}

static __always_inline void listener_key_fill(struct dmm_listener_key *key, const struct dmm_addr_pair *pair)
{
	addr_copy((__u32 *)key->addr, (const __u32 *)pair->laddr);
	key->port_be = pair->lport_be;
	key->pad = 0;
}

/* What is known of the listener when this kernel's sock_ops helpers name nobody: what bind() saw, if that is
 * current. */
static __always_inline void listen_facts(struct bpf_sock *sk, struct dmm_decision *decision,
					 __u64 netns_cookie, __u32 generation)
{
#ifdef DMM_SOCKOPS_CURRENT
	struct dmm_facts facts = {.netns_cookie = netns_cookie, .mark = sk->mark};

	facts_current(&facts);
	decision_listen(decision, &facts, generation);
#else
	(void)sk;
	(void)netns_cookie;
	if (decision->generation != generation || decision->direction != DMM_DIR_LISTEN) {
		decision->table = 0;
		decision->rule = 0;
	}
	decision->generation = generation;
	decision->direction = DMM_DIR_LISTEN;
	decision->route = DMM_ROUTE_NONE;
	decision->stack = 0;
	decision->wanted = 0;
#endif
}

static __always_inline void listen_start(struct bpf_sock_ops *ctx, struct bpf_sock *sk, __u64 netns_cookie,
					 __u32 generation)
{
	struct dmm_decision *decision = decision_get(sk, BPF_SK_STORAGE_GET_F_CREATE);
	struct dmm_listener_key key;
	struct dmm_flow flow;

	if (!decision)
		return;
	listen_facts(sk, decision, netns_cookie, generation);
	if (sk->bound_dev_if) {
		decision->table = 0;
		decision->rule = 0;
	}
	decision->listening = 0;
	flow_init(ctx, &flow, BPF_TCP_LISTEN, netns_cookie, decision);
	listener_key_fill(&key, &flow.pair);
	if (!listener_publish(&key, decision, netns_cookie, sk->mark))
		return;
	decision->listening = 1;
	flow.decision.listening = 1;
	flags_add(ctx, BPF_SOCK_OPS_STATE_CB_FLAG);
	event_emit(DMM_EVENT_LISTEN, &flow);
}

static __always_inline void listen_end(struct bpf_sock_ops *ctx, struct bpf_sock *sk, __u64 netns_cookie)
{
	struct dmm_decision *decision = decision_get(sk, 0);
	struct dmm_listener_key key;
	struct dmm_flow flow;

	if (!decision || !decision->listening)
		return;
	decision->listening = 0;
	flow_init(ctx, &flow, BPF_TCP_CLOSE, netns_cookie, decision);
	listener_key_fill(&key, &flow.pair);
	listener_withdraw(&key);
	event_emit(DMM_EVENT_UNLISTEN, &flow);
}

/* The user stack whose mark a socket carries; 0: none. The mark came with the SYN (tcp_fwmark_accept). */
static __always_inline __u32 stack_by_mark(__u32 half, __u32 mark)
{
	__u32 id;

#pragma clang loop unroll(disable)
	for (id = 1; id < DMM_MAX_STACKS; id++) {
		const struct dmm_stack *stack = stack_get(half, id);

		if (stack && stack->kind == DMM_STACK_USER && (mark & stack->mark_mask) == stack->mark)
			return id;
	}
	return 0;
}

/* decision is still the listener's own, cloned: if this policy made it, its table needs no look-up. */
static __always_inline void accepted_route(const struct dmm_addr_pair *pair, __u32 generation,
					   const struct dmm_decision *decision, struct dmm_verdict *verdict)
{
	struct dmm_query query = {.proto = IPPROTO_TCP, .port_be = pair->lport_be};
	__u32 table = 0;
	__u32 rule = 0;

	query.half = generation & 1;
	if (decision->generation == generation && decision->listening && decision->table) {
		table = decision->table;
		rule = decision->rule;
	} else {
		const struct dmm_listener *listener;

		listener = listener_find((const __u32 *)pair->laddr, pair->lport_be);
		if (listener) {
			table = listener->tables[query.half];
			rule = listener->rules[query.half];
		}
	}
	if (!table)
		return;
	addr_copy(query.addr, (const __u32 *)pair->raddr);
	if (route_find(table, &query, verdict))
		verdict->rule = rule;
	else
		verdict_none(verdict);
}

/*
 * Who serves an accepted connection. A mark says that a user stack carries it; without one it came by the
 * kernel, also when its route names a user stack (down, or another NIC): then the fallback's options apply.
 */
static __always_inline void accepted_stack(__u32 half, __u32 mark, __u32 wanted, struct dmm_served *served)
{
	__u32 id = mark ? stack_by_mark(half, mark) : 0;

	served->id = 0;
	served->stack = NULL;
	if (!id) {
		const struct dmm_stack *stack = wanted ? stack_get(half, wanted) : NULL;

		if (!stack)
			return;
		id = stack->kind == DMM_STACK_USER ? stack->fallback : wanted;
		stack = id ? stack_get(half, id) : NULL;
		if (!stack || stack->kind != DMM_STACK_KERNEL)
			return;
		served->id = id;
		served->stack = stack;
		return;
	}
	served->id = id;
	served->stack = stack_get(half, id);
}

static __always_inline void accepted(struct bpf_sock_ops *ctx, struct bpf_sock *sk, __u64 netns_cookie,
				     const struct dmm_control *control)
{
	struct dmm_decision *decision = decision_get(sk, BPF_SK_STORAGE_GET_F_CREATE);
	__u32 generation = control->generation;
	struct dmm_served served = {};
	struct dmm_verdict verdict;
	struct dmm_addr_pair pair;

	if (!decision)
		return;
	pair_fill(ctx, &pair);
	verdict_none(&verdict);
	if (generation) {
		accepted_route(&pair, generation, decision, &verdict);
		accepted_stack(generation & 1, sk->mark & control->mark_mask, verdict.stack, &served);
	}
	decision->generation = generation;
	decision->direction = DMM_DIR_LISTEN;
	decision->listening = 0;
	decision_verdict(decision, &verdict, served.id);
	if (served.stack)
		stack_apply(ctx, served.stack, sk->mark, true, pair.family == AF_INET6);
	flags_add(ctx, FLOW_CB_FLAGS);
	flow_open(ctx, DMM_EVENT_ESTABLISHED, BPF_TCP_ESTABLISHED, netns_cookie, decision);
}

static __always_inline void connecting(struct bpf_sock_ops *ctx, struct bpf_sock *sk, __u64 netns_cookie)
{
	struct dmm_decision *decision = decision_get(sk, BPF_SK_STORAGE_GET_F_CREATE);

	if (!decision)
		return;
	if (!decision->direction) {
		decision->direction = DMM_DIR_CONNECT;
		decision->route = DMM_ROUTE_NONE;
	}
	flags_add(ctx, OPENING_CB_FLAGS);
	flow_open(ctx, DMM_EVENT_CONNECT, BPF_TCP_SYN_SENT, netns_cookie, decision);
}

static __always_inline void connected(struct bpf_sock_ops *ctx)
{
	struct dmm_flow *flow = flow_find(ctx);

	if (!flow)
		return;
	flow_counts(ctx, flow);
	flow->state = BPF_TCP_ESTABLISHED;
	flags_add(ctx, FLOW_CB_FLAGS);
	event_emit(DMM_EVENT_ESTABLISHED, flow);
}

static __always_inline void state_changed(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	__u32 old_state = CTX_LOAD(u32, ctx, args[0]);
	__u32 new_state = CTX_LOAD(u32, ctx, args[1]);
	struct dmm_flow *flow;

	if (old_state == BPF_TCP_LISTEN) {
		listen_end(ctx, sk, bpf_get_netns_cookie(ctx));
		return;
	}
	if (new_state == BPF_TCP_ESTABLISHED) /* connected() or accepted() has been called for it */
		return;
	flow = flow_find(ctx);
	if (!flow)
		return;
	flow_counts(ctx, flow);
	flow->state = new_state;
	if (new_state == BPF_TCP_CLOSE) {
		__u64 cookie = flow->cookie;

		event_emit(DMM_EVENT_CLOSE, flow);
		bpf_map_delete_elem(DMM_MAP(flows), &cookie);
	}
}

static __always_inline void progressed(struct bpf_sock_ops *ctx)
{
	struct dmm_flow *flow = flow_find(ctx);

	if (flow)
		flow_counts(ctx, flow);
}

static __always_inline void opened(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	const struct dmm_control *control = control_get();
	__u64 netns_cookie = bpf_get_netns_cookie(ctx);

	if (!control || netns_cookie != control->netns_cookie)
		return;
	switch (CTX_LOAD(u32, ctx, op)) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		connecting(ctx, sk, netns_cookie);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		accepted(ctx, sk, netns_cookie, control);
		break;
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
		listen_start(ctx, sk, netns_cookie, control->generation);
		break;
	}
}

static __always_inline int sockops(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;

	if (!sk)
		return 1;
	switch (CTX_LOAD(u32, ctx, op)) {
	case BPF_SOCK_OPS_RTT_CB:
	case BPF_SOCK_OPS_RETRANS_CB:
		progressed(ctx);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		state_changed(ctx, sk);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		connected(ctx);
		break;
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
		opened(ctx, sk);
		break;
	}
	return 1;
}

#endif /* DMM_SOCKOPS_H */

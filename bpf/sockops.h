/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * sockops.h: the sock_ops program: flow records, listeners, and the options of accepted
 * connections.
 *
 * ctx->reply is never written, so other sock_ops programs of the host keep their say. Callback
 * flags are added to those that are set, never taken away. Sockets of other network namespaces are
 * left alone, but for those of containers that connect.
 */
#ifndef DMM_SOCKOPS_H
#define DMM_SOCKOPS_H

#include "bind.h"
#include "connect.h"
#include "flow.h"
#include "listener.h"
#include "synopts.h"

/* The one callback that is asked for: a callback on each ACK or retransmission would cost the flow
 * its speed.
 */
static __always_inline void state_flag_set(struct bpf_sock_ops *ctx)
{
	__u32 flags = CTX_LOAD(u32, ctx, bpf_sock_ops_cb_flags);

	if (!(flags & BPF_SOCK_OPS_STATE_CB_FLAG))
		bpf_sock_ops_cb_flags_set(ctx, flags | BPF_SOCK_OPS_STATE_CB_FLAG);
}

static __always_inline struct dmm_decision *decision_get(struct bpf_sock *sk, __u64 flags)
{
	return storage_get(DMM_MAP(decisions), sk, flags);
}

/* What is known of the listener when this kernel's sock_ops helpers name nobody: what bind() saw,
 * if that is current. */
static __always_inline void listen_facts(struct bpf_sock *sk, struct dmm_decision *decision,
					 __u64 netns_cookie, __u32 generation)
{
#ifdef DMM_SOCKOPS_CURRENT
	struct dmm_search search = {.facts = {.netns_cookie = netns_cookie, .mark = sk->mark}};

	facts_current(&search.facts);
	decision_listen(decision, &search, generation);
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

/*
 * listeners[] has the facts of one socket for each address. Where several may share it, each is
 * cloned its own to its accepted children; that costs an allocation for each, so others go without.
 */
static __always_inline void listen_share(struct bpf_sock_ops *ctx, struct bpf_sock *sk,
					 const struct dmm_decision *decision)
{
	struct dmm_decision *shared;
	int reuseport = 1;

	if (!bpf_getsockopt(ctx, SOL_SOCKET, SO_REUSEPORT, &reuseport, sizeof(reuseport)) &&
	    !reuseport)
		return;
	shared = storage_get(DMM_MAP(shared_facts), sk, BPF_SK_STORAGE_GET_F_CREATE);
	if (shared)
		__builtin_memcpy(shared, decision, sizeof(*shared));
}

static __always_inline void listen_start(struct bpf_sock_ops *ctx, struct bpf_sock *sk,
					 __u64 netns_cookie, const struct dmm_control *control)
{
	struct dmm_decision *decision = decision_get(sk, BPF_SK_STORAGE_GET_F_CREATE);
	struct dmm_listener_key key;
	struct dmm_flow flow;

	if (!decision)
		return;
	listen_facts(sk, decision, netns_cookie, control->generation);
	if (sk->bound_dev_if) {
		decision->table = 0;
		decision->rule = 0;
	}
	flow_fill(ctx, &flow, BPF_TCP_LISTEN, netns_cookie);
	listener_key_fill(&key, &flow.pair);
	/* It listened before, and nobody told of the end (struct dmm_earlier). */
	if (decision->listening)
		listener_withdraw(&key);
	decision->listening = 0;
	listen_share(ctx, sk, decision);
	if (!listener_publish(&key, decision, netns_cookie, sk->mark, sk->bound_dev_if))
		return;
	decision->listening = 1;
	state_flag_set(ctx);
	if (events_wanted(control)) {
		__builtin_memcpy(&flow.decision, decision, sizeof(flow.decision));
		event_emit(DMM_EVENT_LISTEN, &flow);
	}
}

static __always_inline void listen_end(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	struct dmm_decision *decision = decision_get(sk, 0);
	struct dmm_listener_key key;
	struct dmm_flow flow;

	if (!decision || !decision->listening)
		return;
	decision->listening = 0;
	flow_fill(ctx, &flow, BPF_TCP_CLOSE, bpf_get_netns_cookie(ctx));
	listener_key_fill(&key, &flow.pair);
	listener_withdraw(&key);
	bpf_sk_storage_delete(DMM_MAP(shared_facts), sk);
	if (events_wanted(control_get())) {
		__builtin_memcpy(&flow.decision, decision, sizeof(flow.decision));
		event_emit(DMM_EVENT_UNLISTEN, &flow);
	}
}

/* Who listens, and so accepts; the address says it, except where several share one. */
static __always_inline void accepted_facts(struct bpf_sock *sk, const struct dmm_listener *listener,
					   struct dmm_decision *decision)
{
	const struct dmm_decision *shared = storage_get(DMM_MAP(shared_facts), sk, 0);

	if (shared) {
		decision->cgroup_id = shared->cgroup_id;
		decision->pid = shared->pid;
		decision->uid = shared->uid;
		__builtin_memcpy(decision->comm, shared->comm, sizeof(decision->comm));
	} else if (listener) {
		decision->cgroup_id = listener->cgroup_id;
		decision->pid = listener->pid;
		decision->uid = listener->uid;
		__builtin_memcpy(decision->comm, listener->comm, sizeof(decision->comm));
	}
}

static __always_inline void accepted_route(const struct dmm_addr_pair *pair, __u32 half,
					   const struct dmm_listener *listener,
					   struct dmm_verdict *verdict)
{
	struct dmm_query query = {.proto = IPPROTO_TCP, .port_be = pair->lport_be, .half = half};
	__u32 table = listener->tables[half & 1];
	__u32 rule = listener->rules[half & 1];

	if (!table)
		return;
	addr_copy(query.addr, (const __u32 *)pair->raddr);
	if (route_find(table, &query, verdict))
		verdict->rule = rule;
	else
		verdict_none(verdict);
}

/*
 * Options of the stack that serves when a user stack that policy names does not: its fallback's.
 * Returns the fallback's id; 0: the kernel's stack, untouched.
 */
static __always_inline __u32 fallback_apply(struct bpf_sock_ops *ctx, struct bpf_sock *sk,
					    __u32 half, __u32 wanted, bool ipv6)
{
	const struct dmm_stack *stack = wanted ? stack_get(half, wanted) : NULL;
	__u32 id;

	if (!stack)
		return 0;
	id = stack->kind == DMM_STACK_USER ? stack->fallback : wanted;
	stack = id ? stack_get(half, id) : NULL;
	if (!stack || stack->kind != DMM_STACK_KERNEL)
		return 0;
	stack_apply(ctx, sk, stack, true, ipv6);
	return id;
}

/* Whether the app has given its socket a congestion control of its own */
#ifdef DMM_TCP_CHOSEN
#define ICSK_CA_SETSOCKOPT 0x40 /* struct inet_connection_sock: icsk_ca_setsockopt */

static __always_inline bool congestion_chosen(struct bpf_sock_ops *ctx, struct bpf_sock *sk,
					      const struct dmm_stack *stack)
{
	const void *tcp = dmm_tcp_of(sk);

	(void)ctx;
	(void)stack;
	return tcp && KERNEL_LOAD(__u8, tcp, DMM_TCP_CA_FLAGS) & ICSK_CA_SETSOCKOPT;
}
#else
/* As far as it shows: another than the instance's namespace has. */
static __always_inline bool congestion_chosen(struct bpf_sock_ops *ctx, struct bpf_sock *sk,
					      const struct dmm_stack *stack)
{
	const __u32 *usual = (const __u32 *)stack->usual;
	__u32 now[4] = {};

	(void)sk;
	return usual[0] && !bpf_getsockopt(ctx, SOL_TCP, TCP_CONGESTION, now, sizeof(now)) &&
	       (now[0] != usual[0] || now[1] != usual[1] || now[2] != usual[2] ||
		now[3] != usual[3]);
}
#endif

/* What the app's own socket uses towards a stack process */
static __always_inline void inner_apply(struct bpf_sock_ops *ctx, struct bpf_sock *sk, __u32 half,
					__u32 id)
{
	const struct dmm_stack *stack = stack_get(half, id);

	if (!stack || stack->kind != DMM_STACK_USER)
		return;
	patience_apply(ctx, sk, stack);
	if (stack->congestion[0] && !congestion_chosen(ctx, sk, stack))
		option_set(ctx, SOL_TCP, TCP_CONGESTION, stack->congestion,
			   sizeof(stack->congestion));
}

/* BCC declares it for no kernel (Linux 5.10). */
static long (*dmm_load_hdr_opt)(struct bpf_sock_ops *ctx, void *found, __u32 bytes,
				__u64 flags) = (void *)BPF_FUNC_load_hdr_opt;

/* In the packet that ends the handshake, the first of the peer's that the socket itself sees. */
static __always_inline bool option_came(struct bpf_sock_ops *ctx, __u8 kind)
{
	__u8 found[4] = {kind};

	/* -ENOSPC: it is longer than found. -ENOMSG, not there, and -EBADMSG are less. */
	return dmm_load_hdr_opt(ctx, found, sizeof(found), 0) >= -ENOSPC;
}

/*
 * Why an accepted connection that a user stack should have is the kernel's: what its SYN asked for,
 * if that shows in the handshake's last packet, too, or that it came by the kernel.
 */
static __always_inline __u32 accepted_why(struct bpf_sock_ops *ctx)
{
	if (option_came(ctx, DMM_OPTION_MD5) || option_came(ctx, DMM_OPTION_AO) ||
	    option_came(ctx, DMM_OPTION_MPTCP) || option_came(ctx, DMM_OPTION_FAST_OPEN))
		return DMM_WHY_OPTION;
	return DMM_WHY_PEER;
}

/*
 * Who serves an accepted connection: a user stack if a process of it has its 5-tuple; else it came
 * by the kernel, also when its route names a user stack (down, or another NIC).
 */
static __always_inline void accepted_serve(struct bpf_sock_ops *ctx, struct bpf_sock *sk,
					   __u32 half, __u32 wanted, struct dmm_flow *flow,
					   struct dmm_served *served)
{
	const struct dmm_xdp_flow *owned = map_lookup(DMM_MAP(xdp_flows), &flow->pair);
	const struct dmm_stack *stack;
	struct dmm_way way = {.state = DMM_WAY_TAKEN};

	if (owned) {
		way.stack = owned->stack;
		way.process = owned->process;
		way.seat = owned->seat;
		way_set(sk, &way);
		served->id = way.stack;
		served->process.number = way.process;
		served->taken = true;
		inner_apply(ctx, sk, half, way.stack);
		return;
	}
	served->id = fallback_apply(ctx, sk, half, wanted, flow->pair.family == AF_INET6);
	stack = wanted ? stack_get(half, wanted) : NULL;
	if (stack && stack->kind == DMM_STACK_USER)
		served->why = accepted_why(ctx);
}

static __always_inline void accepted(struct bpf_sock_ops *ctx, struct bpf_sock *sk,
				     __u64 netns_cookie, const struct dmm_control *control)
{
	__u32 generation = control->generation;
	const struct dmm_listener *listener;
	struct dmm_served served = {};
	struct dmm_verdict verdict;
	struct dmm_flow flow = {};

	flow_fill(ctx, &flow, BPF_TCP_ESTABLISHED, netns_cookie);
	verdict_none(&verdict);
	listener = listener_find((const __u32 *)flow.pair.laddr, flow.pair.lport_be);
	accepted_facts(sk, listener, &flow.decision);
	if (generation) {
		if (listener)
			accepted_route(&flow.pair, generation & 1, listener, &verdict);
		accepted_serve(ctx, sk, generation & 1, verdict.stack, &flow, &served);
	}
	flow.decision.generation = generation;
	flow.decision.direction = DMM_DIR_LISTEN;
	decision_verdict(&flow.decision, &verdict, &served);
	state_flag_set(ctx);
	flow_keep(&flow);
	if (events_wanted(control))
		event_emit(DMM_EVENT_ESTABLISHED, &flow);
}

/*
 * A connection of a socket for which a user stack was asked is open: has a process taken its SYN,
 * the socket gets what the inner leg needs, else what its route's fallback sets. A SYN that met no
 * program of ours left by a device that the stack does not serve.
 */
static __always_inline void connected(struct bpf_sock_ops *ctx, struct bpf_sock *sk,
				      const struct dmm_control *control)
{
	struct dmm_way *way = storage_get(DMM_MAP(ways), sk, 0);
	__u32 half = control->generation & 1;
	struct dmm_flow *flow;

	if (likely(!way))
		return;
	if (way->stack && way->state == DMM_WAY_TAKEN) {
		inner_apply(ctx, sk, half, way->stack);
		return;
	}
	flow = flow_find(ctx);
	if (!flow || flow->decision.direction != DMM_DIR_CONNECT)
		return;
	/* A container's packets have no socket any more at the NIC. */
	if (way->stack && flow->decision.taken) {
		way->state = DMM_WAY_TAKEN;
		inner_apply(ctx, sk, half, way->stack);
		return;
	}
	if (way->stack) {
		way->stack = 0;
		flow->decision.why = DMM_WHY_DEVICE;
	} else if (!flow->decision.why) {
		return;
	}
	flow->decision.process = 0;
	flow->decision.stack = fallback_apply(ctx, sk, half, flow->decision.wanted,
					      CTX_LOAD(u32, ctx, family) == AF_INET6);
}

/* Whether the connect hook has left the record to its SYN (record_later() in connect.h). */
static __always_inline struct dmm_decision *record_waits(struct bpf_sock *sk)
{
#ifdef DMM_MPTCP
	struct dmm_decision *decision = sk ? decision_get(sk, 0) : NULL;

	return decision && decision->direction == DMM_DIR_CONNECT ? decision : NULL;
#else
	(void)sk;
	return NULL;
#endif
}

static __always_inline void record_late(struct bpf_sock_ops *ctx, struct bpf_sock *sk,
					__u64 netns_cookie)
{
	const struct dmm_decision *decision = record_waits(sk);
	struct dmm_flow flow = {};

	if (likely(!decision))
		return;
	flow_fill(ctx, &flow, BPF_TCP_SYN_SENT, netns_cookie);
	__builtin_memcpy(&flow.decision, decision, sizeof(flow.decision));
	flow_keep(&flow);
}

/*
 * TCP_CONNECT_CB (a SYN is about to be sent) and ACTIVE_ESTABLISHED_CB. The record is there since
 * connect(), and what it lacks inet_diag knows, except of other namespaces; only who follows is
 * told more. So the handshake itself is watched only then: the callback that it would cost is a
 * good part of what the hooks cost at all.
 */
static __always_inline void connecting(struct bpf_sock_ops *ctx, const struct dmm_control *control,
				       bool own, __u32 state, __u32 event)
{
	struct dmm_flow *flow;

	state_flag_set(ctx);
	if (likely(!events_wanted(control) && own))
		return;
	flow = flow_find(ctx);
	if (!flow)
		return;
	pair_fill(ctx, &flow->pair);
	flow_counts(ctx, flow);
	flow->state = state;
	if (events_wanted(control))
		event_emit(event, flow);
}

#ifdef DMM_SK_ERR
static __always_inline __u16 socket_error(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	void *tcp = sk ? dmm_tcp_of(sk) : NULL;

	return tcp ? KERNEL_LOAD(__u32, tcp, DMM_SK_ERR) : DMM_ERROR_UNTOLD;
}
#else
static __always_inline __u16 socket_error(struct bpf_sock_ops *ctx)
{
	(void)ctx;
	return DMM_ERROR_UNTOLD;
}
#endif

static __always_inline bool process_gone(const struct dmm_decision *decision)
{
	const struct dmm_stack_state *state =
		decision->taken ? stack_state_get(decision->stack) : NULL;

	return state && !(state->up >> (decision->process & (DMM_MAX_PROCESSES - 1)) & 1);
}

static __always_inline void event_closed(struct bpf_sock_ops *ctx, const struct dmm_flow *flow,
					 __u32 before)
{
	struct dmm_event *event = event_begin(DMM_EVENT_CLOSE, flow);

	if (!event)
		return;
	event->before = before;
	event->error = socket_error(ctx);
	event->process_gone = process_gone(&event->flow.decision);
	event_submit(event);
}

static __always_inline void closed(struct bpf_sock_ops *ctx, __u32 before)
{
	if (events_wanted(control_get())) {
		struct dmm_flow *flow = flow_find(ctx);

		if (flow) {
			if (!flow->state)
				pair_fill(ctx, &flow->pair);
			flow_counts(ctx, flow);
			flow->state = BPF_TCP_CLOSE;
			event_closed(ctx, flow, before);
		}
	}
	flow_drop(dmm_socket_cookie(ctx));
}

/* Under the socket's lock, as all of a record's writers after connect() are. */
static __always_inline void state_changed(struct bpf_sock_ops *ctx)
{
	__u32 old_state = CTX_LOAD(u32, ctx, args[0]);
	__u32 new_state = CTX_LOAD(u32, ctx, args[1]);
	struct dmm_flow *flow;

	if (new_state == BPF_TCP_ESTABLISHED) /* ACTIVE_ or PASSIVE_ESTABLISHED_CB is for it */
		return;
	if (old_state == BPF_TCP_LISTEN) {
		struct bpf_sock *sk = ctx->sk;

		if (sk)
			listen_end(ctx, sk);
		return;
	}
	if (new_state == BPF_TCP_CLOSE) {
		closed(ctx, old_state);
		return;
	}
	flow = flow_find(ctx);
	if (!flow)
		return;
	if (!flow->state)
		pair_fill(ctx, &flow->pair);
	flow_counts(ctx, flow);
	flow->state = new_state;
}

static __always_inline void opened(struct bpf_sock_ops *ctx, __u32 op)
{
	const struct dmm_control *control = control_get();
	struct bpf_sock *sk = ctx->sk;
	__u64 netns_cookie;
	bool own;

	/* Only a follower is told of a SYN: every connect() would pay for what comes next. */
	if (op == BPF_SOCK_OPS_TCP_CONNECT_CB && likely(!events_wanted(control)) &&
	    !record_waits(sk))
		return;
	netns_cookie = bpf_get_netns_cookie(ctx);
	if (!control || !sk || !netns_is_meant(control, netns_cookie))
		return;
	own = netns_cookie == control->netns_cookie;
	if (!own && (op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB || op == BPF_SOCK_OPS_TCP_LISTEN_CB))
		return;
	switch (op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		record_late(ctx, sk, netns_cookie);
		connecting(ctx, control, own, BPF_TCP_SYN_SENT, DMM_EVENT_CONNECT);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		connected(ctx, sk, control);
		connecting(ctx, control, own, BPF_TCP_ESTABLISHED, DMM_EVENT_ESTABLISHED);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		accepted(ctx, sk, netns_cookie, control);
		break;
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
		listen_start(ctx, sk, netns_cookie, control);
		break;
	}
}

static __always_inline int sockops(struct bpf_sock_ops *ctx)
{
	__u32 op = CTX_LOAD(u32, ctx, op);

	switch (op) {
	case BPF_SOCK_OPS_STATE_CB:
		state_changed(ctx);
		break;
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
		opened(ctx, op);
		break;
	}
	return 1;
}

#endif /* DMM_SOCKOPS_H */

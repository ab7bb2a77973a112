/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * opened.h: a connection is open: who serves it, and what its socket gets for that.
 *
 * Who serves is known only now. An accepted one is served by the process that has its 5-tuple, a
 * connecting one by the process that has taken its SYN; else the kernel does, with the options of
 * the fallback of what its route names.
 */
#ifndef DMM_OPENED_H
#define DMM_OPENED_H

#include "adaptive.h"
#include "connect.h"
#include "flow.h"
#include "listener.h"
#include "synopts.h"

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

/* Returns whether the route is adaptive. */
static __always_inline bool accepted_route(const struct dmm_addr_pair *pair, __u32 generation,
					   const struct dmm_listener *listener,
					   struct dmm_verdict *verdict)
{
	__u32 half = generation & 1;
	struct dmm_query query = {.proto = IPPROTO_TCP, .port_be = pair->lport_be, .half = half};
	__u32 table = listener->tables[half];
	__u32 rule = listener->rules[half];
	__u32 chosen = listener->chosen[half];

	if (chosen) {
		verdict->rule = rule;
		verdict->stack = chosen - 1;
		return false;
	}
	if (!table)
		return false;
	addr_copy(query.addr, (const __u32 *)pair->raddr);
	if (route_find(table, &query, generation, verdict))
		verdict->rule = rule;
	else
		verdict_none(verdict);
	adaptive_settle_opened(&query, pair, verdict);
	return query.adaptive;
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

/* Whether an open connection's packets leave by a device on which no flow begins; told where the
 * kernel has BTF. */
static __always_inline bool is_behind(struct bpf_sock *sk)
{
#ifdef DMM_SK_DST
	const void *at = dmm_tcp_of(sk);
	const struct dmm_nic *nic;
	__u32 ifindex;

	if (!at)
		return false;
	at = KERNEL_LOAD(void *, at, DMM_SK_DST);
	at = KERNEL_LOAD(void *, at, DMM_DST_DEV);
	ifindex = KERNEL_LOAD(__u32, at, DMM_DEV_IFINDEX);
	nic = map_lookup(DMM_MAP(nics), &ifindex);
	return nic && nic->behind;
#else
	(void)sk;
	return false;
#endif
}

/*
 * Why an accepted connection that a user stack should have is the kernel's: what its SYN asked for,
 * if that shows in the handshake's last packet, too, or that it came by the kernel.
 */
static __always_inline __u32 accepted_why(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	if (option_came(ctx, DMM_OPTION_MD5) || option_came(ctx, DMM_OPTION_AO) ||
	    option_came(ctx, DMM_OPTION_MPTCP) || option_came(ctx, DMM_OPTION_FAST_OPEN))
		return DMM_WHY_OPTION;
	return is_behind(sk) ? DMM_WHY_FILTER : DMM_WHY_PEER;
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
	bool is_user;

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
	stack = wanted ? stack_get(half, wanted) : NULL;
	is_user = stack && stack->kind == DMM_STACK_USER;
	/* As connect() to there would be served */
	if (is_user && !addr_is_carried((const __u32 *)flow->pair.raddr)) {
		served->why = DMM_WHY_SOCKET;
		return;
	}
	served->id = fallback_apply(ctx, sk, half, wanted, flow->pair.family == AF_INET6);
	if (is_user)
		served->why = accepted_why(ctx, sk);
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
	listener = listener_find(&flow.pair);
	accepted_facts(sk, listener, &flow.decision);
	if (generation) {
		if (listener)
			flow.adaptive = accepted_route(&flow.pair, generation, listener, &verdict);
		accepted_serve(ctx, sk, generation & 1, verdict.stack, &flow, &served);
	}
	flow.decision.generation = generation;
	flow.decision.direction = DMM_DIR_LISTEN;
	decision_verdict(&flow.decision, &verdict, &served);
	/* A rule without a table is one that let the program choose. */
	if (verdict.rule && !verdict.table) {
		flow.decision.choice = DMM_CHOICE_TAKEN;
		flow.decision.chosen = verdict.stack;
	}
	state_flag_set(ctx);
	flow_keep(&flow);
	if (events_wanted(control))
		event_emit(DMM_EVENT_ESTABLISHED, &flow);
}

/*
 * A connection of a socket for which a user stack was asked is open: has a process taken its SYN,
 * the socket gets what the inner leg needs, else what its route's fallback sets. A SYN that met no
 * program of ours left by a device that the stack does not serve, or where a filter kept it.
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
		flow->decision.why = is_behind(sk) ? DMM_WHY_FILTER : DMM_WHY_DEVICE;
	} else if (!flow->decision.why) {
		return;
	}
	flow->decision.process = 0;
	flow->decision.stack = fallback_apply(ctx, sk, half, flow->decision.wanted,
					      CTX_LOAD(u32, ctx, family) == AF_INET6);
}

#endif /* DMM_OPENED_H */

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * sockops.h: the sock_ops program: which callback is whose, and the record of a flow from its SYN
 * to its end. Listeners are listening.h's, connections that open opened.h's.
 *
 * ctx->reply is never written, so other sock_ops programs of the host keep their say. Callback
 * flags are added to those that are set, never taken away. Sockets of other network namespaces are
 * left alone, but for those of containers that connect.
 */
#ifndef DMM_SOCKOPS_H
#define DMM_SOCKOPS_H

#include "listening.h"
#include "opened.h"

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

	if (is_gated(control) && !flow_find(ctx))
		return;
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
	const struct dmm_control *control = control_get();
	bool followed = events_wanted(control);

	if (followed || ends_wanted(control)) {
		struct dmm_flow *flow = flow_find(ctx);

		if (flow && (followed || flow->adaptive)) {
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
	if ((op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB || op == BPF_SOCK_OPS_TCP_LISTEN_CB) &&
	    (!own || !socket_is_meant(sk, control)))
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

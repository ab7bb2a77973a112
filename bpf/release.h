/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * release.h: cgroup/sock_release: the last word on a socket that never got established.
 *
 * The connect hook has made its record, and changes of state are called back only from ESTABLISHED
 * on, or, while somebody follows, from the SYN on, which shows in the record's state. A record
 * without a state is thus nobody else's to remove, and goes when the last descriptor is closed.
 * Every other goes at TCP_CLOSE.
 *
 * A listener that was there before the hooks ends here, too, where the kernel calls nobody back for
 * it, and a UDP socket that was bound.
 */
#ifndef DMM_RELEASE_H
#define DMM_RELEASE_H

#include "flow.h"
#include "listener.h"

static __always_inline void released_listener(struct bpf_sock *sk)
{
	struct dmm_listener_key *at = storage_get(DMM_MAP(unwatched), sk, 0);
	struct dmm_decision *decision;
	struct dmm_listener_key key;

	if (likely(!at))
		return;
	__builtin_memcpy(&key, at, sizeof(key));
	decision = storage_get(DMM_MAP(decisions), sk, 0);
	if (!decision || !decision->listening)
		return;
	decision->listening = 0;
	listener_withdraw(&key);
}

static __always_inline void released_bound(struct bpf_sock *sk)
{
	struct dmm_bound_socket *bound = storage_get(DMM_MAP(bounds), sk, 0);
	struct dmm_listener_key key;

	if (!bound || !bound->counted)
		return;
	bound->counted = 0;
	__builtin_memcpy(&key, &bound->key, sizeof(key));
	listener_withdraw(&key);
}

/* Why it never got established the hook cannot see. */
static __always_inline void released_unopened(const struct dmm_flow *flow)
{
	struct dmm_event *event = event_begin(DMM_EVENT_CLOSE, flow);

	if (!event)
		return;
	event->before = BPF_TCP_SYN_SENT;
	event->error = DMM_ERROR_UNTOLD;
	event_submit(event);
}

static __always_inline int released(struct bpf_sock *ctx)
{
	__u32 state = CTX_LOAD(u32, ctx, state);
	struct dmm_flow *flow;
	__u64 cookie;

	if (CTX_LOAD(u32, ctx, protocol) == IPPROTO_UDP) {
		released_bound(ctx);
		return 1;
	}
	if (state != BPF_TCP_CLOSE && state != BPF_TCP_SYN_SENT && state != BPF_TCP_LISTEN)
		return 1;
	if (CTX_LOAD(u32, ctx, protocol) != IPPROTO_TCP)
		return 1;
	/* In TCP_CLOSE, too: shutdown() has ended it. */
	if (state != BPF_TCP_SYN_SENT)
		released_listener(ctx);
	if (state == BPF_TCP_LISTEN)
		return 1;
	cookie = dmm_socket_cookie(ctx);
	flow = flow_lookup(cookie);
	if (flow && !flow->state) {
		if (ends_wanted(control_get()) && flow->adaptive)
			released_unopened(flow);
		flow_drop(cookie);
	}
	return 1;
}

#endif /* DMM_RELEASE_H */

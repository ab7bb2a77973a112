/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * listening.h: a socket of the instance's listens, or does so no more: which table or stack serves
 * its peers, and the entry in listeners[] that says so.
 */
#ifndef DMM_LISTENING_H
#define DMM_LISTENING_H

#include "bind.h"
#include "choice.h"
#include "flow.h"
#include "listener.h"

static __always_inline struct dmm_decision *decision_get(struct bpf_sock *sk, __u64 flags)
{
	return storage_get(DMM_MAP(decisions), sk, flags);
}

/* What the listener's program has chosen is for all its peers, in place of a table. */
static __always_inline void listen_choice(const struct dmm_choice *choice,
					  struct dmm_decision *decision)
{
	if (likely(!choice))
		return;
	decision->chosen = choice->stack;
	decision->choice = choice_state(choice, DMM_DIR_LISTEN);
	if (decision->choice == DMM_CHOICE_TAKEN) {
		decision->table = 0;
		decision->rule = choice->rule;
	}
}

/* What is known of the listener when this kernel's sock_ops helpers name nobody: what bind() saw,
 * if that is current. */
static __always_inline void listen_facts(struct bpf_sock_ops *ctx, struct bpf_sock *sk,
					 struct dmm_decision *decision, __u64 netns_cookie,
					 const struct dmm_control *control)
{
	__u32 generation = control->generation;
#ifdef DMM_SOCKOPS_CURRENT
	struct dmm_search search = {.facts = {.netns_cookie = netns_cookie}};
	const struct dmm_choice *choice;

	facts_current(&search.facts);
	facts_socket(&search, sk, control);
	facts_dscp(ctx, control, sk->family == AF_INET6, &search);
	search.generation = generation;
	search.query.half = generation & 1;
	choice = choice_of(control, sk, &search);
	decision_listen(decision, &search, generation);
	listen_choice(choice, decision);
#else
	const struct dmm_choice *choice;

	(void)ctx;
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
	decision->choice = DMM_CHOICE_NONE;
	if (likely(!(control->flags & DMM_CONTROL_CHOICE)))
		return;
	/* Nobody can be asked for anew. */
	choice = storage_get(DMM_MAP(choices), sk, 0);
	if (choice && choice->generation == generation && choice->state)
		listen_choice(choice, decision);
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

/* As listen_facts(). */
static __always_inline struct dmm_actor listen_actor(struct bpf_sock *sk)
{
#ifdef DMM_SOCKOPS_CURRENT
	(void)sk;
	return actor_current();
#else
	const struct dmm_bound_socket *bound = storage_get(DMM_MAP(bounds), sk, 0);
	struct dmm_actor found = {};

	if (bound) {
		found.inode = bound->exe_inode;
		found.device = bound->exe_device;
		found.gid = bound->gid;
	}
	return found;
#endif
}

static __always_inline void listen_start(struct bpf_sock_ops *ctx, struct bpf_sock *sk,
					 __u64 netns_cookie, const struct dmm_control *control)
{
	struct dmm_decision *decision = decision_get(sk, BPF_SK_STORAGE_GET_F_CREATE);
	struct dmm_listener_key key;
	struct dmm_flow flow;

	if (!decision)
		return;
	listen_facts(ctx, sk, decision, netns_cookie, control);
	if (sk->bound_dev_if) {
		decision->table = 0;
		decision->rule = 0;
		decision->choice = DMM_CHOICE_NONE;
	}
	flow_fill(ctx, &flow, BPF_TCP_LISTEN, netns_cookie);
	listener_key_fill(&key, &flow.pair);
	/* It listened before, and nobody told of the end (struct dmm_earlier). */
	if (decision->listening)
		listener_withdraw(&key);
	decision->listening = 0;
	listen_share(ctx, sk, decision);
	if (!listener_publish(&key, decision, listen_actor(sk), netns_cookie, sk->mark,
			      sk->bound_dev_if, dscp_get(ctx, sk->family == AF_INET6)))
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

#endif /* DMM_LISTENING_H */

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * bind.h: cgroup/bind4, bind6, post_bind4 and post_bind6: who binds a socket. bind() itself is
 * never refused.
 *
 * Of a TCP socket it is remembered, with the table its peers would be looked up in. Needed because
 * kernels before 6.10 or so give sock_ops programs no helper that names the current task: there,
 * what bind() saw is all that TCP_LISTEN_CB knows. Where they have it, nothing is done.
 *
 * A UDP socket that its program binds may serve peers from then on, so it is put in listeners[]
 * until it is closed (release.h). Its port may be the kernel's choice and is known behind bind()
 * alone, where in turn its mark and device cannot be read: so these are noted before.
 */
#ifndef DMM_BIND_H
#define DMM_BIND_H

#include "group.h"
#include "listener.h"

/* The body of step rule_listen. */
static __always_inline int rule_listen(struct dmm_search *search)
{
	const struct dmm_rule *rule = rule_next(search, DMM_DIR_LISTEN);

	if (!rule || !rule->table)
		return 0;
	search->verdict.rule = rule->number;
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
		dmm_loop(rules_begin(search), DMM_STEP(rule_listen), search, 0);
	decision_facts(decision, &search->facts);
	decision->generation = generation;
	decision->direction = DMM_DIR_LISTEN;
	decision->route = DMM_ROUTE_NONE;
	decision->stack = 0;
	decision->wanted = 0;
	decision->rule = search->verdict.rule;
	decision->table = search->verdict.table;
	decision->choice = DMM_CHOICE_NONE;
}

/* What there is before it is bound; an earlier bind() may have been refused, or undone. */
static __always_inline int bind_note(struct bpf_sock_addr *ctx)
{
	const struct dmm_control *control = control_get();
	struct bpf_sock *sk = ctx->sk;
	struct dmm_search search = {};
	struct dmm_bound_socket *bound;

	if (!control || !sk || bpf_get_netns_cookie(ctx) != control->netns_cookie ||
	    !current_is_meant(control))
		return 1;
	bound = storage_get(DMM_MAP(bounds), sk, BPF_SK_STORAGE_GET_F_CREATE);
	if (!bound)
		return 1;
	facts_dscp(ctx, control, sk->family == AF_INET6, &search);
	bound->mark = sk->mark;
	bound->device = sk->bound_dev_if;
	bound->dscp = search.facts.dscp;
	return 1;
}

/* Of a UDP socket that is bound: the key has its address and port. */
static __always_inline void bound_count(struct bpf_sock *ctx, struct dmm_bound_socket *bound,
					const struct dmm_listener_key *key)
{
	const struct dmm_control *control = control_get();
	struct dmm_decision decision = {};
	struct dmm_search search = {};

	if (!control)
		return;
	facts_current(&search.facts);
	if (search.facts.kernel)
		return;
	search.facts.netns_cookie = bpf_get_netns_cookie(ctx);
	search.facts.mark = bound->mark;
	search.facts.dscp = bound->dscp;
	search.facts.lport = htons(key->port_be);
	search.device = bound->device;
	decision_listen(&decision, &search, control->generation);
	if (bound->device) {
		decision.table = 0;
		decision.rule = 0;
	}
	bound->counted =
		listener_publish(key, &decision, actor_current(), search.facts.netns_cookie,
				 bound->mark, bound->device, bound->dscp);
}

static __always_inline int bound_begin(struct bpf_sock *ctx, struct dmm_listener_key *key)
{
	struct dmm_bound_socket *bound = storage_get(DMM_MAP(bounds), ctx, 0);
	struct dmm_listener_key before;

	if (!bound)
		return 1;
	if (bound->counted) {
		__builtin_memcpy(&before, &bound->key, sizeof(before));
		listener_withdraw(&before);
	}
	bound->counted = 0;
	key->port_be = htons((__u16)CTX_LOAD(u32, ctx, src_port));
	key->proto = IPPROTO_UDP;
	__builtin_memcpy(&bound->key, key, sizeof(*key));
	bound_count(ctx, bound, key);
	return 1;
}

static __always_inline bool is_bound_datagram(struct bpf_sock *ctx)
{
	return CTX_LOAD(u32, ctx, type) == SOCK_DGRAM &&
	       CTX_LOAD(u32, ctx, protocol) == IPPROTO_UDP;
}

static __always_inline int bound4(struct bpf_sock *ctx)
{
	struct dmm_listener_key key = {};

	if (!is_bound_datagram(ctx))
		return 1;
	addr_set4((__u32 *)key.addr, CTX_LOAD(u32, ctx, src_ip4));
	return bound_begin(ctx, &key);
}

static __always_inline int bound6(struct bpf_sock *ctx)
{
	struct dmm_listener_key key = {};
	__u32 *addr = (__u32 *)key.addr;

	if (!is_bound_datagram(ctx))
		return 1;
	addr[0] = CTX_LOAD(u32, ctx, src_ip6[0]);
	addr[1] = CTX_LOAD(u32, ctx, src_ip6[1]);
	addr[2] = CTX_LOAD(u32, ctx, src_ip6[2]);
	addr[3] = CTX_LOAD(u32, ctx, src_ip6[3]);
	return bound_begin(ctx, &key);
}

#ifndef DMM_SOCKOPS_CURRENT
/* For listen_actor(), in listening.h. */
static __always_inline void actor_note(struct bpf_sock *sk)
{
	struct dmm_actor actor = actor_current();
	struct dmm_bound_socket *bound =
		storage_get(DMM_MAP(bounds), sk, BPF_SK_STORAGE_GET_F_CREATE);

	if (!bound)
		return;
	bound->exe_device = actor.device;
	bound->exe_inode = actor.inode;
	bound->gid = actor.gid;
}
#endif

static __always_inline int bind_remember_stream(struct bpf_sock_addr *ctx)
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
	if (search.facts.netns_cookie != control->netns_cookie || !current_is_meant(control))
		return 1;
	decision = storage_get(DMM_MAP(decisions), sk, BPF_SK_STORAGE_GET_F_CREATE);
	if (!decision)
		return 1;
	facts_current(&search.facts);
	facts_socket(&search, sk, control);
	search.facts.lport = htons((__u16)CTX_LOAD(u32, ctx, user_port)); /* 0: any */
	facts_dscp(ctx, control, sk->family == AF_INET6, &search);
	decision_listen(decision, &search, control->generation);
	actor_note(sk);
#endif
	return 1;
}

static __always_inline int bind_remember(struct bpf_sock_addr *ctx)
{
	if (CTX_LOAD(u32, ctx, type) == SOCK_DGRAM && CTX_LOAD(u32, ctx, protocol) == IPPROTO_UDP)
		return bind_note(ctx);
	return bind_remember_stream(ctx);
}

#endif /* DMM_BIND_H */

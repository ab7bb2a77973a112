/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * connect.h: cgroup/connect4 and connect6: which stack serves a connecting socket.
 *
 * A socket of another network namespace is left alone; one bound to a device, and one whose peer is this
 * host's loopback, never goes to a user stack. The decision is kept in the socket's storage; the flow record
 * is made later, in TCP_CONNECT_CB, so that a connect() that fails before a SYN leaves nothing behind.
 */
#ifndef DMM_CONNECT_H
#define DMM_CONNECT_H

#include "decide.h"

/* 0.0.0.0 and :: mean this host to connect() (ip(7)). */
static __always_inline bool addr_is_loopback(const __u32 *addr)
{
	if (addr_is_mapped(addr))
		return (addr[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000) || addr[3] == 0;
	return addr[0] == 0 && addr[1] == 0 && addr[2] == 0 && (addr[3] == 0 || addr[3] == bpf_htonl(1));
}

/* A socket that is used again after a user stack served it must not keep that stack's mark. */
static __always_inline __u32 mark_clean(struct bpf_sock_addr *ctx, const struct dmm_control *control,
					const struct dmm_decision *decision, __u32 mark)
{
	__u32 clean = mark & ~control->mark_mask;

	if (!decision->stack || clean == mark)
		return mark;
	option_set(ctx, SOL_SOCKET, SO_MARK, &clean, sizeof(clean));
	return clean;
}

/* Returns 1 to let connect() go on, 0 for EPERM. */
static __always_inline int connect_decide(struct bpf_sock_addr *ctx, struct dmm_query *query, bool socket6)
{
	const struct dmm_control *control = control_get();
	struct bpf_sock *sk = ctx->sk;
	bool stream = CTX_LOAD(u32, ctx, type) == SOCK_STREAM;
	struct dmm_decision *decision;
	struct dmm_verdict verdict;
	struct dmm_served served = {};
	struct dmm_facts facts = {};
	__u32 generation;

	if (!control || !sk)
		return 1;
	facts.netns_cookie = bpf_get_netns_cookie(ctx);
	if (facts.netns_cookie != control->netns_cookie)
		return 1;
	if (CTX_LOAD(u32, ctx, protocol) != (stream ? IPPROTO_TCP : IPPROTO_UDP))
		return 1;
	count(DMM_CNT_CONNECT);
	decision = bpf_sk_storage_get(DMM_MAP(decisions), sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!decision)
		return 1;
	facts_current(&facts);
	decision_facts(decision, &facts);
	facts.mark = mark_clean(ctx, control, decision, sk->mark);
	generation = control->generation;
	verdict_none(&verdict);
	query->half = generation & 1;
	query->proto = stream ? IPPROTO_TCP : IPPROTO_UDP;
	query->port_be = (__u16)CTX_LOAD(u32, ctx, user_port);
	if (generation && !sk->bound_dev_if && policy_find(&facts, query, &verdict))
		stack_resolve(query->half, verdict.stack, stream && !addr_is_loopback(query->addr), &served);
	decision->generation = generation;
	decision->direction = DMM_DIR_CONNECT;
	decision->listening = 0;
	decision_verdict(decision, &verdict, served.id);
	if (served.reject) {
		count(DMM_CNT_CONNECT_REJECT);
		return 0;
	}
	if (served.stack)
		stack_apply(ctx, served.stack, facts.mark, stream, socket6 && !addr_is_mapped(query->addr));
	return 1;
}

static __always_inline int connect4(struct bpf_sock_addr *ctx)
{
	struct dmm_query query = {};

	addr_set4(query.addr, CTX_LOAD(u32, ctx, user_ip4));
	return connect_decide(ctx, &query, false);
}

static __always_inline int connect6(struct bpf_sock_addr *ctx)
{
	struct dmm_query query = {};

	query.addr[0] = CTX_LOAD(u32, ctx, user_ip6[0]);
	query.addr[1] = CTX_LOAD(u32, ctx, user_ip6[1]);
	query.addr[2] = CTX_LOAD(u32, ctx, user_ip6[2]);
	query.addr[3] = CTX_LOAD(u32, ctx, user_ip6[3]);
	return connect_decide(ctx, &query, true);
}

#endif /* DMM_CONNECT_H */

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * sendmsg.h: cgroup/sendmsg4 and sendmsg6: datagrams that name their peer themselves (sendto(2)),
 * which no connect() has decided about: those are refused whose route says so, and of those whose
 * route names a user stack it is noted for where they leave (datagram.h).
 *
 * Options are not set here: the kernel has read the socket's mark and priority for this datagram
 * before it calls the hook, so that what is set would be the next one's, which may be for another
 * peer.
 */
#ifndef DMM_SENDMSG_H
#define DMM_SENDMSG_H

#include "connect.h"

/* Returns 1 to let the datagram go, 0 to refuse it. */
static __always_inline int sendmsg_decide(struct bpf_sock_addr *ctx, struct dmm_search *search)
{
	const struct dmm_control *control = control_get();
	struct dmm_query *query = &search->query;
	const struct dmm_policy_head *head;
	struct dmm_served served = {};
	struct bpf_sock *sk = ctx->sk;
	struct dmm_datagram_key key;

	if (!control || !sk || !control->generation)
		return 1;
	search->generation = control->generation;
	query->half = search->generation & 1;
	head = map_lookup(DMM_MAP(heads), &query->half);
	if (likely(!head || !head->datagrams) || !current_is_meant(control))
		return 1;
	search->facts.netns_cookie = bpf_get_netns_cookie(ctx);
	if (!netns_is_meant(control, search->facts.netns_cookie) ||
	    CTX_LOAD(u32, ctx, protocol) != IPPROTO_UDP)
		return 1;
	query->proto = IPPROTO_UDP;
	query->port_be = (__u16)CTX_LOAD(u32, ctx, user_port);
	datagram_key(&key, dmm_socket_cookie(ctx), query->addr, query->port_be);
	if (datagram_is_decided(&key, search->generation))
		return 1;
	facts_current(&search->facts);
	if (unlikely(search->facts.kernel))
		return 1;
	facts_socket(search, sk, control);
	search->facts.dscp = DMM_NO_DSCP; /* the hook comes without the socket's lock */
	verdict_none(&search->verdict);
	policy_find(search);
	datagram_serve(ctx, search, BPF_TCP_CLOSE, &served);
	if (!served.stack || served.stack->kind != DMM_STACK_REJECT)
		return 1;
	count(DMM_CNT_DATAGRAM_REJECT);
	return refuse(served.stack);
}

static __always_inline int sendmsg4(struct bpf_sock_addr *ctx)
{
	struct dmm_search search = {};

	addr_set4(search.query.addr, CTX_LOAD(u32, ctx, user_ip4));
	return sendmsg_decide(ctx, &search);
}

static __always_inline int sendmsg6(struct bpf_sock_addr *ctx)
{
	struct dmm_search search = {};

	addr_load6(search.query.addr, ctx);
	return sendmsg_decide(ctx, &search);
}

#endif /* DMM_SENDMSG_H */

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * socket.h: the kernel's socket of a 5-tuple, from a program that sees packets.
 */
#ifndef DMM_SOCKET_H
#define DMM_SOCKET_H

#include "defs.h"

/* BCC does not declare it. */
static struct bpf_sock *(*dmm_sk_fullsock)(struct bpf_sock *sk) = (void *)BPF_FUNC_sk_fullsock;

/* Sockets that apps have opened to others, and that others have opened to them */
static __always_inline bool is_stream(const struct bpf_sock *sk)
{
	return sk->type == SOCK_STREAM && sk->protocol == IPPROTO_TCP;
}

static __always_inline bool is_datagram(const struct bpf_sock *sk)
{
	return sk->type == SOCK_DGRAM && sk->protocol == IPPROTO_UDP;
}

/* A connection, open or asked for: no listener, and not over (TIME_WAIT) */
static __always_inline bool is_connection(const struct bpf_sock *sk)
{
	return sk->state != BPF_TCP_LISTEN && sk->state != BPF_TCP_TIME_WAIT;
}

/*
 * In any state, or a listener for it; NULL: none. To be released. ctx: xdp_md or __sk_buff. A
 * socket that is bound to another device than the context's is not found.
 */
static __always_inline struct bpf_sock *socket_find(void *ctx, const struct dmm_addr_pair *pair)
{
	struct bpf_sock_tuple tuple = {};

	if (pair->family == AF_INET) {
		tuple.ipv4.saddr = ((const __u32 *)pair->raddr)[3];
		tuple.ipv4.daddr = ((const __u32 *)pair->laddr)[3];
		tuple.ipv4.sport = pair->rport_be;
		tuple.ipv4.dport = pair->lport_be;
		return bpf_skc_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	}
	addr_copy(tuple.ipv6.saddr, (const __u32 *)pair->raddr);
	addr_copy(tuple.ipv6.daddr, (const __u32 *)pair->laddr);
	tuple.ipv6.sport = pair->rport_be;
	tuple.ipv6.dport = pair->lport_be;
	return bpf_skc_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv6), BPF_F_CURRENT_NETNS, 0);
}

#endif /* DMM_SOCKET_H */

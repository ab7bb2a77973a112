/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * options.h: the socket options that policy gives the sockets of a stack.
 *
 * Invariant: an option that a socket has by itself is overwritten, except where the program's own
 * wish can be told from what every socket has: what ends the wait for a peer that is silent (struct
 * dmm_patience).
 */
#ifndef DMM_OPTIONS_H
#define DMM_OPTIONS_H

#include "defs.h"

static __always_inline void option_set(void *ctx, int level, int name, const void *value, int len)
{
	if (bpf_setsockopt(ctx, level, name, (void *)value, len))
		count(DMM_CNT_SOCKOPT_FAILED);
}

/* tos: room for it, on a stack that has none to spare. */
static __always_inline __u32 dscp_read(void *ctx, bool ipv6, __u32 *tos)
{
	int level = ipv6 ? SOL_IPV6 : SOL_IP;
	int name = ipv6 ? IPV6_TCLASS : IP_TOS;

	*tos = 0;
	if (bpf_getsockopt(ctx, level, name, tos, sizeof(*tos)))
		return 0;
	return *tos >> 2 & 0x3f;
}

static __always_inline __u32 dscp_get(void *ctx, bool ipv6)
{
	__u32 tos;

	return dscp_read(ctx, ipv6, &tos);
}

/*
 * RFC 3168: the two low bits of the field are ECN's and stay; the kernel keeps them itself
 * only for TCP.
 */
static __always_inline void dscp_set(void *ctx, const struct dmm_stack *stack, bool ipv6)
{
	int level = ipv6 ? SOL_IPV6 : SOL_IP;
	int name = ipv6 ? IPV6_TCLASS : IP_TOS;
	int old = 0;
	int tos;

	if (bpf_getsockopt(ctx, level, name, &old, sizeof(old)) || old < 0)
		old = 0;
	tos = (stack->dscp << 2) | (old & ECN_MASK);
	option_set(ctx, level, name, &tos, sizeof(tos));
}

/* What an option of the socket reads as, unless that is usual; then 0. */
static __always_inline __u32 option_unusual(void *ctx, int name, __u32 usual)
{
	__u32 now = usual;

	if (bpf_getsockopt(ctx, SOL_TCP, name, &now, sizeof(now)))
		return 0;
	return now == usual ? 0 : now;
}

/* chosen: what the program has set itself, before now. */
static __always_inline void option_give(void *ctx, int name, __u32 value, __u32 chosen)
{
	if (value && !chosen)
		option_set(ctx, SOL_TCP, name, &value, sizeof(value));
}

#if defined(DMM_SK_ERR) || defined(DMM_SK_DST) || defined(DMM_TCP_CHOSEN) ||                       \
	defined(DMM_SK_CGROUP) || defined(DMM_SK_SOCKET)
/* BCC does not declare it; the result is the kernel's struct tcp_sock, which may be read. */
static void *(*dmm_tcp_of)(void *sk) = (void *)BPF_FUNC_skc_to_tcp_sock;
#endif

/* The times of probes, except those that the program has set. */
#ifdef DMM_TCP_CHOSEN
/* The kernel keeps 0 there while the namespace's sysctls hold, whichever namespace it is (struct
 * tcp_sock).
 */
static __always_inline void probes_give(void *ctx, struct bpf_sock *sk,
					const struct dmm_stack *stack)
{
	const struct dmm_patience *wanted = &stack->patience;
	const void *tcp = dmm_tcp_of(sk);
	__u32 time = 0, intvl = 0, probes = 0;

	if (tcp) {
		time = KERNEL_LOAD(__u32, tcp, DMM_TCP_KEEPALIVE_TIME);
		intvl = KERNEL_LOAD(__u32, tcp, DMM_TCP_KEEPALIVE_INTVL);
		probes = KERNEL_LOAD(__u8, tcp, DMM_TCP_KEEPALIVE_PROBES);
	}
	option_give(ctx, TCP_KEEPIDLE, wanted->keepalive_time_s, time);
	option_give(ctx, TCP_KEEPINTVL, wanted->keepalive_intvl_s, intvl);
	option_give(ctx, TCP_KEEPCNT, wanted->keepalive_probes, probes);
}
#else
/* Without the kernel's BTF: by the sysctls of the instance's namespace, also in a container that
 * has others. One after the other, for connect() has no room to keep what all of them are.
 */
static __always_inline void probes_give(void *ctx, struct bpf_sock *sk,
					const struct dmm_stack *stack)
{
	const struct dmm_patience *wanted = &stack->patience;
	const struct dmm_patience *usual = &stack->usual_patience;

	(void)sk;
	option_give(ctx, TCP_KEEPIDLE, wanted->keepalive_time_s,
		    option_unusual(ctx, TCP_KEEPIDLE, usual->keepalive_time_s));
	option_give(ctx, TCP_KEEPINTVL, wanted->keepalive_intvl_s,
		    option_unusual(ctx, TCP_KEEPINTVL, usual->keepalive_intvl_s));
	option_give(ctx, TCP_KEEPCNT, wanted->keepalive_probes,
		    option_unusual(ctx, TCP_KEEPCNT, usual->keepalive_probes));
}
#endif

/* The probes' times come before SO_KEEPALIVE, which starts the timer. */
static __always_inline void patience_apply(void *ctx, struct bpf_sock *sk,
					   const struct dmm_stack *stack)
{
	__u32 on = 1;

	if (stack->flags & DMM_SET_USER_TIMEOUT)
		option_give(ctx, TCP_USER_TIMEOUT, stack->patience.user_timeout_ms,
			    option_unusual(ctx, TCP_USER_TIMEOUT, 0));
	if (!(stack->flags & DMM_SET_KEEPALIVE))
		return;
	probes_give(ctx, sk, stack);
	option_set(ctx, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
}

/*
 * ctx: bpf_sock_addr or bpf_sock_ops. ipv6: which of IP_TOS and IPV6_TCLASS the flow's packets
 * obey. SO_PRIORITY comes after IP_TOS, which changes it.
 */
static __always_inline void stack_apply(void *ctx, struct bpf_sock *sk,
					const struct dmm_stack *stack, bool stream, bool ipv6)
{
	__u32 flags = stack->flags;
	__u32 old_mark = sk->mark;

	if (stream && (flags & DMM_SET_CONGESTION) && stack->congestion[0])
		option_set(ctx, SOL_TCP, TCP_CONGESTION, stack->congestion,
			   sizeof(stack->congestion));
	if (stream)
		patience_apply(ctx, sk, stack);
	if (flags & DMM_SET_DSCP)
		dscp_set(ctx, stack, ipv6);
	if (flags & DMM_SET_MARK) {
		__u32 mark = (old_mark & ~stack->mark_mask) | (stack->mark & stack->mark_mask);

		option_set(ctx, SOL_SOCKET, SO_MARK, &mark, sizeof(mark));
	}
	if (flags & DMM_SET_PACING) {
		__u32 rate = stack->max_pacing_rate_Bps;

		option_set(ctx, SOL_SOCKET, SO_MAX_PACING_RATE, &rate, sizeof(rate));
	}
	if (flags & DMM_SET_PRIORITY) {
		__u32 priority = stack->priority;

		option_set(ctx, SOL_SOCKET, SO_PRIORITY, &priority, sizeof(priority));
	}
}

#endif /* DMM_OPTIONS_H */

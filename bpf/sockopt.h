/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * sockopt.h: cgroup/setsockopt and cgroup/getsockopt: the socket options of dmm.h.
 *
 * Every other level is let go on at once, with what the kernel has read of it: a length of 0 would
 * have it read anew, but hide the value from programs of others that come later
 * (Documentation/bpf/prog_cgroup_sockopt.rst). Only of what is longer than the kernel shows a
 * program the length is taken back, which every program has to do.
 *
 * Instances within each other are asked from the innermost out (cgroup-bpf's order). The first that
 * lets a program choose keeps the choice, alone; where none does, the innermost has said why. Who
 * serves is told by the innermost, unless a process of an outer one's stack has the flow.
 */
#ifndef DMM_SOCKOPT_H
#define DMM_SOCKOPT_H

#include "choice.h"
#include "connect.h"
#include "flow.h"

#define EPERM 1
#define ENOENT 2
#define ENOMEM 12
#define EISCONN 106
#define OPTION_SHOWN 4096 /* PAGE_SIZE, at least */
#define OPTION_DONE ((__u32)-1)

/* BCC does not declare it. */
static int (*dmm_get_retval)(void) = (void *)BPF_FUNC_get_retval;

static __always_inline void optlen_set(struct bpf_sockopt *ctx, __u32 bytes)
{
	asm volatile("*(u32 *)(%0 + %1) = %2"
		     :
		     : "r"(ctx), "i"(__builtin_offsetof(struct bpf_sockopt, optlen)), "r"(bytes)
		     : "memory");
}

static __always_inline int option_leave(struct bpf_sockopt *ctx)
{
	__s32 bytes = CTX_LOAD(u32, ctx, optlen);

	if (unlikely(bytes > OPTION_SHOWN))
		optlen_set(ctx, 0);
	return 1;
}

static __always_inline bool sockopt_is_ours(struct bpf_sockopt *ctx, struct bpf_sock *sk,
					    const struct dmm_control *control)
{
	if (!control || !control->generation || !current_is_meant(control) ||
	    (sk->protocol != IPPROTO_TCP && sk->protocol != IPPROTO_UDP))
		return false;
	return netns_is_meant(control, bpf_get_netns_cookie(ctx));
}

/* The body of step stack_named. */
static __always_inline int stack_named(struct dmm_stack_search *search)
{
	const struct dmm_stack *stack = stack_get(search->half, search->next);

	search->found = stack && name_equal(stack->name, search->name);
	if (!search->found)
		search->next++;
	return search->found;
}

/* False: no stack can be called that. An empty name is one byte of 0. */
static __always_inline bool name_read(struct bpf_sockopt *ctx, char *name)
{
	const char *from = ctx->optval, *end = ctx->optval_end;
	__u32 bytes = CTX_LOAD(u32, ctx, optlen);
	__u32 i;

#pragma unroll
	for (i = 0; i < DMM_STACK_NAME; i++) {
		if (i >= bytes)
			return true;
		if (from + i + 1 > end)
			return false;
		if (!from[i])
			return true;
		if (i == DMM_STACK_NAME - 1)
			return false;
		name[i] = from[i];
	}
	return false;
}

static __always_inline int option_refuse(int errno)
{
	if (dmm_get_retval() >= 0)
		dmm_set_retval(-errno);
	return 0;
}

static __always_inline int option_done(struct bpf_sockopt *ctx)
{
	dmm_set_retval(0);
	optlen_set(ctx, OPTION_DONE);
	return 1;
}

static __always_inline void choice_withdraw(struct bpf_sock *sk)
{
	struct dmm_choice *choice = storage_get(DMM_MAP(choices), sk, 0);

	if (choice)
		choice->state = DMM_CHOICE_NONE;
}

/* A choice that was taken stays when another is refused, as an option does that cannot be set. */
static __always_inline int choice_refuse(struct bpf_sock *sk, const struct dmm_search *search)
{
	struct dmm_choice *choice = storage_get(DMM_MAP(choices), sk, BPF_SK_STORAGE_GET_F_CREATE);

	if (choice && choice->state != DMM_CHOICE_TAKEN)
		choice_keep(choice, search, DMM_CHOICE_REFUSED);
	return option_refuse(EPERM);
}

static __always_inline int choice_take(struct bpf_sockopt *ctx, struct bpf_sock *sk,
				       const struct dmm_search *search, const char *name)
{
	struct dmm_choice *choice = storage_get(DMM_MAP(choices), sk, BPF_SK_STORAGE_GET_F_CREATE);

	if (!choice)
		return option_refuse(ENOMEM);
	__builtin_memcpy(choice->name, name, sizeof(choice->name));
	choice_keep(choice, search, DMM_CHOICE_TAKEN);
	return option_done(ctx);
}

static __always_inline int choose(struct bpf_sockopt *ctx, struct bpf_sock *sk,
				  const struct dmm_control *control)
{
	struct dmm_stack_search named = {};
	struct dmm_search search = {};

	if (sk->state != BPF_TCP_CLOSE)
		return option_refuse(EISCONN);
	if (!name_read(ctx, named.name))
		return option_refuse(ENOENT);
	if (!named.name[0]) {
		choice_withdraw(sk);
		return option_done(ctx);
	}
	search.generation = control->generation;
	search.query.half = named.half = search.generation & 1;
	dmm_loop(DMM_MAX_STACKS, DMM_STEP(stack_named), &named, 0);
	if (!named.found)
		return option_refuse(ENOENT);
	search.facts.netns_cookie = bpf_get_netns_cookie(ctx);
	facts_socket(&search, sk, control);
	facts_current(&search.facts);
	facts_dscp(sk, control, sk->family == AF_INET6, &search);
	verdict_none(&search.verdict);
	if (!choice_allowed(&search, named.next))
		return choice_refuse(sk, &search);
	return choice_take(ctx, sk, &search, named.name);
}

static __always_inline int option_set_asked(struct bpf_sockopt *ctx)
{
	const struct dmm_control *control;
	struct bpf_sock *sk = ctx->sk;

	if (likely(CTX_LOAD(u32, ctx, level) != SOL_DMM) ||
	    CTX_LOAD(u32, ctx, optname) != DMM_STACK)
		return option_leave(ctx);
	if (!sk)
		return 1;
	/* An instance further in has kept it, in place of what was chosen here. */
	if (CTX_LOAD(u32, ctx, optlen) == OPTION_DONE) {
		choice_withdraw(sk);
		return 1;
	}
	control = control_get();
	if (!sockopt_is_ours(ctx, sk, control))
		return option_leave(ctx);
	return choose(ctx, sk, control);
}

#ifdef DMM_SK_COOKIE
/* Where a program of this kind has no helper for it: at its place in the kernel's struct sock. */
static __always_inline __u64 cookie_of(struct bpf_sock *sk)
{
	__u64 head[(DMM_SK_COOKIE + 8) / 8] = {};

	if (bpf_probe_read_kernel(head, sizeof(head), sk))
		return 0;
	return head[DMM_SK_COOKIE / 8];
}
#else
static __always_inline __u64 cookie_of(struct bpf_sock *sk)
{
	(void)sk;
	return 0;
}
#endif

/* Who serves a socket, by numbers, and what became of its program's choice */
struct dmm_told {
	__u32 decided;
	__u32 taken; /* by a process of this instance's */
	__u32 stack;
	__u32 wanted;
	__u32 why;
	__u32 choice;
};

static __always_inline void told_read(struct bpf_sock *sk, struct dmm_told *told)
{
	const struct dmm_choice *choice = storage_get(DMM_MAP(choices), sk, 0);
	__u64 cookie = cookie_of(sk);
	const struct dmm_flow *flow = cookie ? flow_lookup(cookie) : NULL;
	const struct dmm_way *way;

	if (flow) {
		told->decided = 1;
		told->taken = flow->decision.taken;
		told->stack = flow->decision.stack;
		told->wanted = flow->decision.wanted;
		told->why = flow->decision.why;
		told->choice = flow->decision.choice;
		return;
	}
	if (choice) {
		told->wanted = choice->stack;
		told->choice = choice->state;
	}
	way = sk->state == BPF_TCP_CLOSE ? NULL : way_get(sk);
	if (way) {
		told->decided = 1;
		told->taken = way->state == DMM_WAY_TAKEN;
		told->stack = way->stack;
		told->wanted = way->stack;
	}
}

/* A stack's name, also of one that the policy before had; NULL: it is forgotten. */
static __always_inline const char *name_of(__u32 half, __u32 id)
{
	const struct dmm_stack *stack = stack_get(half, id);

	if (!stack || !stack->name[0])
		stack = stack_get(half ^ 1, id);
	return stack && stack->name[0] ? stack->name : NULL;
}

/* At most the bytes that the caller has room for, as of TCP_CONGESTION. Returns how many. */
static __always_inline __u32 name_write(struct bpf_sockopt *ctx, const char *name)
{
	char *to = ctx->optval, *end = ctx->optval_end;
	__u32 i;

#pragma unroll
	for (i = 0; i < DMM_STACK_NAME; i++) {
		if (to + i + 1 > end)
			return i;
		to[i] = name ? name[i] : 0;
		if (!to[i])
			return i + 1;
	}
	return DMM_STACK_NAME;
}

static __always_inline __u32 serving_write(struct bpf_sockopt *ctx, const struct dmm_told *told,
					   __u32 half)
{
	const char *stack = told->decided ? name_of(half, told->stack) : NULL;
	const char *wanted = told->decided || told->choice ? name_of(half, told->wanted) : NULL;
	struct dmm_serving *to = ctx->optval;
	void *end = ctx->optval_end;

	if ((void *)(to + 1) > end)
		return 0;
	__builtin_memset(to, 0, sizeof(*to));
	if (stack)
		__builtin_memcpy(to->stack, stack, sizeof(to->stack));
	if (wanted)
		__builtin_memcpy(to->wanted, wanted, sizeof(to->wanted));
	to->why = told->why;
	to->choice = told->choice;
	return sizeof(*to);
}

static __always_inline int option_get_asked(struct bpf_sockopt *ctx)
{
	__u32 option = CTX_LOAD(u32, ctx, optname);
	const struct dmm_control *control;
	struct bpf_sock *sk = ctx->sk;
	struct dmm_told told = {};
	__u32 half, bytes;

	if (likely(CTX_LOAD(u32, ctx, level) != SOL_DMM) ||
	    (option != DMM_STACK && option != DMM_SERVING))
		return option_leave(ctx);
	control = control_get();
	if (!sk || !sockopt_is_ours(ctx, sk, control))
		return option_leave(ctx);
	told_read(sk, &told);
	/* An instance further in has said it. */
	if (dmm_get_retval() >= 0 && !told.taken)
		return 1;
	half = control->generation & 1;
	if (option == DMM_SERVING)
		bytes = serving_write(ctx, &told, half);
	else if (told.decided)
		bytes = name_write(ctx, name_of(half, told.stack));
	else
		bytes = name_write(ctx, told.choice == DMM_CHOICE_TAKEN ? name_of(half, told.wanted)
									: NULL);
	dmm_set_retval(bytes ? 0 : -EINVAL);
	optlen_set(ctx, bytes);
	return 1;
}

#endif /* DMM_SOCKOPT_H */

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * defs.h: what every part of dmm.bpf.c stands on: uapi headers, the shared ABI, map references,
 * helpers.
 *
 * Maps are not declared here. The loader creates them (types, flags and sizes are in
 * dmm_ebpf/loader/spec.py) and passes -DDMM_MAP_<name>=<number>; DMM_MAP(name) becomes a map
 * reference with that number, which the loader replaces by the map's fd before it loads the
 * bytecode. So a map used here and unknown there is a compile error.
 *
 * BCC rewrites functions of the main file that take a context; parts are headers so that nothing
 * here is rewritten.
 */
#ifndef DMM_DEFS_H
#define DMM_DEFS_H

#include <linux/if_ether.h>
#include <linux/icmp.h>
#include <linux/icmpv6.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include "abi.h"

#define AF_INET 2
#define AF_INET6 10
#define SOCK_STREAM 1
#define EINVAL 22
#define ENOSPC 28
#define SOCK_DGRAM 2
#define SOL_SOCKET 1
#define SOL_IP 0
#define SOL_TCP 6
#define SOL_IPV6 41
#define SO_KEEPALIVE 9
#define SO_PRIORITY 12
#define SO_REUSEPORT 15
#define SO_MARK 36
#define SO_MAX_PACING_RATE 47
#define ECN_MASK 3

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#define htons(x) __builtin_bswap16(x)
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "big-endian hosts: ctx->remote_port and htons() need their other form"
#endif

/*
 * A context field by one load at a constant offset. The verifier allows no other, and clang, left
 * alone, may add the offset to the pointer first so as to share it between branches.
 */
#define CTX_LOAD(type, ctx, field)                                                                 \
	({                                                                                         \
		type ctx_value;                                                                    \
		asm volatile("%0 = *(" #type " *)(%1 + %2)"                                        \
			     : "=r"(ctx_value)                                                     \
			     : "r"(ctx), "i"(__builtin_offsetof(typeof(*(ctx)), field)));          \
		ctx_value;                                                                         \
	})

/*
 * What a map holds is said by the loader, too, as -DDMM_KEY_<name> and -DDMM_VALUE_<name>; so a key
 * or a value of another type is a compile error. A reference is a pointer to a struct that is never
 * there: it carries those types.
 */
#define DMM_TYPES(name)                                                                            \
	struct {                                                                                   \
		DMM_KEY_##name *key_type;                                                          \
		DMM_VALUE_##name *value_type;                                                      \
	}
#define DMM_MAP(name) ((DMM_TYPES(name) *)bpf_pseudo_fd(BPF_PSEUDO_MAP_FD, DMM_MAP_##name))
/* One of the maps that DMM_MAP(name) holds, as looked up there. */
#define DMM_INNER(name, found) ((DMM_TYPES(inner_##name) *)(found))

#define map_lookup(map, key)                                                                       \
	({                                                                                         \
		const typeof(*(map)->key_type) *typed_key = (key);                                 \
		(typeof((map)->value_type))bpf_map_lookup_elem(map, (void *)typed_key);            \
	})

#define map_update(map, key, value, flags)                                                         \
	({                                                                                         \
		const typeof(*(map)->key_type) *typed_key = (key);                                 \
		const typeof(*(map)->value_type) *typed_value = (value);                           \
		bpf_map_update_elem(map, (void *)typed_key, (void *)typed_value, flags);           \
	})

#define map_delete(map, key)                                                                       \
	({                                                                                         \
		const typeof(*(map)->key_type) *typed_key = (key);                                 \
		bpf_map_delete_elem(map, (void *)typed_key);                                       \
	})

/* A socket's own value. flags: BPF_SK_STORAGE_GET_F_CREATE makes it where there is none. */
#define storage_get(map, sk, flags)                                                                \
	((typeof((map)->value_type))bpf_sk_storage_get(map, sk, NULL, flags))

/*
 * A step of a loop: a function of dmm.bpf.c with one argument, which returns 1 to end the loop. The
 * loader links it to each program that refers to it (dmm_ebpf/loader/link.py).
 *
 * Loops of more than a few turns are calls of bpf_loop(): the verifier looks at the step once,
 * where it follows every way through every turn of a for, which the kernel gives up beyond 8192
 * branches.
 */
#define DMM_STEP(name) ((void *)bpf_pseudo_fd(BPF_PSEUDO_FUNC, DMM_STEP_##name))

/*
 * A function of dmm.bpf.c that is called, not inlined: the verifier looks at it once for the whole
 * program, whatever leads there, and believes nothing afterwards of what it was given. It takes one
 * pointer (spec.CALLED has what it points to), and returns int.
 */
#define DMM_CALL(name) ((void *)(DMM_CALLS + DMM_STEP_##name))

/* argument: what the step is given, on the caller's stack. */
static long (*dmm_loop)(__u32 turns, void *step, void *argument,
			__u64 flags) = (void *)BPF_FUNC_loop;

/* BCC declares this helper as returning u32, which cuts the cookie. */
static __u64 (*dmm_socket_cookie)(void *ctx) = (void *)BPF_FUNC_get_socket_cookie;

/* BCC does not declare this one. Good to a tick of the kernel, at a fraction of
 * bpf_ktime_get_ns()'s price.
 */
static __u64 (*dmm_ktime_coarse_ns)(void) = (void *)BPF_FUNC_ktime_get_coarse_ns;

/*
 * Neither does it declare this one; the result is the kernel's struct task_struct, which
 * may be read.
 */
static void *(*dmm_current_task)(void) = (void *)BPF_FUNC_get_current_task_btf;

/* A field of a kernel struct, whose offset the loader took from the kernel's BTF. */
#define KERNEL_LOAD(type, base, offset) (*(type const volatile *)((const char *)(base) + (offset)))

/*
 * Eight bytes of the kernel's, 0 where none are. For what is seldom read: the call is dearer than
 * KERNEL_LOAD, but before Linux 6.19 the verifier looks through all of the kernel's types, four
 * times, for each pointer that is loaded from a trusted struct.
 */
static __always_inline __u64 probed(const void *at)
{
	__u64 value = 0;

	bpf_probe_read_kernel(&value, sizeof(value), at);
	return value;
}

static __always_inline void count(__u32 counter)
{
	__u64 *value = map_lookup(DMM_MAP(counters), &counter);

	if (value)
		(*value)++;
}

static __always_inline const struct dmm_control *control_get(void)
{
	__u32 zero = 0;

	return map_lookup(DMM_MAP(control), &zero);
}

/* Whose connects are decided: the instance's own namespace, and with containers every other. */
static __always_inline bool netns_is_meant(const struct dmm_control *control, __u64 netns_cookie)
{
	return netns_cookie == control->netns_cookie || (control->flags & DMM_CONTROL_CONTAINERS);
}

static __always_inline bool addr_is_mapped(const __u32 *words)
{
	return words[0] == 0 && words[1] == 0 && words[2] == bpf_htonl(0xffff);
}

static __always_inline void addr_set4(__u32 *words, __u32 addr_be)
{
	words[0] = 0;
	words[1] = 0;
	words[2] = bpf_htonl(0xffff);
	words[3] = addr_be;
}

static __always_inline void addr_copy(__u32 *to, const __u32 *from)
{
	to[0] = from[0];
	to[1] = from[1];
	to[2] = from[2];
	to[3] = from[3];
}

#endif /* DMM_DEFS_H */

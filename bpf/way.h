/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * way.h: ways, the socket storage that says which process of a user stack is to serve a socket, or
 * serves it, and what follows from it for the socket's flow record.
 */
#ifndef DMM_WAY_H
#define DMM_WAY_H

#include "flow.h"
#include "socket.h"

/* NULL: the kernel serves. */
static __always_inline struct dmm_way *way_get(struct bpf_sock *sk)
{
	struct dmm_way *way = storage_get(DMM_MAP(ways), sk, 0);

	return way && way->stack ? way : NULL;
}

/* Has the kernel a connection of that 5-tuple, if only asked for, which no process serves? */
static __always_inline bool kernel_holds(void *ctx, const struct dmm_addr_pair *pair)
{
	struct bpf_sock *sk = socket_find(ctx, pair);
	struct bpf_sock *full;
	bool serves;

	if (!sk)
		return false;
	serves = is_connection(sk);
	if (serves) {
		full = dmm_sk_fullsock(sk);
		serves = !full || !way_get(full);
	}
	bpf_sk_release(sk);
	return serves;
}

/* False: no memory. */
static __always_inline bool way_set(struct bpf_sock *sk, const struct dmm_way *to)
{
	struct dmm_way *way = storage_get(DMM_MAP(ways), sk, BPF_SK_STORAGE_GET_F_CREATE);

	if (!way)
		return false;
	*way = *to;
	return true;
}

/* Who serves the flow of that socket after all */
static __always_inline void way_tell(__u64 cookie, const struct dmm_way *way, __u32 why)
{
	struct dmm_flow *flow = flow_lookup(cookie);

	if (!flow)
		return;
	flow->decision.stack = why ? 0 : way->stack;
	flow->decision.process = why ? 0 : way->process;
	flow->decision.taken = !why;
	flow->decision.why = why;
}

#endif /* DMM_WAY_H */

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * earlier.h: a TCP iterator: listeners that were there before the hooks are put in listeners[], as
 * TCP_LISTEN_CB would have done.
 *
 * The RD says in earlier[] which, and who listens: the kernel does not know any more. The table is
 * not chosen here: the RD does that for every listener there is when rules change
 * (dmm_ebpf/rd/director/sync.py), and so for these. The kernel holds the socket's lock meanwhile
 * (bpf_iter_tcp_seq_show()), as it does when it calls sock_ops. Twice does no harm.
 */
#ifndef DMM_EARLIER_H
#define DMM_EARLIER_H

#include "flow.h"
#include "listener.h"

#define DMM_TCP_BPF_SOCK_OPS_CB_FLAGS 1008 /* linux/bpf.h of Linux 6.12 */

/* struct bpf_iter__tcp: what the verifier lets read of it. */
struct dmm_iter_tcp {
	__u64 meta;
	__u64 sk;
	__u64 uid;
};

#ifdef DMM_SKC_STATE
/*
 * False: this kernel does not let it be asked for, so nobody is called back when the socket ends.
 */
static __always_inline bool earlier_watch(void *sk)
{
	__u32 flags = 0;

	if (bpf_getsockopt(sk, SOL_TCP, DMM_TCP_BPF_SOCK_OPS_CB_FLAGS, &flags, sizeof(flags)))
		return false;
	flags |= BPF_SOCK_OPS_STATE_CB_FLAG;
	return !bpf_setsockopt(sk, SOL_TCP, DMM_TCP_BPF_SOCK_OPS_CB_FLAGS, &flags, sizeof(flags));
}

static __always_inline bool earlier_is_shared(void *sk)
{
	int reuseport = 1;

	return bpf_getsockopt(sk, SOL_SOCKET, SO_REUSEPORT, &reuseport, sizeof(reuseport)) ||
	       reuseport;
}

static __always_inline void earlier_adopt(void *sk, const struct dmm_earlier *found,
					  struct dmm_decision *decision)
{
	struct dmm_actor actor = {
		.inode = found->exe_inode, .device = found->exe_device, .gid = found->gid};
	struct dmm_listener_key key;
	struct dmm_decision *shared;
	void *at;

	__builtin_memcpy(decision, &found->flow.decision, sizeof(*decision));
	decision->listening = 0;
	listener_key_fill(&key, &found->flow.pair);
	if (earlier_is_shared(sk)) {
		shared = storage_get(DMM_MAP(shared_facts), sk, BPF_SK_STORAGE_GET_F_CREATE);
		if (shared)
			__builtin_memcpy(shared, decision, sizeof(*shared));
	}
	if (!earlier_watch(sk)) {
		if (found->mptcp)
			return;
		at = storage_get(DMM_MAP(unwatched), sk, BPF_SK_STORAGE_GET_F_CREATE);
		if (!at)
			return;
		__builtin_memcpy(at, &key, sizeof(key));
	}
	if (listener_publish(&key, decision, actor, found->flow.netns_cookie, found->mark,
			     found->device, dscp_get(sk, found->flow.pair.family == AF_INET6)))
		decision->listening = 1;
}

static __always_inline int earlier(struct dmm_iter_tcp *ctx)
{
	void *sk = (void *)CTX_LOAD(u64, ctx, sk);
	const struct dmm_earlier *found;
	struct dmm_decision *decision;
	__u64 cookie;

	if (!sk || KERNEL_LOAD(__u8, sk, DMM_SKC_STATE) != BPF_TCP_LISTEN)
		return 0;
	cookie = dmm_socket_cookie(sk);
	found = map_lookup(DMM_MAP(earlier), &cookie);
	if (!found)
		return 0;
	decision = storage_get(DMM_MAP(decisions), sk, BPF_SK_STORAGE_GET_F_CREATE);
	if (decision && !decision->listening)
		earlier_adopt(sk, found, decision);
	return 0;
}
#else
static __always_inline int earlier(struct dmm_iter_tcp *ctx)
{
	(void)ctx;
	return 0;
}
#endif

#endif /* DMM_EARLIER_H */

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * release.h: cgroup/sock_release: the last word on a socket whose connect() failed before any SYN.
 *
 * The connect hook has made its record, and no TCP_CLOSE will follow, because it never left that state; so
 * the record goes with the socket. Every other record goes at TCP_CLOSE, under the socket's lock. Nothing
 * else can happen to the socket at the same time: it is in no hash table, and its last descriptor is being
 * closed.
 */
#ifndef DMM_RELEASE_H
#define DMM_RELEASE_H

#include "flow.h"

static __always_inline int released(struct bpf_sock *ctx)
{
	if (CTX_LOAD(u32, ctx, state) != BPF_TCP_CLOSE || CTX_LOAD(u32, ctx, protocol) != IPPROTO_TCP)
		return 1;
	flow_drop(dmm_socket_cookie(ctx));
	return 1;
}

#endif /* DMM_RELEASE_H */

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * tunnel.h: whether a packet is in a tunnel of which its bytes say nothing, so that a stack process
 * could neither tell what came by it nor send by it.
 *
 * - A route with `encap ip`, or a tc program of others, tells a VXLAN, Geneve or GRE device that is
 * `external` where each packet goes (ip-link(8), ip-route(8)); such a device drops what nobody has
 * told it of, as it would a process's frames.
 * - What IPsec has taken out of a tunnel comes in by the same device once more, without a trace on
 * it; what a process answered would go unprotected.
 *
 * It is asked of SYNs alone: the flow of one that is in a tunnel is the kernel's.
 */
#ifndef DMM_TUNNEL_H
#define DMM_TUNNEL_H

#include "defs.h"

/* BCC does not declare it (Linux 4.18, with CONFIG_XFRM). */
static long (*dmm_xfrm_state)(void *ctx, __u32 index, void *to, __u32 bytes,
			      __u64 flags) = (void *)BPF_FUNC_skb_get_xfrm_state;

/* It was, or is to be, where a device is told of each packet. */
static __always_inline bool has_tunnel_key(struct __sk_buff *skb)
{
	struct bpf_tunnel_key key;

	/* Another errno is told of a key of the other family. */
	return bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0) != -EINVAL;
}

/* IPsec has decrypted it, or looked at its signature. */
static __always_inline bool was_protected(struct __sk_buff *skb)
{
#ifdef DMM_XFRM
	struct bpf_xfrm_state state;

	return dmm_xfrm_state(skb, 0, &state, sizeof(state), 0) >= 0;
#else
	(void)skb;
	return false;
#endif
}

#endif /* DMM_TUNNEL_H */

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * ingress.h: the tc program at the ingress of a user stack's TUN device: it marks what the stack sends to the
 * kernel, so that with tcp_fwmark_accept the answers, and the accepted socket, go back to the same device. It
 * never drops.
 */
#ifndef DMM_INGRESS_H
#define DMM_INGRESS_H

#include "defs.h"

static __always_inline int ingress(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	const struct dmm_tun_mark *tun = map_lookup(DMM_MAP(tun_marks), &ifindex);

	if (tun)
		skb->mark = (skb->mark & ~tun->mask) | (tun->mark & tun->mask);
	return TC_ACT_OK;
}

#endif /* DMM_INGRESS_H */

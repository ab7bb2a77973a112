/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * innerleg.bpf.c: tc programs that lose, hold back and double what passes between an app's kernel
 * and its user stack, for innerleg.py.
 *
 * to_stack is at the egress of the process's inner device, where nft's egress hook does not see
 * what another device's tc program has sent there. to_kernel is at its ingress, before the program
 * that takes the packet on to the NIC: what is lost or late has not been let through yet. Late
 * packets, and copies, go to a device of reinject's, which sends them some time later: past
 * to_stack, or by back to the ingress of the inner device again, with a mark that tells to_kernel
 * to leave them alone.
 *
 * What is not IP is what the process asks of the maps, and the answers: no part of the leg.
 */
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include "abi.h"

#define LATE_MARK 0x6c617465
#define LEG ((void *)bpf_pseudo_fd(BPF_PSEUDO_MAP_FD, 0))
#define htons(x) __builtin_bswap16(x)

enum way { TO_STACK, TO_KERNEL, WAYS };
enum fate { LOST, LATE, DOUBLED, FATES };

/* innerleg.py's _LEG. Of 2^32 packets, so many have each fate. */
struct leg {
	__u32 odds[FATES];
	__u32 late_device[WAYS];
	__u32 inner_device;
	__u64 packets[WAYS][FATES];
};

static __always_inline struct leg *leg_get(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(LEG, &zero);
}

static __always_inline bool befalls(struct leg *leg, enum way way, enum fate fate)
{
	if (bpf_get_prandom_u32() >= leg->odds[fate])
		return false;
	__sync_fetch_and_add(&leg->packets[way][fate], 1);
	return true;
}

static __always_inline int pass(struct __sk_buff *skb, enum way way)
{
	struct leg *leg = leg_get();

	if (!leg || (skb->protocol != htons(ETH_P_IP) && skb->protocol != htons(ETH_P_IPV6)))
		return TC_ACT_UNSPEC;
	/*
	 * Nobody is told: for the app's TCP its packet is sent since the NIC's program took it, and
	 * a write to a TAP has succeeded by now.
	 */
	if (befalls(leg, way, LOST))
		return TC_ACT_SHOT;
	if (befalls(leg, way, DOUBLED))
		bpf_clone_redirect(skb, leg->late_device[way], 0);
	if (befalls(leg, way, LATE))
		return bpf_redirect(leg->late_device[way], 0);
	return TC_ACT_UNSPEC;
}

int to_stack(struct __sk_buff *skb)
{
	return skb->mark == DMM_TCIN_MARK ? pass(skb, TO_STACK) : TC_ACT_UNSPEC;
}

int to_kernel(struct __sk_buff *skb)
{
	if (skb->mark != LATE_MARK)
		return pass(skb, TO_KERNEL);
	skb->mark = 0;
	return TC_ACT_UNSPEC;
}

int back(struct __sk_buff *skb)
{
	struct leg *leg = leg_get();

	if (!leg)
		return TC_ACT_SHOT;
	skb->mark = LATE_MARK;
	return bpf_redirect(leg->inner_device, BPF_F_INGRESS);
}

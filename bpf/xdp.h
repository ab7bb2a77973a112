/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * xdp.h: frames of the process whose AF_XDP sockets take the NIC's frames now, each to the socket
 * of its queue.
 *
 * Everything else goes on to tcin.h, which has a device of every process: so comes what is for
 * another process of the stack, or came by a queue without a socket, or in several frames that the
 * socket takes not. So does what is to another link-layer address than the NIC's, as a macvlan's
 * above it, also in the moment in which the NIC has got another one.
 *
 * So do SYNs of a 5-tuple that the kernel has a socket of, and all SYNs in generic mode, which
 * comes behind what IPsec has decrypted and what a device of a tunnel's has unpacked: tc alone is
 * told of that (tunnel.h).
 *
 * Generic XDP also sees what a process sends to the app by the NIC's ingress (ingress.h). No frame
 * on a wire comes from a group address (IEEE 802.3, 3.2.4), so the process marks its own by that,
 * and the mark is taken off here. Who forges it has his frame looked at by tcin.h alone.
 */
#ifndef DMM_XDP_H
#define DMM_XDP_H

#include "steer.h"

static __always_inline int xdp_deliver(__u32 xsk, __u32 counter)
{
	int verdict = bpf_redirect_map(DMM_MAP(xsks), xsk, XDP_PASS);

	if (verdict == XDP_REDIRECT)
		count(counter);
	return verdict;
}

static __always_inline bool is_to_nic(const struct ethhdr *eth, const struct dmm_nic *nic)
{
	const __u16 *to = (const __u16 *)eth->h_dest;
	const __u16 *mac = (const __u16 *)nic->mac;

	return to[0] == mac[0] && to[1] == mac[1] && to[2] == mac[2];
}

/* A SYN that tc is to look at: of a socket it can tell whether a process serves it (way.h). */
static __always_inline bool syn_is_for_tc(struct xdp_md *ctx, const struct dmm_packet *packet)
{
	__u32 state;

	if (packet->nic->generic || !syn_is_carried(ctx, sizeof(struct ethhdr), true))
		return true;
	state = kernel_state(ctx, &packet->pair);
	return state && state != BPF_TCP_TIME_WAIT;
}

static __always_inline int xdp(struct xdp_md *ctx)
{
	struct dmm_input in = {.ctx = ctx,
			       .data_end = (void *)(long)ctx->data_end,
			       .ifindex = ctx->ingress_ifindex};
	struct ethhdr *eth = (void *)(long)ctx->data;
	__u32 ifindex = ctx->ingress_ifindex;
	__u32 queue = ctx->rx_queue_index;
	struct dmm_packet packet = {};
	int counter;

	if ((void *)(eth + 1) > in.data_end || queue >= DMM_MAX_QUEUES)
		return XDP_PASS;
	if (unlikely(eth->h_source[0] & 1)) {
		eth->h_source[0] &= ~1;
		return XDP_PASS;
	}
	packet.nic = map_lookup(DMM_MAP(nics), &ifindex);
	if (!packet.nic || !packet.nic->stack || !is_to_nic(eth, packet.nic))
		return XDP_PASS;
	packet.stack = packet.nic->stack;
	counter = steer(&in, &packet, eth + 1, eth->h_proto);
	if (counter < 0 || (steers_syn(counter) && syn_is_for_tc(ctx, &packet)))
		return XDP_PASS;
	return xdp_deliver(packet.nic->slot * DMM_MAX_QUEUES + queue, counter);
}

#endif /* DMM_XDP_H */

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * xdp.h: frames of the stack whose AF_XDP sockets sit on the NIC: to the socket of the queue, or, where the
 * stack has several processes and another than the first takes the flow, to that process's TAP device.
 */
#ifndef DMM_XDP_H
#define DMM_XDP_H

#include "steer.h"

static __always_inline int xdp_deliver(const struct dmm_packet *packet, __u32 xsk, __u32 counter)
{
	int verdict;

	if (unlikely(packet->tap))
		verdict = bpf_redirect_map(DMM_MAP(taps),
					   (packet->tap - 1) * DMM_MAX_NICS + packet->nic->slot, XDP_PASS);
	else
		verdict = bpf_redirect_map(DMM_MAP(xsks), xsk, XDP_PASS);
	count(verdict == XDP_REDIRECT ? counter : DMM_CNT_XDP_NO_SOCKET);
	return verdict;
}

static __always_inline int xdp(struct xdp_md *ctx)
{
	struct dmm_input in = {
		.ctx = ctx, .data_end = (void *)(long)ctx->data_end, .ifindex = ctx->ingress_ifindex};
	struct ethhdr *eth = (void *)(long)ctx->data;
	__u32 ifindex = ctx->ingress_ifindex;
	__u32 queue = ctx->rx_queue_index;
	struct dmm_packet packet = {};
	int counter;

	if ((void *)(eth + 1) > in.data_end || queue >= DMM_MAX_QUEUES)
		return XDP_PASS;
	packet.nic = map_lookup(DMM_MAP(nics), &ifindex);
	if (!packet.nic || !packet.nic->stack)
		return XDP_PASS;
	packet.stack = packet.nic->stack;
	counter = steer(&in, &packet, eth + 1, eth->h_proto);
	if (counter < 0)
		return XDP_PASS;
	return xdp_deliver(&packet, packet.nic->slot * DMM_MAX_QUEUES + queue, counter);
}

#endif /* DMM_XDP_H */

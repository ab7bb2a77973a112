/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * tcin.h: the tc program at the ingress of a NIC, for both legs.
 *
 * What a stack process sends to an app comes by here as if from the wire (ingress.h), and goes on.
 *
 * From the wire come packets of the stacks whose port is "tap", each to the TAP device of its process. Any
 * number of stacks may share the NIC, which needs no XDP; what XDP has taken does not come here, and GRO has
 * been at work, so that a packet may be long: the device cuts it again.
 *
 * A packet of an owned flow whose process has no device on this NIC is dropped: the app's own socket has the
 * same 5-tuple and other sequence numbers. Everything else goes on to other programs of the host, which come
 * after this one: TC_ACT_UNSPEC.
 */
#ifndef DMM_TCIN_H
#define DMM_TCIN_H

#include "frame.h"

#define TCIN_HEADERS 128 /* Ethernet, IPv6, ICMPv6, the quoted IPv6 header and ports, and some */

static __always_inline int tcin(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	struct dmm_packet packet = {};
	struct dmm_input in = {};
	struct ethhdr *eth;
	__u32 device;
	int counter;

	if (skb->mark == DMM_INNER_MARK) {
		skb->mark = 0;
		return TC_ACT_UNSPEC;
	}
	packet.nic = map_lookup(DMM_MAP(nics), &ifindex);
	if (!packet.nic || skb->vlan_present)
		return TC_ACT_UNSPEC;
	if ((void *)(long)skb->data + TCIN_HEADERS > (void *)(long)skb->data_end)
		bpf_skb_pull_data(skb, skb->len < TCIN_HEADERS ? skb->len : TCIN_HEADERS);
	in.ctx = skb;
	in.ifindex = ifindex;
	in.data_end = (void *)(long)skb->data_end;
	eth = (void *)(long)skb->data;
	if ((void *)(eth + 1) > in.data_end)
		return TC_ACT_UNSPEC;
	counter = steer(&in, &packet, eth + 1, eth->h_proto);
	if (counter < 0)
		return TC_ACT_UNSPEC;
	device = tap_device(&packet, packet.tap);
	if (counter == DMM_CNT_XDP_LISTENER) {
		if (!device || !syn_give(skb, device))
			return TC_ACT_UNSPEC;
		count(counter);
		return TC_ACT_SHOT;
	}
	count(device ? counter : DMM_CNT_XDP_NO_SOCKET);
	if (!device)
		return TC_ACT_SHOT;
	skb->mark = DMM_TCIN_MARK;
	return bpf_redirect(device, 0);
}

#endif /* DMM_TCIN_H */

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * tcin.h: the tc program at the ingress of a NIC, for both legs.
 *
 * What a stack process sends to an app comes by here as if from the wire (ingress.h), and goes on.
 *
 * From the wire come packets of every process that has not taken them by XDP (xdp.h), each to the
 * TAP device of its process. Any number of stacks may share the NIC, which needs no XDP; GRO has
 * been at work, so that a packet may be long: the device cuts it again.
 *
 * A packet of an owned flow that comes by a device which its process does not serve goes to the
 * process by a NIC that it does serve. Has it none, the packet is dropped: the app's own socket has
 * the same 5-tuple and other sequence numbers. Everything else goes on to other programs of the
 * host, which come after this one: TC_ACT_UNSPEC.
 */
#ifndef DMM_TCIN_H
#define DMM_TCIN_H

#include "frame.h"
#include "parts.h"
#include "tcfrom.h"
#include "tunnel.h"
#include "udp.h"

/* A SYN that stays the kernel's here; where it leaves, it may yet be a stack's. */
static __always_inline void passing_in(struct __sk_buff *skb, const struct dmm_packet *packet)
{
	const struct dmm_control *control = control_get();

	if (!is_first(packet->tcp_flags) || !forwards_at_all(control))
		return;
	forwarded_forget(&packet->pair);
	note_first(skb, link_bytes(packet->nic), control);
}

#define PACKET_HOST 0

/*
 * A frame to another address than the device's, which the kernel's TCP does not take there: a
 * macvlan's above it, say, which sees it behind us.
 */
static __always_inline bool is_for_others(const struct __sk_buff *skb)
{
	return skb->pkt_type != PACKET_HOST;
}

/* A SYN that a process is to have, and that it can carry */
static __always_inline bool syn_stays(struct __sk_buff *skb, const struct dmm_packet *packet)
{
	return syn_is_carried(skb, link_bytes(packet->nic), false) && !has_tunnel_key(skb) &&
	       !was_protected(skb) && !kernel_holds(skb, &packet->pair);
}

/* The device by which what came by nic gets to a flow's process; 0: there is none. */
static __always_inline __u32 device_in(const struct dmm_nic *nic, __u32 seat, __u32 home)
{
	__u32 device = outer_device(nic->slot, seat);

	return likely(device || !home) ? device : outer_device(home - 1, seat);
}

/* A later fragment whose first one has not come, and may yet be an owned flow's: see parts.h. Once
 * it is dressed it could not go on, so where there is no link header it is left alone. */
static __always_inline void fragment_copy(struct __sk_buff *skb, const struct dmm_nic *nic,
					  const struct dmm_parts *parts)
{
	const struct dmm_xdp_flow *flow =
		fragment_flow(parts, DMM_FRAGMENTS_OF_PEER, FRAGMENT_PEER_NS);
	__u32 device = flow && !fragment_find(parts, DMM_FRAGMENTS_IN, FRAGMENT_NOTE_NS)
			       ? device_in(nic, flow->seat, flow->home)
			       : 0;
	__u32 mark = skb->mark;

	if (device && !nic->bare && syn_give(skb, nic, device)) {
		skb->mark = mark;
		count(DMM_CNT_FRAGMENT_COPIED);
	}
}

/*
 * What to count if it goes to packet's process, or DMM_STEER_NOT. Whole ones, too, are of an open
 * flow or the kernel's: a SYN with anything in front of TCP is, and with it the flow (synopts.h).
 */
static __always_inline int steer_parts(struct __sk_buff *skb, struct dmm_packet *packet)
{
	struct dmm_parts parts = {};
	enum dmm_part part = part_read(skb, link_bytes(packet->nic), false, &parts);
	const struct dmm_xdp_flow *flow;

	if (part == DMM_PART_NOT)
		return DMM_STEER_NOT;
	flow = part_flow(&parts, part, DMM_FRAGMENTS_IN);
	if (!flow) {
		if (part == DMM_PART_LATER && parts.tcp)
			fragment_copy(skb, packet->nic, &parts);
		return DMM_STEER_NOT;
	}
	if (part == DMM_PART_FIRST)
		fragment_note(&parts, DMM_FRAGMENTS_OF_PEER);
	packet->seat = flow->seat;
	packet->home = flow->home;
	return part == DMM_PART_WHOLE ? DMM_CNT_XDP_FLOW : DMM_CNT_FRAGMENT_IN;
}

/* What to count if it goes to packet's process, or DMM_STEER_NOT. */
static __always_inline int steer_in(struct __sk_buff *skb, struct dmm_packet *packet)
{
	void *header = (void *)(long)skb->data + link_bytes(packet->nic);
	struct dmm_input in = {
		.ctx = skb, .data_end = (void *)(long)skb->data_end, .ifindex = skb->ifindex};
	int result = steer(&in, packet, header, skb->protocol);

	return unlikely(result == DMM_STEER_PARTS) ? steer_parts(skb, packet) : result;
}

/*
 * True for what a process sends to an app: it goes on as from the wire, also past the programs of
 * other instances on this NIC. One that took its SYN, too, would have the app's answers taken by
 * the first alone.
 */
static __always_inline bool is_inner(struct __sk_buff *skb)
{
	if (unlikely(skb->mark == DMM_INNER_MARK)) {
		skb->mark = 0;
		skb->cb[1] = DMM_INNER_MARK;
		skb->cb[2] = DMM_INNER_MARK;
		return true;
	}
	return skb->cb[1] == DMM_INNER_MARK && skb->cb[2] == DMM_INNER_MARK;
}

static __always_inline int tcin(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	struct dmm_packet packet = {};
	__u32 device;
	int counter;

	if (is_inner(skb))
		return TC_ACT_UNSPEC;
	packet.nic = map_lookup(DMM_MAP(nics), &ifindex);
	if (!packet.nic || skb->vlan_present || is_for_others(skb))
		return TC_ACT_UNSPEC;
	if (!headers_read(skb, link_bytes(packet.nic)))
		return udp_in(skb, packet.nic);
	counter = steer_in(skb, &packet);
	if (counter < 0 || (steers_syn(counter) && !syn_stays(skb, &packet))) {
		passing_in(skb, &packet);
		return TC_ACT_UNSPEC;
	}
	device = device_in(packet.nic, packet.seat, packet.home);
	if (steers_syn(counter)) {
		if (!device || !syn_give(skb, packet.nic, device))
			return TC_ACT_UNSPEC;
		count(counter);
		return TC_ACT_SHOT;
	}
	count(device ? counter : DMM_CNT_XDP_NO_SOCKET);
	if (!device)
		return TC_ACT_SHOT;
	return frame_give(skb, packet.nic, device, DMM_CNT_XDP_NO_SOCKET);
}

#endif /* DMM_TCIN_H */

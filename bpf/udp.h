/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * udp.h: datagrams at a NIC, both ways. A stack process relays them as they are, so unlike TCP's
 * each may go either way, by the process or by the kernel, and none is ever owned for good: where
 * its process is down, hangs or has no device on the NIC, a datagram goes on at once.
 *
 * - A datagram of this host's is its process's if its socket has asked for that (datagram.h,
 * way.h). Of the first one udp_flows[] notes the 5-tuple, as the NIC has it.
 * - A datagram from the wire is the process's if udp_flows[] has its 5-tuple and it is no older
 * than conntrack would remember, or if it begins an exchange that is a user stack's (served.h).
 *
 * The kernel's: fragments, IPv6 extension headers, what goes to many (multicast, broadcast), what
 * is forwarded, and ICMP errors, which quote what the app's own socket has sent.
 */
#ifndef DMM_UDP_H
#define DMM_UDP_H

#include "datagram.h"
#include "frame.h"
#include "served.h"
#include "way.h"

struct dmm_udp_packet {
	struct dmm_addr_pair pair;
	__u32 bytes;   /* of payload */
	__u32 in_part; /* 1: the first fragment */
};

static __always_inline bool udp_is_asked_for(const struct dmm_control *control)
{
	return control && (control->flags & DMM_CONTROL_DATAGRAMS);
}

/* at: where the UDP header is. */
static __always_inline bool udp_ports(struct __sk_buff *skb, __u32 at, bool sends,
				      struct dmm_udp_packet *packet)
{
	__u32 headers = at + UDP_BYTES;
	__u16 ports[2];

	if (bpf_skb_load_bytes(skb, at, ports, sizeof(ports)))
		return false;
	packet->pair.proto = IPPROTO_UDP;
	packet->pair.lport_be = sends ? ports[0] : ports[1];
	packet->pair.rport_be = sends ? ports[1] : ports[0];
	packet->bytes = skb->len > headers ? skb->len - headers : 0;
	return true;
}

static __always_inline bool udp_read4(struct __sk_buff *skb, __u32 link, bool sends,
				      struct dmm_udp_packet *packet)
{
	struct iphdr ip;

	if (bpf_skb_load_bytes(skb, link, &ip, sizeof(ip)) || ip.version != 4 || ip.ihl < 5 ||
	    ip.protocol != IPPROTO_UDP || (ip.frag_off & htons(IP_OFFSET_MASK)))
		return false;
	pair_set4(&packet->pair, sends ? ip.saddr : ip.daddr, sends ? ip.daddr : ip.saddr);
	packet->in_part = !!(ip.frag_off & htons(IP_FRAG_MASK));
	return udp_ports(skb, link + ip.ihl * 4, sends, packet);
}

static __always_inline bool udp_read6(struct __sk_buff *skb, __u32 link, bool sends,
				      struct dmm_udp_packet *packet)
{
	struct ipv6hdr ip;

	if (bpf_skb_load_bytes(skb, link, &ip, sizeof(ip)) || ip.version != 6 ||
	    ip.nexthdr != IPPROTO_UDP || addr_is_link_local(&ip.saddr) ||
	    addr_is_link_local(&ip.daddr))
		return false;
	pair_set6(&packet->pair, sends ? &ip.saddr : &ip.daddr, sends ? &ip.daddr : &ip.saddr);
	return udp_ports(skb, link + sizeof(ip), sends, packet);
}

/* Fills packet, which is all 0; link: bytes in front of the IP header. False: no UDP with its
 * ports. */
static __always_inline bool udp_read(struct __sk_buff *skb, __u32 link, bool sends,
				     struct dmm_udp_packet *packet)
{
	if (skb->protocol == htons(ETH_P_IP))
		return udp_read4(skb, link, sends, packet);
	return skb->protocol == htons(ETH_P_IPV6) && udp_read6(skb, link, sends, packet);
}

static __always_inline __u32 udp_segments(const struct __sk_buff *skb)
{
	return skb->gso_segs > 1 ? skb->gso_segs : 1;
}

/* Takes what it has, whether or not it has room for more. */
static __always_inline bool udp_process_lives(const struct dmm_udp_flow *udp,
					      const struct dmm_stack_state *state)
{
	__u32 number = udp->flow.decision.process & (DMM_MAX_PROCESSES - 1);
	__u32 key = udp->flow.decision.stack * DMM_MAX_PROCESSES + number;
	const struct dmm_stack_load *load;

	if (!(state->up >> number & 1) || state->seats[number] != udp->seat)
		return false;
	load = map_lookup(DMM_MAP(stack_load), &key);
	return load && !process_hangs(load);
}

/* The process of the flow, or if that is gone another one, and its device, of the leg that the
 * datagram comes by; else enum dmm_why. */
static __always_inline __u32 udp_refused(struct __sk_buff *skb, const struct dmm_nic *nic,
					 const struct dmm_addr_pair *pair, struct dmm_udp_flow *udp,
					 bool inner, __u32 *device)
{
	__u32 stack = udp->flow.decision.stack;
	const struct dmm_stack_state *state = stack_state_get(stack);
	struct dmm_process process = {};

	if (!state || !state->up)
		return DMM_WHY_DOWN;
	if (unlikely(!state->datagrams))
		return DMM_WHY_DATAGRAM;
	if (!udp->flow.decision.taken || unlikely(!udp_process_lives(udp, state))) {
		if (!process_pick(state, stack, pair_hash(pair), true, &process))
			return DMM_WHY_FULL;
		udp->seat = process.seat;
		udp->flow.decision.process = process.number;
	}
	*device = inner ? inner_device(udp->seat, nic->slot) : outer_device(nic->slot, udp->seat);
	if (!*device)
		return DMM_WHY_DEVICE;
	if (unlikely(nic->behind))
		return DMM_WHY_FILTER;
	return device_is_there(skb, *device) ? 0 : DMM_WHY_DOWN;
}

/* Whether the entry is what the socket's datagrams are to go by */
static __always_inline bool udp_is_settled(const struct dmm_udp_flow *udp, __u64 cookie,
					   __u32 generation, __u64 now)
{
	return udp && likely(udp->flow.cookie == cookie && udp->generation == generation &&
			     udp->flow.decision.stack && udp_is_open(udp, now));
}

/* What was decided for the peer that the socket named: where the host translates that one's
 * address, the socket's own says it. */
static __always_inline struct dmm_flow *udp_record(struct bpf_sock *sk, __u64 cookie,
						   const struct dmm_addr_pair *pair)
{
	struct dmm_datagram_key key;
	struct dmm_flow *flow;
	__u32 peer[4];
	__u16 port_be;

	datagram_key(&key, cookie, (const __u32 *)pair->raddr, pair->rport_be);
	flow = map_lookup(DMM_MAP(datagrams), &key);
	port_be = CTX_LOAD(u16, sk, dst_port);
	if (likely(flow) || !port_be)
		return flow;
	if (pair->family == AF_INET) {
		addr_set4(peer, CTX_LOAD(u32, sk, dst_ip4));
	} else {
		peer[0] = CTX_LOAD(u32, sk, dst_ip6[0]);
		peer[1] = CTX_LOAD(u32, sk, dst_ip6[1]);
		peer[2] = CTX_LOAD(u32, sk, dst_ip6[2]);
		peer[3] = CTX_LOAD(u32, sk, dst_ip6[3]);
	}
	datagram_key(&key, cookie, peer, port_be);
	return map_lookup(DMM_MAP(datagrams), &key);
}

/* The flow's own end, as its socket has it; what that leaves open is as the packet has it. */
static __always_inline void udp_pair(struct bpf_sock *sk, const struct dmm_addr_pair *at_nic,
				     const struct dmm_addr_pair *asked, struct dmm_addr_pair *pair)
{
	*pair = *asked;
	addr_copy((__u32 *)pair->laddr, (const __u32 *)at_nic->laddr);
	if (pair->family == AF_INET && CTX_LOAD(u32, sk, src_ip4))
		addr_set4((__u32 *)pair->laddr, CTX_LOAD(u32, sk, src_ip4));
	pair->lport_be = htons((__u16)CTX_LOAD(u32, sk, src_port));
	pair->pad = 0;
}

/* To a group by its link-layer address, as a subnet's broadcast is */
static __always_inline bool udp_is_for_many(struct __sk_buff *skb, const struct dmm_nic *nic)
{
	__u8 first = 0;

	return !nic->bare && !bpf_skb_load_bytes(skb, 0, &first, sizeof(first)) && (first & 1);
}

/* What a peer has begun, and a user stack carries. NULL: it is none, or not any more. */
static __always_inline struct dmm_udp_flow *udp_answer(const struct dmm_addr_pair *pair,
						       struct dmm_udp_flow *udp, __u64 cookie,
						       __u32 generation, __u64 now)
{
	if (udp->generation != generation)
		udp = served_settle(pair, udp, generation, now);
	if (!udp || !udp->flow.decision.stack)
		return NULL;
	udp->flow.cookie = cookie;
	return udp;
}

/*
 * The entry of a flow that this host begins, or of which something else may be decided by now.
 * NULL: the kernel serves.
 */
static __always_inline struct dmm_udp_flow *udp_settle(struct bpf_sock *sk,
						       const struct dmm_udp_packet *packet,
						       __u64 cookie, __u32 generation, __u64 now)
{
	struct dmm_udp_flow *udp = map_lookup(DMM_MAP(udp_flows), &packet->pair);
	const struct dmm_flow *record = udp_record(sk, cookie, &packet->pair);
	/* What holds for a connected socket its connect() has decided; who names the peer each time
	 * is asked each time. */
	bool asked =
		record && record->decision.stack &&
		record->decision.stack == record->decision.wanted &&
		(sk->state == BPF_TCP_ESTABLISHED || record->decision.generation == generation);
	bool goes_on = udp && udp->flow.cookie == cookie && udp_is_open(udp, now);

	if (!asked) {
		kernel_serves(&packet->pair, udp, cookie, generation, now);
		return NULL;
	}
	if (!goes_on || udp->flow.decision.stack != record->decision.stack)
		udp = udp_fresh(&packet->pair);
	if (!udp)
		return NULL;
	if (!udp->flow.cookie) {
		udp->flow.opened_ns = now;
		udp->flow.netns_cookie = record->netns_cookie;
		udp->flow.state = record->state;
		udp->flow.decision = record->decision;
		udp_pair(sk, &packet->pair, &record->pair, &udp->flow.pair);
		udp->flow.cookie = cookie;
	}
	udp->generation = generation;
	return udp;
}

static __always_inline void udp_count_out(struct __sk_buff *skb,
					  const struct dmm_udp_packet *packet,
					  struct dmm_udp_flow *udp, __u64 now)
{
	udp->out_ns = now;
	__sync_fetch_and_add(&udp->packets_out, udp_segments(skb));
	__sync_fetch_and_add(&udp->flow.bytes_sent, packet->bytes);
}

/* It is the kernel's, and its record says why. pair: of a connected socket its addresses will do.
 */
static __always_inline int udp_bar(struct bpf_sock *sk, __u64 cookie,
				   const struct dmm_addr_pair *pair)
{
	struct dmm_flow *record = udp_record(sk, cookie, pair);

	if (record && !record->decision.why)
		record->decision.why = DMM_WHY_DATAGRAM;
	return TC_ACT_UNSPEC;
}

/* sk: its socket, of UDP */
static __always_inline int udp_out(struct __sk_buff *skb, struct bpf_sock *sk,
				   const struct dmm_nic *nic)
{
	const struct dmm_control *control = control_get();
	struct dmm_udp_packet packet = {};
	struct dmm_udp_flow *udp;
	__u32 device = 0;
	__u64 cookie, now;
	__u32 why;

	if (!udp_is_asked_for(control) || !udp_read(skb, link_bytes(nic), true, &packet))
		return TC_ACT_UNSPEC;
	cookie = dmm_socket_cookie(skb);
	if (unlikely(packet.in_part) || unlikely(udp_is_for_many(skb, nic)) ||
	    unlikely(nic->bare && skb->gso_size))
		return udp_bar(sk, cookie, &packet.pair);
	now = dmm_ktime_coarse_ns();
	udp = map_lookup(DMM_MAP(udp_flows), &packet.pair);
	if (!udp_is_settled(udp, cookie, control->generation, now)) {
		struct dmm_udp_flow *served =
			udp && udp_is_served(udp) && udp_is_open(udp, now)
				? udp_answer(&packet.pair, udp, cookie, control->generation, now)
				: NULL;

		udp = served ?: udp_settle(sk, &packet, cookie, control->generation, now);
	}
	if (!udp)
		return TC_ACT_UNSPEC;
	udp_count_out(skb, &packet, udp, now);
	udp->mark = skb->mark;
	udp->priority = skb->priority;
	why = udp_refused(skb, nic, &packet.pair, udp, true, &device);
	udp->flow.decision.why = why;
	udp->flow.decision.taken = !why;
	if (unlikely(why)) {
		count(DMM_CNT_DATAGRAM_LET_GO);
		return TC_ACT_UNSPEC;
	}
	count(DMM_CNT_DATAGRAM_OUT);
	return frame_give(skb, nic, device, DMM_CNT_INNER_DROPPED);
}

/* What a stack process sends to the wire bears what its app's datagrams bear. */
static __always_inline int udp_outer_out(struct __sk_buff *skb, const struct dmm_nic *nic)
{
	struct dmm_udp_packet packet = {};
	const struct dmm_udp_flow *udp;

	if (!udp_is_asked_for(control_get()) || !udp_read(skb, link_bytes(nic), true, &packet))
		return TC_ACT_UNSPEC;
	udp = map_lookup(DMM_MAP(udp_flows), &packet.pair);
	if (udp) {
		skb->mark = udp->mark;
		skb->priority = udp->priority;
	}
	return TC_ACT_UNSPEC;
}

/* The process's device for what comes from the wire; 0: the kernel takes it. */
static __always_inline __u32 udp_taker(struct __sk_buff *skb, const struct dmm_nic *nic,
				       const struct dmm_addr_pair *pair, struct dmm_udp_flow *udp)
{
	const struct dmm_stack_state *state = stack_state_get(udp->flow.decision.stack);
	__u32 device = 0;
	__u32 why;

	if (udp_is_served(udp)) {
		why = udp->flow.decision.stack ? udp_refused(skb, nic, pair, udp, false, &device)
					       : 0;
		udp->flow.decision.why = why;
		udp->flow.decision.taken = device && !why;
		if (unlikely(why))
			count(DMM_CNT_DATAGRAM_LET_GO);
		return why ? 0 : device;
	}
	if (!udp->flow.decision.taken || !state || unlikely(!udp_process_lives(udp, state)))
		return 0;
	device = outer_device(nic->slot, udp->seat);
	return device && device_is_there(skb, device) ? device : 0;
}

static __always_inline int udp_in(struct __sk_buff *skb, const struct dmm_nic *nic)
{
	const struct dmm_control *control = control_get();
	struct dmm_udp_packet packet = {};
	struct dmm_udp_flow *udp;
	__u32 device;
	__u64 now;

	if (!udp_is_asked_for(control) || !udp_read(skb, link_bytes(nic), false, &packet) ||
	    packet.in_part)
		return TC_ACT_UNSPEC;
	udp = map_lookup(DMM_MAP(udp_flows), &packet.pair);
	now = dmm_ktime_coarse_ns();
	if (udp && !udp_is_open(udp, now))
		udp = NULL;
	if (!udp && !served_may_begin(skb, &packet.pair, control->generation))
		return TC_ACT_UNSPEC;
	if (!udp || (udp_is_served(udp) && unlikely(udp->generation != control->generation)))
		udp = served_settle(&packet.pair, udp, control->generation, now);
	if (!udp)
		return TC_ACT_UNSPEC;
	udp->in_ns = now;
	__sync_fetch_and_add(&udp->packets_in, udp_segments(skb));
	__sync_fetch_and_add(&udp->flow.bytes_received, packet.bytes);
	device = udp_taker(skb, nic, &packet.pair, udp);
	if (!device)
		return TC_ACT_UNSPEC;
	count(DMM_CNT_DATAGRAM_IN);
	return frame_give(skb, nic, device, DMM_CNT_XDP_NO_SOCKET);
}

/* Whether a frame for an app is of a flow that another process has. */
static __always_inline bool udp_is_of_other(struct __sk_buff *skb, __u32 seat)
{
	struct dmm_udp_packet packet = {};
	const struct dmm_udp_flow *udp;

	if (!udp_read(skb, sizeof(struct ethhdr), false, &packet))
		return false;
	udp = map_lookup(DMM_MAP(udp_flows), &packet.pair);
	return udp && udp->seat != seat;
}

#endif /* DMM_UDP_H */

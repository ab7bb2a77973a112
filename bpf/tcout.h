/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * tcout.h: the tc program at the egress of a NIC: packets of apps whose flows a user stack carries, each to
 * the TAP device by which its process has the inner leg. The kernel has routed, filtered and translated them
 * as always; here alone they leave its way.
 *
 * - A packet of a flow in xdp_flows[] is its process's.
 * - A SYN of no such flow is for the process that the connect hook has written into its socket's storage. Is
 * that gone, full or not on this NIC, the SYN goes on to the wire, and with it the whole flow: the kernel
 * serves it.
 *
 * - An ICMP error of this host's that quotes a packet of such a flow, as a firewall that rejects it sends, is
 * for the process: the peer does not know the numbers that it quotes.
 *
 * What a stack process sends to the wire by a packet socket goes on, with the mark and the priority of the
 * app's packets. So does everything else.
 *
 * A packet of a flow whose process has no device here, or has had it, is dropped: the peer knows other
 * sequence numbers.
 * Dropped is what is redirected to device 0; TC_ACT_SHOT would tell TCP of congestion.
 */
#ifndef DMM_TCOUT_H
#define DMM_TCOUT_H

#include "frame.h"
#include "way.h"

#define AF_PACKET 17
#define TCP_FLAGS_SYN_ACK 0x12

/* BCC does not declare it. */
static struct bpf_sock *(*dmm_sk_fullsock)(struct bpf_sock *sk) = (void *)BPF_FUNC_sk_fullsock;

static __always_inline __u32 inner_device(__u32 seat, __u32 slot)
{
	__u32 key = (seat - 1) * DMM_MAX_NICS + slot;
	const __u32 *ifindex = seat ? map_lookup(DMM_MAP(inner_devs), &key) : NULL;

	return ifindex ? *ifindex : 0;
}

static __always_inline int inner_give(struct __sk_buff *skb, __u32 device)
{
	if (!device)
		count(DMM_CNT_INNER_DROPPED);
	skb->mark = DMM_TCIN_MARK;
	return bpf_redirect(device, 0);
}

/* Sockets that this host's apps have opened to others, and that others have opened to them */
static __always_inline bool is_stream(const struct bpf_sock *sk)
{
	return sk->type == SOCK_STREAM && sk->protocol == IPPROTO_TCP;
}

/* A socket behind a translation shows only here that a process serves it. */
static __always_inline void socket_tie(struct __sk_buff *skb, struct bpf_sock *sk,
				       const struct dmm_xdp_flow *flow)
{
	struct dmm_way now = {
		.stack = flow->stack, .seat = flow->seat, .process = flow->process, .state = DMM_WAY_TAKEN};
	const struct dmm_way *way = way_get(sk);

	if (likely(way && way->seat == flow->seat && way->state == DMM_WAY_TAKEN))
		return;
	if (sk->state == BPF_TCP_LISTEN || !way_set(sk, &now))
		return;
	way_tell(dmm_socket_cookie(skb), &now, 0);
}

/* 0: the process takes it; else enum dmm_why. */
static __always_inline __u32 syn_refused(const struct dmm_way *way, __u32 device)
{
	const struct dmm_stack_state *state = stack_state_get(way->stack);

	if (!state || !(state->up >> (way->process & (DMM_MAX_PROCESSES - 1)) & 1))
		return DMM_WHY_DOWN;
	if (!device)
		return DMM_WHY_DEVICE;
	/* Also when an earlier SYN was given to it: a process that has seen one has claimed the flow by now.
	 */
	return process_is_full(way->stack, way->process) ? DMM_WHY_FULL : 0;
}

static __always_inline int syn_out(struct __sk_buff *skb, struct bpf_sock *sk, __u32 slot)
{
	struct dmm_way *way = way_get(sk);
	__u32 mark = skb->mark;
	__u32 device;
	__u32 why;

	if (!way)
		return TC_ACT_UNSPEC;
	device = inner_device(way->seat, slot);
	why = syn_refused(way, device);
	if (!why && !syn_give(skb, device))
		why = DMM_WHY_DOWN;
	if (why) {
		count(DMM_CNT_SYN_LET_GO);
		way_tell(dmm_socket_cookie(skb), way, why);
		way->stack = 0;
		return TC_ACT_UNSPEC;
	}
	way->mark = mark;
	way->priority = skb->priority;
	if (way->state != DMM_WAY_TAKEN) {
		way->state = DMM_WAY_TAKEN;
		way_tell(dmm_socket_cookie(skb), way, 0);
	}
	return bpf_redirect(0, 0);
}

/* The process has given the flow up, or is gone, and the socket does not know it yet. */
static __always_inline bool was_taken(struct bpf_sock *sk)
{
	const struct dmm_way *way = way_get(sk);

	return unlikely(way && way->state == DMM_WAY_TAKEN);
}

/* A frame of a packet socket: what a stack process sends to the wire bears what its app's packets bear. */
static __always_inline int outer_out(struct __sk_buff *skb)
{
	struct dmm_tcp_frame frame = {};
	const struct dmm_xdp_flow *flow;

	flow = frame_read(skb, true, &frame) ? map_lookup(DMM_MAP(xdp_flows), &frame.pair) : NULL;
	if (flow) {
		skb->mark = flow->mark;
		skb->priority = flow->priority;
	}
	return TC_ACT_UNSPEC;
}

/* No TCP. An ICMP error of this host's, a firewall's say, is for the process whose packet it is about. */
static __always_inline int other_out(struct __sk_buff *skb, const struct dmm_nic *nic)
{
	struct dmm_addr_pair pair = {};
	const struct dmm_xdp_flow *flow;

	flow = quote_read(skb, &pair) ? map_lookup(DMM_MAP(xdp_flows), &pair) : NULL;
	return flow ? inner_give(skb, inner_device(flow->seat, nic->slot)) : TC_ACT_UNSPEC;
}

static __always_inline int tcout(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	const struct dmm_nic *nic = map_lookup(DMM_MAP(nics), &ifindex);
	struct bpf_sock *sk = skb->sk;
	struct dmm_tcp_frame frame = {};
	struct dmm_xdp_flow *flow;

	if (!nic || skb->vlan_present)
		return TC_ACT_UNSPEC;
	sk = sk ? dmm_sk_fullsock(sk) : NULL;
	if (sk && sk->family == AF_PACKET)
		return outer_out(skb);
	if (!frame_read(skb, true, &frame))
		return other_out(skb, nic);
	flow = map_lookup(DMM_MAP(xdp_flows), &frame.pair);
	if (flow) {
		if (unlikely(flow->mark != skb->mark || flow->priority != skb->priority)) {
			flow->mark = skb->mark;
			flow->priority = skb->priority;
		}
		if (sk && is_stream(sk))
			socket_tie(skb, sk, flow);
		return inner_give(skb, inner_device(flow->seat, nic->slot));
	}
	if (!sk || !is_stream(sk))
		return TC_ACT_UNSPEC;
	if ((frame.flags & TCP_FLAGS_SYN_ACK) == TCP_FLAGS_SYN)
		return syn_out(skb, sk, nic->slot);
	return was_taken(sk) ? inner_give(skb, 0) : TC_ACT_UNSPEC;
}

#endif /* DMM_TCOUT_H */

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * tcout.h: the tc program at the egress of a NIC: packets of apps whose flows a user stack carries,
 * each to the TAP device by which its process has the inner leg. The kernel has routed, filtered
 * and translated them as always; here alone they leave its way.
 *
 * - A packet of a flow in xdp_flows[] is its process's.
 * - A SYN of no such flow is for the process that the connect hook has written into its socket's
 * storage. Is that gone, full or not on this NIC, or asks the SYN for what it does not carry
 * (synopts.h), or is it in a tunnel (tunnel.h), the SYN goes on to the wire, and with it the whole
 * flow: the kernel serves it.
 *
 * - A SYN of others, which has no socket here, is for the process that was asked for where it came
 * in (tcfrom.h, forward.h).
 * - What becomes of datagrams says udp.h.
 * - An ICMP error of this host's that quotes a packet of such a flow, as a firewall that rejects it
 * sends, is for the process: the peer does not know the numbers that it quotes.
 *
 * What a stack process sends to the wire by a packet socket goes on, with the mark and the priority
 * of the app's packets. So does everything else.
 *
 * An open flow may come to leave by a device that its process does not serve: away.h. Where that
 * cannot be, or its process has ended, the packet is dropped: the peer knows other sequence
 * numbers. Dropped is what is redirected to device 0; TC_ACT_SHOT would tell TCP of congestion.
 *
 * What somebody has copied of either leg, to look at it elsewhere, goes where he sent it:
 * is_copy().
 */
#ifndef DMM_TCOUT_H
#define DMM_TCOUT_H

#include "away.h"
#include "forward.h"
#include "frame.h"
#include "parts.h"
#include "tunnel.h"
#include "udp.h"
#include "way.h"

#define AF_PACKET 17

static __always_inline int inner_drop(void)
{
	count(DMM_CNT_INNER_DROPPED);
	return bpf_redirect(0, 0);
}

/* An acknowledgement or a reset, or a SYN-ACK with a cookie, to which Linux gives no socket in a
 * flood (tcp_make_synack()): nothing that would be sent again. */
static __always_inline bool is_bare_answer(const struct __sk_buff *skb, __u32 link,
					   const struct dmm_tcp_frame *frame)
{
	__u32 ip = skb->protocol == htons(ETH_P_IP) ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);

	return !(frame->flags & TCP_FLAGS_FIN) && !is_first(frame->flags) &&
	       skb->len <= link + ip + frame->header_bytes;
}

/* By which the flow's latest packet left */
static __always_inline bool is_flows_device(const struct dmm_xdp_flow *flow, __u32 ifindex,
					    const struct dmm_nic *nic)
{
	return flow->away ? flow->away == ifindex : nic->slot + 1 == flow->home;
}

/*
 * Whether somebody else's rule has made this packet of a flow out of another, of either leg: tc's
 * mirred, nftables' dup, iptables' TEE, bpf_clone_redirect(). No copy has a socket, so only what
 * has none is asked. Of that, this host's own comes from no device, and can only be an answer for
 * which TCP or a firewall needs no socket (answer); what is forwarded comes from one, and not from
 * that by which the flow leaves, where tc says that its copies come from. A redirection to an ifb
 * is a copy that comes back to the device it was made on.
 */
static __always_inline bool is_copy(const struct __sk_buff *skb, const struct dmm_nic *nic,
				    const struct dmm_xdp_flow *flow, bool answer)
{
	__u32 from = skb->ingress_ifindex;

	if (!from)
		return !answer || !is_flows_device(flow, skb->ifindex, nic);
	if (flow->own)
		return true;
	if (from == skb->ifindex)
		return false;
	nic = map_lookup(DMM_MAP(nics), &from);
	return nic && is_flows_device(flow, from, nic);
}

static __always_inline int inner_give(struct __sk_buff *skb, const struct dmm_nic *nic,
				      struct dmm_xdp_flow *flow)
{
	__u32 device = inner_device(flow->seat, nic->slot);

	if (unlikely(!device)) {
		device = flow->home ? inner_device(flow->seat, flow->home - 1) : 0;
		if (!device || !away_leave(skb, nic, flow))
			return inner_drop();
		skb->mark = DMM_TCIN_MARK;
		return bpf_redirect(device, 0);
	}
	if (unlikely(flow->away))
		flow->away = 0;
	if (unlikely(flow->home != nic->slot + 1))
		flow->home = nic->slot + 1;
	return frame_give(skb, nic, device, DMM_CNT_INNER_DROPPED);
}

/* A socket behind a translation shows only here that a process serves it. */
static __always_inline void socket_tie(struct __sk_buff *skb, struct bpf_sock *sk,
				       const struct dmm_xdp_flow *flow)
{
	struct dmm_way now = {.stack = flow->stack,
			      .seat = flow->seat,
			      .process = flow->process,
			      .state = DMM_WAY_TAKEN};
	const struct dmm_way *way = way_get(sk);

	if (likely(way && way->seat == flow->seat && way->state == DMM_WAY_TAKEN))
		return;
	if (sk->state == BPF_TCP_LISTEN || !way_set(sk, &now))
		return;
	way_tell(dmm_socket_cookie(skb), &now, 0);
}

/*
 * A SYN of this host's, or one that it forwards: with what is not carried, or with data (RFC 7413).
 */
static __always_inline bool syn_asks_more(struct __sk_buff *skb, const struct dmm_nic *nic)
{
	if (likely(!syn_is_foreign(skb, link_bytes(nic), skb->len, false)))
		return false;
	count(DMM_CNT_SYN_OPTION);
	return true;
}

/* 0: the process takes it; else enum dmm_why. */
static __always_inline __u32 syn_refused(struct __sk_buff *skb, const struct dmm_nic *nic,
					 const struct dmm_way *way, __u32 device)
{
	const struct dmm_stack_state *state = stack_state_get(way->stack);

	if (!state || !(state->up >> (way->process & (DMM_MAX_PROCESSES - 1)) & 1))
		return DMM_WHY_DOWN;
	if (!device)
		return DMM_WHY_DEVICE;
	if (unlikely(nic->behind))
		return DMM_WHY_FILTER;
	if (unlikely(has_tunnel_key(skb)))
		return DMM_WHY_TUNNEL;
	/* Also when an earlier SYN was given to it: a process that has seen one has claimed the
	 * flow by now.
	 */
	if (process_is_full(way->stack, way->process))
		return DMM_WHY_FULL;
	return syn_asks_more(skb, nic) ? DMM_WHY_OPTION : 0;
}

/* Gives it to its process; way says then where the flow is away. The result as above. */
static __always_inline __u32 syn_offer(struct __sk_buff *skb, const struct dmm_nic *nic,
				       struct dmm_way *way)
{
	__u32 served = inner_device(way->seat, nic->slot);
	__u32 device = served ? served : away_device(nic, way->stack, way->seat);
	__u32 why = syn_refused(skb, nic, way, device);

	way->away = 0;
	if (why)
		return why;
	if (served ? syn_give(skb, nic, device)
		   : away_begin(skb, nic, device, &way->away, way->addresses))
		return 0;
	return DMM_WHY_DOWN;
}

/* It goes on to the wire, and with it the flow. */
static __always_inline int syn_let_go(struct __sk_buff *skb, struct dmm_way *way, __u32 why)
{
	count(DMM_CNT_SYN_LET_GO);
	way_tell(dmm_socket_cookie(skb), way, why);
	way->stack = 0;
	return TC_ACT_UNSPEC;
}

static __always_inline int syn_out(struct __sk_buff *skb, struct bpf_sock *sk,
				   const struct dmm_nic *nic)
{
	struct dmm_way *way = way_get(sk);
	__u32 mark = skb->mark;
	__u32 why;

	if (!way)
		return TC_ACT_UNSPEC;
	why = syn_offer(skb, nic, way);
	if (why)
		return syn_let_go(skb, way, why);
	way->mark = mark;
	way->priority = skb->priority;
	if (way->state != DMM_WAY_TAKEN) {
		way->state = DMM_WAY_TAKEN;
		way_tell(dmm_socket_cookie(skb), way, 0);
	}
	return bpf_redirect(0, 0);
}

/*
 * The process has given the flow up, or is gone, and the socket does not know it yet: the peer
 * knows other numbers. A process that has ended the flow says so once more, by a RST: what it had
 * sent may have met a firewall of this host's, which rejects what comes in, or a full queue.
 */
static __always_inline int given_up_out(struct __sk_buff *skb, const struct dmm_nic *nic,
					__u32 seat)
{
	__u32 device = inner_device(seat, nic->slot);

	return device ? frame_give(skb, nic, device, DMM_CNT_INNER_DROPPED) : inner_drop();
}

/* A packet of a TCP socket, of no flow that a process has */
static __always_inline int socket_out(struct __sk_buff *skb, struct bpf_sock *sk,
				      const struct dmm_nic *nic)
{
	const struct dmm_way *way = way_get(sk);

	return unlikely(way && way->state == DMM_WAY_TAKEN) ? given_up_out(skb, nic, way->seat)
							    : TC_ACT_UNSPEC;
}

/*
 * A packet of a TCP socket, of no flow that a process has, in which TCP does not stand at its
 * place: extension headers of IPv6 (RFC 8200) come before it. With a SYN the flow is the kernel's;
 * of one that a process had the peer knows other numbers.
 */
static __always_inline int veiled_out(struct __sk_buff *skb, struct bpf_sock *sk)
{
	struct dmm_way *way = way_get(sk);

	if (!way)
		return TC_ACT_UNSPEC;
	if (way->state == DMM_WAY_TAKEN)
		return inner_drop();
	count(DMM_CNT_SYN_OPTION);
	return syn_let_go(skb, way, DMM_WHY_OPTION);
}

/* The process that is to take a SYN of others. 0: there is one; else enum dmm_why. */
static __always_inline __u32 note_process(const struct dmm_forwarded *note,
					  const struct dmm_addr_pair *pair, struct dmm_way *way)
{
	const struct dmm_stack_state *state = stack_state_get(note->stack);
	struct dmm_process process = {};

	way->stack = note->stack;
	way->process = note->process;
	way->seat = note->seat;
	if (note->cookie)
		return 0;
	if (!state || !state->up)
		return DMM_WHY_DOWN;
	if (!process_pick(state, note->stack, pair_hash(pair), true, &process))
		return DMM_WHY_FULL;
	way->process = process.number;
	way->seat = process.seat;
	return 0;
}

/* A SYN without a socket of this host's: where it came in something may have been noted of it. */
static __always_inline int syn_forwarded(struct __sk_buff *skb, const struct dmm_tcp_frame *frame,
					 const struct dmm_nic *nic)
{
	struct dmm_forwarded *note = map_lookup(DMM_MAP(notes), &frame->seq_be);
	struct dmm_way way = {};
	__u32 mark = skb->mark;
	__u32 why;

	if (!note || note->state == DMM_FORWARDED_LET_GO ||
	    dmm_ktime_coarse_ns() - note->opened_ns > NOTE_MAX_NS) {
		forwarded_forget(&frame->pair);
		return TC_ACT_UNSPEC;
	}
	why = note_process(note, &frame->pair, &way);
	if (!why)
		why = syn_offer(skb, nic, &way);
	if (note->cookie)
		way_tell(note->cookie, &way, why);
	if (why) {
		count(DMM_CNT_FORWARD_LET_GO);
		note->state = DMM_FORWARDED_LET_GO;
		forwarded_forget(&frame->pair);
		return TC_ACT_UNSPEC;
	}
	count(DMM_CNT_FORWARD_OUT);
	note->state = DMM_FORWARDED_TAKEN;
	note->process = way.process;
	note->seat = way.seat;
	note->mark = mark;
	note->priority = skb->priority;
	note->away = way.away;
	__builtin_memcpy(note->addresses, way.addresses, sizeof(note->addresses));
	map_update(DMM_MAP(forwarded), &frame->pair, note, BPF_ANY);
	return bpf_redirect(0, 0);
}

/*
 * A packet of a flow that no process owns, and of no socket of this host's: it is passing through.
 * Was the flow a process's, the peer knows other sequence numbers.
 */
static __always_inline int passing_out(struct __sk_buff *skb, const struct dmm_tcp_frame *frame,
				       const struct dmm_nic *nic)
{
	const struct dmm_forwarded *found;

	if (!forwards_at_all(control_get()))
		return TC_ACT_UNSPEC;
	if (is_first(frame->flags))
		return syn_forwarded(skb, frame, nic);
	found = forwarded_find(&frame->pair);
	return unlikely(found) ? given_up_out(skb, nic, found->seat) : TC_ACT_UNSPEC;
}

/*
 * A frame of a packet socket: what a stack process sends to the wire bears what its
 * app's packets bear.
 */
static __always_inline int outer_out(struct __sk_buff *skb, const struct dmm_nic *nic)
{
	struct dmm_tcp_frame frame = {};
	struct dmm_xdp_flow *flow;

	if (!frame_read(skb, link_bytes(nic), true, &frame))
		return udp_outer_out(skb, nic);
	flow = map_lookup(DMM_MAP(xdp_flows), &frame.pair);
	if (!flow)
		return TC_ACT_UNSPEC;
	skb->mark = flow->mark;
	skb->priority = flow->priority;
	return likely(!flow->away || flow->away == skb->ifindex) ? TC_ACT_UNSPEC
								 : away_send(skb, nic, flow);
}

/*
 * No TCP. An ICMP error of this host's, a firewall's say, is for the process whose packet
 * it is about.
 */
static __always_inline int other_out(struct __sk_buff *skb, struct bpf_sock *sk,
				     const struct dmm_nic *nic)
{
	struct dmm_addr_pair pair = {};
	struct dmm_xdp_flow *flow;

	if (sk && is_datagram(sk))
		return udp_out(skb, sk, nic);
	if (!quote_read(skb, link_bytes(nic), &pair))
		return TC_ACT_UNSPEC;
	flow = map_lookup(DMM_MAP(xdp_flows), &pair);
	if (!flow || (!skb->sk && is_copy(skb, nic, flow, true)))
		return TC_ACT_UNSPEC;
	return inner_give(skb, nic, flow);
}

/* What the app's packets bear, the outer leg's will. */
static __always_inline void bearing_note(const struct __sk_buff *skb, struct dmm_xdp_flow *flow)
{
	if (unlikely(flow->mark != skb->mark || flow->priority != skb->priority)) {
		flow->mark = skb->mark;
		flow->priority = skb->priority;
	}
}

/*
 * What the kernel has cut, for a device of a smaller MTU or since it came in fragments, or has put
 * extension headers in front of. A later fragment of no known flow goes on: nobody can do anything
 * with it.
 */
static __always_inline int parts_out(struct __sk_buff *skb, struct bpf_sock *sk,
				     const struct dmm_nic *nic)
{
	struct dmm_parts parts = {};
	enum dmm_part part = part_read(skb, link_bytes(nic), true, &parts);
	struct dmm_xdp_flow *flow;

	if (part == DMM_PART_NOT)
		return sk && is_datagram(sk)
			       ? udp_bar(sk, dmm_socket_cookie(skb), &parts.frame.pair)
			       : TC_ACT_UNSPEC;
	flow = part_flow(&parts, part, DMM_FRAGMENTS_OUT);
	if (flow) {
		if (unlikely(!skb->sk) && is_copy(skb, nic, flow, false))
			return TC_ACT_UNSPEC;
		bearing_note(skb, flow);
		if (part != DMM_PART_WHOLE)
			count(DMM_CNT_FRAGMENT_OUT);
		return inner_give(skb, nic, flow);
	}
	if (part == DMM_PART_LATER)
		return TC_ACT_UNSPEC;
	if (sk)
		return is_stream(sk) ? veiled_out(skb, sk) : TC_ACT_UNSPEC;
	return !is_first(parts.frame.flags) && forwarded_find(&parts.frame.pair) ? inner_drop()
										 : TC_ACT_UNSPEC;
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
	/* One that a process has already, and somebody's program sends by a device of his own */
	if (nic->slot == DMM_MAX_NICS && skb->mark == DMM_TCIN_MARK)
		return TC_ACT_UNSPEC;
	if (unlikely(skb->mark == DMM_AWAY_MARK))
		return away_pass(skb, nic);
	sk = sk ? dmm_sk_fullsock(sk) : NULL;
	if (sk && sk->family == AF_PACKET)
		return outer_out(skb, nic);
	if (!frame_read(skb, link_bytes(nic), true, &frame))
		return unlikely(is_in_parts(skb, link_bytes(nic))) ? parts_out(skb, sk, nic)
		       : sk && is_stream(sk)			   ? veiled_out(skb, sk)
								   : other_out(skb, sk, nic);
	flow = map_lookup(DMM_MAP(xdp_flows), &frame.pair);
	if (flow) {
		if (unlikely(!skb->sk) &&
		    is_copy(skb, nic, flow, is_bare_answer(skb, link_bytes(nic), &frame)))
			return TC_ACT_UNSPEC;
		bearing_note(skb, flow);
		if (sk && is_stream(sk)) {
			if (unlikely(!flow->own))
				flow->own = 1;
			socket_tie(skb, sk, flow);
		}
		return inner_give(skb, nic, flow);
	}
	if (!sk)
		return passing_out(skb, &frame, nic);
	if (!is_stream(sk))
		return TC_ACT_UNSPEC;
	if (is_first(frame.flags))
		return syn_out(skb, sk, nic);
	return socket_out(skb, sk, nic);
}

#endif /* DMM_TCOUT_H */

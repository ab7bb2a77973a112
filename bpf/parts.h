/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * parts.h: TCP of which a program cannot tell the 5-tuple at a glance: fragments, and IPv6
 * extension headers in front of it. The stack process puts together and takes off
 * (core/fragment.h); here is said whose they are.
 *
 * - The first fragment has the ports (RFC 791, RFC 7112), so it alone decides, as a whole packet
 * would. What follows is known by addresses and identification, which are noted in fragments[].
 * - A later fragment that comes before the first goes on to the kernel, which can do nothing with
 * it: the first of an owned flow never comes there. Has the peer sent fragments of an owned flow of
 * late, who owns that one is given a copy, so that a path which turns fragments round loses
 * nothing.
 * - So fragments of flows that are nobody's here all reach the kernel, in the order in which they
 * came.
 * - A SYN in fragments or behind extension headers, of no owned flow, is the kernel's, and with it
 * the flow.
 *
 * Passed over are hop-by-hop and destination options, routing headers that have been gone through,
 * and the fragment's header, also an atomic one's (RFC 6946). What is behind others, IPsec's, is no
 * TCP of a stack's.
 */
#ifndef DMM_PARTS_H
#define DMM_PARTS_H

#include "frame.h"

#define FRAGMENT_NOTE_NS                                                                           \
	5000000000ull /* pieces of one packet that are further apart are as good as lost */
#define FRAGMENT_PEER_NS 60000000000ull
#define PARTS_MAX_HEADERS 8192 /* as many as an IPv6 packet has room for */
#define IP6_OFFSET_MASK 0xfff8
#define IP6_MORE 1

enum dmm_part {
	DMM_PART_NOT,	/* no TCP that could be a stack's */
	DMM_PART_WHOLE, /* behind extension headers */
	DMM_PART_FIRST,
	DMM_PART_LATER,
};

struct dmm_parts {
	struct dmm_tcp_frame frame; /* of a later one: addresses alone */
	__u32 id_be;
	__u32 tcp; /* of a later one: by what its sender says, the packet may be TCP */
};

/* Argument of step header_next: the header of type next at `at` is to be passed. */
struct dmm_headers {
	struct __sk_buff *skb;
	__u32 at;
	__u32 next;
	__u32 part; /* enum dmm_part */
	__u32 id_be;
};

/* The body of step header_next. */
static __always_inline int header_next(struct dmm_headers *headers)
{
	__u32 next = headers->next;
	__u8 header[8];
	__u32 offset;

	if (!is_passed_over(next))
		return 1;
	if (bpf_skb_load_bytes(headers->skb, headers->at, header, sizeof(header)) ||
	    (next == NEXTHDR_ROUTING && header[3])) {
		headers->part = DMM_PART_NOT;
		headers->next = NEXTHDR_NONE;
		return 1;
	}
	headers->next = header[0];
	if (next != NEXTHDR_FRAGMENT) {
		headers->at += (header[1] + 1) * 8;
		return 0;
	}
	headers->at += 8;
	offset = (__u32)header[2] << 8 | header[3];
	if (!(offset & (IP6_OFFSET_MASK | IP6_MORE)))
		return 0;
	headers->id_be = *(__u32 *)(header + 4);
	headers->part = offset & IP6_OFFSET_MASK ? DMM_PART_LATER : DMM_PART_FIRST;
	return headers->part == DMM_PART_LATER;
}

static __always_inline bool part_ports(struct __sk_buff *skb, __u32 at, bool sends,
				       struct dmm_parts *parts)
{
	__u16 ports[2];
	__u8 flags = 0;

	if (bpf_skb_load_bytes(skb, at, ports, sizeof(ports)))
		return false;
	parts->frame.pair.lport_be = sends ? ports[0] : ports[1];
	parts->frame.pair.rport_be = sends ? ports[1] : ports[0];
	if (!bpf_skb_load_bytes(skb, at + TCP_FLAG_BYTE, &flags, sizeof(flags)))
		parts->frame.flags = flags;
	return true;
}

static __always_inline enum dmm_part part_read4(struct __sk_buff *skb, __u32 link, bool sends,
						struct dmm_parts *parts)
{
	struct iphdr ip;

	if (bpf_skb_load_bytes(skb, link, &ip, sizeof(ip)) || ip.version != 4 || ip.ihl < 5 ||
	    ip.protocol != IPPROTO_TCP)
		return DMM_PART_NOT;
	pair_set4(&parts->frame.pair, sends ? ip.saddr : ip.daddr, sends ? ip.daddr : ip.saddr);
	parts->id_be = ip.id;
	parts->tcp = 1;
	if (ip.frag_off & htons(IP_OFFSET_MASK))
		return DMM_PART_LATER;
	return part_ports(skb, link + ip.ihl * 4, sends, parts) ? DMM_PART_FIRST : DMM_PART_NOT;
}

static __always_inline enum dmm_part part_read6(struct __sk_buff *skb, __u32 link, bool sends,
						struct dmm_parts *parts)
{
	struct dmm_headers headers = {
		.skb = skb, .at = link + sizeof(struct ipv6hdr), .part = DMM_PART_WHOLE};
	struct ipv6hdr ip;

	if (bpf_skb_load_bytes(skb, link, &ip, sizeof(ip)) || ip.version != 6 ||
	    addr_is_link_local(&ip.saddr) || addr_is_link_local(&ip.daddr))
		return DMM_PART_NOT;
	pair_set6(&parts->frame.pair, sends ? &ip.saddr : &ip.daddr, sends ? &ip.daddr : &ip.saddr);
	headers.next = ip.nexthdr;
	dmm_loop(PARTS_MAX_HEADERS, DMM_STEP(header_next), &headers, 0);
	parts->id_be = headers.id_be;
	if (headers.part == DMM_PART_LATER) {
		parts->tcp = headers.next == IPPROTO_TCP || is_passed_over(headers.next);
		return DMM_PART_LATER;
	}
	if (headers.next != IPPROTO_TCP || !part_ports(skb, headers.at, sends, parts))
		return DMM_PART_NOT;
	return headers.part;
}

/*
 * parts is all 0; link: bytes in front of the IP header; sends: this host does, so the
 * source is local.
 */
static __always_inline enum dmm_part part_read(struct __sk_buff *skb, __u32 link, bool sends,
					       struct dmm_parts *parts)
{
	return skb->protocol == htons(ETH_P_IP) ? part_read4(skb, link, sends, parts)
						: part_read6(skb, link, sends, parts);
}

/* Whether a packet whose headers are at hand (headers_read) has to be looked at here */
static __always_inline bool is_in_parts(struct __sk_buff *skb, __u32 link)
{
	void *at = (void *)(long)skb->data + link;
	void *end = (void *)(long)skb->data_end;

	if (skb->protocol == htons(ETH_P_IP)) {
		const struct iphdr *ip = at;

		return (void *)(ip + 1) <= end && ip->protocol == IPPROTO_TCP &&
		       (ip->frag_off & htons(IP_FRAG_MASK));
	}
	if (skb->protocol == htons(ETH_P_IPV6)) {
		const struct ipv6hdr *ip = at;

		return (void *)(ip + 1) <= end && is_passed_over(ip->nexthdr);
	}
	return false;
}

static __always_inline void fragment_key(struct dmm_fragment_key *key,
					 const struct dmm_parts *parts, __u32 of)
{
	addr_copy((__u32 *)key->laddr, (const __u32 *)parts->frame.pair.laddr);
	addr_copy((__u32 *)key->raddr, (const __u32 *)parts->frame.pair.raddr);
	key->id_be = of == DMM_FRAGMENTS_OF_PEER ? 0 : parts->id_be;
	key->of = of;
}

/* What is noted of it, if that is no older; NULL: nothing. */
static __always_inline const struct dmm_fragment *fragment_find(const struct dmm_parts *parts,
								__u32 of, __u64 max_ns)
{
	const struct dmm_fragment *note;
	struct dmm_fragment_key key;

	fragment_key(&key, parts, of);
	note = map_lookup(DMM_MAP(fragments), &key);
	return note && dmm_ktime_coarse_ns() - note->seen_ns <= max_ns ? note : NULL;
}

static __always_inline struct dmm_xdp_flow *fragment_flow(const struct dmm_parts *parts, __u32 of,
							  __u64 max_ns)
{
	const struct dmm_fragment *note = fragment_find(parts, of, max_ns);

	return note ? map_lookup(DMM_MAP(xdp_flows), &note->pair) : NULL;
}

/* What follows is the flow's whose first fragment this is. */
static __always_inline void fragment_note(const struct dmm_parts *parts, __u32 of)
{
	struct dmm_fragment note = {.pair = parts->frame.pair, .seen_ns = dmm_ktime_coarse_ns()};
	struct dmm_fragment_key key;

	fragment_key(&key, parts, of);
	map_update(DMM_MAP(fragments), &key, &note, BPF_ANY);
}

/* The identification is another packet's by now. */
static __always_inline void fragment_forget(const struct dmm_parts *parts, __u32 of)
{
	struct dmm_fragment_key key;

	fragment_key(&key, parts, of);
	map_delete(DMM_MAP(fragments), &key);
}

/* The owned flow that it is of; of: where it came from. NULL: it is nobody's, or cannot be told. */
static __always_inline struct dmm_xdp_flow *part_flow(const struct dmm_parts *parts,
						      enum dmm_part part, __u32 of)
{
	struct dmm_xdp_flow *flow;

	if (part == DMM_PART_LATER)
		return fragment_flow(parts, of, FRAGMENT_NOTE_NS);
	flow = map_lookup(DMM_MAP(xdp_flows), &parts->frame.pair);
	if (part == DMM_PART_FIRST) {
		/* Also of nobody's, where what follows would else be copied */
		if (flow || fragment_find(parts, DMM_FRAGMENTS_OF_PEER, FRAGMENT_PEER_NS))
			fragment_note(parts, of);
		else
			fragment_forget(parts, of);
	}
	return flow;
}

#endif /* DMM_PARTS_H */

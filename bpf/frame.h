/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * frame.h: the 5-tuple of a TCP packet, from a tc program that sees it with its Ethernet header,
 * or, at a device without link header, without; and the way of such a packet to a TAP device, which
 * is Ethernet's.
 *
 * Only headers are read. Refused: what steer.h refuses or leaves to parts.h.
 */
#ifndef DMM_FRAME_H
#define DMM_FRAME_H

#include "steer.h"

#define FRAME_HEADERS 128 /* Ethernet, IPv6, ICMPv6, the quoted IPv6 header and ports, and some */

/* A process's device for what goes to the wire of the NIC of that slot; 0: it has none. */
static __always_inline __u32 inner_device(__u32 seat, __u32 slot)
{
	__u32 key = (seat - 1) * DMM_MAX_NICS + slot;
	const __u32 *ifindex =
		seat && slot < DMM_MAX_NICS ? map_lookup(DMM_MAP(inner_devs), &key) : NULL;

	return ifindex ? *ifindex : 0;
}

struct dmm_tcp_frame {
	struct dmm_addr_pair pair;
	__u32 flags; /* of TCP, the low byte */
	__u32 seq_be;
	__u32 header_bytes; /* of TCP, with options */
};

/* How much of a packet says whose it is; 0: none does. link: bytes of its link-layer header. */
static __always_inline __u32 headers_wanted(const struct __sk_buff *skb, __u32 link)
{
	void *at = (void *)(long)skb->data + link;
	void *end = (void *)(long)skb->data_end;

	if (skb->protocol == htons(ETH_P_IP)) {
		const struct iphdr *ip = at;

		if ((void *)(ip + 1) > end)
			return FRAME_HEADERS;
		if (ip->protocol == IPPROTO_TCP)
			return link + ip->ihl * 4 + sizeof(struct tcphdr);
		return ip->protocol == IPPROTO_ICMP ? FRAME_HEADERS : 0;
	}
	if (skb->protocol == htons(ETH_P_IPV6)) {
		const struct ipv6hdr *ip = at;

		if ((void *)(ip + 1) > end)
			return FRAME_HEADERS;
		if (ip->nexthdr == IPPROTO_TCP)
			return link + sizeof(*ip) + sizeof(struct tcphdr);
		if (is_passed_over(ip->nexthdr))
			return link + sizeof(*ip);
		return ip->nexthdr == IPPROTO_ICMPV6 ? FRAME_HEADERS : 0;
	}
	return 0;
}

/* Of a packet whose IP header is not at hand: a driver may leave it in its pages. */
static __always_inline bool has_datagram(struct __sk_buff *skb, __u32 link)
{
	__u32 at = link + (skb->protocol == htons(ETH_P_IP)
				   ? __builtin_offsetof(struct iphdr, protocol)
				   : __builtin_offsetof(struct ipv6hdr, nexthdr));
	__u8 protocol = 0;

	return !bpf_skb_load_bytes(skb, at, &protocol, sizeof(protocol)) && protocol == IPPROTO_UDP;
}

/*
 * Makes the headers readable; false: the packet is neither TCP nor ICMP, nor has it extension
 * headers. Pulled is only what is not at hand: the data of a packet that TCP sends, or of one that
 * came by a veth, is shared with its sender's queue, and bpf_skb_pull_data() copies its head to be
 * able to write there.
 */
static __always_inline bool headers_read(struct __sk_buff *skb, __u32 link)
{
	__u32 wanted = headers_wanted(skb, link);

	if ((void *)(long)skb->data + wanted > (void *)(long)skb->data_end) {
		/* Datagrams are read where they are (udp.h). */
		if (wanted == FRAME_HEADERS && has_datagram(skb, link))
			return false;
		bpf_skb_pull_data(skb, skb->len < wanted ? skb->len : wanted);
	}
	return wanted;
}

/* th: where the TCP header is. sends: this host does, so the source is local. */
static __always_inline bool frame_ports(const struct __sk_buff *skb, const struct tcphdr *th,
					bool sends, struct dmm_tcp_frame *frame)
{
	if ((void *)(th + 1) > (void *)(long)skb->data_end)
		return false;
	frame->pair.lport_be = sends ? th->source : th->dest;
	frame->pair.rport_be = sends ? th->dest : th->source;
	frame->flags = ((const __u8 *)th)[TCP_FLAG_BYTE];
	frame->seq_be = th->seq;
	frame->header_bytes = th->doff * 4;
	return true;
}

/* Bytes in front of the IP header of what comes or goes by the NIC */
static __always_inline __u32 link_bytes(const struct dmm_nic *nic)
{
	return nic->bare ? 0 : sizeof(struct ethhdr);
}

/* Fills frame, which is all 0; link: bytes in front of the IP header; false: it is no TCP packet
 * with its whole header. */
static __always_inline bool frame_read(struct __sk_buff *skb, __u32 link, bool sends,
				       struct dmm_tcp_frame *frame)
{
	void *at;

	if (!headers_read(skb, link))
		return false;
	at = (void *)(long)skb->data + link;
	if (skb->protocol == htons(ETH_P_IP)) {
		struct iphdr *ip = at;

		if ((void *)(ip + 1) > (void *)(long)skb->data_end)
			return false;
		if (ip->version != 4 || ip->ihl < 5 || ip->protocol != IPPROTO_TCP ||
		    (ip->frag_off & htons(IP_FRAG_MASK)))
			return false;
		pair_set4(&frame->pair, sends ? ip->saddr : ip->daddr,
			  sends ? ip->daddr : ip->saddr);
		return frame_ports(skb, at + ip->ihl * 4, sends, frame);
	} else {
		struct ipv6hdr *ip = at;

		if ((void *)(ip + 1) > (void *)(long)skb->data_end)
			return false;
		if (ip->version != 6 || ip->nexthdr != IPPROTO_TCP ||
		    addr_is_link_local(&ip->saddr) || addr_is_link_local(&ip->daddr))
			return false;
		pair_set6(&frame->pair, sends ? &ip->saddr : &ip->daddr,
			  sends ? &ip->daddr : &ip->saddr);
		return frame_ports(skb, (void *)(ip + 1), sends, frame);
	}
}

/* The 5-tuple, as this host has it, of a packet of the peer's that an ICMP error of this host's
 * quotes: IPv4
 */
static __always_inline bool quote_read4(struct __sk_buff *skb, __u32 at, struct dmm_addr_pair *pair)
{
	struct icmphdr icmp;
	struct iphdr ip, quote;
	__u16 ports[2];

	if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)) || ip.protocol != IPPROTO_ICMP)
		return false;
	at += ip.ihl * 4;
	if (bpf_skb_load_bytes(skb, at, &icmp, sizeof(icmp)) ||
	    (icmp.type != ICMP_DEST_UNREACH && icmp.type != ICMP_TIME_EXCEEDED &&
	     icmp.type != ICMP_PARAMETERPROB))
		return false;
	at += sizeof(icmp);
	if (bpf_skb_load_bytes(skb, at, &quote, sizeof(quote)) || quote.protocol != IPPROTO_TCP ||
	    quote.saddr != ip.daddr || (quote.frag_off & htons(IP_OFFSET_MASK)))
		return false;
	if (bpf_skb_load_bytes(skb, at + quote.ihl * 4, ports, sizeof(ports)))
		return false;
	pair_set4(pair, quote.daddr, quote.saddr);
	pair->lport_be = ports[1];
	pair->rport_be = ports[0];
	return true;
}

static __always_inline bool quote_read6(struct __sk_buff *skb, __u32 at, struct dmm_addr_pair *pair)
{
	struct ipv6hdr ip, quote;
	struct icmp6hdr icmp;
	__u16 ports[2];

	if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)) || ip.nexthdr != IPPROTO_ICMPV6)
		return false;
	at += sizeof(ip);
	if (bpf_skb_load_bytes(skb, at, &icmp, sizeof(icmp)) ||
	    icmp.icmp6_type < ICMPV6_DEST_UNREACH || icmp.icmp6_type > ICMPV6_PARAMPROB)
		return false;
	at += sizeof(icmp);
	if (bpf_skb_load_bytes(skb, at, &quote, sizeof(quote)) || quote.nexthdr != IPPROTO_TCP ||
	    bpf_skb_load_bytes(skb, at + sizeof(quote), ports, sizeof(ports)))
		return false;
	pair_set6(pair, &quote.daddr, &quote.saddr);
	pair->lport_be = ports[1];
	pair->rport_be = ports[0];
	return true;
}

static __always_inline bool quote_read(struct __sk_buff *skb, __u32 link,
				       struct dmm_addr_pair *pair)
{
	if (skb->protocol == htons(ETH_P_IP))
		return quote_read4(skb, link, pair);
	return skb->protocol == htons(ETH_P_IPV6) && quote_read6(skb, link, pair);
}

/*
 * Puts an Ethernet header in front of a packet that has none, as a TAP device wants it. Both
 * addresses are 0: a link without addresses has one other end. False: no memory, or a packet of
 * more than 16,000 bytes that is not to be cut; it is as it was. The way back needs nothing: a
 * redirect to such a device takes the header off.
 */
static __always_inline bool frame_dress(struct __sk_buff *skb)
{
	__u16 type = skb->protocol;

	if (bpf_skb_change_head(skb, sizeof(struct ethhdr), 0))
		return false;
	return !bpf_skb_store_bytes(skb, __builtin_offsetof(struct ethhdr, h_proto), &type,
				    sizeof(type), 0);
}

/* A packet that has come to nic, or goes by it, to a TAP device; lost: what to count if it cannot.
 * The program's result. */
static __always_inline int frame_give(struct __sk_buff *skb, const struct dmm_nic *nic,
				      __u32 device, __u32 lost)
{
	if (nic->bare && !frame_dress(skb)) {
		count(lost);
		return bpf_redirect(0, 0);
	}
	skb->mark = DMM_TCIN_MARK;
	return bpf_redirect(device, 0);
}

/* BCC does not declare it. */
static long (*dmm_check_mtu)(void *ctx, __u32 ifindex, __u32 *mtu, __s32 change,
			     __u64 flags) = (void *)BPF_FUNC_check_mtu;

static __always_inline bool device_is_there(struct __sk_buff *skb, __u32 device)
{
	__u32 mtu = 0;

	return dmm_check_mtu(skb, device, &mtu, 0, 0) >= 0;
}

/*
 * A copy of a SYN to the TAP device of a process; false: there is no such device any more, and the
 * SYN may go on. A redirect would not tell, and it is a copy more for one packet of a connection.
 * Once it is dressed a SYN cannot go on: then it is lost with the device, if that goes now.
 */
static __always_inline bool syn_give(struct __sk_buff *skb, const struct dmm_nic *nic, __u32 device)
{
	__u32 mark = skb->mark;

	if (nic->bare && !(device_is_there(skb, device) && frame_dress(skb)))
		return false;
	skb->mark = DMM_TCIN_MARK;
	if (bpf_clone_redirect(skb, device, 0) >= 0 || nic->bare)
		return true;
	skb->mark = mark;
	return false;
}

#endif /* DMM_FRAME_H */

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * frame.h: the 5-tuple of a TCP packet, from a tc program that sees its Ethernet frame.
 *
 * Only headers are read. Refused: what steer.h refuses.
 */
#ifndef DMM_FRAME_H
#define DMM_FRAME_H

#include "steer.h"

#define FRAME_HEADERS 74 /* Ethernet, IPv6, TCP without options; IPv4's options make no more of it */

struct dmm_tcp_frame {
	struct dmm_addr_pair pair;
	__u32 flags; /* of TCP, the low byte */
};

/* th: where the TCP header is. sends: this host does, so the source is local. */
static __always_inline bool frame_ports(const struct __sk_buff *skb, const struct tcphdr *th, bool sends,
					struct dmm_tcp_frame *frame)
{
	if ((void *)(th + 1) > (void *)(long)skb->data_end)
		return false;
	frame->pair.lport_be = sends ? th->source : th->dest;
	frame->pair.rport_be = sends ? th->dest : th->source;
	frame->flags = ((const __u8 *)th)[TCP_FLAG_BYTE];
	return true;
}

/* Fills frame, which is all 0; false: it is no TCP packet with its whole header. */
static __always_inline bool frame_read(struct __sk_buff *skb, bool sends, struct dmm_tcp_frame *frame)
{
	void *at;

	if (skb->protocol != htons(ETH_P_IP) && skb->protocol != htons(ETH_P_IPV6))
		return false;
	if ((void *)(long)skb->data + FRAME_HEADERS > (void *)(long)skb->data_end)
		bpf_skb_pull_data(skb, skb->len < FRAME_HEADERS ? skb->len : FRAME_HEADERS);
	at = (void *)(long)skb->data + sizeof(struct ethhdr);
	if (skb->protocol == htons(ETH_P_IP)) {
		struct iphdr *ip = at;

		if ((void *)(ip + 1) > (void *)(long)skb->data_end)
			return false;
		if (ip->version != 4 || ip->ihl < 5 || ip->protocol != IPPROTO_TCP ||
		    (ip->frag_off & htons(IP_FRAG_MASK)))
			return false;
		pair_set4(&frame->pair, sends ? ip->saddr : ip->daddr, sends ? ip->daddr : ip->saddr);
		return frame_ports(skb, at + ip->ihl * 4, sends, frame);
	} else {
		struct ipv6hdr *ip = at;

		if ((void *)(ip + 1) > (void *)(long)skb->data_end)
			return false;
		if (ip->version != 6 || ip->nexthdr != IPPROTO_TCP || addr_is_link_local(&ip->saddr) ||
		    addr_is_link_local(&ip->daddr))
			return false;
		pair_set6(&frame->pair, sends ? &ip->saddr : &ip->daddr, sends ? &ip->daddr : &ip->saddr);
		return frame_ports(skb, (void *)(ip + 1), sends, frame);
	}
}

/* The 5-tuple, as this host has it, of a packet of the peer's that an ICMP error of this host's quotes: IPv4
 */
static __always_inline bool quote_read4(struct __sk_buff *skb, struct dmm_addr_pair *pair)
{
	__u32 at = sizeof(struct ethhdr);
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

static __always_inline bool quote_read6(struct __sk_buff *skb, struct dmm_addr_pair *pair)
{
	__u32 at = sizeof(struct ethhdr);
	struct ipv6hdr ip, quote;
	struct icmp6hdr icmp;
	__u16 ports[2];

	if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)) || ip.nexthdr != IPPROTO_ICMPV6)
		return false;
	at += sizeof(ip);
	if (bpf_skb_load_bytes(skb, at, &icmp, sizeof(icmp)) || icmp.icmp6_type < ICMPV6_DEST_UNREACH ||
	    icmp.icmp6_type > ICMPV6_PARAMPROB)
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

static __always_inline bool quote_read(struct __sk_buff *skb, struct dmm_addr_pair *pair)
{
	if (skb->protocol == htons(ETH_P_IP))
		return quote_read4(skb, pair);
	return skb->protocol == htons(ETH_P_IPV6) && quote_read6(skb, pair);
}

/*
 * A copy of a SYN to the TAP device of a process; false: there is no such device any more. A redirect would
 * not tell, and it is a copy more for one packet of a connection.
 */
static __always_inline bool syn_give(struct __sk_buff *skb, __u32 device)
{
	__u32 mark = skb->mark;

	skb->mark = DMM_TCIN_MARK;
	if (bpf_clone_redirect(skb, device, 0) >= 0)
		return true;
	skb->mark = mark;
	return false;
}

#endif /* DMM_FRAME_H */

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * synopts.h: whether a SYN asks for what a user stack cannot carry, so that its flow is the
 * kernel's.
 *
 * Carried are maximum segment size, window scale, SACK and timestamps (RFC 9293, 7323, 2018), and
 * of a SYN from the wire the option by which another stack of ours asks ours (RFC 6994). Any other
 * option is between the two ends: signatures (RFC 2385, 5925) no one else can make, MPTCP
 * (RFC 8684) and Fast Open (RFC 7413) would be lost, and a join of MPTCP would become a connection
 * of its own. So is an option of IPv4 (RFC 791), an extension header of IPv6 (RFC 8200), and data
 * in a SYN of this host's.
 *
 * It is asked of SYNs alone, and of those last that a stack would else take.
 */
#ifndef DMM_SYNOPTS_H
#define DMM_SYNOPTS_H

#include "defs.h"

#define TCP_OPTION_BYTES_MAX 40
#define TCP_LENGTH_BYTE 12   /* of the header; the upper half of it counts words of 4 bytes */
#define IPV4_FIRST_BYTE 0x45 /* of a header without options */

/* Kinds (IANA, "TCP Option Kind Numbers") */
enum dmm_tcp_option {
	DMM_OPTION_END = 0,
	DMM_OPTION_NOP = 1,
	DMM_OPTION_MSS = 2,
	DMM_OPTION_WINDOW_SCALE = 3,
	DMM_OPTION_SACK_PERMITTED = 4,
	DMM_OPTION_TIMESTAMPS = 8,
	DMM_OPTION_MD5 = 19,
	DMM_OPTION_AO = 29,
	DMM_OPTION_MPTCP = 30,
	DMM_OPTION_FAST_OPEN = 34,
	DMM_OPTION_EXPERIMENT = 253,
};

/* A way through the options of a SYN. */
struct dmm_option_search {
	void *ctx;
	__u32 at; /* of the next, and of what is behind the last: bytes from the packet's first */
	__u32 end;
	__u32 from_wire;
	__u32 foreign; /* the kind of the first that is not carried; 0: none was found yet */
};

/* BCC does not declare it (Linux 5.18). */
static long (*dmm_xdp_load_bytes)(void *ctx, __u32 offset, void *to,
				  __u32 bytes) = (void *)BPF_FUNC_xdp_load_bytes;

static __always_inline bool option_is_carried(__u32 kind)
{
	return kind == DMM_OPTION_MSS || kind == DMM_OPTION_WINDOW_SCALE ||
	       kind == DMM_OPTION_SACK_PERMITTED || kind == DMM_OPTION_TIMESTAMPS;
}

static __always_inline bool bytes_load(void *ctx, __u32 at, void *to, __u32 bytes, bool xdp)
{
	return !(xdp ? dmm_xdp_load_bytes(ctx, at, to, bytes)
		     : bpf_skb_load_bytes(ctx, at, to, bytes));
}

/*
 * The option that stacks of ours agree by. A gateway leaves what its hosts ask of others as it is.
 */
static __always_inline bool option_asks_us(const struct dmm_option_search *search,
					   const __u8 *kind_length, bool xdp)
{
	__be32 exid = 0;

	if (kind_length[0] != DMM_OPTION_EXPERIMENT || !search->from_wire)
		return false;
	return bytes_load(search->ctx, search->at + 2, &exid, sizeof(exid), xdp) &&
	       exid == bpf_htonl(DMM_AGREE_EXID);
}

/* kind_length: the first two bytes of what is at search->at. What is malformed ends the list, as
 * for the kernel. */
static __always_inline int option_look(struct dmm_option_search *search, const __u8 *kind_length,
				       bool xdp)
{
	if (kind_length[0] == DMM_OPTION_NOP) {
		search->at++;
		return 0;
	}
	if (kind_length[0] == DMM_OPTION_END || kind_length[1] < 2)
		return 1;
	if (!option_is_carried(kind_length[0]) && !option_asks_us(search, kind_length, xdp)) {
		search->foreign = kind_length[0];
		return 1;
	}
	search->at += kind_length[1];
	return 0;
}

static __always_inline int option_try(struct dmm_option_search *search, bool xdp)
{
	__u8 kind_length[2];

	/* The last byte alone is no option. */
	if (search->at + 1 >= search->end ||
	    !bytes_load(search->ctx, search->at, kind_length, sizeof(kind_length), xdp))
		return 1;
	return option_look(search, kind_length, xdp);
}

/* The bodies of the steps of that name. */
static __always_inline int option_tc(struct dmm_option_search *search)
{
	return option_try(search, false);
}

static __always_inline int option_xdp(struct dmm_option_search *search)
{
	return option_try(search, true);
}

/* Where the TCP header of a packet begins; 0: options of IPv4 stand before it. */
static __always_inline __u32 tcp_begins(void *ctx, __u32 link, bool xdp)
{
	__u8 first = 0;

	bytes_load(ctx, link, &first, sizeof(first), xdp);
	if (first >> 4 == 6)
		return link + sizeof(struct ipv6hdr);
	return first == IPV4_FIRST_BYTE ? link + sizeof(struct iphdr) : 0;
}

/*
 * Whether a SYN asks for what is not carried. ctx: __sk_buff, or xdp_md if xdp. link: bytes in
 * front of its IP header, behind which TCP stands. bytes: how many the packet has, where data is
 * not carried; 0 where it is left to be sent again, and the SYN comes from the wire.
 */
static __always_inline bool syn_is_foreign(void *ctx, __u32 link, __u32 bytes, bool xdp)
{
	__u32 tcp = tcp_begins(ctx, link, xdp);
	struct dmm_option_search search = {
		.ctx = ctx, .at = tcp + sizeof(struct tcphdr), .from_wire = !bytes};
	__u8 header_words = 0;

	if (!tcp)
		return true;
	bytes_load(ctx, tcp + TCP_LENGTH_BYTE, &header_words, sizeof(header_words), xdp);
	search.end = tcp + (header_words >> 4) * 4;
	if (bytes > search.end)
		return true;
	if (search.at >= search.end)
		return false;
	if (xdp)
		dmm_loop(TCP_OPTION_BYTES_MAX, DMM_STEP(option_xdp), &search, 0);
	else
		dmm_loop(TCP_OPTION_BYTES_MAX, DMM_STEP(option_tc), &search, 0);
	return search.foreign;
}

#endif /* DMM_SYNOPTS_H */

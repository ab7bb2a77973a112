/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wire.h: packets as bytes: IPv4, IPv6, TCP and ICMP errors, parsed and built, and the Internet
 * checksum.
 *
 * Pure functions of their arguments. Every length is checked against what was received before a
 * byte is read; what a parser leaves in struct pkt lies inside the packet.
 *
 * Refuses (WIRE_MALFORMED): fragments and IPv6 extension headers (fragment.h), anything but TCP and
 * ICMP errors about TCP, addresses no connection can have (multicast, unspecified, broadcast), SYN
 * with FIN or RST.
 */
#ifndef DMM_WIRE_H
#define DMM_WIRE_H

#include "../api.h"
#include "../base/csum.h"
#include "../base/util.h"

enum {
	WIRE_AF_INET = 2,
	WIRE_AF_INET6 = 10,
	WIRE_PROTO_TCP = 6,
	WIRE_IP4_LEN = 20,
	WIRE_IP6_LEN = 40,
	WIRE_TCP_LEN = 20,
	WIRE_TCP_OPT_MAX = 40,
	WIRE_CSUM_OFFSET = 16, /* of the checksum in the TCP header */
	WIRE_MAX_SACK = 4,
	WIRE_TTL = 64,
	WIRE_IP4_DF = 0x40, /* of byte 6 (RFC 791) */
	WIRE_FLOW_LABEL_MASK = 0xfffff,
};

enum tcp_flag {
	TH_FIN = 0x01,
	TH_SYN = 0x02,
	TH_RST = 0x04,
	TH_PSH = 0x08,
	TH_ACK = 0x10,
	TH_URG = 0x20,
	TH_ECE = 0x40,
	TH_CWR = 0x80,
	TH_AE = 0x100, /* RFC 9768; once the nonce sum of RFC 3540 */
};

/* The ECN field of the IP header (RFC 3168 section 5) */
enum ecn_codepoint {
	ECN_NOT_ECT,
	ECN_ECT1,
	ECN_ECT0,
	ECN_CE,
};

enum {
	WIRE_ECN_MASK = 3,
	ACCECN_COUNTERS = 3,
	WIRE_ACCECN_MIN = 8,  /* of the option: two counters */
	WIRE_OPT_TS_LEN = 12, /* timestamps, with two NOPs in front */
	WIRE_ACCECN_FULL = 12,
};

/* Our experimental option, see tcp_agree.c */
enum {
	WIRE_AGREE_KIND = 253,
	/* kind, length, ExID, then 2 bits of role, 2 of version, 4 of features, 8 of value; in the
	 * role of parity the latter are a bit, whether the payload is parity, and a counter of 11
	 */
	WIRE_AGREE_LEN = 8,
	WIRE_AGREE_VERSION = 1,
};

enum wire_agree_role {
	WIRE_AGREE_PARITY, /* of those who have agreed on it, see tcp_parity.h */
	WIRE_AGREE_OFFER,
	WIRE_AGREE_ANSWER,
	WIRE_AGREE_CONFIRM,
};

enum { WIRE_PARITY_BEARS = 8 }; /* of features: the payload is parity */

struct wire_agree {
	uint8_t role;	  /* enum wire_agree_role */
	uint8_t version;  /* 2 bits */
	uint8_t features; /* enum dmm_feature, 4 bits */
	uint8_t value;	  /* of an offer the nonce, else a check value */
};

enum wire_result {
	WIRE_TCP,  /* pkt is filled, addresses as on the wire */
	WIRE_ICMP, /* an ICMP error; pkt->icmp and the quoted packet's key and seq are filled */
	WIRE_MALFORMED,
	WIRE_BAD_CSUM,
};

/* ICMP errors in one vocabulary for both families */
enum icmp_kind {
	ICMP_KIND_UNREACH, /* destination unreachable */
	ICMP_KIND_TOO_BIG, /* fragmentation needed, packet too big */
	ICMP_KIND_TIME,	   /* time exceeded */
};

struct wire_sack {
	uint32_t start;
	uint32_t end;
};

struct pkt {
	const uint8_t *payload;
	uint32_t payload_len;
	/* of each segment but the last that it was put together of; 0: it is one */
	uint32_t segment_bytes;
	/* inner leg: to which the app's kernel wants it cut; 0: it is not to be */
	uint32_t cut_bytes;
	uint64_t link; /* struct dmm_rx_meta; these three are not read from the packet */
	uint16_t link_mtu;
	uint8_t saddr[16]; /* IPv4 as ::ffff:a.b.c.d */
	uint8_t daddr[16];
	uint16_t sport_be;
	uint16_t dport_be;
	uint8_t family;
	uint8_t tos;
	uint8_t ttl;  /* or the hop limit */
	bool may_cut; /* IPv4 without DF: routers may make fragments of it */
	uint8_t n_sack;
	uint16_t flags; /* enum tcp_flag */
	uint32_t seq;
	uint32_t ack;
	uint32_t flow_label; /* IPv6 (RFC 6437) */
	uint16_t wnd;	     /* as on the wire, unscaled */
	uint16_t mss;	     /* 0: no such option */
	uint16_t urg;	     /* the pointer, whatever the flags say */
	uint8_t wscale;
	bool has_wscale;
	bool has_ts;
	bool has_sack_perm;
	bool has_accecn;
	uint8_t accecn_fields; /* 1 << code point of each counter that the option has */
	/* bytes, 24 bits, of code point i + 1 (RFC 9768 section 3.2.3) */
	uint32_t accecn[ACCECN_COUNTERS];
	/* options with our ExID; more than one, or one of another length, counts as 2 */
	uint8_t n_agree;
	struct wire_agree agree; /* the only one */
	uint32_t tsval;
	uint32_t tsecr;
	struct wire_sack sack[WIRE_MAX_SACK];
	/* WIRE_ICMP only: seq, addresses and ports above are the quoted packet's */
	enum icmp_kind icmp;
	uint8_t icmp_type;
	uint8_t icmp_code;
	uint32_t icmp_mtu; /* 0: not told */
};

/*
 * The least MTU that a path is believed to have, whatever a router says (RFC 9293 section 3.7.1
 * less some, RFC 8200 section 5), and the least of a device: IPv4's own would be 68 (RFC 791), but
 * a segment of 48 bytes has to fit (net.ipv4.tcp_min_snd_mss)
 */
enum { WIRE_MTU_MIN_V4 = 552, WIRE_MTU_MIN_V6 = 1280, WIRE_LINK_MTU_MIN_V4 = 88 };

/* mtu as a path MTU: no less than that */
static inline uint16_t wire_path_mtu(uint8_t family, uint32_t mtu)
{
	uint32_t least = family == WIRE_AF_INET ? WIRE_MTU_MIN_V4 : WIRE_MTU_MIN_V6;

	return (uint16_t)min_u32(mtu < least ? least : mtu, 65535);
}

/* mtu as a device's: no less than one has, which may be less than a path's */
static inline uint16_t wire_link_mtu(uint8_t family, uint32_t mtu)
{
	uint32_t least = family == WIRE_AF_INET ? WIRE_LINK_MTU_MIN_V4 : WIRE_MTU_MIN_V6;

	return (uint16_t)min_u32(mtu < least ? least : mtu, 65535);
}

/* check_csum: verify the TCP checksum too; IPv4 header and ICMP checksums are always verified */
enum wire_result wire_parse(const uint8_t *p, uint32_t len, bool check_csum, struct pkt *pkt);

/* What a TCP segment says, for building */
struct wire_seg {
	uint32_t seq;
	uint32_t ack;
	uint16_t wnd;
	uint16_t urg; /* urgent pointer */
	uint16_t flags;
	uint8_t opt_len; /* multiple of 4 */
	uint8_t opt[WIRE_TCP_OPT_MAX];
};

/* One direction of a connection: what goes into the IP header and the ports */
struct wire_dir {
	const uint8_t *saddr;
	const uint8_t *daddr;
	uint16_t sport_be;
	uint16_t dport_be;
	uint16_t id; /* IPv4 identification */
	uint8_t family;
	uint8_t tos;
	uint8_t ttl;	     /* or the hop limit; 0: WIRE_TTL */
	bool may_cut;	     /* IPv4: without DF */
	uint32_t flow_label; /* RFC 6437 */
};

static inline uint32_t wire_ip_len(uint8_t family)
{
	return family == WIRE_AF_INET ? WIRE_IP4_LEN : WIRE_IP6_LEN;
}

/*
 * Writes IP and TCP headers for payload_len bytes that follow. The TCP checksum field is 0;
 * wire_csum_full() or wire_csum_partial() fills it when the payload is there. Returns the length of
 * both headers.
 */
uint32_t wire_headers(uint8_t *buf, const struct wire_dir *dir, const struct wire_seg *seg,
		      uint32_t payload_len);

/* payload_sum: unfolded sum of the payload's bytes */
void wire_csum_full(uint8_t *buf, const struct wire_dir *dir, uint32_t headers_len,
		    uint32_t payload_len, uint64_t payload_sum);

/* CHECKSUM_PARTIAL: the field holds the folded pseudo-header sum, not complemented (virtio-net) */
void wire_csum_partial(uint8_t *buf, const struct wire_dir *dir, uint32_t headers_len,
		       uint32_t payload_len);

/*
 * An ICMP or ICMPv6 error from dir->daddr to dir->saddr that quotes the headers of the segment
 * (dir, seg). Returns the packet's length, at most WIRE_ICMP_MAX.
 */
enum { WIRE_ICMP_MAX = WIRE_IP6_LEN + 8 + WIRE_IP6_LEN + WIRE_TCP_LEN };
uint32_t wire_icmp_error(uint8_t *buf, const struct wire_dir *dir, const struct wire_seg *seg,
			 uint8_t type, uint8_t code);

/* Option writers; each returns the new length of seg->opt */
void wire_opt_mss(struct wire_seg *seg, uint16_t mss);
void wire_opt_syn_tail(struct wire_seg *seg, bool sack, bool ts, uint32_t tsval, uint32_t tsecr,
		       bool ws, uint8_t wscale);
void wire_opt_ts(struct wire_seg *seg, uint32_t tsval, uint32_t tsecr);
void wire_opt_sack(struct wire_seg *seg, const struct wire_sack *sack, uint32_t n);
/*
 * bytes: of code point i + 1. all: three counters in 12 bytes, else two in 8; the third is left out
 */
void wire_opt_accecn(struct wire_seg *seg, const uint32_t bytes[ACCECN_COUNTERS], bool ect1_first,
		     bool all);

/* WIRE_AGREE_LEN bytes */
void wire_opt_agree(struct wire_seg *seg, const struct wire_agree *agree);

/* Likewise in the role of parity. bears: the payload is parity; count: 11 bits, of symbols that
 * were repaired */
static inline void wire_opt_parity(struct wire_seg *seg, bool bears, uint32_t count)
{
	struct wire_agree said = {
		.role = WIRE_AGREE_PARITY,
		.version = WIRE_AGREE_VERSION,
		.features = (uint8_t)((bears ? WIRE_PARITY_BEARS : 0) | (count >> 8 & 7)),
		.value = (uint8_t)count,
	};

	wire_opt_agree(seg, &said);
}

static inline bool wire_parity_bears(const struct wire_agree *said)
{
	return said->features & WIRE_PARITY_BEARS;
}

static inline uint32_t wire_parity_count(const struct wire_agree *said)
{
	return (uint32_t)(said->features & 7) << 8 | said->value;
}

#endif /* DMM_WIRE_H */

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * datagram.h: a UDP packet as it goes from one leg to the other: whole, and as it came, so that
 * TTL, DSCP, ECN, identification, options and checksum are what the sender made them.
 *
 * Pure; reads nothing behind the packet. Nothing is kept of a datagram here, and none belongs to a
 * flow: which ones come at all the programs at the NIC say (bpf/udp.h).
 *
 * Two of our stacks have marks of their own for what they send each other besides: a checksum that
 * is wrong in a way of its own. A host without us drops such a packet as a damaged one (RFC 1122
 * section 4.1.3.4), so nothing but a datagram as it was sent can come to an app there.
 *
 * A copy has a tag of the process that sent it: the identification of IPv4, which means nothing
 * where nothing can be cut on the way (RFC 6864), or the last 16 bits of IPv6's flow label.
 *
 * Refuses: fragments, IPv6 extension headers, a UDP header or length that does not fit into the
 * packet, and segments or open checksums that are not UDP's.
 */
#ifndef DMM_DATAGRAM_H
#define DMM_DATAGRAM_H

#include "../api.h"
#include "../base/util.h"

enum {
	DATAGRAM_PROTO = 17,
	DATAGRAM_HEADER_BYTES = 8,
	DATAGRAM_CSUM_OFFSET = 6,   /* of the checksum in the UDP header */
	DATAGRAM_HEADERS_MOST = 68, /* of IPv4 with options, and UDP */
};

/* What the checksum says; the marks are what it differs by, XOR */
enum datagram_mark {
	DATAGRAM_RIGHT = 0,
	DATAGRAM_COPY = 0x5a3c,	  /* the datagram once more, but for its checksum */
	DATAGRAM_REPORT = 0xa5c3, /* report.h */
	DATAGRAM_WRONG = 0xffff,
};

/* Where things are in a packet that passed */
struct datagram {
	uint8_t *ip;
	uint32_t at;  /* of the UDP header */
	uint32_t end; /* of the UDP payload */
};

static inline uint8_t *datagram_payload(const struct datagram *d)
{
	return d->ip + d->at + DATAGRAM_HEADER_BYTES;
}

static inline uint32_t datagram_bytes(const struct datagram *d)
{
	return d->end - d->at - DATAGRAM_HEADER_BYTES;
}

/*
 * Of a packet with at least 20 bytes what is left to who takes it: as it came, but for what only
 * who receives is told. False: it is refused.
 */
bool datagram_pass(const uint8_t *ip, uint32_t len, const struct dmm_vnet *came,
		   struct dmm_vnet *goes);

/* Of a packet that passed, as goes says, and is not to be cut. False: it is longer than its UDP. */
bool datagram_find(const uint8_t *ip, uint32_t len, struct datagram *d);

/* What its checksum says; a packet without one (IPv4) is right. */
enum datagram_mark datagram_mark_of(const struct datagram *d);

/* Writes the checksum that says so. False: that one would be taken for right, or for none. */
bool datagram_mark_as(const struct datagram *d, enum datagram_mark mark);

/* False: an IPv4 packet that may be cut on the way has none. */
bool datagram_tag(const struct datagram *d, uint16_t tag);
/* 0: it has none */
uint16_t datagram_tag_of(const struct datagram *d);

/* Fills in the checksum of a packet that passed with goes, which says that it was left open and is
 * not to be cut (RFC 768, RFC 8200 section 8.1). */
void datagram_csum_fill(uint8_t *ip, uint32_t len, struct dmm_vnet *goes);

#endif /* DMM_DATAGRAM_H */

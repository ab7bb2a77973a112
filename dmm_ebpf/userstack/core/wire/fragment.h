/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fragment.h: packets that came in fragments are put together (RFC 791, RFC 815, RFC 8200
 * section 4.5), and IPv6 extension headers in front of what they carry are taken off, so that
 * wire.h knows one form of packet.
 *
 * Owns the packets that are not whole. Bounded: FRAGMENT_PACKETS of them, FRAGMENT_CHUNKS of
 * payload, a number of holes in each, and a time after which the rest is not waited for. Is there
 * no room, who has waited longest goes.
 *
 * - A fragment that overlaps another one spoils its packet, and what comes of that later (RFC 5722,
 * for IPv4 as in Linux). What says the same as is there already came twice on the way, and is
 * ignored.
 * - ECN: one that has met congestion marks the packet; some with and some without ECN spoil it (RFC
 * 3168 section 5.3).
 * - The hop limit is the least of all, so that no fragment from afar passes a bound on it (RFC
 * 5082).
 * - No ICMP error is sent.
 */
#ifndef DMM_FRAGMENT_H
#define DMM_FRAGMENT_H

#include "chain.h"
#include "../base/mem.h"

enum {
	FRAGMENT_PACKETS = 64,
	FRAGMENT_CHUNKS = 256, /* 1 MiB: sixteen of the longest, or all of 4 KiB */
	FRAGMENT_RANGES = 32,  /* of one packet, with holes between */
	FRAGMENT_HEADER_MAX = 256,
	FRAGMENT_MAX_BYTES = 65536,
};

#define FRAGMENT_WAIT4_NS                                                                          \
	(30 * NS_PER_S) /* as Linux; RFC 1122 section 3.3.2 would have 60 s at least */
#define FRAGMENT_WAIT6_NS (60 * NS_PER_S) /* RFC 8200 section 4.5 */

struct fragments;

enum fragment_result {
	FRAGMENT_WHOLE,	  /* *packet, *len is a packet with one header */
	FRAGMENT_KEPT,	  /* or ignored, as it was there already */
	FRAGMENT_DROPPED, /* and with it, it may be, what was there of its packet */
	FRAGMENT_REFUSED, /* malformed, or an extension header says to discard it */
};

/* NULL: no memory. Payload waits in chunks of mem. *dropped counts packets that are given up, but
 * for those whose first fragment never came: that says whose they are. */
struct fragments *fragments_create(struct mem *mem, uint64_t *dropped);
void fragments_destroy(struct fragments *f);

/*
 * A packet of at least 20 bytes for which chain_is_long(). WHOLE: it, or the one whose last missing
 * fragment it was, is in *packet until the next call; *joined: it was put together, so no checksum
 * has been looked at.
 */
enum fragment_result fragment_take(struct fragments *f, uint32_t leg, const uint8_t **packet,
				   uint32_t *len, bool *joined, uint64_t now_ns);

/* Gives up what has waited too long. Returns when to call again at the latest, or NEVER. */
uint64_t fragments_expire(struct fragments *f, uint64_t now_ns);

/* Payload of packets that are not whole, bytes */
uint64_t fragments_held_bytes(const struct fragments *f);

#endif /* DMM_FRAGMENT_H */

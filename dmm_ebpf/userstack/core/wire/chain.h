/* SPDX-License-Identifier: Apache-2.0 */
/*
 * chain.h: what stands in an IP packet in front of what it carries: the IPv4 header, or the IPv6
 * header and its extension headers.
 *
 * Pure; reads nothing behind the packet. Skipped are hop-by-hop options, destination options, a
 * routing header that has been gone through (RFC 8200 section 4) and an atomic fragment's header
 * (RFC 6946). Refuses options that say to discard what holds them if they are not known (RFC 8200
 * section 4.2), a routing header with segments left, and a fragment of a fragment.
 */
#ifndef DMM_CHAIN_H
#define DMM_CHAIN_H

#include "../base/util.h"

enum {
	CHAIN_HOP_BY_HOP = 0,
	CHAIN_TCP = 6,
	CHAIN_ROUTING = 43,
	CHAIN_FRAGMENT = 44,
	CHAIN_ICMP6 = 58,
	CHAIN_DESTINATION = 60,
};

struct chain {
	uint32_t at;  /* where what is carried begins, or a fragment's part of it */
	uint32_t end; /* of the packet, by its own length */
	/* of the byte that says what the first part is, in front of a fragment's header */
	uint32_t next_at;
	uint32_t front;	 /* bytes in front of a fragment's header; IPv4: of the whole header */
	uint32_t offset; /* of a fragment, bytes */
	uint32_t id;	 /* of its packet */
	uint8_t proto;	 /* of what stands at `at`; of a later fragment: as its sender says */
	bool fragment;	 /* not an atomic one */
	bool more;	 /* it is not the last */
};

/* Whether a packet of at least 20 bytes, IPv6 of at least 40, has anything but one plain header. */
static inline bool chain_is_long(const uint8_t *p, uint32_t len)
{
	if (p[0] >> 4 == 4)
		return (get_be16(p + 6) & 0x3fff) != 0;
	return p[0] >> 4 == 6 && len >= 40 &&
	       (p[6] == CHAIN_FRAGMENT || p[6] == CHAIN_HOP_BY_HOP || p[6] == CHAIN_DESTINATION ||
		p[6] == CHAIN_ROUTING);
}

/* False: malformed, or refused. Of a later fragment only what stands in front of its own header is
 * looked at.
 */
bool chain_read(const uint8_t *p, uint32_t len, struct chain *chain);

#endif /* DMM_CHAIN_H */

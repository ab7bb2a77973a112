/* SPDX-License-Identifier: Apache-2.0 */
/*
 * datagram.h: a UDP packet as it goes from one leg to the other: whole, and as it came, so that
 * TTL, DSCP, ECN, identification, options and checksum are what the sender made them.
 *
 * Pure; reads nothing behind the packet. Nothing is kept of a datagram, and none belongs to a flow
 * here: which ones come at all the programs at the NIC say (bpf/udp.h).
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
	DATAGRAM_CSUM_OFFSET = 6, /* of the checksum in the UDP header */
};

/*
 * Of a packet with at least 20 bytes what is left to who takes it: as it came, but for what only
 * who receives is told. False: it is refused.
 */
bool datagram_pass(const uint8_t *ip, uint32_t len, const struct dmm_vnet *came,
		   struct dmm_vnet *goes);

/* Fills in the checksum of a packet that passed with goes, which says that it was left open and is
 * not to be cut (RFC 768, RFC 8200 section 8.1). */
void datagram_csum_fill(uint8_t *ip, uint32_t len, struct dmm_vnet *goes);

#endif /* DMM_DATAGRAM_H */

// SPDX-License-Identifier: Apache-2.0
/* datagram.c: see datagram.h. */
#include "datagram.h"
#include "../base/csum.h"

enum { IP4_BYTES = 20, IP6_BYTES = 40, FRAGMENT_MASK = 0x3fff };

/* Where the UDP header begins, and the packet ends by its own length; false: not whole UDP. */
static bool bounds(const uint8_t *ip, uint32_t len, uint32_t *at, uint32_t *end)
{
	if (ip[0] >> 4 == 4) {
		*at = (ip[0] & 15u) * 4;
		*end = get_be16(ip + 2);
		if (*at < IP4_BYTES || (get_be16(ip + 6) & FRAGMENT_MASK))
			return false;
	} else {
		if (ip[0] >> 4 != 6 || len < IP6_BYTES)
			return false;
		*at = IP6_BYTES;
		*end = IP6_BYTES + get_be16(ip + 4);
	}
	return ip[ip[0] >> 4 == 4 ? 9 : 6] == DATAGRAM_PROTO && *end <= len &&
	       *end >= *at + DATAGRAM_HEADER_BYTES;
}

bool datagram_pass(const uint8_t *ip, uint32_t len, const struct dmm_vnet *came,
		   struct dmm_vnet *goes)
{
	bool open = came->flags & DMM_VNET_NEEDS_CSUM;
	uint32_t at, end, udp_bytes;

	if (!bounds(ip, len, &at, &end))
		return false;
	udp_bytes = get_be16(ip + at + 4);
	if (udp_bytes < DATAGRAM_HEADER_BYTES || udp_bytes > end - at)
		return false;
	if (open && (came->csum_start != at || came->csum_offset != DATAGRAM_CSUM_OFFSET))
		return false;
	if (came->gso_type && (came->gso_type != DMM_VNET_GSO_UDP || !came->gso_size || !open))
		return false;
	memset(goes, 0, sizeof(*goes));
	if (open) {
		goes->flags = DMM_VNET_NEEDS_CSUM;
		goes->csum_start = (uint16_t)at;
		goes->csum_offset = DATAGRAM_CSUM_OFFSET;
	}
	if (came->gso_type) {
		goes->gso_type = DMM_VNET_GSO_UDP;
		goes->gso_size = came->gso_size;
		goes->hdr_len = (uint16_t)(at + DATAGRAM_HEADER_BYTES);
	}
	return true;
}

/* The field holds the pseudo-header's sum, so that the sum of all is what is wanted. */
void datagram_csum_fill(uint8_t *ip, uint32_t len, struct dmm_vnet *goes)
{
	uint32_t at, end;
	uint16_t csum;

	if (!bounds(ip, len, &at, &end))
		return;
	csum = (uint16_t)~csum_fold(csum_add(ip + at, end - at, 0));
	if (!csum)
		csum = 0xffff; /* 0 says that there is none */
	memcpy(ip + at + DATAGRAM_CSUM_OFFSET, &csum, 2);
	memset(goes, 0, sizeof(*goes));
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * frame.h: what an Ethernet frame with an IP packet says of itself, and what a port that does not
 * tell leaves to be found out: its length, a checksum that was left open, segments put together.
 */
#ifndef DMM_FRAME_H
#define DMM_FRAME_H

#include <net/ethernet.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/api.h"

enum {
	ETH_BYTES = 14,
	IP4_MIN_BYTES = 20,
	IP6_BYTES = 40,
	PROTO_TCP = 6,
	PROTO_UDP = 17,
	TCP_CSUM_OFFSET = 16,
	TCP_OFFSET_BYTE = 12,
};

/* Of the IP header alone: what follows an IPv6 one is not looked for. */
static inline uint32_t ip_header_bytes(const uint8_t *ip, bool v6)
{
	return v6 ? IP6_BYTES : (ip[0] & 15u) * 4;
}

static inline uint32_t sum_add(uint32_t sum, const uint8_t *p, uint32_t bytes)
{
	for (uint32_t i = 0; i + 1 < bytes; i += 2)
		sum += (uint32_t)p[i] << 8 | p[i + 1];
	return sum;
}

/*
 * A veth, and generic XDP on any device, hand over what a kernel left CHECKSUM_PARTIAL: the field
 * holds the pseudo-header's sum (RFC 9293 section 3.1), not complemented. The packet never was on a
 * wire, or GRO has verified it. A correct checksum that happens to equal that sum says the same
 * thing.
 */
static inline bool csum_is_partial(const uint8_t *ip, uint32_t len, bool v6)
{
	uint32_t header = ip_header_bytes(ip, v6);

	if ((v6 ? ip[6] : ip[9]) != PROTO_TCP || len < header + TCP_CSUM_OFFSET + 2)
		return false;
	uint32_t sum = sum_add(PROTO_TCP + len - header, v6 ? ip + 8 : ip + 12, v6 ? 32 : 8);

	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	const uint8_t *field = ip + header + TCP_CSUM_OFFSET;

	return ((uint32_t)field[0] << 8 | field[1]) == sum;
}

/*
 * What is longer than any packet of the link was put together by GRO, or was not yet cut by who
 * sent it. How long its segments were it does not say: as long as they may be here.
 */
static inline void merged_note(const uint8_t *ip, uint32_t len, bool v6, uint32_t mtu,
			       struct dmm_vnet *vnet)
{
	uint32_t headers = ip_header_bytes(ip, v6);

	if (len <= mtu || (v6 ? ip[6] : ip[9]) != PROTO_TCP || len <= headers + TCP_OFFSET_BYTE)
		return;
	headers += (ip[headers + TCP_OFFSET_BYTE] >> 4) * 4u;
	if (mtu <= headers)
		return;
	vnet->gso_type = v6 ? DMM_VNET_GSO_TCPV6 : DMM_VNET_GSO_TCPV4;
	vnet->gso_size = (uint16_t)(mtu - headers);
}

/* What AF_XDP does not say of a packet that no hardware has had in hand */
static inline void software_note(const uint8_t *ip, uint32_t len, bool v6, uint32_t mtu,
				 struct dmm_vnet *vnet)
{
	vnet->flags = csum_is_partial(ip, len, v6) ? DMM_VNET_NEEDS_CSUM : 0;
	merged_note(ip, len, v6, mtu, vnet);
}

/*
 * The IP packet's own length: a short Ethernet frame carries padding. 0: not an IP packet,
 * or cut short.
 */
static inline uint32_t ip_length(const uint8_t *frame, uint32_t len, bool *v6)
{
	const uint8_t *ip = frame + ETH_BYTES;
	uint32_t room = len - ETH_BYTES;
	uint32_t type, total;

	if (len < ETH_BYTES + IP4_MIN_BYTES)
		return 0;
	type = (uint32_t)frame[12] << 8 | frame[13];
	*v6 = type == ETHERTYPE_IPV6;
	if (type == ETHERTYPE_IP)
		total = (uint32_t)ip[2] << 8 | ip[3];
	else if (*v6 && room >= IP6_BYTES)
		total = ((uint32_t)ip[4] << 8 | ip[5]) + IP6_BYTES;
	else
		return 0;
	return total <= room && total >= (*v6 ? IP6_BYTES : IP4_MIN_BYTES) ? total : 0;
}

#endif /* DMM_FRAME_H */

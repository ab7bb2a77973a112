// SPDX-License-Identifier: Apache-2.0
/* datagram.c: see datagram.h. */
#include "datagram.h"
#include "../base/csum.h"

enum {
	IP4_BYTES = 20,
	IP6_BYTES = 40,
	FRAGMENT_MASK = 0x3fff,
	IP4_DF = 0x4000,
	IP4_WHOLE_BYTES = 576, /* so long a packet is not cut (RFC 791) */
	TAG4_AT = 4,
	TAG6_AT = 2,
};

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

bool datagram_find(const uint8_t *ip, uint32_t len, struct datagram *d)
{
	*d = (struct datagram){.ip = (uint8_t *)(uintptr_t)ip};
	return bounds(ip, len, &d->at, &d->end) && get_be16(ip + d->at + 4) == d->end - d->at;
}

/* The checksum that is right, as it is in memory; never 0 */
static uint16_t right_csum(const struct datagram *d)
{
	bool v4 = d->ip[0] >> 4 == 4;
	uint8_t rest[4] = {0, DATAGRAM_PROTO, 0, 0};
	uint64_t sum = csum_add(d->ip + (v4 ? 12 : 8), v4 ? 8 : 32, 0);
	uint16_t csum;

	put_be16(rest + 2, (uint16_t)(d->end - d->at));
	sum = csum_join(sum, csum_add(rest, sizeof(rest), 0));
	sum = csum_join(sum, csum_add(d->ip + d->at, DATAGRAM_CSUM_OFFSET, 0));
	sum = csum_join(sum, csum_add(datagram_payload(d), datagram_bytes(d), 0));
	csum = (uint16_t)~csum_fold(sum);
	return csum ? csum : 0xffff;
}

static uint16_t in_memory(enum datagram_mark mark)
{
	uint8_t bytes[2];
	uint16_t v;

	put_be16(bytes, (uint16_t)mark);
	memcpy(&v, bytes, 2);
	return v;
}

enum datagram_mark datagram_mark_of(const struct datagram *d)
{
	static const enum datagram_mark marks[] = {DATAGRAM_COPY, DATAGRAM_REPORT};
	uint16_t csum, right;

	memcpy(&csum, d->ip + d->at + DATAGRAM_CSUM_OFFSET, 2);
	if (!csum)
		return d->ip[0] >> 4 == 4 ? DATAGRAM_RIGHT : DATAGRAM_WRONG;
	right = right_csum(d);
	if (csum == right)
		return DATAGRAM_RIGHT;
	csum ^= right;
	for (uint32_t i = 0; i < 2; i++) {
		if (csum == in_memory(marks[i]))
			return marks[i];
	}
	return DATAGRAM_WRONG;
}

bool datagram_mark_as(const struct datagram *d, enum datagram_mark mark)
{
	uint16_t csum = right_csum(d) ^ in_memory(mark);

	memcpy(d->ip + d->at + DATAGRAM_CSUM_OFFSET, &csum, 2);
	return csum != 0;
}

static bool may_be_cut(const struct datagram *d)
{
	return d->ip[0] >> 4 == 4 && d->end > IP4_WHOLE_BYTES && !(get_be16(d->ip + 6) & IP4_DF);
}

bool datagram_tag(const struct datagram *d, uint16_t tag)
{
	uint16_t csum = 0;

	if (may_be_cut(d))
		return false;
	if (d->ip[0] >> 4 == 6) {
		put_be16(d->ip + TAG6_AT, tag);
		return true;
	}
	put_be16(d->ip + TAG4_AT, tag);
	memcpy(d->ip + 10, &csum, 2);
	csum = (uint16_t)~csum_fold(csum_add(d->ip, (d->ip[0] & 15u) * 4, 0));
	memcpy(d->ip + 10, &csum, 2);
	return true;
}

uint16_t datagram_tag_of(const struct datagram *d)
{
	if (may_be_cut(d))
		return 0;
	return get_be16(d->ip + (d->ip[0] >> 4 == 6 ? TAG6_AT : TAG4_AT));
}

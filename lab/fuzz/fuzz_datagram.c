/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_datagram.c: libFuzzer target for datagram.c.
 *
 * The first ten bytes are what a device says of the packet (struct dmm_vnet), with bit 7 of the
 * first: make its checksum fields fit; the rest is the packet, in a block of exactly its size, so
 * that AddressSanitizer sees each read behind it.
 *
 * Checked: what passes is whole UDP by its own lengths; what is left to the next device lies inside
 * it; a checksum that is filled in is right by RFC 768, and nothing else of the packet changes.
 */
#include "../sim/holds.h"
#include "udp/datagram.h"

#include <stdlib.h>

enum { FIT = 0x80, VNET_BYTES = sizeof(struct dmm_vnet) };

static uint32_t sum_of(const uint8_t *p, uint32_t len, uint32_t sum)
{
	for (uint32_t i = 0; i + 1 < len; i += 2)
		sum += (uint32_t)p[i] << 8 | p[i + 1];
	if (len & 1)
		sum += (uint32_t)p[len - 1] << 8;
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

static uint32_t header_of(const uint8_t *ip)
{
	return ip[0] >> 4 == 4 ? (ip[0] & 15u) * 4 : 40;
}

static uint32_t end_of(const uint8_t *ip)
{
	return ip[0] >> 4 == 4 ? get_be16(ip + 2) : 40u + get_be16(ip + 4);
}

/* Of the pseudo-header */
static uint32_t pseudo_of(const uint8_t *ip, uint32_t bytes)
{
	bool v4 = ip[0] >> 4 == 4;

	return sum_of(ip + (v4 ? 12 : 8), v4 ? 8 : 32, bytes + DATAGRAM_PROTO);
}

static void fill(uint8_t *ip, uint32_t len, struct dmm_vnet *goes)
{
	uint32_t at = header_of(ip), bytes = end_of(ip) - at;
	uint8_t *field = ip + at + DATAGRAM_CSUM_OFFSET;
	uint8_t *before = malloc(len);

	put_be16(field, (uint16_t)pseudo_of(ip, bytes));
	memcpy(before, ip, len);
	datagram_csum_fill(ip, len, goes);
	CHECK(sum_of(ip + at, bytes, pseudo_of(ip, bytes)) == 0xffff);
	CHECK(get_be16(field) != 0);
	memcpy(field, before + at + DATAGRAM_CSUM_OFFSET, 2);
	CHECK(!memcmp(before, ip, len));
	free(before);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct dmm_vnet came, goes;
	uint32_t len;
	uint8_t *ip;

	if (size < VNET_BYTES + 20)
		return 0;
	memcpy(&came, data, VNET_BYTES);
	len = (uint32_t)size - VNET_BYTES;
	ip = malloc(len);
	memcpy(ip, data + VNET_BYTES, len);
	if (came.flags & FIT) {
		came.csum_start = (uint16_t)header_of(ip);
		came.csum_offset = DATAGRAM_CSUM_OFFSET;
	}
	if (datagram_pass(ip, len, &came, &goes)) {
		uint32_t at = header_of(ip), end = end_of(ip);

		CHECK(end <= len && at + DATAGRAM_HEADER_BYTES <= end);
		CHECK(!goes.flags || goes.csum_start + goes.csum_offset + 2u <= end);
		CHECK(!goes.gso_type || (goes.gso_size && goes.hdr_len <= end && goes.flags));
		if (goes.flags && !goes.gso_type)
			fill(ip, len, &goes);
	}
	free(ip);
	return 0;
}

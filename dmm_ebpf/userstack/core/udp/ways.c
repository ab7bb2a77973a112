// SPDX-License-Identifier: Apache-2.0
/* ways.c: see ways.h. */
#include "ways.h"
#include "../base/csum.h"

enum { IP4_BYTES = 20, IP6_BYTES = 40, TTL = 64 };

static bool is_old(const struct way *way, uint64_t now_ns)
{
	return now_ns - way->fresh_ns >= WAY_NS;
}

/* The packet's exchange, turned round */
static void turn(struct way *way, const struct datagram *d)
{
	const uint8_t *frame = d->ip - DMM_CORE_ETH_BYTES;
	uint8_t *eth = way->headers, *ip = eth + DMM_CORE_ETH_BYTES;
	bool v4 = d->ip[0] >> 4 == 4;

	memset(way->headers, 0, sizeof(way->headers));
	way->ip_bytes = v4 ? IP4_BYTES : IP6_BYTES;
	memcpy(eth, frame + 6, 6);
	memcpy(eth + 6, frame, 6);
	memcpy(eth + 12, frame + 12, 2);
	ip[0] = v4 ? 0x45 : 0x60;
	if (v4) {
		ip[6] = 0x40; /* DF */
		ip[8] = TTL;
		ip[9] = DATAGRAM_PROTO;
		memcpy(ip + 12, d->ip + 16, 4);
		memcpy(ip + 16, d->ip + 12, 4);
	} else {
		ip[6] = DATAGRAM_PROTO;
		ip[7] = TTL;
		memcpy(ip + 8, d->ip + 24, 16);
		memcpy(ip + 24, d->ip + 8, 16);
	}
	memcpy(ip + way->ip_bytes, d->ip + d->at + 2, 2);
	memcpy(ip + way->ip_bytes + 2, d->ip + d->at, 2);
}

/* The tag's own; else that of nobody known, a free one, or the oldest */
static struct way *way_of(struct ways *w, uint16_t tag)
{
	struct way *oldest = w->v;

	for (struct way *way = w->v; way < w->v + WAYS; way++) {
		if (way->fresh_ns && way->tag == tag)
			return way;
		if (way->fresh_ns && way->tag == WAY_NO_TAG)
			oldest = way;
		else if (way->fresh_ns < oldest->fresh_ns && oldest->tag != WAY_NO_TAG)
			oldest = way;
	}
	return oldest;
}

static struct way *only_one(struct ways *w)
{
	struct way *one = NULL;

	for (struct way *way = w->v; way < w->v + WAYS; way++) {
		if (way->fresh_ns)
			one = way;
	}
	return one;
}

void ways_renew(struct ways *w, const struct datagram *d, uint32_t nic, uint16_t tag,
		uint64_t now_ns)
{
	struct way *way;

	if (tag == WAY_NO_TAG && ways_count(w, now_ns) > 1)
		return;
	way = tag == WAY_NO_TAG ? only_one(w) : way_of(w, tag);
	if (!way)
		way = w->v;
	if (tag != WAY_NO_TAG || !way->fresh_ns)
		way->tag = tag;
	way->nic = nic;
	way->fresh_ns = now_ns | 1;
	turn(way, d);
}

uint32_t ways_count(struct ways *w, uint64_t now_ns)
{
	struct way *latest = w->v;
	uint32_t n = 0;

	for (struct way *way = w->v; way < w->v + WAYS; way++) {
		if (way->fresh_ns > latest->fresh_ns)
			latest = way;
	}
	for (struct way *way = w->v; way < w->v + WAYS; way++) {
		if (way != latest && way->fresh_ns && is_old(way, now_ns))
			*way = (struct way){0};
		n += !!way->fresh_ns;
	}
	return n;
}

void way_write(const struct way *way, uint8_t *frame, uint32_t bytes, struct datagram *d)
{
	uint32_t udp_bytes = DATAGRAM_HEADER_BYTES + bytes;
	uint8_t *ip = frame + DMM_CORE_ETH_BYTES;
	uint16_t csum;

	memcpy(frame, way->headers, DMM_CORE_ETH_BYTES + way->ip_bytes + DATAGRAM_HEADER_BYTES);
	*d = (struct datagram){.ip = ip, .at = way->ip_bytes, .end = way->ip_bytes + udp_bytes};
	put_be16(ip + way->ip_bytes + 4, (uint16_t)udp_bytes);
	if (way->ip_bytes == IP6_BYTES) {
		put_be16(ip + 4, (uint16_t)udp_bytes);
		return;
	}
	put_be16(ip + 2, (uint16_t)d->end);
	csum = (uint16_t)~csum_fold(csum_add(ip, IP4_BYTES, 0));
	memcpy(ip + 10, &csum, 2);
}

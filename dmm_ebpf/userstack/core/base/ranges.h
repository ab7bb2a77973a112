/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ranges.h: which sequence ranges beyond rcv_nxt have arrived (RFC 2018's receiver side).
 *
 * A sorted array of disjoint, non-touching ranges. Retransmissions fill holes near the front and
 * new data lengthens the back, so a removal moves the shorter side.
 *
 * Refuses: more than RANGES_MAX ranges; the segment is then dropped, the sender sends it again.
 */
#ifndef DMM_RANGES_H
#define DMM_RANGES_H

#include "mem.h"

enum {
	RANGES_MAX = 65536,
	RANGES_RECENT = 4, /* a SACK option with no timestamps has room for 4 blocks */
};

struct range {
	uint64_t start;
	uint64_t end;
};

struct ranges {
	struct range *v;
	uint32_t first; /* index in v */
	uint32_t n;
	uint32_t cap;
	uint32_t n_recent;
	uint64_t recent[RANGES_RECENT]; /* a sequence number inside each range, newest first */
};

/* Adds [start, end) and makes it the newest. Returns how many of its bytes were there already, or
 * UINT64_MAX: full. */
uint64_t ranges_add(struct mem *m, struct ranges *r, uint64_t start, uint64_t end);

/*
 * Takes out everything at or below upto's range; returns the end of the range that touches
 * upto, or upto
 */
uint64_t ranges_take(struct ranges *r, uint64_t upto);

/* Up to max blocks in the order RFC 2018 wants. Returns their number. */
uint32_t ranges_report(struct ranges *r, struct range *out, uint32_t max);

/* The range that holds seq; NULL: none */
const struct range *ranges_find(const struct ranges *r, uint64_t seq);

void ranges_release(struct mem *m, struct ranges *r);

#endif /* DMM_RANGES_H */

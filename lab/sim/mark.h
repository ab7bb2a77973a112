/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mark.h: what a router does to a packet in a long queue: congestion experienced (RFC
 * 3168 section 5)
 */
#ifndef SIM_MARK_H
#define SIM_MARK_H

#include "base/util.h"

/* Returns whether the packet may carry the mark and did not yet */
static inline bool mark_ce(uint8_t *p)
{
	bool v4 = p[0] >> 4 == 4;
	uint8_t shift = v4 ? 0 : 4, ecn = p[1] >> shift & 3;
	uint32_t c;

	if (!ecn || ecn == 3)
		return false;
	p[1] |= (uint8_t)(3 << shift);
	if (v4) {
		c = (uint16_t)~get_be16(p + 10) + (3u - ecn);
		put_be16(p + 10, (uint16_t) ~((c & 0xffff) + (c >> 16)));
	}
	return true;
}

#endif /* SIM_MARK_H */

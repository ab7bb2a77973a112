/* SPDX-License-Identifier: Apache-2.0 */
/*
 * loss_pair.h: of so many transmissions so many were lost, counted so that what was long ago is
 * forgotten.
 *
 * Invariants: lost <= sent, both below 2 * LOSS_WINDOW.
 */
#ifndef DMM_LOSS_PAIR_H
#define DMM_LOSS_PAIR_H

#include "util.h"

enum {
	LOSS_WINDOW = 256, /* transmissions; twice as many are halved */
	LOSS_PRIOR = 16,   /* transmissions that are believed to have arrived before any was sent */
	LOSS_MOST_PPM = 400000, /* more is never held for random */
};

struct loss_pair {
	uint16_t sent;
	uint16_t lost;
};

static inline void loss_pair_add(struct loss_pair *p, uint32_t sent, uint32_t lost)
{
	p->sent = (uint16_t)(p->sent + min_u32(sent, LOSS_WINDOW));
	p->lost = (uint16_t)(p->lost + min_u32(lost, min_u32(sent, LOSS_WINDOW)));
	if (p->sent < 2 * LOSS_WINDOW)
		return;
	p->sent /= 2;
	p->lost /= 2;
}

static inline uint32_t loss_root(uint32_t v)
{
	uint32_t r = 0;

	while ((r + 1) * (r + 1) <= v)
		r++;
	return r;
}

/* A sigma more than was seen: to take a path for better than it is costs more than a copy too
 * many. */
static inline uint32_t loss_pair_ppm(const struct loss_pair *p, uint32_t prior, uint64_t prior_ppm)
{
	uint64_t lost = p->lost + loss_root(p->lost);

	return (uint32_t)min_u64((lost * 1000000u + prior * prior_ppm) / (p->sent + prior),
				 1000000u);
}

#endif /* DMM_LOSS_PAIR_H */

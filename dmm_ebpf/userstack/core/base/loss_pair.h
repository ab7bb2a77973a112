/* SPDX-License-Identifier: Apache-2.0 */
/*
 * loss_pair.h: of so many transmissions so many were lost, counted so that what was long ago is
 * forgotten.
 *
 * Invariants: lost <= sent, both below twice the window.
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

/* window: so many are remembered at least, below 16384 */
static inline void loss_pair_add_of(struct loss_pair *p, uint32_t sent, uint32_t lost,
				    uint32_t window)
{
	p->sent = (uint16_t)(p->sent + min_u32(sent, window));
	p->lost = (uint16_t)(p->lost + min_u32(lost, min_u32(sent, window)));
	if (p->sent < 2 * window)
		return;
	p->sent /= 2;
	p->lost /= 2;
}

static inline void loss_pair_add(struct loss_pair *p, uint32_t sent, uint32_t lost)
{
	loss_pair_add_of(p, sent, lost, LOSS_WINDOW);
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

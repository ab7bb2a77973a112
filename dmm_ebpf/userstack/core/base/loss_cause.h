/* SPDX-License-Identifier: Apache-2.0 */
/*
 * loss_cause.h: when loss may be congestion, so that more packets would make it worse; of segments
 * and of datagrams alike.
 *
 * A queue stands where round trips are longer than the shortest of the last ten seconds by a
 * quarter and 2 ms. Loss above LOSS_MOST_PPM is never held for random: that path is broken or
 * policed.
 */
#ifndef DMM_LOSS_CAUSE_H
#define DMM_LOSS_CAUSE_H

#include "loss_pair.h"

enum {
	LOSS_CALM_SLACK_MS = 2,
	LOSS_OFF_S = 10, /* after too much loss, doubled each time */
	LOSS_OFF_SHIFT_MOST = 5,
	LOSS_PROOF = LOSS_WINDOW / 4, /* fewer transmissions prove no such loss */
};

/* After too much loss nothing is sent besides what must be. */
struct loss_off {
	uint64_t until_ns;
	uint8_t shift;
};

/* So long a round trip has no queue in it that is worth the name. least_ns: NEVER: none is known */
static inline bool loss_is_calm(uint64_t rtt_ns, uint64_t least_ns)
{
	return least_ns == NEVER ||
	       rtt_ns <= least_ns + least_ns / 4 + LOSS_CALM_SLACK_MS * NS_PER_MS;
}

/* True: it was too much, and what was counted is begun anew. */
static inline bool loss_was_too_much(struct loss_off *off, struct loss_pair *p, uint64_t now_ns)
{
	if (p->sent < LOSS_PROOF || loss_pair_ppm(p, LOSS_PRIOR, 0) <= LOSS_MOST_PPM)
		return false;
	off->until_ns = now_ns + (LOSS_OFF_S * NS_PER_S << off->shift);
	off->shift = (uint8_t)min_u32(off->shift + 1u, LOSS_OFF_SHIFT_MOST);
	*p = (struct loss_pair){0, 0};
	return true;
}

#endif /* DMM_LOSS_CAUSE_H */

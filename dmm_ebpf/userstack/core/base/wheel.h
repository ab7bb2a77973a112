/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wheel.h: hierarchical timer wheel (Varghese and Lauck): arming, cancelling and expiring cost
 * O(1).
 *
 * Eight levels of 64 slots; a tick is 32.768 us, so one wheel reaches past every deadline. A node
 * never fires before its deadline and at most one tick after it, if wheel_expire() is called in
 * time.
 */
#ifndef DMM_WHEEL_H
#define DMM_WHEEL_H

#include "util.h"

enum { WHEEL_LEVELS = 8, WHEEL_BITS = 6, WHEEL_SLOTS = 64, WHEEL_TICK_SHIFT = 15 };

struct wheel_node {
	struct list link;
	uint64_t tick; /* 0: not armed */
};

struct wheel {
	uint64_t now; /* tick */
	uint64_t pending[WHEEL_LEVELS];
	struct list slot[WHEEL_LEVELS][WHEEL_SLOTS];
	struct list due;
};

void wheel_init(struct wheel *w, uint64_t now_ns);
void wheel_node_init(struct wheel_node *n);
void wheel_arm(struct wheel *w, struct wheel_node *n, uint64_t deadline_ns);
void wheel_cancel(struct wheel *w, struct wheel_node *n);

/* Moves time on; after it wheel_pop() gives the nodes that are due, unarmed */
void wheel_advance(struct wheel *w, uint64_t now_ns);
struct wheel_node *wheel_pop(struct wheel *w);

/* When wheel_advance() is worth calling again (may be earlier than the next deadline); NEVER:
 * nothing armed
 */
uint64_t wheel_next_ns(const struct wheel *w);

static inline uint64_t wheel_tick_of(uint64_t ns)
{
	return ns == NEVER ? UINT64_MAX : (ns >> WHEEL_TICK_SHIFT) + 1;
}

#endif /* DMM_WHEEL_H */

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wheel.c: see wheel.h.
 *
 * A node sits at the level of the highest bit in which its tick differs in distance from now; on
 * levels above the first it sits one slot early, so that it is moved down before it is due.
 */
#include "wheel.h"

#define SLOT_MASK (WHEEL_SLOTS - 1)

static uint64_t rotl(uint64_t v, uint32_t c)
{
	c &= 63;
	return c ? v << c | v >> (64 - c) : v;
}

static uint64_t rotr(uint64_t v, uint32_t c)
{
	return rotl(v, 64 - (c & 63));
}

void wheel_init(struct wheel *w, uint64_t now_ns)
{
	memset(w, 0, sizeof(*w));
	w->now = now_ns >> WHEEL_TICK_SHIFT;
	for (int l = 0; l < WHEEL_LEVELS; l++) {
		for (int s = 0; s < WHEEL_SLOTS; s++)
			list_init(&w->slot[l][s]);
	}
	list_init(&w->due);
}

void wheel_node_init(struct wheel_node *n)
{
	list_init(&n->link);
	n->tick = 0;
}

static void wheel_insert(struct wheel *w, struct wheel_node *n)
{
	uint64_t rem;
	uint32_t level, slot;

	if (n->tick <= w->now) {
		list_add_tail(&w->due, &n->link);
		return;
	}
	rem = n->tick - w->now;
	level = min_u32((63 - (uint32_t)__builtin_clzll(rem)) / WHEEL_BITS, WHEEL_LEVELS - 1);
	slot = ((n->tick >> (level * WHEEL_BITS)) - !!level) & SLOT_MASK;
	list_add_tail(&w->slot[level][slot], &n->link);
	w->pending[level] |= 1ull << slot;
}

void wheel_arm(struct wheel *w, struct wheel_node *n, uint64_t deadline_ns)
{
	wheel_cancel(w, n);
	n->tick = wheel_tick_of(deadline_ns);
	if (n->tick > w->now + (1ull << (WHEEL_LEVELS * WHEEL_BITS - 1)))
		n->tick = w->now + (1ull << (WHEEL_LEVELS * WHEEL_BITS - 1));
	wheel_insert(w, n);
}

void wheel_cancel(struct wheel *w, struct wheel_node *n)
{
	(void)w; /* the pending bit of an emptied slot is cleared when time passes over it */
	if (!n->tick)
		return;
	list_del(&n->link);
	n->tick = 0;
}

static void list_splice(struct list *to, struct list *from)
{
	if (list_empty(from))
		return;
	from->next->prev = to->prev;
	to->prev->next = from->next;
	from->prev->next = to;
	to->prev = from->prev;
	list_init(from);
}

void wheel_advance(struct wheel *w, uint64_t now_ns)
{
	uint64_t now = now_ns >> WHEEL_TICK_SHIFT;
	uint64_t elapsed;
	struct list todo;

	if (now <= w->now)
		return;
	elapsed = now - w->now;
	list_init(&todo);
	for (uint32_t l = 0; l < WHEEL_LEVELS; l++) {
		uint64_t passed = elapsed >> (l * WHEEL_BITS);
		uint64_t slots = UINT64_MAX;

		if (passed <= SLOT_MASK) {
			uint32_t from = (w->now >> (l * WHEEL_BITS)) & SLOT_MASK;
			uint32_t to = (now >> (l * WHEEL_BITS)) & SLOT_MASK;
			uint64_t run = (1ull << passed) - 1;

			slots = rotl(run, from) | rotr(rotl(run, to), (uint32_t)passed) |
				1ull << to;
		}
		for (uint64_t hit = slots & w->pending[l]; hit; hit &= hit - 1)
			list_splice(&todo, &w->slot[l][__builtin_ctzll(hit)]);
		w->pending[l] &= ~slots;
		if (!(slots & 1))
			break; /* this level did not wrap, so the next did not tick */
		elapsed = max_u64(elapsed, (uint64_t)WHEEL_SLOTS << (l * WHEEL_BITS));
	}
	w->now = now;
	while (!list_empty(&todo)) {
		struct wheel_node *n = container_of(todo.next, struct wheel_node, link);

		list_del(&n->link);
		wheel_insert(w, n);
	}
}

struct wheel_node *wheel_pop(struct wheel *w)
{
	struct wheel_node *n;

	if (list_empty(&w->due))
		return NULL;
	n = container_of(w->due.next, struct wheel_node, link);
	list_del(&n->link);
	n->tick = 0;
	return n;
}

uint64_t wheel_next_ns(const struct wheel *w)
{
	uint64_t best = UINT64_MAX, below = 0;

	if (!list_empty(&w->due))
		return w->now << WHEEL_TICK_SHIFT;
	for (uint32_t l = 0; l < WHEEL_LEVELS; l++) {
		if (w->pending[l]) {
			uint32_t slot = (w->now >> (l * WHEEL_BITS)) & SLOT_MASK;
			uint64_t dist = (uint64_t)__builtin_ctzll(rotr(w->pending[l], slot)) + !!l;

			best = min_u64(best, (dist << (l * WHEEL_BITS)) - (below & w->now));
		}
		below = below << WHEEL_BITS | SLOT_MASK;
	}
	return best == UINT64_MAX ? NEVER : (w->now + best) << WHEEL_TICK_SHIFT;
}

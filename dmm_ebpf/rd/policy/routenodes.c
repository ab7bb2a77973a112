/* SPDX-License-Identifier: Apache-2.0 */
/*
 * routenodes.c: the prefixes of all tables as the trees that programs search (routetable.h,
 * struct dmm_route_node).
 *
 * A sweep goes through the prefixes that end in one digit, in order, and keeps those that it is in:
 * what the innermost says holds from its first digit on, and behind its last one what the next
 * outer one says. What it finds goes into a tree from left to right. Prefixes that go on in the
 * next digit are a sweep of their own, which is a prefix of one digit here.
 *
 * A node's children lie side by side, so they wait until there are as many as it takes, or no more
 * come; then they get their places, and the node is the next child of the one above it.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* qsort_r() */
#endif
#include "routetable.h"

#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>

#include "../../../bpf/abi.h"
#include "routeemission.h"

enum {
	PARTS = DMM_NODE_PARTS,
	DIGITS = DMM_ROUTE_DIGITS,
	MOST_LEVELS = 11,   /* PARTS to the power of that is more than two to that of 32 */
	MOST_OPEN = 64 + 1, /* prefixes of a digit in one another, and a longer one's digit */
};

#define MAX_DIGIT (UINT64_MAX >> 1)
#define MAPPED (UINT64_C(0xffff) << 32)

struct level {
	struct dmm_route_node nodes[PARTS];
	uint64_t firsts[PARTS];
	uint32_t count;
};

struct tree {
	struct level levels[MOST_LEVELS];
	uint32_t height; /* the highest level that has nodes */
	uint32_t parts;	 /* of the last leaf */
	uint64_t start;	 /* of its last part */
};

struct sweep {
	struct tree tree;
	struct {
		uint64_t last;
		struct dmm_node_value value;
	} open[MOST_OPEN];
	uint32_t depth;
	struct dmm_node_value around; /* what holds where it is in none */
	uint64_t of;		      /* the digit before, */
	int is_on;		      /* if it has begun */
};

struct forest {
	struct sweep sweeps[DIGITS];
	uint32_t next; /* place of a node */
	uint32_t *keys;
	struct dmm_route_node *nodes;
	uint32_t made;
};

static const struct dmm_node_value nothing = {.route = DMM_ROUTE_NONE};

static struct dmm_node_value deeper(uint32_t root)
{
	return (struct dmm_node_value){.route = root, .stack = DMM_NODE_DEEPER};
}

static void place(struct forest *f, uint32_t at, const struct dmm_route_node *node)
{
	f->keys[f->made] = at;
	f->nodes[f->made++] = *node;
}

static struct dmm_route_node *new_node(struct forest *f, struct tree *t, uint32_t level,
				       uint64_t first);

/* Gives the nodes of a level their places, below a new one of the next. */
static void place_level(struct forest *f, struct tree *t, uint32_t level)
{
	struct level *l = &t->levels[level];
	struct dmm_route_node *above = new_node(f, t, level + 1, l->firsts[0]);

	above->children = f->next;
	for (uint32_t i = 0; i < l->count; i++) {
		if (i)
			above->lasts[i - 1] = l->firsts[i] - 1;
		place(f, f->next++, &l->nodes[i]);
	}
	l->count = 0;
}

static struct dmm_route_node *new_node(struct forest *f, struct tree *t, uint32_t level,
				       uint64_t first)
{
	struct level *l = &t->levels[level];
	struct dmm_route_node *node;

	if (l->count == PARTS)
		place_level(f, t, level);
	if (t->height < level)
		t->height = level;
	l->firsts[l->count] = first;
	node = &l->nodes[l->count++];
	memset(node, 0, sizeof(*node));
	for (uint32_t i = 0; i < PARTS - 1; i++)
		node->lasts[i] = MAX_DIGIT;
	return node;
}

/* That value holds from first on, which is not before that of the call before. */
static void tree_put(struct forest *f, struct tree *t, uint64_t first, struct dmm_node_value value)
{
	struct level *leaves = &t->levels[0];
	struct dmm_route_node *leaf = leaves->count ? &leaves->nodes[leaves->count - 1] : NULL;

	if (leaf && t->start == first) {
		leaf->values[t->parts - 1] = value;
		return;
	}
	if (leaf && !memcmp(&leaf->values[t->parts - 1], &value, sizeof(value)))
		return;
	if (!leaf || t->parts == PARTS) {
		leaf = new_node(f, t, 0, first);
		t->parts = 0;
	} else {
		leaf->lasts[t->parts - 1] = first - 1;
	}
	leaf->values[t->parts++] = value;
	t->start = first;
}

/* Places what is left but the root, which is returned; the tree is empty then. */
static struct dmm_route_node *tree_end(struct forest *f, struct tree *t)
{
	uint32_t level = 0;

	for (; level < t->height || t->levels[level].count > 1; level++)
		place_level(f, t, level);
	t->levels[level].count = 0;
	t->height = 0;
	return &t->levels[level].nodes[0];
}

static struct dmm_node_value innermost(const struct sweep *s)
{
	return s->depth ? s->open[s->depth - 1].value : s->around;
}

/* Leaves what ends before a digit. */
static void leave(struct forest *f, struct sweep *s, uint64_t digit)
{
	while (s->depth && s->open[s->depth - 1].last < digit) {
		uint64_t behind = s->open[--s->depth].last + 1;

		if (behind <= MAX_DIGIT)
			tree_put(f, &s->tree, behind, innermost(s));
	}
}

static void enter(struct forest *f, struct sweep *s, uint64_t first, uint64_t last,
		  struct dmm_node_value value)
{
	leave(f, s, first);
	tree_put(f, &s->tree, first, value);
	s->open[s->depth].last = last;
	s->open[s->depth++].value = value;
}

static void begin(struct forest *f, uint32_t number, uint64_t of)
{
	struct sweep *s = &f->sweeps[number], *before = s - 1;

	leave(f, before, of);
	s->around = innermost(before);
	s->of = of;
	s->is_on = 1;
	tree_put(f, &s->tree, 0, s->around);
}

static void end(struct forest *f, uint32_t number)
{
	struct sweep *s = &f->sweeps[number];
	const struct dmm_route_node *root;

	leave(f, s, UINT64_MAX);
	s->is_on = 0;
	root = tree_end(f, &s->tree);
	place(f, f->next, root);
	enter(f, s - 1, s->of, s->of, deeper(f->next++));
}

/* Ends and begins sweeps until that of the digit number is on, behind the digits before it. */
static struct sweep *sweep_for(struct forest *f, uint32_t number, const uint64_t *digits)
{
	uint32_t keep = 0; /* the last that stays */

	while (keep < number && f->sweeps[keep + 1].is_on && f->sweeps[keep + 1].of == digits[keep])
		keep++;
	for (uint32_t i = DIGITS - 1; i > keep; i--)
		if (f->sweeps[i].is_on)
			end(f, i);
	for (uint32_t i = keep + 1; i <= number; i++)
		begin(f, i, digits[i - 1]);
	return &f->sweeps[number];
}

/* The digits of a prefix; returns in which it ends, and how many bits of that it leaves free. */
static uint32_t digits_of(const struct emission *e, uint32_t route, uint64_t *digits,
			  uint32_t *free_bits)
{
	uint64_t hi = e->routes.addrs_hi[route], lo = e->routes.addrs_lo[route];
	uint32_t length = e->routes.lengths[route];

	if (e->routes.families[route] == 4) {
		digits[0] = (uint64_t)e->table << 3 | 4;
		digits[1] = MAPPED | lo;
		*free_bits = 32 - length;
		return 1;
	}
	digits[0] = (uint64_t)e->table << 3 | hi >> 62;
	digits[1] = (hi << 1 | lo >> 63) & MAX_DIGIT;
	digits[2] = lo & MAX_DIGIT;
	*free_bits = length <= 2 ? 2 - length : length <= 65 ? 65 - length : 128 - length;
	return length <= 2 ? 0 : length <= 65 ? 1 : 2;
}

static void add_prefix(struct forest *f, const struct emission *e, uint32_t route)
{
	uint64_t digits[DIGITS];
	uint32_t free_bits, number = digits_of(e, route, digits, &free_bits);
	struct sweep *s = sweep_for(f, number, digits);

	enter(f, s, digits[number], digits[number] | ((UINT64_C(1) << free_bits) - 1),
	      emission_value(e, route));
}

struct forest *forest_new(void)
{
	struct forest *f = calloc(1, sizeof(*f));

	if (f) {
		f->next = 1;
		f->sweeps[0].around = nothing;
		tree_put(f, &f->sweeps[0].tree, 0, nothing);
	}
	return f;
}

void forest_free(struct forest *f)
{
	free(f);
}

static void pack_into(struct forest *f, uint32_t *keys, void *nodes)
{
	f->keys = keys;
	f->nodes = nodes;
	f->made = 0;
}

uint32_t forest_run(struct forest *f, struct emission *e, uint32_t *keys, void *nodes,
		    uint32_t room)
{
	pack_into(f, keys, nodes);
	for (; e->at < e->ordered && f->made + FOREST_ROOM <= room; e->at++)
		add_prefix(f, e, e->order[e->at]);
	return f->made;
}

uint32_t forest_end(struct forest *f, uint32_t *keys, void *nodes)
{
	pack_into(f, keys, nodes);
	sweep_for(f, 0, NULL);
	leave(f, &f->sweeps[0], UINT64_MAX);
	place(f, 0, tree_end(f, &f->sweeps[0].tree));
	return f->made;
}

/* IPv6 first; what is around others before them */
static int compare(const void *a, const void *b, void *routes)
{
	const struct routes *r = routes;
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	if (r->families[x] != r->families[y])
		return r->families[x] < r->families[y] ? 1 : -1;
	if (r->addrs_hi[x] != r->addrs_hi[y])
		return r->addrs_hi[x] < r->addrs_hi[y] ? -1 : 1;
	if (r->addrs_lo[x] != r->addrs_lo[y])
		return r->addrs_lo[x] < r->addrs_lo[y] ? -1 : 1;
	return (r->lengths[x] > r->lengths[y]) - (r->lengths[x] < r->lengths[y]);
}

uint32_t emission_order(const struct emission *e, uint32_t *order)
{
	struct routes routes = e->routes;
	uint32_t count = 0, sorted = 1;

	for (uint32_t i = 0; i < e->count; i++)
		if (plan_of(e, i) != PLAN_SKIP)
			order[count++] = i;
	while (sorted < count && compare(&order[sorted - 1], &order[sorted], &routes) < 0)
		sorted++;
	if (sorted < count)
		qsort_r(order, count, sizeof(*order), compare, &routes);
	return count;
}

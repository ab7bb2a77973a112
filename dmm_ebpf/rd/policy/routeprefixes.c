/* SPDX-License-Identifier: Apache-2.0 */
/* routeprefixes.c: the prefixes of a table, and which template each has (routetable.h). */
#include "routetable.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif
#include <stdlib.h>
#include <string.h>

#include "learnt.h"

#define IS_LATER (1u << 31) /* in links */

struct key {
	uint64_t hi, lo;
	uint8_t family, length;
};

static struct key key_of(const struct routes *r, uint32_t route)
{
	return (struct key){r->addrs_hi[route], r->addrs_lo[route], r->families[route],
			    r->lengths[route]};
}

static int is_equal(const struct key *a, const struct key *b)
{
	return a->lo == b->lo && a->hi == b->hi && a->length == b->length && a->family == b->family;
}

/* The finalizer of MurmurHash3, over two halves of an odd product each */
static uint32_t hash_of(const struct key *k)
{
	uint64_t h = k->lo * UINT64_C(0x9e3779b97f4a7c15) + k->hi * UINT64_C(0xc2b2ae3d27d4eb4f) +
		     (uint64_t)(k->length << 3 | k->family);

	h = (h ^ h >> 33) * UINT64_C(0xff51afd7ed558ccd);
	h = (h ^ h >> 33) * UINT64_C(0xc4ceb9fe1a85ec53);
	return (uint32_t)(h >> 32);
}

/* The slot of that prefix: its first route + 1, or 0 in the free one where it would be. */
static uint32_t *slot_of(const struct prefixes *p, const struct key *k)
{
	uint32_t at = hash_of(k) & p->mask;

	while (p->slots[at]) {
		struct key there = key_of(&p->routes, p->slots[at] - 1);

		if (is_equal(&there, k))
			break;
		at = (at + 1) & p->mask;
	}
	return &p->slots[at];
}

static void list_lengths(struct prefixes *p)
{
	uint8_t is_there[2][129] = {{0}};

	for (uint32_t i = 0; i < p->count; i++)
		is_there[p->routes.families[i] == 6][p->routes.lengths[i]] = 1;
	for (int family = 0; family < 2; family++)
		for (int length = 128; length >= 0; length--)
			if (is_there[family][length])
				p->length[family][p->n_lengths[family]++] = (uint8_t)length;
}

/* From the last to the first, so that each slot ends with the first route of its prefix */
static void link_all(struct prefixes *p)
{
	for (uint32_t i = p->count; i-- > 0;) {
		struct key k = key_of(&p->routes, i);
		uint32_t *slot = slot_of(p, &k);

		p->links[i] = ROUTE_NONE;
		if (*slot) {
			p->links[i] = *slot - 1;
			p->links[*slot - 1] |= IS_LATER;
			p->later++;
		}
		*slot = i + 1;
	}
}

void blocks_apart(void)
{
#ifdef __GLIBC__
	mallopt(M_MMAP_THRESHOLD, 1 << 20);
#endif
}

struct prefixes *prefixes_new(const struct routes *routes, uint32_t count)
{
	struct prefixes *p = calloc(1, sizeof(*p));
	uint32_t size = 16;

	if (!p)
		return NULL;
	while (size < 2 * count)
		size *= 2;
	p->routes = *routes;
	p->count = count;
	p->mask = size - 1;
	p->slots = calloc(size, sizeof(*p->slots));
	p->links = malloc((count + (size_t)1) * sizeof(*p->links));
	if (!p->slots || !p->links) {
		prefixes_free(p);
		return NULL;
	}
	list_lengths(p);
	link_all(p);
	return p;
}

void prefixes_free(struct prefixes *p)
{
	if (p) {
		free(p->slots);
		free(p->links);
	}
	free(p);
}

static int is_later(const uint32_t *links, uint32_t route)
{
	return (links[route] & IS_LATER) != 0;
}

static uint32_t next_of(const uint32_t *links, uint32_t route)
{
	return links[route] & ROUTE_NONE;
}

uint32_t links_shared(const uint32_t *links, uint32_t count, uint32_t from)
{
	while (from < count && (is_later(links, from) || next_of(links, from) == ROUTE_NONE))
		from++;
	return from;
}

static uint64_t without_low_bits(uint64_t word, int count)
{
	return count >= 64 ? 0 : word >> count << count;
}

/* The same with another length: bits behind it are taken away */
static struct key shortened(struct key k, uint8_t length)
{
	int low = (k.family == 4 ? 32 : 128) - length;

	k.length = length;
	k.lo = without_low_bits(k.lo, low);
	if (low > 64)
		k.hi = without_low_bits(k.hi, low - 64);
	return k;
}

uint32_t routes_containing(const struct routes *routes, uint32_t count, uint32_t from,
			   uint8_t family, uint64_t hi, uint64_t lo)
{
	struct key address = {hi, lo, family, 0};

	for (; from < count; from++) {
		struct key own = key_of(routes, from), k = shortened(address, own.length);

		if (is_equal(&own, &k))
			break;
	}
	return from;
}

uint32_t prefixes_parent(const struct prefixes *p, uint32_t route, uint32_t hidden)
{
	struct key own = key_of(&p->routes, route);
	int family = own.family == 6;

	for (uint32_t i = 0; i < p->n_lengths[family]; i++) {
		uint8_t length = p->length[family][i];
		struct key k;
		uint32_t found;

		if (length >= own.length)
			continue;
		k = shortened(own, length);
		found = *slot_of(p, &k);
		if (found && (p->routes.match[found - 1] != hidden ||
			      next_of(p->links, found - 1) != ROUTE_NONE))
			return found - 1;
	}
	return ROUTE_NONE;
}

uint32_t prefixes_first(const struct prefixes *p, uint8_t family, uint8_t length, uint64_t hi,
			uint64_t lo)
{
	struct key k = {hi, lo, family, length};
	uint32_t found = *slot_of(p, &k);

	return found ? found - 1 : ROUTE_NONE;
}

static int has(const struct prefixes *p, const struct key *k, uint32_t match, uint32_t stack)
{
	uint32_t i = *slot_of(p, k);

	for (i = i ? i - 1 : ROUTE_NONE; i != ROUTE_NONE; i = next_of(p->links, i))
		if (p->routes.match[i] == match && p->routes.stack[i] == stack)
			return 1;
	return 0;
}

uint32_t prefixes_lack(const struct prefixes *p, const struct routes *routes, uint32_t count,
		       uint32_t from, const uint32_t *matches, const uint32_t *stacks)
{
	for (; from < count; from++) {
		struct key k = key_of(routes, from);

		if (!has(p, &k, matches[routes->match[from]], stacks[routes->stack[from]]))
			break;
	}
	return from;
}

uint32_t plan_key(const struct prefixes *p, const uint8_t *takes_all, uint32_t route, uint32_t *key)
{
	const uint32_t *match = p->routes.match;
	uint32_t size = 1;
	int is_whole = 0;

	for (uint32_t i = route; i != ROUTE_NONE; i = next_of(p->links, i)) {
		if (size > MOST_GROUP)
			return 0;
		is_whole |= takes_all[match[i]];
		key[size++] = match[i];
	}
	key[0] = ROUTE_NONE;
	if (!is_whole)
		key[0] = prefixes_parent(p, route, size == 2 ? match[route] : ROUTE_NONE);
	return size;
}

uint32_t plan_run(const struct prefixes *p, const uint8_t *takes_all,
		  const struct learnt *templates, uint32_t *plan, uint32_t from)
{
	uint32_t key[MOST_GROUP + 1];

	for (; from < p->count; from++) {
		if (is_later(p->links, from)) {
			plan[from] = PLAN_SKIP;
		} else if (next_of(p->links, from) == ROUTE_NONE &&
			   takes_all[p->routes.match[from]]) {
			plan[from] = PLAN_OWN;
		} else {
			uint32_t size = plan_key(p, takes_all, from, key);

			if (!learnt_get(templates, key, size * sizeof(*key), &plan[from]))
				break;
		}
	}
	return from;
}

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * routes.h: what the longest prefix around an address says, from the trees of routes[] (abi.h,
 * struct dmm_route_node).
 *
 * A million prefixes are seven levels, of which the upper ones stay in the processor's cache: a
 * trie of single bits is twenty. A level is one line of cache, and which part of a node comes next
 * is worked out without a branch, since nobody could foretell it.
 */
#ifndef DMM_ROUTES_H
#define DMM_ROUTES_H

#include "defs.h"

/* A way down. Small: it is on the stack of programs that fill theirs. */
struct dmm_route_walk {
	__u64 digits[2]; /* those behind the first one */
	__u32 node;
	__u32 first; /* the first digit, or ROUTE_FIRST_DONE; the highest bit is the half */
};

#define ROUTE_FIRST_DONE 0x7fffffff /* no table's: see DMM_LIVE_TABLE_BITS */
/* digits[1] when the way has ended: then node is the route, and digits[0] the stack. */
#define ROUTE_WALKED (~0ULL)

/* From the first digit's root to the last one's leaf. */
#define ROUTE_NODES_MAX 32

#define ROUTE_DIGIT_MASK (~0ULL >> 1)

/* One of an address's halves, as a number. */
static __always_inline __u64 addr_half(const __u32 *words)
{
	return (__u64)bpf_ntohl(words[0]) << 32 | bpf_ntohl(words[1]);
}

/* 1: digit is behind a part. Both are of 63 bits, so what borrows is negative. */
static __always_inline __u64 digit_behind(__u64 last, __u64 digit)
{
	return (last - digit) >> 63;
}

/* Which part of a node a digit is in. */
static __always_inline __u32 part_of(const struct dmm_route_node *node, __u64 digit)
{
	return digit_behind(node->lasts[0], digit) + digit_behind(node->lasts[1], digit) +
	       digit_behind(node->lasts[2], digit) + digit_behind(node->lasts[3], digit) +
	       digit_behind(node->lasts[4], digit) + digit_behind(node->lasts[5], digit) +
	       digit_behind(node->lasts[6], digit);
}

/*
 * The body of function route_walk, for which walk is never NULL but the verifier asks: the way from
 * the first digit's root to a leaf. Which digit is meant is worked out, not asked: it would be one
 * more way for the verifier in each turn.
 */
static __always_inline int route_walk(struct dmm_route_walk *walk)
{
	const struct dmm_node_value *value;
	const struct dmm_route_node *node;
	__u64 first, later;
	__u32 half, part;
	void *nodes;

	if (!walk)
		return 0;
	half = walk->first >> 31;
	nodes = map_lookup(DMM_MAP(routes), &half);
	if (!nodes)
		return 0;
#pragma clang loop unroll(disable)
	for (int turn = 0; turn < ROUTE_NODES_MAX; turn++) {
		__u32 number = walk->node;

		node = map_lookup(DMM_INNER(routes, nodes), &number);
		if (!node)
			return 0;
		first = walk->first & ROUTE_FIRST_DONE;
		later = ((first - ROUTE_FIRST_DONE) >> 63) - 1; /* 0: the first digit is meant */
		part = part_of(node, (first & ~later) | (walk->digits[0] & later));
		if (node->children) {
			walk->node = node->children + part;
			continue;
		}
		value = &node->values[part];
		walk->node = value->route;
		if (value->stack & DMM_NODE_DEEPER) {
			walk->first |= ROUTE_FIRST_DONE;
			walk->digits[0] = (walk->digits[0] & ~later) | (walk->digits[1] & later);
			continue;
		}
		walk->digits[0] = value->stack;
		walk->digits[1] = ROUTE_WALKED;
		return 0;
	}
	return 0;
}

static int (*dmm_route_walk_call)(struct dmm_route_walk *walk) = DMM_CALL(route_walk);

/* False: the policy has no routes. */
static __always_inline bool route_walk_down(struct dmm_route_walk *walk, __u32 half, __u32 table,
					    const __u32 *addr)
{
	__u64 hi = addr_half(addr), lo = addr_half(addr + 2);

	walk->first = half << 31 | table << 3;
	walk->digits[1] = lo & ROUTE_DIGIT_MASK;
	if (addr_is_mapped(addr)) {
		walk->first |= 4;
		walk->digits[0] = lo;
	} else {
		walk->first |= (__u32)(hi >> 62);
		walk->digits[0] = (hi << 1 | lo >> 63) & ROUTE_DIGIT_MASK;
	}
	walk->node = 0;
	dmm_route_walk_call(walk);
	return walk->digits[1] == ROUTE_WALKED;
}

#endif /* DMM_ROUTES_H */

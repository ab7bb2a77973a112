/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * recent.h: recent_routes[], what connect() found in the tries of late, by destination.
 *
 * A look-up in a trie of ten thousand prefixes is a dozen loads, each of which waits for the one
 * before; here it is one. Only routes that were found are kept. An entry cannot grow old: the
 * generation is part of its key, and what a generation in force reads does not change.
 *
 * Any processor may write an entry at any time, without a lock; a reader may so find half of one
 * and half of another. sum, over everything else, tells: what does not add up is not there. SYNs
 * from the network are not looked up here, so that a flood of them drives nothing out.
 */
#ifndef DMM_RECENT_H
#define DMM_RECENT_H

#include "decide.h"

#define FOUND_STACK_MASK 0xffULL
#define FOUND_SERVICE_MASK 0xffffff00ULL

/* The golden ratio's multiplier stirs upwards, the shift brings that down again. */
static __always_inline __u64 sum_add(__u64 sum, __u64 word)
{
	sum = (sum ^ word) * 0x9e3779b97f4a7c15ULL;
	return sum ^ sum >> 32;
}

/* The key, with what is known of found; returns its sum. */
static __always_inline __u64 recent_key(struct dmm_recent_route *key, __u32 table,
					const struct dmm_query *query, __u32 generation)
{
	key->addr[0] = (__u64)query->addr[0] << 32 | query->addr[1];
	key->addr[1] = (__u64)query->addr[2] << 32 | query->addr[3];
	key->policy = (__u64)generation << 32 | table;
	key->found = (__u64)query->port_be << 16 | (__u64)query->proto << 8;
	return sum_add(sum_add(sum_add(sum_add(0, key->addr[0]), key->addr[1]), key->policy),
		       key->found);
}

static __always_inline bool recent_find(const struct dmm_recent_route *entry,
					const struct dmm_recent_route *key, __u64 key_sum,
					struct dmm_verdict *verdict)
{
	__u64 found = *(const volatile __u64 *)&entry->found;

	if (entry->addr[0] != key->addr[0] || entry->addr[1] != key->addr[1] ||
	    entry->policy != key->policy || (found & FOUND_SERVICE_MASK) != key->found ||
	    entry->sum != sum_add(key_sum, found))
		return false;
	verdict->route = found >> 32;
	verdict->stack = found & FOUND_STACK_MASK;
	return true;
}

/* Where a key of that sum has its place. */
static __always_inline struct dmm_recent_route *recent_entry(__u64 key_sum)
{
	__u32 index = key_sum & (DMM_RECENT_ROUTES - 1);

	return map_lookup(DMM_MAP(recent_routes), &index);
}

/*
 * route_find(), by way of recent_routes[]. Both keys are in one place, for connect() has no other:
 * that of recent_routes[] is made once more for what was not there.
 */
static __always_inline bool route_find_recent(__u32 table, const struct dmm_query *query,
					      __u32 generation, struct dmm_verdict *verdict)
{
	union {
		struct dmm_recent_route recent;
		union dmm_route_keys route;
	} key;
	struct dmm_recent_route *entry;
	__u64 key_sum = recent_key(&key.recent, table, query, generation);

	entry = recent_entry(key_sum);
	if (entry && likely(recent_find(entry, &key.recent, key_sum, verdict))) {
		verdict->table = table;
		return true;
	}
	if (!route_find_by(&key.route, table, query, generation, verdict))
		return false;
	key_sum = recent_key(&key.recent, table, query, generation);
	entry = recent_entry(key_sum);
	if (entry) {
		key.recent.found |= (__u64)verdict->route << 32 | verdict->stack;
		key.recent.sum = sum_add(key_sum, key.recent.found);
		*entry = key.recent;
	}
	return true;
}

#endif /* DMM_RECENT_H */

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * forward.h: flows that this host only forwards, those of containers among them: which stack a SYN
 * asks for, as it comes in, and what is known of such a flow, which has no socket here.
 *
 * The SYN is taken where it meets a NIC of that stack. Comes it in by one, it is taken there
 * (steer.h). Else it is noted, by its sequence number, and taken where it leaves (tcout.h): rules,
 * routes and translations of the kernel have said by then what becomes of it, and left of it
 * nothing else as it was. A mark is others', and tc_index is overwritten by any tc program behind
 * ours.
 */
#ifndef DMM_FORWARD_H
#define DMM_FORWARD_H

#include "adaptive.h"
#include "decide.h"

/* On its way through the host, for a neighbour's answer for example */
#define NOTE_MAX_NS 8000000000ull
/* Its repetitions go the same way (RFC 9293: R2 of a SYN). */
#define LET_GO_MAX_NS 180000000000ull

/* A way through forwards[]. */
struct dmm_forward_search {
	struct dmm_query query;
	__u32 from[4];
	__u64 holds; /* bits of those that hold for the device and are still to be tried */
	__u32 family;
	__u32 local; /* 1: to an address of this host, as far as it shows */
	__u32 next;
	__u32 found;
	__u32 generation;
	struct dmm_verdict verdict;
};

static __always_inline bool prefix_has(const struct dmm_forward *forward, const __u32 *addr)
{
	const __u32 *from = (const __u32 *)forward->source;
	__u32 left = forward->prefixlen;

#pragma unroll
	for (int i = 0; i < 4; i++) {
		__u32 bits = left > 32 ? 32 : left;
		__u32 mask = bpf_htonl((__u32)(~0ull << (32 - bits)));

		if ((addr[i] ^ from[i]) & mask)
			return false;
		left -= bits;
	}
	return true;
}

static __always_inline bool forward_matches(const struct dmm_forward *forward,
					    const struct dmm_forward_search *search)
{
	if (search->local && !forward->named)
		return false;
	return !forward->family ||
	       (forward->family == search->family && prefix_has(forward, search->from));
}

/* The body of step forward_try. */
static __always_inline int forward_try(struct dmm_forward_search *search)
{
	union dmm_route_keys key; /* of forwards[] first, for there is no other room */
	bool holds = search->holds & 1;
	const struct dmm_forward *forward;

	key.walk.node =
		search->query.half * DMM_MAX_FORWARDS + (search->next & (DMM_MAX_FORWARDS - 1));
	search->holds >>= 1;
	search->next++;
	if (!holds)
		return !search->holds;
	forward = map_lookup(DMM_MAP(forwards), &key.walk.node);
	if (!forward || !forward_matches(forward, search) ||
	    !route_find_by(&key, forward->table, &search->query, search->generation,
			   &search->verdict))
		return 0;
	search->verdict.rule = forward->rule;
	search->found = 1;
	return 1;
}

/*
 * Whether others' flows may be a user stack's at all: asked before anything is looked up for them.
 */
static __always_inline bool forwards_at_all(const struct dmm_control *control)
{
	return control && (control->flags & DMM_CONTROL_FORWARD);
}

/* Which of forwards[] hold for a device. */
static __always_inline __u64 forward_holds(const struct dmm_control *control, __u32 ifindex)
{
	const struct dmm_inside *inside = map_lookup(DMM_MAP(inside), &ifindex);

	if (!inside || !control->generation)
		return 0;
	return control->generation & 1 ? inside->forwards[1] : inside->forwards[0];
}

static __always_inline bool forward_rule(const struct dmm_control *control, __u64 holds,
					 const struct dmm_addr_pair *opener, bool local,
					 struct dmm_verdict *verdict)
{
	struct dmm_forward_search search = {
		.holds = holds, .local = local, .family = opener->family};

	if (!holds)
		return false;
	search.generation = control->generation;
	search.query.half = search.generation & 1;
	search.query.proto = IPPROTO_TCP;
	search.query.port_be = opener->rport_be;
	addr_copy(search.query.addr, (const __u32 *)opener->raddr);
	addr_copy(search.from, (const __u32 *)opener->laddr);
	dmm_loop(DMM_MAX_FORWARDS, DMM_STEP(forward_try), &search, 0);
	*verdict = search.verdict;
	return search.found;
}

/*
 * What policy says of a SYN of others; false: nothing. holds: of forwards[], for the device by
 * which it comes in. opener: laddr is who sends it. local: it is for this host, unless that
 * translates it.
 */
static __always_inline bool forward_find(const struct dmm_control *control, __u64 holds,
					 const struct dmm_addr_pair *opener, bool local,
					 struct dmm_verdict *verdict)
{
	if (!forward_rule(control, holds, opener, local, verdict))
		return false;
	if (unlikely(verdict->stack & DMM_STACK_ADAPTIVE))
		verdict->stack =
			adaptive_pick(control->generation & 1, (const __u32 *)opener->raddr,
				      verdict->stack, ADAPTIVE_NO_LOT);
	return true;
}

static __always_inline bool stack_is_user(__u32 generation, __u32 id)
{
	const struct dmm_stack *stack = id ? stack_get(generation & 1, id) : NULL;

	return stack && stack->kind == DMM_STACK_USER;
}

static __always_inline void forwarded_verdict(struct dmm_forwarded *to,
					      const struct dmm_verdict *verdict, __u32 generation)
{
	to->generation = generation;
	to->rule = verdict->rule;
	to->table = verdict->table;
	to->route = verdict->route;
	to->stack = verdict->stack;
}

static __always_inline struct dmm_forwarded *forwarded_find(const struct dmm_addr_pair *pair)
{
	return map_lookup(DMM_MAP(forwarded), pair);
}

/* A SYN that the kernel is to serve begins another flow of that 5-tuple. */
static __always_inline void forwarded_forget(const struct dmm_addr_pair *pair)
{
	if (forwarded_find(pair))
		map_delete(DMM_MAP(forwarded), pair);
}

#endif /* DMM_FORWARD_H */

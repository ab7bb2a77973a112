/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * decide.h: policy evaluation: rules, then a table's routes, then the stack.
 *
 * Invariants: control's generation is read once by the caller and everything is looked up in that
 * half; at most one route and its ports per rule that matched, in the policy and beside it; nothing
 * here writes a policy map.
 */
#ifndef DMM_DECIDE_H
#define DMM_DECIDE_H

#include "actor.h"
#include "defs.h"
#include "options.h"
#include "routes.h"

/* What is looked up: an address with the protocol and port that ports[] is keyed by. */
struct dmm_query {
	__u32 addr[4];
	__u32 half;
	__u16 port_be;
	__u8 proto;
	__u8 adaptive; /* 1: what was found is an adaptive route (adaptive.h) */
};

struct dmm_verdict {
	__u32 table;
	__u32 route;
	__u16 rule;
	__u8 stack;
	__u8 directions; /* of a choice (choice.h): what rules let the program have it for */
};

/* A way through the rules. Small: it is on the stack of programs that fill theirs. */
struct dmm_search {
	struct dmm_facts facts;
	struct dmm_query query; /* half alone for listeners */
	struct dmm_verdict verdict;
	__u32 device; /* a fact, too: ifindex that it is bound to; 0: none of this namespace */
	__u32 generation;
	__u8 next;   /* of rules[], what comes next, 0-based, */
	__u8 last;   /* and how many there are */
	__u8 chosen; /* of a choice (choice.h): the stack, */
	__u8 choice; /* and what becomes of it, enum dmm_choice_state */
};

/* A way through the stacks, to the one of a name. */
struct dmm_stack_search {
	char name[DMM_STACK_NAME];
	__u32 half;
	__u32 next;
	__u32 found;
	__u32 pad;
};

/*
 * The field that the socket's packets have by its own wish, where a rule asks for it. at: what
 * bpf_getsockopt() takes there; ipv6: as in stack_apply().
 */
static __always_inline void facts_dscp(void *at, const struct dmm_control *control, bool ipv6,
				       struct dmm_search *search)
{
	if (unlikely(control->flags & DMM_CONTROL_DSCP))
		search->facts.dscp = dscp_read(at, ipv6, &search->verdict.route);
}

/* What a socket says of itself; netns_cookie is there already. */
static __always_inline void facts_socket(struct dmm_search *search, const struct bpf_sock *sk,
					 const struct dmm_control *control)
{
	struct dmm_facts *facts = &search->facts;

	facts->mark = sk->mark;
	facts->lport = (__u16)sk->src_port;
	search->device = facts->netns_cookie == control->netns_cookie ? sk->bound_dev_if : 0;
}

static __always_inline bool comm_equal(const char *a, const char *b)
{
	const __u64 *x = (const __u64 *)a;
	const __u64 *y = (const __u64 *)b;

	return x[0] == y[0] && x[1] == y[1];
}

static __always_inline bool executable_matches(const struct dmm_rule *rule)
{
	struct dmm_actor found = executable_current();

	return !((found.inode ^ rule->exe_inode) | (found.device ^ rule->exe_device));
}

static __always_inline bool gid_matches(const struct dmm_rule *rule)
{
	__u32 gid = gid_current();

	return gid >= rule->gid_first && gid <= rule->gid_last;
}

/* The patterns of cgroups are of one depth each, so one look-up says whether it is so. */
static __always_inline bool glob_matches(const struct dmm_rule *rule, __u32 half)
{
	__u64 id = bpf_get_current_ancestor_cgroup_id(rule->cgroup_level);
	const struct dmm_globbed *found = map_lookup(DMM_MAP(globbed), &id);

	return found && found->globs[half & 1] & rule->cgroup_id;
}

/* What few rules ask for: one branch for the others. */
#define RULE_RARE                                                                                  \
	(DMM_RULE_MARK | DMM_RULE_DSCP | DMM_RULE_NETNS | DMM_RULE_LPORT | DMM_RULE_DEVICE |       \
	 DMM_RULE_EXECUTABLE | DMM_RULE_GID | DMM_RULE_GLOB)

static __always_inline bool rare_matches(const struct dmm_rule *rule,
					 const struct dmm_search *search, __u32 flags)
{
	const struct dmm_facts *facts = &search->facts;

	if ((flags & DMM_RULE_MARK) && (facts->mark & rule->mark_mask) != rule->mark)
		return false;
	if ((flags & DMM_RULE_DSCP) && facts->dscp != rule->dscp)
		return false;
	if ((flags & DMM_RULE_NETNS) && facts->netns_cookie != rule->netns_cookie)
		return false;
	if ((flags & DMM_RULE_LPORT) &&
	    (facts->lport < rule->lport_first || facts->lport > rule->lport_last))
		return false;
	if ((flags & DMM_RULE_DEVICE) && search->device != rule->device)
		return false;
	if ((flags & DMM_RULE_GID) && !gid_matches(rule))
		return false;
	if ((flags & DMM_RULE_GLOB) && !glob_matches(rule, search->query.half))
		return false;
	return !(flags & DMM_RULE_EXECUTABLE) || executable_matches(rule);
}

static __always_inline bool rule_matches(const struct dmm_rule *rule,
					 const struct dmm_search *search, __u32 direction)
{
	const struct dmm_facts *facts = &search->facts;
	__u32 flags = rule->flags;

	if (!(rule->directions & direction))
		return false;
	if ((flags & DMM_RULE_UID) && (facts->uid < rule->uid_first || facts->uid > rule->uid_last))
		return false;
	if ((flags & RULE_RARE) && !rare_matches(rule, search, flags))
		return false;
	if ((flags & DMM_RULE_COMM) && !comm_equal(facts->comm, rule->comm))
		return false;
	/* The task's own cgroup is its own ancestor. */
	if ((flags & DMM_RULE_CGROUP) && facts->cgroup_id != rule->cgroup_id &&
	    bpf_get_current_ancestor_cgroup_id(rule->cgroup_level) != rule->cgroup_id)
		return false;
	return true;
}

static __always_inline const struct dmm_rule *rule_get(__u32 half, __u32 index)
{
	__u32 key = half * DMM_MAX_CHECKS + index;

	return map_lookup(DMM_MAP(rules), &key);
}

/* Before a way through rules[]: how many turns it has at most. */
static __always_inline __u32 rules_begin(struct dmm_search *search)
{
	const struct dmm_policy_head *head = map_lookup(DMM_MAP(heads), &search->query.half);
	__u32 n_rules = head ? head->n_rules : 0;

	search->last = n_rules < DMM_MAX_CHECKS ? n_rules : DMM_MAX_CHECKS;
	return search->last;
}

/* The next check, if it matches and its rule with it; NULL: go on. */
static __always_inline const struct dmm_rule *rule_next(struct dmm_search *search, __u32 direction)
{
	const struct dmm_rule *rule;

	if (unlikely(search->next >= search->last))
		return NULL;
	rule = rule_get(search->query.half, search->next++);
	if (!rule || !rule_matches(rule, search, direction))
		return NULL;
	if (likely(!rule->skip))
		return rule;
	search->next += rule->skip;
	return NULL;
}

/* The keys of one look-up after the other, in one place: programs that ask fill their stack. */
union dmm_route_keys {
	struct dmm_route6_key route6;
	struct dmm_port_key port;
	struct dmm_route_walk walk;
};

static __always_inline void route6_key(union dmm_route_keys *key, __u32 table,
				       const struct dmm_query *query)
{
	key->route6.prefixlen = 160;
	key->route6.table = table;
	addr_copy((__u32 *)key->route6.addr, query->addr);
}

static __always_inline void port_key(union dmm_route_keys *key, __u32 portset,
				     const struct dmm_query *query)
{
	key->port.prefixlen = 64;
	key->port.portset = portset;
	key->port.proto = query->proto;
	key->port.pad = 0;
	key->port.port_be = query->port_be;
}

static __always_inline const struct dmm_port_value *
port_find(union dmm_route_keys *key, __u32 portset, const struct dmm_query *query)
{
	void *trie = map_lookup(DMM_MAP(ports), &query->half);

	port_key(key, portset, query);
	return trie ? map_lookup(DMM_INNER(ports, trie), &key->port) : NULL;
}

/*
 * What was found as one number, so that the verifier does not follow each way here to the end of
 * the program: from the highest bit, that it was (2), rank and stack (30), route (32). 0: nothing.
 */
#define ROUTE_FOUND (1ULL << 62)

static __always_inline __u64 route_number(const struct dmm_port_value *found)
{
	if (!found || found->route == DMM_ROUTE_NONE)
		return 0;
	return ROUTE_FOUND | (__u64)found->stack << 32 | found->route;
}

/* The same of what is found among a prefix's ports; first: the number of its first route. */
static __always_inline __u64 port_number(const struct dmm_port_value *found, __u32 first)
{
	__u64 stack;

	if (!found || found->route == DMM_ROUTE_NONE)
		return 0;
	stack = found->stack;
	return ROUTE_FOUND | (stack & ~(__u64)DMM_PORT_OWN) << 32 |
	       (__u32)(found->route + (first & (0 - (stack >> 31))));
}

/* The policy's own route. */
static __always_inline __u64 written_find(union dmm_route_keys *key, __u32 table,
					  const struct dmm_query *query)
{
	__u32 stack, first;

	if (!route_walk_down(&key->walk, query->half, table, query->addr))
		return 0;
	first = key->walk.node;
	stack = key->walk.digits[0];
	if (stack & DMM_NODE_PORTS)
		return port_number(port_find(key, bpf_htonl(stack & ~DMM_NODE_PORTS), query),
				   first);
	return first == DMM_ROUTE_NONE ? 0 : ROUTE_FOUND | (__u64)stack << 32 | first;
}

/* The same of what is beside the policy in that generation. */
static __always_inline __u64 live_find(union dmm_route_keys *key, __u32 table,
				       const struct dmm_query *query, __u32 generation)
{
	__u32 place = generation >> 1 & (DMM_LIVE_PLACES - 1);
	const struct dmm_route_value *prefix;

	route6_key(key, place << DMM_LIVE_TABLE_BITS | table, query);
	prefix = map_lookup(DMM_MAP(live), &key->route6);
	if (likely(!prefix))
		return 0;
	if (!prefix->portset)
		return route_number((const struct dmm_port_value *)prefix);
	port_key(key, prefix->portset, query);
	return route_number(map_lookup(DMM_MAP(live_ports), &key->port));
}

/* The one of the higher rank, without a branch. No two of one policy's and beside it are equal. */
static __always_inline __u64 route_better(__u64 one, __u64 other)
{
	__u64 mask = (__u64)((__s64)(one - other) >> 63);

	return (one & ~mask) | (other & mask);
}

/*
 * route_find(), with room for its keys. What is found first waits in verdict, for connect() has no
 * other room; without a route that says so.
 */
static __always_inline bool route_find_by(union dmm_route_keys *key, __u32 table,
					  const struct dmm_query *query, __u32 generation,
					  struct dmm_verdict *verdict)
{
	__u64 found = live_find(key, table, query, generation);

	verdict->table = found >> 32;
	verdict->route = (__u32)found;
	found = written_find(key, table, query);
	found = route_better(found, (__u64)verdict->table << 32 | verdict->route);
	if (!found) {
		verdict->table = 0;
		verdict->route = DMM_ROUTE_NONE;
		return false;
	}
	verdict->table = table;
	verdict->route = (__u32)found;
	verdict->stack = found >> 32 & 0xff;
	return true;
}

static __always_inline bool route_find(__u32 table, const struct dmm_query *query, __u32 generation,
				       struct dmm_verdict *verdict)
{
	union dmm_route_keys key;

	return route_find_by(&key, table, query, generation, verdict);
}

static __always_inline const struct dmm_stack *stack_get(__u32 half, __u32 id)
{
	/*
	 * No branch on id, which the verifier would follow number by number where id is a loop's.
	 */
	__u32 key = half * DMM_MAX_STACKS + (id & (DMM_MAX_STACKS - 1));

	return map_lookup(DMM_MAP(stacks), &key);
}

static __always_inline const struct dmm_stack_state *stack_state_get(__u32 id)
{
	return map_lookup(DMM_MAP(stack_state), &id);
}

/* It has not run for so long that a new flow would wait. */
static __always_inline bool process_hangs(const struct dmm_stack_load *load)
{
	return load->beat_ns && dmm_ktime_coarse_ns() - load->beat_ns > DMM_BEAT_MAX_NS;
}

/* Full, or hung */
static __always_inline bool process_is_full(__u32 id, __u32 number)
{
	__u32 key = id * DMM_MAX_PROCESSES + number;
	const struct dmm_stack_load *load = map_lookup(DMM_MAP(stack_load), &key);

	if (!load)
		return false;
	return load->full || process_hangs(load);
}

/* What tells one process of a user stack from the others. */
struct dmm_process {
	__u32 seat;
	__u32 number;
};

/* A way around the processes of a stack. */
struct dmm_process_search {
	__u32 id;
	__u32 with_room; /* 1: only one that is not full */
	__u32 next;
	__u32 found;
	struct dmm_process process;
};

static __always_inline bool process_takes(const struct dmm_stack_state *state, __u32 id,
					  __u32 number, bool with_room)
{
	return (state->up >> number & 1) && !(with_room && process_is_full(id, number));
}

/* The body of step process_try. */
static __always_inline int process_try(struct dmm_process_search *search)
{
	const struct dmm_stack_state *state = stack_state_get(search->id);
	__u32 number = search->next & (DMM_MAX_PROCESSES - 1);

	if (!state)
		return 1;
	search->next = (number + 1) % (state->processes ?: 1);
	if (!process_takes(state, search->id, number, search->with_room))
		return 0;
	search->process.number = number;
	search->process.seat = state->seats[number];
	search->found = 1;
	return 1;
}

/*
 * Which process of a stack takes a new flow; false: none. Only a flow whose process is down goes
 * elsewhere, so that the same hash finds the same process for as long as it lives. with_room: it
 * may be another, as long as it has room.
 */
static __always_inline bool process_pick(const struct dmm_stack_state *state, __u32 id, __u32 hash,
					 bool with_room, struct dmm_process *process)
{
	struct dmm_process_search search = {.id = id, .with_room = with_room};
	__u32 processes = state->processes;

	*process = search.process;
	if (likely(processes < 2)) {
		process->seat = state->seats[0];
		return process_takes(state, id, 0, with_room);
	}
	search.next = ((__u64)hash * processes) >> 32;
	dmm_loop(processes, DMM_STEP(process_try), &search, 0);
	*process = search.process;
	return search.found;
}

/*
 * 2^32 divided by the golden ratio: consecutive numbers, and every other one, come
 * out evenly spread.
 */
static __always_inline __u32 hash_spread(__u32 value)
{
	return value * 0x9e3779b1;
}

/*
 * The same for every packet of a flow: until the stack owns it, its SYNs must find
 * the same process.
 */
static __always_inline __u32 pair_hash(const struct dmm_addr_pair *pair)
{
	const __u32 *raddr = (const __u32 *)pair->raddr;
	__u32 hash = hash_spread(raddr[0] ^ raddr[1] ^ raddr[2] ^ raddr[3]);

	hash = hash_spread(hash ^ (hash >> 15) ^ ((__u32)pair->lport_be << 16 | pair->rport_be));
	return hash_spread(hash ^ (hash >> 16));
}

struct dmm_served {
	const struct dmm_stack *stack; /* NULL: the kernel's stack, untouched */
	__u32 id;
	__u16 why;  /* enum dmm_why, where the route's stack is a user stack and this is another */
	bool taken; /* by that process, already */
	__u8 pad;
	struct dmm_process process; /* of a user stack */
};

/*
 * Whether a user stack serves a new connect(), and by which process; if not, it is counted why. The
 * local port is not chosen yet, so the cookie stands for the flow: cookies are given out one after
 * the other.
 */
static __always_inline bool user_stack_takes(void *ctx, const struct dmm_stack *stack, __u32 id,
					     struct dmm_served *served)
{
	const struct dmm_stack_state *state = stack_state_get(id);
	__u32 hash = hash_spread((__u32)dmm_socket_cookie(ctx));

	if (!state || !state->up) {
		count(DMM_CNT_CONNECT_FALLBACK);
		served->why = DMM_WHY_DOWN;
		return false;
	}
	if (!process_pick(state, id, hash, true, &served->process)) {
		count(DMM_CNT_CONNECT_FULL);
		served->why = DMM_WHY_FULL;
		return false;
	}
	served->stack = stack;
	served->id = id;
	return true;
}

/*
 * Who serves a flow that policy gives to stack id. user_allowed: the flow can be carried by a user
 * stack at all; if it cannot, the kernel serves it as if there were no policy. A fallback that is
 * itself a user stack is the kernel: one level, so that a chain of dead stacks costs nothing.
 */
static __always_inline void stack_resolve(struct bpf_sock_addr *ctx, __u32 half, __u32 id,
					  bool user_allowed, struct dmm_served *served)
{
	const struct dmm_stack *stack = id ? stack_get(half, id) : NULL;

	served->stack = NULL;
	served->id = 0;
	served->why = 0;
	if (!stack)
		return;
	if (stack->kind == DMM_STACK_USER) {
		if (!user_allowed) {
			served->why = DMM_WHY_SOCKET;
			return;
		}
		if (user_stack_takes(ctx, stack, id, served))
			return;
		id = stack->fallback;
		stack = id ? stack_get(half, id) : NULL;
		if (!stack || stack->kind == DMM_STACK_USER)
			return;
	}
	if (stack->kind) {
		served->stack = stack;
		served->id = id;
	}
}

static __always_inline void decision_facts(struct dmm_decision *decision,
					   const struct dmm_facts *facts)
{
	decision->cgroup_id = facts->cgroup_id;
	decision->pid = facts->pid;
	decision->uid = facts->uid;
	__builtin_memcpy(decision->comm, facts->comm, sizeof(decision->comm));
}

static __always_inline void decision_verdict(struct dmm_decision *decision,
					     const struct dmm_verdict *verdict,
					     const struct dmm_served *served)
{
	decision->rule = verdict->rule;
	decision->table = verdict->table;
	decision->route = verdict->route;
	decision->wanted = verdict->stack;
	decision->stack = served->id;
	decision->process = served->process.number;
	decision->taken = served->taken;
	decision->why = served->why;
}

static __always_inline void verdict_none(struct dmm_verdict *verdict)
{
	verdict->table = 0;
	verdict->route = DMM_ROUTE_NONE;
	verdict->rule = 0;
	verdict->stack = 0;
	verdict->directions = 0;
}

#endif /* DMM_DECIDE_H */

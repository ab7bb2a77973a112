/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * connect.h: cgroup/connect4 and connect6: which stack serves a connecting socket.
 *
 * A socket of another network namespace is left alone; one bound to a device, and one whose peer is this
 * host's loopback, never goes to a user stack. For one that does, the decision is written into its storage
 * (way.h), where the program at the NIC finds it with the SYN (tcout.h): the kernel routes it as any other.
 * What is decided for a TCP socket goes straight into its flow
 * record: one allocation, and none that lives longer than the flow. UDP sockets have no record.
 */
#ifndef DMM_CONNECT_H
#define DMM_CONNECT_H

#include "decide.h"
#include "flow.h"
#include "recent.h"
#include "way.h"

/* 0.0.0.0 and :: mean this host to connect() (ip(7)). */
static __always_inline bool addr_is_loopback(const __u32 *addr)
{
	if (addr_is_mapped(addr))
		return (addr[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000) || addr[3] == 0;
	return addr[0] == 0 && addr[1] == 0 && addr[2] == 0 && (addr[3] == 0 || addr[3] == bpf_htonl(1));
}

/* The storage of a socket may be older than this flow (AF_UNSPEC, connect(2)). */
static __always_inline void way_forget(struct bpf_sock *sk)
{
	struct dmm_way *way = way_get(sk);

	if (unlikely(way))
		way->stack = 0;
}

/* False: no memory to remember it with. */
static __always_inline bool way_ask(struct bpf_sock *sk, const struct dmm_served *served)
{
	struct dmm_way way = {.stack = served->id,
			      .process = served->process.number,
			      .seat = served->process.seat,
			      .state = DMM_WAY_ASKED};

	return way_set(sk, &way);
}

static __always_inline void connect_record(struct bpf_sock_addr *ctx, const struct dmm_search *search,
					   const struct dmm_served *served)
{
	const struct dmm_query *query = &search->query;
	struct dmm_flow flow = {};

	flow.cookie = dmm_socket_cookie(ctx);
	flow.netns_cookie = search->facts.netns_cookie;
	flow.opened_ns = dmm_ktime_coarse_ns();
	flow.updated_ns = flow.opened_ns;
	addr_copy((__u32 *)flow.pair.raddr, query->addr);
	flow.pair.rport_be = query->port_be;
	flow.pair.family = addr_is_mapped(query->addr) ? AF_INET : AF_INET6;
	flow.pair.proto = IPPROTO_TCP;
	flow.decision.generation = search->generation;
	flow.decision.direction = DMM_DIR_CONNECT;
	decision_facts(&flow.decision, &search->facts);
	decision_verdict(&flow.decision, &search->verdict, served);
	flow_keep(&flow);
}

/* What was recorded of an earlier connect() that failed; a refused one records nothing. */
static __always_inline int connect_refuse(struct bpf_sock_addr *ctx)
{
	flow_drop(dmm_socket_cookie(ctx));
	count(DMM_CNT_CONNECT_REJECT);
	return 0;
}

/* The body of step rule_connect. */
static __always_inline int rule_connect(struct dmm_search *search)
{
	const struct dmm_rule *rule = rule_next(search, DMM_DIR_CONNECT);

	if (!rule || !route_find_recent(rule->table, &search->query, search->generation, &search->verdict))
		return 0;
	search->verdict.rule = search->next;
	return 1;
}

/* The first rule that matches and whose table has a route wins. */
static __always_inline bool policy_find(struct dmm_search *search)
{
	dmm_loop(rules_count(search->query.half), DMM_STEP(rule_connect), search, 0);
	return search->verdict.rule;
}

/* Returns 1 to let connect() go on, 0 for EPERM. */
static __always_inline int connect_decide(struct bpf_sock_addr *ctx, struct dmm_search *search, bool socket6)
{
	const struct dmm_control *control = control_get();
	bool stream = CTX_LOAD(u32, ctx, type) == SOCK_STREAM;
	struct dmm_query *query = &search->query;
	struct dmm_facts *facts = &search->facts;
	struct bpf_sock *sk = ctx->sk;
	struct dmm_served served = {};

	if (!control || !sk)
		return 1;
	facts->netns_cookie = bpf_get_netns_cookie(ctx);
	if (facts->netns_cookie != control->netns_cookie)
		return 1;
	if (CTX_LOAD(u32, ctx, protocol) != (stream ? IPPROTO_TCP : IPPROTO_UDP))
		return 1;
	count(DMM_CNT_CONNECT);
	facts_current(facts);
	facts->mark = sk->mark;
	way_forget(sk);
	search->generation = control->generation;
	verdict_none(&search->verdict);
	query->half = search->generation & 1;
	query->proto = stream ? IPPROTO_TCP : IPPROTO_UDP;
	query->port_be = (__u16)CTX_LOAD(u32, ctx, user_port);
	if (search->generation && !sk->bound_dev_if && policy_find(search))
		stack_resolve(ctx, query->half, search->verdict.stack,
			      stream && !addr_is_loopback(query->addr), &served);
	if (served.reject)
		return connect_refuse(ctx);
	if (served.stack && served.stack->kind == DMM_STACK_USER) {
		/* Its options wait until it is known who serves, see sockops.h. */
		if (!way_ask(sk, &served))
			served.id = 0;
	} else if (served.stack) {
		stack_apply(ctx, served.stack, facts->mark, stream, socket6 && !addr_is_mapped(query->addr));
	}
	if (!stream)
		return 1;
	connect_record(ctx, search, &served);
	return 1;
}

static __always_inline int connect4(struct bpf_sock_addr *ctx)
{
	struct dmm_search search = {};

	addr_set4(search.query.addr, CTX_LOAD(u32, ctx, user_ip4));
	return connect_decide(ctx, &search, false);
}

static __always_inline int connect6(struct bpf_sock_addr *ctx)
{
	struct dmm_search search = {};
	__u32 *addr = search.query.addr;

	addr[0] = CTX_LOAD(u32, ctx, user_ip6[0]);
	addr[1] = CTX_LOAD(u32, ctx, user_ip6[1]);
	addr[2] = CTX_LOAD(u32, ctx, user_ip6[2]);
	addr[3] = CTX_LOAD(u32, ctx, user_ip6[3]);
	return connect_decide(ctx, &search, true);
}

#endif /* DMM_CONNECT_H */

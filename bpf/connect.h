/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * connect.h: cgroup/connect4 and connect6: which stack serves a connecting socket.
 *
 * A socket of another network namespace is left alone, unless containers are meant; one whose peer
 * is this host's loopback or has a link-local address never goes to a user stack. For one that
 * does, the decision is written into its storage (way.h), where the program at the NIC finds it
 * with the SYN (tcout.h): the kernel routes it as any other. What is decided for a TCP socket goes
 * straight into its flow record: one allocation, and none that lives longer than the flow; of a UDP
 * socket, into datagrams[] (datagram.h).
 */
#ifndef DMM_CONNECT_H
#define DMM_CONNECT_H

#include "adaptive.h"
#include "choice.h"
#include "datagram.h"
#include "decide.h"
#include "flow.h"
#include "group.h"
#include "recent.h"
#include "way.h"

/* BCC does not declare it. */
static int (*dmm_set_retval)(int retval) = (void *)BPF_FUNC_set_retval;

/* 0.0.0.0 and :: mean this host to connect() (ip(7)). */
static __always_inline bool addr_is_loopback(const __u32 *addr)
{
	if (addr_is_mapped(addr))
		return (addr[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000) || addr[3] == 0;
	return addr[0] == 0 && addr[1] == 0 && addr[2] == 0 &&
	       (addr[3] == 0 || addr[3] == bpf_htonl(1));
}

/* A 5-tuple has no scope, which a link-local address needs (RFC 4007). */
static __always_inline bool addr_is_carried(const __u32 *addr)
{
	return !addr_is_loopback(addr) &&
	       (addr[0] & bpf_htonl(0xffc00000)) != bpf_htonl(0xfe800000);
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

#ifdef DMM_MPTCP
/* Neither does it declare this one. */
static void *(*dmm_mptcp_of)(struct bpf_sock *sk) = (void *)BPF_FUNC_skc_to_mptcp_sock;
#endif

/*
 * The socket of an MPTCP subflow goes without cgroup/sock_release: the application has released
 * another one. So nothing is recorded of it before sock_ops sees its SYN, and is told of its end
 * from then on (sockops.h).
 */
static __always_inline bool record_later(struct bpf_sock *sk, const struct dmm_decision *decision)
{
#ifdef DMM_MPTCP
	struct dmm_decision *later;

	if (likely(!dmm_mptcp_of(sk)))
		return false;
	later = storage_get(DMM_MAP(decisions), sk, BPF_SK_STORAGE_GET_F_CREATE);
	if (later)
		__builtin_memcpy(later, decision, sizeof(*later));
	return true;
#else
	(void)sk;
	(void)decision;
	return false;
#endif
}

/*
 * Whether the TCP socket is the kernel's own, which connects in the name of a program: of a mount
 * of 9p's or CIFS's, of NVMe over TCP. No program has a file of it; nor of MPTCP's subflows, which
 * are programs' all the same.
 */
static __always_inline bool socket_is_kernels(struct bpf_sock *sk)
{
#ifdef DMM_SK_SOCKET
	const void *at = dmm_tcp_of(sk);

	at = at ? KERNEL_LOAD(void *, at, DMM_SK_SOCKET) : NULL;
	if (likely(!at || KERNEL_LOAD(void *, at, DMM_SOCKET_FILE)))
		return false;
#ifdef DMM_MPTCP
	return !dmm_mptcp_of(sk);
#else
	return true;
#endif
#else
	(void)sk;
	return false;
#endif
}

/* Fills flow, which is all 0, or an earlier one of that socket. */
static __always_inline void record_fill(struct bpf_sock_addr *ctx, const struct dmm_search *search,
					const struct dmm_served *served, struct dmm_flow *flow)
{
	const struct dmm_query *query = &search->query;

	flow->cookie = dmm_socket_cookie(ctx);
	flow->netns_cookie = search->facts.netns_cookie;
	flow->opened_ns = dmm_ktime_coarse_ns();
	flow->updated_ns = flow->opened_ns;
	addr_copy((__u32 *)flow->pair.raddr, query->addr);
	flow->pair.rport_be = query->port_be;
	flow->pair.family = addr_is_mapped(query->addr) ? AF_INET : AF_INET6;
	flow->pair.proto = query->proto;
	flow->decision.generation = search->generation;
	flow->decision.direction = DMM_DIR_CONNECT;
	decision_facts(&flow->decision, &search->facts);
	decision_verdict(&flow->decision, &search->verdict, served);
	flow->adaptive = search->query.adaptive;
	flow->decision.choice = search->choice;
	flow->decision.chosen = search->chosen;
}

static __always_inline void connect_record(struct bpf_sock_addr *ctx, struct bpf_sock *sk,
					   const struct dmm_search *search,
					   const struct dmm_served *served)
{
	struct dmm_flow flow = {};

	record_fill(ctx, search, served, &flow);
	if (!record_later(sk, &flow.decision))
		flow_keep(&flow);
}

/* Why no user stack carries a datagram; 0: it may. */
static __always_inline __u32 datagram_bars(const struct dmm_search *search)
{
	const struct dmm_control *control = control_get();

	if (!addr_is_carried(search->query.addr))
		return DMM_WHY_SOCKET;
	if (addr_is_group(search->query.addr) || !control ||
	    search->facts.netns_cookie != control->netns_cookie)
		return DMM_WHY_DATAGRAM;
	return 0;
}

/* Who serves a socket's datagrams to that peer; state: the socket's. What is kept of it says so,
 * if the route names a user stack. */
static __always_inline void datagram_serve(struct bpf_sock_addr *ctx,
					   const struct dmm_search *search, __u32 state,
					   struct dmm_served *served)
{
	const struct dmm_stack *wanted = stack_get(search->query.half, search->verdict.stack);
	struct dmm_datagram_key key;
	struct dmm_flow *flow;
	__u64 opened_ns;
	__u32 bars;

	datagram_key(&key, dmm_socket_cookie(ctx), search->query.addr, search->query.port_be);
	if (!search->verdict.stack || !wanted || wanted->kind != DMM_STACK_USER ||
	    !(wanted->flags & DMM_CARRIES_UDP)) {
		datagram_forget(&key);
		if (search->verdict.stack)
			stack_resolve(ctx, search->query.half, search->verdict.stack, false,
				      served);
		return;
	}
	bars = datagram_bars(search);
	stack_resolve(ctx, search->query.half, search->verdict.stack, !bars, served);
	if (bars)
		served->why = bars;
	if (served->stack && served->stack->kind == DMM_STACK_REJECT) {
		datagram_forget(&key);
		return;
	}
	flow = datagram_record(&key);
	if (!flow)
		return;
	opened_ns = datagram_is_recent(flow) ? flow->opened_ns : 0;
	record_fill(ctx, search, served, flow);
	flow->opened_ns = opened_ns ?: flow->opened_ns;
	flow->state = state;
}

/* What the call returns instead of EPERM, which is what a hook's 0 means by itself. */
static __always_inline int refuse(const struct dmm_stack *stack)
{
	if (stack->refusal)
		dmm_set_retval(-(int)stack->refusal);
	return 0;
}

/* What was recorded of an earlier connect() that failed; a refused one records nothing. */
static __always_inline int connect_refuse(struct bpf_sock_addr *ctx, const struct dmm_stack *stack)
{
	flow_drop(dmm_socket_cookie(ctx));
	count(DMM_CNT_CONNECT_REJECT);
	return refuse(stack);
}

/* The body of step rule_connect. */
static __always_inline int rule_connect(struct dmm_search *search)
{
	const struct dmm_rule *rule = rule_next(search, DMM_DIR_CONNECT);

	if (!rule || !rule->table)
		return 0;
	search->verdict.rule = rule->number; /* before the look-up, for which it need not be kept */
	if (route_find_recent(rule->table, &search->query, search->generation, &search->verdict))
		return 1;
	search->verdict.rule = 0;
	return 0;
}

/* The first rule that matches and whose table has a route wins. */
static __always_inline bool policy_find(struct dmm_search *search)
{
	dmm_loop(rules_begin(search), DMM_STEP(rule_connect), search, 0);
	adaptive_settle(search);
	return search->verdict.rule;
}

/*
 * Who is to serve: whom the program has chosen, or whom rules and routes name. False: nobody but
 * the kernel.
 */
static __always_inline bool stack_find(struct bpf_sock *sk, const struct dmm_control *control,
				       struct dmm_search *search)
{
	const struct dmm_choice *made = choice_of(control, sk, search);

	if (unlikely(made)) {
		search->chosen = made->stack;
		search->choice = choice_state(made, DMM_DIR_CONNECT);
		if (search->choice == DMM_CHOICE_TAKEN) {
			search->verdict.rule = made->rule;
			search->verdict.stack = made->stack;
			return true;
		}
	}
	return policy_find(search);
}

/* Returns 1 to let connect() go on, 0 to refuse it. */
static __always_inline int connect_decide(struct bpf_sock_addr *ctx, struct dmm_search *search,
					  bool socket6)
{
	const struct dmm_control *control = control_get();
	bool stream = CTX_LOAD(u32, ctx, type) == SOCK_STREAM;
	struct dmm_query *query = &search->query;
	struct dmm_facts *facts = &search->facts;
	struct bpf_sock *sk = ctx->sk;
	struct dmm_served served = {};

	/* No half is known yet. */
	if (!control || !sk || (is_gated(control) && !current_is_own_by(control, &query->half)))
		return 1;
	facts->netns_cookie = bpf_get_netns_cookie(ctx);
	if (!netns_is_meant(control, facts->netns_cookie))
		return 1;
	if (CTX_LOAD(u32, ctx, protocol) != (stream ? IPPROTO_TCP : IPPROTO_UDP))
		return 1;
	facts_socket(search, sk, control);
	facts_current(facts);
	/* NFS, a subflow that MPTCP adds: whose they are no rule can tell. */
	if (unlikely(facts->kernel))
		return 1;
	count(DMM_CNT_CONNECT);
	facts_dscp(ctx, control, socket6 && !addr_is_mapped(query->addr), search);
	way_forget(sk);
	search->generation = control->generation;
	verdict_none(&search->verdict);
	query->half = search->generation & 1;
	query->proto = stream ? IPPROTO_TCP : IPPROTO_UDP;
	query->port_be = (__u16)CTX_LOAD(u32, ctx, user_port);
	if (search->generation)
		stack_find(sk, control, search);
	if (stream)
		stack_resolve(ctx, query->half, search->verdict.stack, addr_is_carried(query->addr),
			      &served);
	else
		datagram_serve(ctx, search, BPF_TCP_ESTABLISHED, &served);
	if (served.stack && served.stack->kind == DMM_STACK_REJECT)
		return connect_refuse(ctx, served.stack);
	if (served.stack && served.stack->kind == DMM_STACK_USER) {
		/* What the kernel itself waits for must not wait for a process. */
		if (stream && unlikely(socket_is_kernels(sk)))
			return 1;
		/* Its options wait until it is known who serves, see opened.h. */
		if (stream && !way_ask(sk, &served))
			served.id = 0;
	} else if (served.stack) {
		stack_apply(ctx, sk, served.stack, stream, socket6 && !addr_is_mapped(query->addr));
	}
	if (!stream)
		return 1;
	connect_record(ctx, sk, search, &served);
	return 1;
}

static __always_inline int connect4(struct bpf_sock_addr *ctx)
{
	struct dmm_search search = {};

	addr_set4(search.query.addr, CTX_LOAD(u32, ctx, user_ip4));
	return connect_decide(ctx, &search, false);
}

/* The peer that the caller has named, word by word: the verifier takes no wider load. */
static __always_inline void addr_load6(__u32 *addr, struct bpf_sock_addr *ctx)
{
	addr[0] = CTX_LOAD(u32, ctx, user_ip6[0]);
	addr[1] = CTX_LOAD(u32, ctx, user_ip6[1]);
	addr[2] = CTX_LOAD(u32, ctx, user_ip6[2]);
	addr[3] = CTX_LOAD(u32, ctx, user_ip6[3]);
}

static __always_inline int connect6(struct bpf_sock_addr *ctx)
{
	struct dmm_search search = {};

	addr_load6(search.query.addr, ctx);
	return connect_decide(ctx, &search, true);
}

#endif /* DMM_CONNECT_H */

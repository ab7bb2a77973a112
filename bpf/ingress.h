/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * ingress.h: the tc program at the ingress of the TAP devices by which a stack process has its legs
 * on a NIC. It is there for the inner one; by the other a process sends what the NIC, which is down
 * or gone, does not, and of that what is away goes on (away.h).
 *
 * What the process sends to the app goes to that NIC's ingress, as if it had come from the wire
 * there: every rule and every socket of the host sees it as it sees others. A mark takes it past
 * tcin.h. And here is answered what the process asks of the maps (struct dmm_ask): the process
 * itself has no right to them, since it reads packets of strangers. write(2) to the device runs
 * this program before it returns, unless packets of the device are steered to another processor
 * (RPS), so a flow is claimed before its SYN leaves.
 *
 * Who asks is known by the device. What is granted:
 * - a flow that nobody owns and of which the kernel has no socket, or a listener, or one that is
 * over (TIME_WAIT);
 * - a flow of others whose SYN was given to the process, whoever owned it;
 * - a flow whose socket is the process's to serve (way.h), whoever owned it: its former owner's
 * connection has ended;
 * - to give up what is its own, to be alive, full, and to have SYN cookies out for a while.
 *
 * A process cannot speak for a flow of another: that is dropped. So is what hides whose it is:
 * fragments and extension headers, which no process sends.
 */
#ifndef DMM_INGRESS_H
#define DMM_INGRESS_H

#include "frame.h"
#include "parts.h"
#include "socket.h"
#include "tcout.h"
#include "udp.h"

#define EEXIST 17
#define COOKIES_MAX_NS 180000000000ull /* more than a cookie lives, see cookie.c */

enum dmm_holder {
	DMM_HOLDER_NOBODY,
	DMM_HOLDER_ASKER,
	DMM_HOLDER_OTHER,
};

static __always_inline bool flow_is_of(const struct dmm_xdp_flow *flow, const struct dmm_seat *seat)
{
	return flow->stack == seat->stack && flow->seat == seat->seat;
}

/* Whose the kernel's socket of that 5-tuple is; is it the asker's, fresh gets what its SYN bore. */
static __always_inline enum dmm_holder socket_holder(struct __sk_buff *skb,
						     const struct dmm_addr_pair *pair,
						     const struct dmm_seat *seat,
						     struct dmm_xdp_flow *fresh)
{
	struct bpf_sock *sk = socket_find(skb, pair);
	enum dmm_holder holder = DMM_HOLDER_OTHER;
	struct bpf_sock *full;

	if (!sk)
		return DMM_HOLDER_NOBODY;
	if (!is_connection(sk)) {
		holder = DMM_HOLDER_NOBODY;
	} else {
		full = dmm_sk_fullsock(sk);
		if (full) {
			const struct dmm_way *way = way_get(full);

			if (way && way->stack == seat->stack && way->seat == seat->seat) {
				holder = DMM_HOLDER_ASKER;
				fresh->own = 1;
				fresh->mark = way->mark;
				fresh->priority = way->priority;
				fresh->away = way->away;
				__builtin_memcpy(fresh->addresses, way->addresses,
						 sizeof(fresh->addresses));
			}
		}
	}
	bpf_sk_release(sk);
	return holder;
}

/* Whose a flow of others is: the process that has been given its SYN. */
static __always_inline enum dmm_holder forwarded_holder(const struct dmm_addr_pair *pair,
							const struct dmm_seat *seat,
							struct dmm_xdp_flow *fresh)
{
	const struct dmm_forwarded *forwarded = forwarded_find(pair);

	if (!forwarded || forwarded->state != DMM_FORWARDED_TAKEN ||
	    forwarded->stack != seat->stack || forwarded->seat != seat->seat)
		return DMM_HOLDER_NOBODY;
	fresh->mark = forwarded->mark;
	fresh->priority = forwarded->priority;
	fresh->away = forwarded->away;
	__builtin_memcpy(fresh->addresses, forwarded->addresses, sizeof(fresh->addresses));
	return DMM_HOLDER_ASKER;
}

/* Returns 0, or what the asker is told instead (enum dmm_ask_op). */
static __always_inline __u32 flow_claim(struct __sk_buff *skb, const struct dmm_ask *ask,
					const struct dmm_seat *seat)
{
	struct dmm_xdp_flow fresh = {.stack = seat->stack,
				     .seat = seat->seat,
				     .process = seat->process,
				     .home = seat->home};
	struct dmm_xdp_flow *flow = map_lookup(DMM_MAP(xdp_flows), &ask->pair);
	enum dmm_holder holder;
	long error;

	if (flow && flow_is_of(flow, seat)) {
		flow->orphan = 0;
		return 0;
	}
	holder = socket_holder(skb, &ask->pair, seat, &fresh);
	if (holder == DMM_HOLDER_NOBODY)
		holder = forwarded_holder(&ask->pair, seat, &fresh);
	if (holder == DMM_HOLDER_OTHER)
		return DMM_ASK_TAKEN;
	error = map_update(DMM_MAP(xdp_flows), &ask->pair, &fresh,
			   holder == DMM_HOLDER_ASKER ? BPF_ANY : BPF_NOEXIST);
	if (likely(!error))
		return 0;
	return error == -EEXIST ? DMM_ASK_TAKEN : DMM_ASK_REFUSED;
}

static __always_inline void flow_disown(const struct dmm_ask *ask, const struct dmm_seat *seat)
{
	const struct dmm_xdp_flow *flow = map_lookup(DMM_MAP(xdp_flows), &ask->pair);
	struct dmm_forwarded *forwarded;

	if (!flow || !flow_is_of(flow, seat))
		return;
	forwarded = forwarded_find(&ask->pair);
	if (forwarded)
		forwarded->state = DMM_FORWARDED_GONE;
	map_delete(DMM_MAP(xdp_flows), &ask->pair);
}

static __always_inline void cookies_tell(__u32 stack, __u64 until_ns)
{
	struct dmm_cookie_state *cookies = map_lookup(DMM_MAP(cookie_state), &stack);

	if (cookies && until_ns > cookies->until_ns)
		cookies->until_ns = until_ns;
}

static __always_inline void state_tell(const struct dmm_ask *ask, const struct dmm_seat *seat)
{
	__u32 key = seat->stack * DMM_MAX_PROCESSES + seat->process;
	struct dmm_stack_load *load = map_lookup(DMM_MAP(stack_load), &key);
	__u64 now = dmm_ktime_coarse_ns();

	if (load) {
		load->full = ask->full;
		load->beat_ns = now;
	}
	if (ask->cookies_until_ns >= now + COOKIES_MAX_NS)
		return;
	cookies_tell(seat->stack, ask->cookies_until_ns);
	cookies_tell(0, ask->cookies_until_ns);
}

/* The device's queue takes it back to the process. */
static __always_inline int ask_refuse(struct __sk_buff *skb, __u32 answer)
{
	if (bpf_skb_store_bytes(skb, __builtin_offsetof(struct dmm_ask, op), &answer,
				sizeof(answer), 0))
		return TC_ACT_SHOT;
	skb->mark = DMM_TCIN_MARK;
	return bpf_redirect(skb->ifindex, 0);
}

static __always_inline int ask_answer(struct __sk_buff *skb, const struct dmm_ask *ask,
				      const struct dmm_seat *seat)
{
	__u32 answer;

	switch (ask->op) {
	case DMM_ASK_CLAIM:
		answer = flow_claim(skb, ask, seat);
		if (answer)
			return ask_refuse(skb, answer);
		break;
	case DMM_ASK_DISOWN:
		flow_disown(ask, seat);
		break;
	case DMM_ASK_STATE:
		state_tell(ask, seat);
		break;
	}
	return TC_ACT_SHOT;
}

/* Whose flow a packet for an app belongs to; NULL: nobody's */
static __always_inline struct dmm_xdp_flow *flow_in(struct __sk_buff *skb)
{
	struct dmm_tcp_frame frame = {};

	/* This host is to receive it. */
	if (!frame_read(skb, sizeof(struct ethhdr), false, &frame))
		return NULL;
	return map_lookup(DMM_MAP(xdp_flows), &frame.pair);
}

/* What the process sends by the device of its outer leg */
static __always_inline int outer_in(struct __sk_buff *skb, const struct dmm_seat *seat)
{
	struct dmm_tcp_frame frame = {};
	struct dmm_xdp_flow *flow;

	if (!frame_read(skb, sizeof(struct ethhdr), true, &frame))
		return TC_ACT_SHOT;
	flow = map_lookup(DMM_MAP(xdp_flows), &frame.pair);
	return flow && flow_is_of(flow, seat) ? away_around(skb, flow) : TC_ACT_SHOT;
}

static __always_inline int ingress(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	const struct dmm_seat *seat = map_lookup(DMM_MAP(seats), &ifindex);
	struct dmm_xdp_flow *flow;
	struct dmm_ask ask;
	__u32 nic;

	if (!seat)
		return TC_ACT_SHOT;
	if (unlikely(seat->outer))
		return outer_in(skb, seat);
	if (unlikely(skb->protocol == htons(DMM_ASK_TYPE))) {
		if (skb->len != sizeof(ask) || bpf_skb_load_bytes(skb, 0, &ask, sizeof(ask)))
			return TC_ACT_SHOT;
		return ask_answer(skb, &ask, seat);
	}
	flow = flow_in(skb);
	if (flow ? !flow_is_of(flow, seat)
		 : is_in_parts(skb, sizeof(struct ethhdr)) || udp_is_of_other(skb, seat->seat))
		return TC_ACT_SHOT;
	nic = seat->nic;
	if (unlikely(flow && flow->away))
		nic = away_enter(skb, nic, flow);
	skb->mark = DMM_INNER_MARK;
	return bpf_redirect(nic, BPF_F_INGRESS);
}

#endif /* DMM_INGRESS_H */

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * ingress.h: the tc program at the ingress of a user stack's TUN device.
 *
 * It marks what the stack sends to the kernel, so that with tcp_fwmark_accept the answers, and the accepted
 * socket, go back to the same device. And it answers what the stack process asks of the maps (struct
 * dmm_ask): the process itself has no right to them, since it reads packets of strangers. write(2) to the
 * device runs this program before it returns, unless packets of the device are steered to another processor
 * (RPS), so a flow is claimed before its SYN leaves.
 *
 * Who asks is known by the device. What is granted:
 * - a flow that nobody owns and of which the kernel has no socket, or a listener, or one that is over
 * (TIME_WAIT);
 * - a flow whose socket bears the process's mark, whoever owned it: its former owner's connection has ended;
 * - to give up what is its own, to be alive, full, and to have SYN cookies out for a while.
 */
#ifndef DMM_INGRESS_H
#define DMM_INGRESS_H

#include "defs.h"
#include "socket.h"

#define IP_PROTOCOL_BYTE 9
#define COOKIES_MAX_NS 180000000000ull /* more than a cookie lives, see cookie.c */

/* BCC does not declare it. */
static struct bpf_sock *(*dmm_sk_fullsock)(struct bpf_sock *sk) = (void *)BPF_FUNC_sk_fullsock;

enum dmm_holder {
	DMM_HOLDER_NOBODY,
	DMM_HOLDER_ASKER,
	DMM_HOLDER_OTHER,
};

/* Whose the kernel's socket of that 5-tuple is */
static __always_inline enum dmm_holder socket_holder(struct __sk_buff *skb, const struct dmm_addr_pair *pair,
						     const struct dmm_tun_mark *tun)
{
	struct bpf_sock *sk = socket_find(skb, pair);
	enum dmm_holder holder = DMM_HOLDER_OTHER;
	struct bpf_sock *full;

	if (!sk)
		return DMM_HOLDER_NOBODY;
	if (sk->state == BPF_TCP_LISTEN || sk->state == BPF_TCP_TIME_WAIT) {
		holder = DMM_HOLDER_NOBODY;
	} else {
		full = dmm_sk_fullsock(sk);
		if (full && (full->mark & tun->mask) == tun->mark)
			holder = DMM_HOLDER_ASKER;
	}
	bpf_sk_release(sk);
	return holder;
}

static __always_inline bool flow_claim(struct __sk_buff *skb, const struct dmm_ask *ask,
				       const struct dmm_tun_mark *tun)
{
	struct dmm_xdp_flow fresh = {.stack = tun->stack, .tap = tun->tap};
	const struct dmm_xdp_flow *flow = map_lookup(DMM_MAP(xdp_flows), &ask->pair);
	enum dmm_holder holder;

	if (flow && flow->stack == tun->stack && flow->tap == tun->tap)
		return true;
	holder = socket_holder(skb, &ask->pair, tun);
	if (holder == DMM_HOLDER_OTHER)
		return false;
	return !map_update(DMM_MAP(xdp_flows), &ask->pair, &fresh,
			   holder == DMM_HOLDER_ASKER ? BPF_ANY : BPF_NOEXIST);
}

static __always_inline void flow_disown(const struct dmm_ask *ask, const struct dmm_tun_mark *tun)
{
	const struct dmm_xdp_flow *flow = map_lookup(DMM_MAP(xdp_flows), &ask->pair);

	if (flow && flow->stack == tun->stack && flow->tap == tun->tap)
		bpf_map_delete_elem(DMM_MAP(xdp_flows), (void *)&ask->pair);
}

static __always_inline void cookies_tell(__u32 stack, __u64 until_ns)
{
	struct dmm_cookie_state *cookies = map_lookup(DMM_MAP(cookie_state), &stack);

	if (cookies && until_ns > cookies->until_ns)
		cookies->until_ns = until_ns;
}

static __always_inline void state_tell(const struct dmm_ask *ask, const struct dmm_tun_mark *tun)
{
	__u32 key = tun->stack * DMM_MAX_PROCESSES + tun->process;
	struct dmm_stack_load *load = map_lookup(DMM_MAP(stack_load), &key);
	__u64 now = dmm_ktime_coarse_ns();

	if (load) {
		load->full = ask->full;
		load->beat_ns = now;
	}
	if (ask->cookies_until_ns >= now + COOKIES_MAX_NS)
		return;
	cookies_tell(tun->stack, ask->cookies_until_ns);
	cookies_tell(0, ask->cookies_until_ns);
}

/* The device's queue takes it back to the process. */
static __always_inline int ask_refuse(struct __sk_buff *skb)
{
	__u32 refused = DMM_ASK_REFUSED;

	if (bpf_skb_store_bytes(skb, __builtin_offsetof(struct dmm_ask, op), &refused, sizeof(refused), 0))
		return TC_ACT_SHOT;
	return bpf_redirect(skb->ifindex, 0);
}

static __always_inline int ask_answer(struct __sk_buff *skb, const struct dmm_ask *ask,
				      const struct dmm_tun_mark *tun)
{
	switch (ask->op) {
	case DMM_ASK_CLAIM:
		if (!flow_claim(skb, ask, tun))
			return ask_refuse(skb);
		break;
	case DMM_ASK_DISOWN:
		flow_disown(ask, tun);
		break;
	case DMM_ASK_STATE:
		state_tell(ask, tun);
		break;
	}
	return TC_ACT_SHOT;
}

static __always_inline int ingress(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	const struct dmm_tun_mark *tun = map_lookup(DMM_MAP(tun_marks), &ifindex);
	struct dmm_ask ask;

	if (!tun)
		return TC_ACT_OK;
	if (unlikely(skb->len == sizeof(ask)) && tun->stack && skb->protocol == htons(ETH_P_IP) &&
	    !bpf_skb_load_bytes(skb, 0, &ask, sizeof(ask)) && ask.ip[IP_PROTOCOL_BYTE] == DMM_ASK_PROTOCOL)
		return ask_answer(skb, &ask, tun);
	skb->mark = (skb->mark & ~tun->mask) | (tun->mark & tun->mask);
	return TC_ACT_OK;
}

#endif /* DMM_INGRESS_H */

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * away.h: an open flow whose packets have come to leave by a device that its process does not
 * serve: a VPN came up, or the route changed. It goes on by that device, as TCP would, and its
 * process need not know it:
 *
 * - what the app sends goes to the process as if it left by a NIC that it serves, its home
 * (tcout.h);
 * - what the process sends to the wire of its home goes by the other device (outer_out() in
 * tcout.h), to the link-layer address that the kernel gave the app's latest packet;
 * - what comes from the wire there goes to the process (tcin.h);
 * - what the process sends to the app comes in there (ingress.h).
 *
 * The packets of the process must pass our programs for that. So its frames say that the flow is
 * away, by an address that is 0, and a process with AF_XDP sockets sends what is to such an address
 * by its packet socket, or, while the home is down or gone, by the TAP device of its outer leg
 * there (away_around()). nics[] has the device for as long as it is up; when it goes, home is tried
 * until the app's next packet shows another way.
 *
 * Where a default route leads by a device only since the process started, flows begin away
 * (away_begin()), if the policy names no devices for its stack.
 *
 * The other device may itself send by the home: a macvlan of it, or a bond under which it was put
 * just now. What is sent there comes to the program at the home once more, and must not be sent
 * there again. By nothing else can that be told for sure, since all of a packet may change on the
 * way: so what is sent there is a copy, which has no socket, and what has none is never sent there.
 */
#ifndef DMM_AWAY_H
#define DMM_AWAY_H

#include "frame.h"

/* Where the flow is away; NULL: there no more. */
static __always_inline const struct dmm_nic *away_nic(struct dmm_xdp_flow *flow)
{
	__u32 ifindex = flow->away;
	const struct dmm_nic *nic = map_lookup(DMM_MAP(nics), &ifindex);

	if (!nic)
		flow->away = 0;
	return nic;
}

/*
 * The app's packet leaves by nic: what of it is for the other packets, in away and addresses of
 * their flow, and its frame for the process.
 */
static __always_inline bool away_mark(struct __sk_buff *skb, const struct dmm_nic *nic, __u32 *away,
				      __u8 addresses[DMM_AWAY_BYTES])
{
	__u8 marked[DMM_AWAY_BYTES] = {[6] = DMM_AWAY_SOURCE};
	__u32 ifindex = skb->ifindex;
	__u32 mtu = 0;

	if (dmm_check_mtu(skb, ifindex, &mtu, 0, 0) < 0)
		return false;
	marked[10] = mtu >> 8;
	marked[11] = mtu;
	if (nic->bare)
		__builtin_memset(addresses, 0, DMM_AWAY_BYTES);
	else if (bpf_skb_load_bytes(skb, 0, addresses, DMM_AWAY_BYTES))
		return false;
	if (nic->bare && !frame_dress(skb))
		return false;
	*away = ifindex;
	return !bpf_skb_store_bytes(skb, 0, marked, sizeof(marked), 0);
}

static __always_inline bool away_leave(struct __sk_buff *skb, const struct dmm_nic *nic,
				       struct dmm_xdp_flow *flow)
{
	return away_mark(skb, nic, &flow->away, flow->addresses);
}

/*
 * The same for a SYN, by a copy to the process's device for its home: see syn_give(). The process
 * claims its flow, which begins away (ingress.h).
 */
static __always_inline bool away_begin(struct __sk_buff *skb, const struct dmm_nic *nic,
				       __u32 device, __u32 *away, __u8 addresses[DMM_AWAY_BYTES])
{
	__u32 mark = skb->mark;

	if (!device_is_there(skb, device) || !away_mark(skb, nic, away, addresses))
		return false;
	skb->mark = DMM_TCIN_MARK;
	if (bpf_clone_redirect(skb, device, 0) >= 0 || nic->bare)
		return true;
	*away = 0;
	skb->mark = mark;
	bpf_skb_store_bytes(skb, 0, addresses, DMM_AWAY_BYTES, 0);
	return false;
}

/* The process's device for a flow that begins on nic, which it does not serve; 0: none does. */
static __always_inline __u32 away_device(const struct dmm_nic *nic, __u32 stack, __u32 seat)
{
	const struct dmm_stack_state *state = nic->home ? stack_state_get(stack) : NULL;

	return state && state->follows ? inner_device(seat, nic->home - 1) : 0;
}

/* A packet that the process sends to the wire of its home, nic; the program's result. */
static __always_inline int away_send(struct __sk_buff *skb, const struct dmm_nic *nic,
				     struct dmm_xdp_flow *flow)
{
	__u8 addresses[12];
	const struct dmm_nic *away = away_nic(flow);

	if (!away)
		return TC_ACT_UNSPEC;
	if (!away->bare) {
		__builtin_memcpy(addresses, flow->addresses, sizeof(addresses));
		if ((nic->bare && !frame_dress(skb)) ||
		    bpf_skb_store_bytes(skb, 0, addresses, sizeof(addresses), 0))
			return bpf_redirect(0, 0);
	}
	skb->mark = DMM_AWAY_MARK;
	bpf_clone_redirect(skb, flow->away, 0);
	return bpf_redirect(0, 0);
}

/*
 * A packet that the process could not send to the wire of its home, with its Ethernet header; the
 * program's result.
 */
static __always_inline int away_around(struct __sk_buff *skb, struct dmm_xdp_flow *flow)
{
	__u8 addresses[12];
	const struct dmm_nic *away = flow->away ? away_nic(flow) : NULL;

	if (!away)
		return TC_ACT_SHOT;
	if (!away->bare) {
		__builtin_memcpy(addresses, flow->addresses, sizeof(addresses));
		if (bpf_skb_store_bytes(skb, 0, addresses, sizeof(addresses), 0))
			return TC_ACT_SHOT;
	}
	skb->mark = DMM_AWAY_MARK;
	skb->priority = flow->priority;
	return bpf_redirect(flow->away, 0);
}

/* What has been sent so comes to a device: it bears what the app's packets bear, and goes on. */
static __always_inline int away_pass(struct __sk_buff *skb, const struct dmm_nic *nic)
{
	struct dmm_tcp_frame frame = {};
	const struct dmm_xdp_flow *flow;

	if (!frame_read(skb, link_bytes(nic), true, &frame))
		return TC_ACT_UNSPEC;
	flow = map_lookup(DMM_MAP(xdp_flows), &frame.pair);
	if (flow)
		skb->mark = flow->mark;
	return TC_ACT_UNSPEC;
}

/* A packet that the process sends to the app, with its Ethernet header; where it is to come in. */
static __always_inline __u32 away_enter(struct __sk_buff *skb, __u32 home,
					struct dmm_xdp_flow *flow)
{
	const struct dmm_nic *away = away_nic(flow);
	__u8 addresses[12];

	if (!away)
		return home;
	if (!away->bare) {
		__builtin_memcpy(addresses, flow->addresses + 6, 6);
		__builtin_memcpy(addresses + 6, flow->addresses, 6);
		if (bpf_skb_store_bytes(skb, 0, addresses, sizeof(addresses), 0))
			return home;
	}
	return flow->away;
}

#endif /* DMM_AWAY_H */

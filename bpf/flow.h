/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * flow.h: flow records and the event ring.
 *
 * flows[] and more_flows[] are plain hashes, not LRUs: an open flow is never evicted; when both are full the
 * new flow is counted in DMM_CNT_FLOWS_FULL and goes unrecorded. The connect hook makes the record of a
 * connecting socket, the only allocation on its way; an accepted socket's is made at PASSIVE_ESTABLISHED. It
 * goes at TCP_CLOSE, or, when it never got established, with the socket (release.h).
 *
 * Events are put in the ring only while somebody follows (DMM_CONTROL_EVENTS). Waking a reader costs more
 * than the record, so one wake-up serves all events of DMM_WAKE_NS; the reader looks again a little later
 * than that (dmm_ebpf/loader/ringbuf.py keeps that promise).
 */
#ifndef DMM_FLOW_H
#define DMM_FLOW_H

#include "defs.h"

#define DMM_WAKE_NS 20000000ULL

static __always_inline __u64 wake_flags(__u64 now_ns)
{
	__u32 zero = 0;
	__u64 *last_ns = map_lookup(DMM_MAP(wakeup), &zero);

	if (last_ns && now_ns - *last_ns < DMM_WAKE_NS)
		return BPF_RB_NO_WAKEUP;
	if (last_ns)
		*last_ns = now_ns;
	return BPF_RB_FORCE_WAKEUP;
}

static __always_inline bool events_wanted(const struct dmm_control *control)
{
	return control && (control->flags & DMM_CONTROL_EVENTS);
}

/* Call only if events_wanted(). */
static __always_inline void event_emit(__u32 type, const struct dmm_flow *flow)
{
	struct dmm_event *event = bpf_ringbuf_reserve(DMM_MAP(events), sizeof(*event), 0);

	if (!event) {
		count(DMM_CNT_EVENTS_LOST);
		return;
	}
	event->type = type;
	event->pad = 0;
	event->time_ns = bpf_ktime_get_ns();
	__builtin_memcpy(&event->flow, flow, sizeof(*flow));
	bpf_ringbuf_submit(event, wake_flags(event->time_ns));
}

/* The addresses are those of the packets: an AF_INET6 socket with a v4-mapped peer sends IPv4. */
static __always_inline void pair_fill(struct bpf_sock_ops *ctx, struct dmm_addr_pair *pair)
{
	__u32 *laddr = (__u32 *)pair->laddr;
	__u32 *raddr = (__u32 *)pair->raddr;

	pair->family = CTX_LOAD(u32, ctx, family);
	if (pair->family == AF_INET) {
		addr_set4(laddr, CTX_LOAD(u32, ctx, local_ip4));
		addr_set4(raddr, CTX_LOAD(u32, ctx, remote_ip4));
	} else {
		laddr[0] = CTX_LOAD(u32, ctx, local_ip6[0]);
		laddr[1] = CTX_LOAD(u32, ctx, local_ip6[1]);
		laddr[2] = CTX_LOAD(u32, ctx, local_ip6[2]);
		laddr[3] = CTX_LOAD(u32, ctx, local_ip6[3]);
		raddr[0] = CTX_LOAD(u32, ctx, remote_ip6[0]);
		raddr[1] = CTX_LOAD(u32, ctx, remote_ip6[1]);
		raddr[2] = CTX_LOAD(u32, ctx, remote_ip6[2]);
		raddr[3] = CTX_LOAD(u32, ctx, remote_ip6[3]);
		if (addr_is_mapped(laddr))
			pair->family = AF_INET;
	}
	pair->lport_be = htons((__u16)CTX_LOAD(u32, ctx, local_port));
	pair->rport_be = (__u16)(CTX_LOAD(u32, ctx, remote_port) >> 16);
	pair->proto = IPPROTO_TCP;
	pair->pad = 0;
}

static __always_inline void flow_counts(struct bpf_sock_ops *ctx, struct dmm_flow *flow)
{
	flow->updated_ns = bpf_ktime_get_ns();
	flow->bytes_sent = CTX_LOAD(u64, ctx, bytes_acked);
	flow->bytes_received = CTX_LOAD(u64, ctx, bytes_received);
	flow->srtt_us = CTX_LOAD(u32, ctx, srtt_us) >> 3;
	flow->retransmits = CTX_LOAD(u32, ctx, total_retrans);
}

/* All but the decision, which stays as it is. */
static __always_inline void flow_fill(struct bpf_sock_ops *ctx, struct dmm_flow *flow, __u32 state,
				      __u64 netns_cookie)
{
	flow->cookie = dmm_socket_cookie(ctx);
	flow->netns_cookie = netns_cookie;
	pair_fill(ctx, &flow->pair);
	flow_counts(ctx, flow);
	flow->opened_ns = flow->updated_ns;
	flow->state = state;
	flow->pad = 0;
}

/* Whether more_flows[] has ever been needed; until then nobody looks there. */
static __always_inline __u32 *overflowed(void)
{
	__u32 zero = 0;

	return map_lookup(DMM_MAP(overflow), &zero);
}

static __always_inline struct dmm_flow *flow_lookup(__u64 cookie)
{
	struct dmm_flow *flow = map_lookup(DMM_MAP(flows), &cookie);
	const __u32 *more;

	if (likely(flow))
		return flow;
	more = overflowed();
	return more && *more ? map_lookup(DMM_MAP(more_flows), &cookie) : NULL;
}

static __always_inline struct dmm_flow *flow_find(struct bpf_sock_ops *ctx)
{
	return flow_lookup(dmm_socket_cookie(ctx));
}

static __always_inline void flow_drop(__u64 cookie)
{
	const __u32 *more;

	if (!bpf_map_delete_elem(DMM_MAP(flows), &cookie))
		return;
	more = overflowed();
	if (more && *more)
		bpf_map_delete_elem(DMM_MAP(more_flows), &cookie);
}

/* Replaces what an earlier connect() of the socket left, in whichever map it is. */
static __always_inline void flow_keep(const struct dmm_flow *flow)
{
	__u32 *more = overflowed();

	if (!more)
		return;
	if (likely(!map_update(DMM_MAP(flows), &flow->cookie, flow, BPF_ANY))) {
		if (unlikely(*more))
			bpf_map_delete_elem(DMM_MAP(more_flows), (void *)&flow->cookie);
		return;
	}
	*more = 1;
	if (map_update(DMM_MAP(more_flows), &flow->cookie, flow, BPF_ANY))
		count(DMM_CNT_FLOWS_FULL);
}

#endif /* DMM_FLOW_H */

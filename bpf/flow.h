/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * flow.h: flow records and the event ring.
 *
 * An open flow is never evicted: flows[] is an array in which a socket has two places, more_flows[]
 * a plain hash, no LRU, for those that find both taken; when that is full the new flow is counted
 * in DMM_CNT_FLOWS_FULL and goes unrecorded. The connect hook makes the record of a connecting
 * socket; an accepted socket's is made at PASSIVE_ESTABLISHED. It goes at TCP_CLOSE, or, when it
 * never got established, with the socket (release.h).
 *
 * Events are put in the ring only while somebody follows (DMM_CONTROL_EVENTS). Waking a reader
 * costs more than the record, so one wake-up serves all events of DMM_WAKE_NS; the reader looks
 * again a little later than that (dmm_ebpf/loader/ringbuf.py keeps that promise).
 */
#ifndef DMM_FLOW_H
#define DMM_FLOW_H

#include "defs.h"

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

/* Whether the RD wants to know how flows of adaptive routes end. */
static __always_inline bool ends_wanted(const struct dmm_control *control)
{
	return control && unlikely(control->flags & DMM_CONTROL_ADAPTIVE);
}

/* Call only if events_wanted(), or ends_wanted() of this flow. */
/* To be submitted; NULL: no room. */
static __always_inline struct dmm_event *event_begin(__u32 type, const struct dmm_flow *flow)
{
	struct dmm_event *event = bpf_ringbuf_reserve(DMM_MAP(events), sizeof(*event), 0);

	if (!event) {
		count(DMM_CNT_EVENTS_LOST);
		return NULL;
	}
	event->type = type;
	event->before = 0;
	event->process_gone = 0;
	event->error = 0;
	event->time_ns = bpf_ktime_get_ns();
	__builtin_memcpy(&event->flow, flow, sizeof(*flow));
	return event;
}

static __always_inline void event_submit(struct dmm_event *event)
{
	bpf_ringbuf_submit(event, wake_flags(event->time_ns));
}

static __always_inline void event_emit(__u32 type, const struct dmm_flow *flow)
{
	struct dmm_event *event = event_begin(type, flow);

	if (event)
		event_submit(event);
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
	flow->adaptive = 0;
}

/* way: 0 or 1, the two places of a socket. */
static __always_inline struct dmm_near_flow *near_place(__u64 cookie, __u32 way)
{
	__u32 index = ((__u32)cookie ^ way) & (DMM_NEAR_FLOWS - 1);

	return map_lookup(DMM_MAP(flows), &index);
}

static __always_inline struct dmm_near_flow *near_find(__u64 cookie)
{
	struct dmm_near_flow *near = near_place(cookie, 0);

	if (near && likely(near->owner == cookie))
		return near;
	near = near_place(cookie, 1);
	return near && near->owner == cookie ? near : NULL;
}

static __always_inline bool near_take(struct dmm_near_flow *near, __u64 cookie)
{
	return near && !near->owner && !__sync_val_compare_and_swap(&near->owner, 0, cookie);
}

/*
 * A place for the socket, which may have one of an earlier connect(); NULL: both
 * are other sockets'.
 */
static __always_inline struct dmm_near_flow *near_claim(__u64 cookie)
{
	struct dmm_near_flow *near = near_find(cookie);

	if (unlikely(near))
		return near;
	near = near_place(cookie, 0);
	if (likely(near_take(near, cookie)))
		return near;
	near = near_place(cookie, 1);
	return near_take(near, cookie) ? near : NULL;
}

/* Not whole while it is written: the cookie goes first and comes last. */
static __always_inline void near_fill(struct dmm_near_flow *near, const struct dmm_flow *flow)
{
	*(volatile __u64 *)&near->flow.cookie = 0;
	__builtin_memcpy((char *)&near->flow + sizeof(flow->cookie),
			 (const char *)flow + sizeof(flow->cookie),
			 sizeof(*flow) - sizeof(flow->cookie));
	asm volatile("" ::: "memory");
	*(volatile __u64 *)&near->flow.cookie = flow->cookie;
}

/* How many records are in more_flows[]; while there are none, nobody looks there. */
static __always_inline __u64 *more_count(void)
{
	__u32 zero = 0;

	return map_lookup(DMM_MAP(more_count), &zero);
}

static __always_inline struct dmm_flow *flow_lookup(__u64 cookie)
{
	struct dmm_near_flow *near = near_find(cookie);
	const __u64 *more;

	if (likely(near))
		return &near->flow;
	more = more_count();
	return more && *more ? map_lookup(DMM_MAP(more_flows), &cookie) : NULL;
}

static __always_inline struct dmm_flow *flow_find(struct bpf_sock_ops *ctx)
{
	return flow_lookup(dmm_socket_cookie(ctx));
}

static __always_inline void more_drop(__u64 cookie)
{
	__u64 *more = more_count();

	if (more && unlikely(*more) && !map_delete(DMM_MAP(more_flows), &cookie))
		__sync_fetch_and_add(more, -1);
}

/* Two may drop a record at once (release.h), and one of them be late: the place is another socket's
 * by then.
 */
static __always_inline void flow_drop(__u64 cookie)
{
	struct dmm_near_flow *near = near_find(cookie);

	if (likely(near))
		__sync_val_compare_and_swap(&near->owner, cookie, 0);
	else
		more_drop(cookie);
}

/* Replaces what an earlier connect() of the socket left, in whichever map it is. */
static __always_inline void flow_keep(const struct dmm_flow *flow)
{
	struct dmm_near_flow *near = near_claim(flow->cookie);
	__u64 *more;

	more_drop(flow->cookie);
	if (likely(near)) {
		near_fill(near, flow);
		return;
	}
	more = more_count();
	if (!more)
		return;
	__sync_fetch_and_add(more, 1);
	if (map_update(DMM_MAP(more_flows), &flow->cookie, flow, BPF_NOEXIST)) {
		__sync_fetch_and_add(more, -1);
		count(DMM_CNT_FLOWS_FULL);
	}
}

/* The one callback that is asked for: a callback on each ACK or retransmission would cost the flow
 * its speed.
 */
static __always_inline void state_flag_set(struct bpf_sock_ops *ctx)
{
	__u32 flags = CTX_LOAD(u32, ctx, bpf_sock_ops_cb_flags);

	if (!(flags & BPF_SOCK_OPS_STATE_CB_FLAG))
		bpf_sock_ops_cb_flags_set(ctx, flags | BPF_SOCK_OPS_STATE_CB_FLAG);
}

#endif /* DMM_FLOW_H */

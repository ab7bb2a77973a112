/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * tcfrom.h: the tc program at the ingress of a device by which packets of others come in. It looks
 * at SYNs alone, notes which stack is to carry them, and lets everything go on.
 *
 * A container's socket is still the packet's own at the host's end of its veth (Linux 4.20), so
 * what its connect() has decided is read from its storage. Behind a bridge it may be gone, so the
 * bridge's port is asked. Else the rules for what is forwarded decide.
 */
#ifndef DMM_TCFROM_H
#define DMM_TCFROM_H

#include "forward.h"
#include "frame.h"
#include "way.h"

static __always_inline bool same_opener(const struct dmm_forwarded *note,
					const struct dmm_addr_pair *pair)
{
	const __u64 *a = (const __u64 *)note->pair.laddr;
	const __u64 *b = (const __u64 *)pair->laddr;

	return a[0] == b[0] && a[1] == b[1] && note->pair.lport_be == pair->lport_be;
}

/*
 * Whether what is noted of that SYN stays: its flow is the kernel's, or a bridge's port
 * has known more.
 */
static __always_inline bool note_stays(const struct dmm_forwarded *note,
				       const struct dmm_addr_pair *pair, __u64 cookie, __u64 now)
{
	__u64 age = now - note->opened_ns;

	if (!same_opener(note, pair))
		return false;
	if (note->state == DMM_FORWARDED_LET_GO && age < LET_GO_MAX_NS)
		return true;
	return note->cookie && !cookie && age < NOTE_MAX_NS;
}

/* The stack that the socket's connect() has asked for; false: it has decided nothing. */
static __always_inline bool note_socket(struct __sk_buff *skb, struct bpf_sock *sk,
					struct dmm_forwarded *note)
{
	const struct dmm_way *way = way_get(sk);
	const struct dmm_flow *flow;

	note->cookie = dmm_socket_cookie(skb);
	if (way) {
		note->stack = way->stack;
		note->process = way->process;
		note->seat = way->seat;
		return true;
	}
	flow = flow_lookup(note->cookie);
	if (!flow || !flow->decision.rule) {
		note->cookie = 0;
		return false;
	}
	note->state = DMM_FORWARDED_LET_GO;
	return true;
}

static __always_inline void note_syn(struct __sk_buff *skb, const struct dmm_tcp_frame *frame,
				     const struct dmm_control *control)
{
	const struct dmm_addr_pair *pair = &frame->pair;
	__u64 now = dmm_ktime_coarse_ns();
	struct dmm_forwarded note = {
		.opened_ns = now, .pair = *pair, .ifindex = skb->ifindex, .seq_be = frame->seq_be};
	struct bpf_sock *sk = skb->sk;
	const struct dmm_forwarded *earlier;
	struct dmm_verdict verdict = {};

	sk = sk ? dmm_sk_fullsock(sk) : NULL;
	if (!(sk && is_stream(sk) && note_socket(skb, sk, &note))) {
		if (!forward_find(control, forward_holds(control, skb->ifindex), pair, false,
				  &verdict) ||
		    !stack_is_user(control->generation, verdict.stack))
			return;
		forwarded_verdict(&note, &verdict, control->generation);
	}
	earlier = map_lookup(DMM_MAP(notes), &frame->seq_be);
	if (!earlier || !note_stays(earlier, pair, note.cookie, now))
		map_update(DMM_MAP(notes), &frame->seq_be, &note, BPF_ANY);
}

/* link: bytes in front of the IP header. */
static __always_inline void note_first(struct __sk_buff *skb, __u32 link,
				       const struct dmm_control *control)
{
	struct dmm_tcp_frame frame = {};

	if (frame_read(skb, link, true, &frame) && is_first(frame.flags))
		note_syn(skb, &frame, control);
}

static __always_inline int tcfrom(struct __sk_buff *skb)
{
	const struct dmm_control *control = control_get();
	__u32 ifindex = skb->ifindex;
	const struct dmm_inside *inside;

	if (!forwards_at_all(control) || skb->vlan_present)
		return TC_ACT_UNSPEC;
	inside = map_lookup(DMM_MAP(inside), &ifindex);
	if (inside)
		note_first(skb, inside->bare ? 0 : sizeof(struct ethhdr), control);
	return TC_ACT_UNSPEC;
}

#endif /* DMM_TCFROM_H */

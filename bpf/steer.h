/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * steer.h: which packets that come in by a NIC are a user stack's, whether XDP asks (xdp.h) or tc
 * (tcin.h). Everything not named here is the kernel's.
 *
 * - TCP of a flow in xdp_flows[], in either role;
 * - a SYN for an address in listeners[] whose table, or program, gives the peer to a user stack
 * that is up, not full, and sits on this NIC;
 * - a SYN that a rule for forwarded flows gives to such a stack;
 * - an ACK for such an address while that stack has SYN cookies out, if the kernel has no socket
 * for its 5-tuple: connections of the kernel's, older than the listener's route or not, stay the
 * kernel's;
 * - an ICMP error that quotes a flow in xdp_flows[].
 *
 * Who asks gives a SYN to the kernel all the same if it asks for what no user stack carries
 * (synopts.h), or if the kernel has a connection of that 5-tuple: a client whose SYN-ACK was lost
 * sends its SYN again, whatever policy says by then, and one that has lost its state is told by
 * the kernel (RFC 5961 section 4).
 *
 * Left to parts.h, which tc asks: fragments and IPv6 extension headers.
 *
 * Refused, so the kernel's: VLAN tags and link-local addresses (they need a scope, which a 5-tuple
 * has not), anything truncated, and of others' flows all that no rule names. Only headers are read;
 * lengths beyond them and checksums are for the stack to check.
 */
#ifndef DMM_STEER_H
#define DMM_STEER_H

#include "adaptive.h"
#include "decide.h"
#include "forward.h"
#include "listener.h"
#include "socket.h"
#include "synopts.h"

#define IP_FRAG_MASK 0x3fff /* MF and the offset, not DF (RFC 791) */
#define IP_OFFSET_MASK 0x1fff
#define NEXTHDR_HOP 0 /* as in the kernel's net/ipv6.h, which is not for BPF */
#define NEXTHDR_ROUTING 43
#define NEXTHDR_FRAGMENT 44
#define NEXTHDR_NONE 59
#define NEXTHDR_DEST 60
#define TCP_FLAG_BYTE 13
#define UDP_BYTES 8 /* of its header */
#define TCP_FLAGS_FIN 0x01
#define TCP_FLAGS_SYN 0x02
#define TCP_FLAGS_RST 0x04
#define TCP_FLAGS_ACK 0x10
#define TCP_FLAGS_RST_ACK_FIN 0x15

/* The SYN with which a connection begins, whatever ECN says in it */
static __always_inline bool is_first(__u32 flags)
{
	return (flags & (TCP_FLAGS_SYN | TCP_FLAGS_RST_ACK_FIN)) == TCP_FLAGS_SYN;
}

enum dmm_steer {
	DMM_STEER_NOT = -1,   /* the packet is the kernel's */
	DMM_STEER_PARTS = -2, /* parts.h is to look at it */
	DMM_STEER_TCP = -3,   /* steer_tcp() says whose it is */
};

/* Extension headers of IPv6 in front of TCP that is a stack's all the same */
static __always_inline bool is_passed_over(__u8 nexthdr)
{
	return nexthdr == NEXTHDR_HOP || nexthdr == NEXTHDR_ROUTING ||
	       nexthdr == NEXTHDR_FRAGMENT || nexthdr == NEXTHDR_DEST;
}

/* A packet that comes in, and whom it is for */
struct dmm_packet {
	const struct dmm_nic *nic;
	struct dmm_addr_pair pair;
	/* its process 0 alone is asked for; 0: all that have a TAP device on the NIC */
	__u32 stack;
	__u32 seat; /* as in struct dmm_xdp_flow */
	__u32 home; /* likewise */
	__u8 tcp_flags;
};

/* A process's device for what comes from the NIC of that slot; 0: it has none. */
static __always_inline __u32 outer_device(__u32 slot, __u32 seat)
{
	__u32 key = (seat - 1) * DMM_MAX_NICS + slot;
	const __u32 *ifindex =
		seat && slot < DMM_MAX_NICS ? map_lookup(DMM_MAP(outer_devs), &key) : NULL;

	return ifindex ? *ifindex : 0;
}

enum dmm_owned {
	DMM_OWNED_NOT,
	DMM_OWNED, /* by who is asked for */
	DMM_OWNED_ELSE,
};

static __always_inline enum dmm_owned flow_owned(struct dmm_packet *packet)
{
	const struct dmm_xdp_flow *flow = map_lookup(DMM_MAP(xdp_flows), &packet->pair);

	if (!flow)
		return DMM_OWNED_NOT;
	packet->seat = flow->seat;
	packet->home = flow->home;
	/* By tc also what comes by a NIC that its stack is not on, or what XDP could not deliver:
	 * the kernel must not see it. */
	if (packet->stack && (flow->stack != packet->stack || flow->process))
		return DMM_OWNED_ELSE;
	return DMM_OWNED;
}

/*
 * A listener on a wildcard address must not draw what this host only forwards. Without
 * forwarding the kernel would drop what is not its own, and so it does when the stack shows it the
 * SYN; so that case needs no look-up.
 */
static __always_inline bool is_forwarded(void *ctx, __u32 ifindex, const struct dmm_addr_pair *pair)
{
	struct bpf_fib_lookup fib = {};
	int ret;

	fib.family = pair->family;
	fib.l4_protocol = pair->proto;
	fib.sport = pair->rport_be;
	fib.dport = pair->lport_be;
	fib.ifindex = ifindex;
	if (pair->family == AF_INET) {
		fib.ipv4_src = ((const __u32 *)pair->raddr)[3];
		fib.ipv4_dst = ((const __u32 *)pair->laddr)[3];
	} else {
		addr_copy(fib.ipv6_src, (const __u32 *)pair->raddr);
		addr_copy(fib.ipv6_dst, (const __u32 *)pair->laddr);
	}
	ret = bpf_fib_lookup(ctx, &fib, sizeof(fib), 0);
	return ret != BPF_FIB_LKUP_RET_NOT_FWDED && ret != BPF_FIB_LKUP_RET_FWD_DISABLED;
}

/*
 * A stack's SYN cookies, or with 0 anybody's. bpf_ktime_get_coarse_ns() lags by a tick, so a cookie
 * of the last tick passes: the stack looks again.
 */
static __always_inline bool cookies_out(__u32 stack)
{
	const struct dmm_cookie_state *state = map_lookup(DMM_MAP(cookie_state), &stack);

	return state && state->until_ns && dmm_ktime_coarse_ns() < state->until_ns;
}

/*
 * The process of a stack that is up, for a flow that comes by this NIC; false: it takes
 * none from there.
 */
static __always_inline bool process_here(const struct dmm_stack_state *state, __u32 stack,
					 struct dmm_packet *packet, struct dmm_process *process)
{
	if (!process_pick(state, stack, pair_hash(&packet->pair), false, process))
		return false;
	packet->seat = process->seat;
	return packet->stack ? !process->number
			     : outer_device(packet->nic->slot, process->seat) != 0;
}

static __always_inline bool process_has_room(__u32 stack, const struct dmm_process *process)
{
	if (!process_is_full(stack, process->number))
		return true;
	count(DMM_CNT_XDP_FULL);
	return false;
}

static __always_inline bool listener_owned(void *ctx, __u32 ifindex, struct dmm_packet *packet,
					   bool syn)
{
	struct dmm_query query = {.proto = IPPROTO_TCP, .port_be = packet->pair.lport_be};
	const struct dmm_control *control = control_get();
	const struct dmm_listener *listener;
	const struct dmm_stack_state *state;
	const struct dmm_stack *stack;
	struct dmm_process process;
	struct dmm_verdict verdict;
	__u32 generation;
	__u32 chosen;
	__u32 table;

	generation = control ? control->generation : 0;
	if (!generation)
		return false;
	listener = listener_find(&packet->pair);
	if (!listener)
		return false;
	query.half = generation & 1;
	table = listener->tables[query.half];
	chosen = listener->chosen[query.half];
	addr_copy(query.addr, (const __u32 *)packet->pair.raddr);
	if (chosen) {
		verdict.stack = chosen - 1;
	} else {
		if (!table || !route_find(table, &query, generation, &verdict))
			return false;
		adaptive_settle_opened(&query, &packet->pair, &verdict);
	}
	if (packet->stack && verdict.stack != packet->stack)
		return false;
	stack = stack_get(query.half, verdict.stack);
	state = stack_state_get(verdict.stack);
	if (!stack || stack->kind != DMM_STACK_USER || !state || !state->up)
		return false;
	if (is_forwarded(ctx, ifindex, &packet->pair))
		return false;
	/*
	 * An ACK may answer this process's cookie, which no other can read, so it
	 * goes nowhere else.
	 */
	if (!process_here(state, verdict.stack, packet, &process))
		return false;
	return syn ? process_has_room(verdict.stack, &process) : cookies_out(verdict.stack);
}

static __always_inline void pair_turn(struct dmm_addr_pair *to, const struct dmm_addr_pair *from)
{
	addr_copy((__u32 *)to->laddr, (const __u32 *)from->raddr);
	addr_copy((__u32 *)to->raddr, (const __u32 *)from->laddr);
	to->lport_be = from->rport_be;
	to->rport_be = from->lport_be;
	to->family = from->family;
	to->proto = from->proto;
	to->pad = 0;
}

/*
 * A SYN that is to be forwarded, or translated, and whose rule gives it to a stack on this NIC.
 * While that has SYN cookies out, it is left to the kernel: nothing would tell an ACK with a cookie
 * from one that the kernel forwards.
 */
static __always_inline bool forward_owned(void *ctx, __u32 ifindex, struct dmm_packet *packet)
{
	const struct dmm_control *control = control_get();
	struct dmm_forwarded fresh = {.state = DMM_FORWARDED_TAKEN, .ifindex = ifindex};
	const struct dmm_stack_state *state;
	struct dmm_process process = {};
	struct dmm_verdict verdict = {};
	__u64 holds = forwards_at_all(control) ? forward_holds(control, ifindex) : 0;

	if (!holds)
		return false;
	pair_turn(&fresh.pair, &packet->pair);
	if (!forward_find(control, holds, &fresh.pair, !is_forwarded(ctx, ifindex, &packet->pair),
			  &verdict) ||
	    (packet->stack && verdict.stack != packet->stack) ||
	    !stack_is_user(control->generation, verdict.stack) || cookies_out(verdict.stack))
		return false;
	state = stack_state_get(verdict.stack);
	if (!state || !state->up || !process_here(state, verdict.stack, packet, &process) ||
	    !process_has_room(verdict.stack, &process))
		return false;
	forwarded_verdict(&fresh, &verdict, control->generation);
	fresh.opened_ns = dmm_ktime_coarse_ns();
	fresh.process = process.number;
	fresh.seat = process.seat;
	map_update(DMM_MAP(forwarded), &packet->pair, &fresh, BPF_ANY);
	return true;
}

/*
 * The state of the kernel's socket of this very 5-tuple: request, open, TIME_WAIT; 0: there is
 * none. The look-up may find a listener.
 */
static __always_inline __u32 kernel_state(void *ctx, const struct dmm_addr_pair *pair)
{
	struct bpf_sock *sk = socket_find(ctx, pair);
	__u32 state;

	if (!sk)
		return 0;
	state = sk->state;
	bpf_sk_release(sk);
	return state == BPF_TCP_LISTEN ? 0 : state;
}

/* A packet with which a flow may begin */
static __always_inline bool steers_syn(int counter)
{
	return counter == DMM_CNT_XDP_LISTENER || counter == DMM_CNT_FORWARD_IN;
}

/* Whether a SYN that a process is to have goes there. ctx: __sk_buff, or xdp_md if xdp. */
static __always_inline bool syn_is_carried(void *ctx, __u32 link, bool xdp)
{
	if (likely(!syn_is_foreign(ctx, link, 0, xdp)))
		return true;
	count(DMM_CNT_SYN_OPTION);
	return false;
}

/* Returns what to count when the packet goes to the process of packet->seat, or DMM_STEER_NOT. */
static __always_inline int steer_tcp(void *ctx, __u32 ifindex, struct dmm_packet *packet)
{
	__u8 flags = packet->tcp_flags;
	bool syn = is_first(flags);
	bool ack = (flags & (TCP_FLAGS_SYN | TCP_FLAGS_RST | TCP_FLAGS_ACK)) == TCP_FLAGS_ACK;

	enum dmm_owned owned = flow_owned(packet);

	if (owned != DMM_OWNED_NOT)
		return owned == DMM_OWNED ? DMM_CNT_XDP_FLOW : DMM_STEER_NOT;
	/* Without a stack of its own the first look is at what holds for all. */
	if (!syn && !(ack && cookies_out(packet->stack)))
		return DMM_STEER_NOT;
	if (unlikely(packet->nic->behind))
		return DMM_STEER_NOT;
	if (!listener_owned(ctx, ifindex, packet, syn))
		return syn && forward_owned(ctx, ifindex, packet) ? DMM_CNT_FORWARD_IN
								  : DMM_STEER_NOT;
	if (syn)
		return DMM_CNT_XDP_LISTENER;
	return kernel_state(ctx, &packet->pair) ? DMM_STEER_NOT : DMM_CNT_XDP_COOKIE;
}

static __always_inline void pair_set4(struct dmm_addr_pair *pair, __u32 laddr_be, __u32 raddr_be)
{
	addr_set4((__u32 *)pair->laddr, laddr_be);
	addr_set4((__u32 *)pair->raddr, raddr_be);
	pair->family = AF_INET;
	pair->proto = IPPROTO_TCP;
}

static __always_inline void pair_set6(struct dmm_addr_pair *pair, const struct in6_addr *laddr,
				      const struct in6_addr *raddr)
{
	addr_copy((__u32 *)pair->laddr, laddr->in6_u.u6_addr32);
	addr_copy((__u32 *)pair->raddr, raddr->in6_u.u6_addr32);
	pair->family = AF_INET6;
	pair->proto = IPPROTO_TCP;
}

struct dmm_input {
	void *ctx;
	void *data_end;
	__u32 ifindex;
};

static __always_inline int steer_tcp_header(const struct dmm_input *in, struct dmm_packet *packet,
					    void *header)
{
	struct tcphdr *th = header;

	if ((void *)(th + 1) > in->data_end)
		return DMM_STEER_NOT;
	packet->pair.lport_be = th->dest;
	packet->pair.rport_be = th->source;
	packet->tcp_flags = ((const __u8 *)th)[TCP_FLAG_BYTE];
	return DMM_STEER_TCP;
}

/*
 * The quoted packet is one that this host sent: its source is local (RFC 792, RFC
 * 4443 section 2.4).
 */
static __always_inline int steer_quote_ports(const struct dmm_input *in, struct dmm_packet *packet,
					     const __u16 *ports)
{

	if ((void *)(ports + 4) > in->data_end)
		return DMM_STEER_NOT;
	packet->pair.lport_be = ports[0];
	packet->pair.rport_be = ports[1];
	return flow_owned(packet) == DMM_OWNED ? DMM_CNT_XDP_ICMP : DMM_STEER_NOT;
}

static __always_inline int steer_icmp4(const struct dmm_input *in, struct dmm_packet *packet,
				       void *header, __u32 daddr_be)
{
	struct icmphdr *icmp = header;
	struct iphdr *quote = (void *)(icmp + 1);

	if ((void *)(quote + 1) > in->data_end)
		return DMM_STEER_NOT;
	if (icmp->type != ICMP_DEST_UNREACH && icmp->type != ICMP_TIME_EXCEEDED &&
	    icmp->type != ICMP_PARAMETERPROB)
		return DMM_STEER_NOT;
	if (quote->version != 4 || quote->ihl < 5 || quote->protocol != IPPROTO_TCP ||
	    quote->saddr != daddr_be || (quote->frag_off & htons(IP_OFFSET_MASK)))
		return DMM_STEER_NOT;
	pair_set4(&packet->pair, quote->saddr, quote->daddr);
	return steer_quote_ports(in, packet, (void *)quote + quote->ihl * 4);
}

static __always_inline int steer_icmp6(const struct dmm_input *in, struct dmm_packet *packet,
				       void *header, const struct in6_addr *daddr)
{
	struct icmp6hdr *icmp = header;
	struct ipv6hdr *quote = (void *)(icmp + 1);
	const __u32 *to = daddr->in6_u.u6_addr32;
	const __u32 *from;

	if ((void *)(quote + 1) > in->data_end)
		return DMM_STEER_NOT;
	if (icmp->icmp6_type < ICMPV6_DEST_UNREACH || icmp->icmp6_type > ICMPV6_PARAMPROB)
		return DMM_STEER_NOT;
	from = quote->saddr.in6_u.u6_addr32;
	if (quote->version != 6 || quote->nexthdr != IPPROTO_TCP || from[0] != to[0] ||
	    from[1] != to[1] || from[2] != to[2] || from[3] != to[3])
		return DMM_STEER_NOT;
	pair_set6(&packet->pair, &quote->saddr, &quote->daddr);
	return steer_quote_ports(in, packet, (void *)(quote + 1));
}

static __always_inline int steer_ipv4(const struct dmm_input *in, struct dmm_packet *packet,
				      void *header)
{
	struct iphdr *ip = header;

	if ((void *)(ip + 1) > in->data_end)
		return DMM_STEER_NOT;
	if (ip->version != 4 || ip->ihl < 5)
		return DMM_STEER_NOT;
	if (ip->frag_off & htons(IP_FRAG_MASK))
		return ip->protocol == IPPROTO_TCP ? DMM_STEER_PARTS : DMM_STEER_NOT;
	header += ip->ihl * 4;
	if (ip->protocol == IPPROTO_TCP) {
		pair_set4(&packet->pair, ip->daddr, ip->saddr);
		return steer_tcp_header(in, packet, header);
	}
	if (ip->protocol == IPPROTO_ICMP)
		return steer_icmp4(in, packet, header, ip->daddr);
	return DMM_STEER_NOT;
}

/* fe80::/10 (RFC 4291 section 2.5.6) */
static __always_inline bool addr_is_link_local(const struct in6_addr *addr)
{
	return (addr->in6_u.u6_addr32[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

static __always_inline int steer_ipv6(const struct dmm_input *in, struct dmm_packet *packet,
				      void *header)
{
	struct ipv6hdr *ip = header;

	if ((void *)(ip + 1) > in->data_end || ip->version != 6)
		return DMM_STEER_NOT;
	if (addr_is_link_local(&ip->saddr) || addr_is_link_local(&ip->daddr))
		return DMM_STEER_NOT;
	if (ip->nexthdr == IPPROTO_TCP) {
		pair_set6(&packet->pair, &ip->daddr, &ip->saddr);
		return steer_tcp_header(in, packet, ip + 1);
	}
	if (ip->nexthdr == IPPROTO_ICMPV6)
		return steer_icmp6(in, packet, ip + 1, &ip->daddr);
	return is_passed_over(ip->nexthdr) ? DMM_STEER_PARTS : DMM_STEER_NOT;
}

/* As steer(), but of TCP only the 5-tuple is read: enum dmm_steer. */
static __always_inline int steer_read(const struct dmm_input *in, struct dmm_packet *packet,
				      void *header, __u16 protocol)
{
	if (protocol == htons(ETH_P_IP))
		return steer_ipv4(in, packet, header);
	if (protocol == htons(ETH_P_IPV6))
		return steer_ipv6(in, packet, header);
	return DMM_STEER_NOT;
}

/* header: what stands behind the Ethernet header; protocol: its EtherType. */
static __always_inline int steer(const struct dmm_input *in, struct dmm_packet *packet,
				 void *header, __u16 protocol)
{
	int result = steer_read(in, packet, header, protocol);

	return result == DMM_STEER_TCP ? steer_tcp(in->ctx, in->ifindex, packet) : result;
}

#endif /* DMM_STEER_H */

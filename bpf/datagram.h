/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * datagram.h: datagrams[], what the policy says of a UDP socket's datagrams to one peer: written by
 * connect() and by each datagram that names its peer itself (connect.h, sendmsg.h), read where they
 * leave (udp.h) and for listings.
 *
 * Only peers whose route names a user stack have an entry, whoever serves. A socket that is not
 * connected may have many, so the map is bounded, and who was not heard of for the longest goes:
 * nothing is lost with it, since each datagram asks anew. What was decided for such a socket holds
 * for a second, in one generation and for one process of the app's.
 */
#ifndef DMM_DATAGRAM_H
#define DMM_DATAGRAM_H

#include "decide.h"

#define DATAGRAM_ASK_NS 1000000000ull
#define DATAGRAM_ONE_WAY_NS (DMM_DATAGRAM_ONE_WAY_S * 1000000000ull)
#define DATAGRAM_BOTH_WAYS_NS (DMM_DATAGRAM_BOTH_WAYS_S * 1000000000ull)

static __always_inline void datagram_key(struct dmm_datagram_key *key, __u64 cookie,
					 const __u32 *raddr, __u16 rport_be)
{
	key->cookie = cookie;
	addr_copy((__u32 *)key->raddr, raddr);
	key->rport_be = rport_be;
	key->pad = 0;
	key->pad_end = 0;
}

/* To a multicast group or to everybody: one datagram, many that get it */
static __always_inline bool addr_is_group(const __u32 *addr)
{
	if (!addr_is_mapped(addr))
		return (addr[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000);
	return (addr[3] & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000) || addr[3] == 0xffffffff;
}

/* Whether the exchange that was noted may go on */
static __always_inline bool datagram_is_recent(const struct dmm_flow *flow)
{
	return flow->updated_ns && dmm_ktime_coarse_ns() - flow->updated_ns < DATAGRAM_ONE_WAY_NS;
}

/* Whether this call needs no look at the policy: it was asked a moment ago. */
static __always_inline bool datagram_is_decided(const struct dmm_datagram_key *key,
						__u32 generation)
{
	const struct dmm_flow *flow = map_lookup(DMM_MAP(datagrams), key);

	return flow && flow->decision.generation == generation &&
	       flow->decision.pid == bpf_get_current_pid_tgid() >> 32 &&
	       dmm_ktime_coarse_ns() - flow->updated_ns < DATAGRAM_ASK_NS;
}

/* The kernel serves that peer, as if there were no policy. */
static __always_inline void datagram_forget(const struct dmm_datagram_key *key)
{
	if (map_lookup(DMM_MAP(datagrams), key))
		map_delete(DMM_MAP(datagrams), key);
}

/* Whether it goes on, or is over and may begin anew */
static __always_inline bool udp_is_open(const struct dmm_udp_flow *udp, __u64 now)
{
	__u64 latest = udp->in_ns > udp->out_ns ? udp->in_ns : udp->out_ns;

	/* Another processor may have noted a datagram since now was read: no difference. */
	return now <
	       latest + (udp->in_ns && udp->out_ns ? DATAGRAM_BOTH_WAYS_NS : DATAGRAM_ONE_WAY_NS);
}

/*
 * What is kept of that peer, to be filled in anew: an exchange that goes on began when it did.
 * NULL: no memory. Made in the map, since a program's stack has no room for it.
 */
static __always_inline struct dmm_flow *datagram_record(const struct dmm_datagram_key *key)
{
	struct dmm_flow *flow = map_lookup(DMM_MAP(datagrams), key);
	const struct dmm_udp_flow *blank;
	__u32 zero = 0;

	if (likely(flow))
		return flow;
	blank = map_lookup(DMM_MAP(udp_blank), &zero);
	if (!blank || map_update(DMM_MAP(datagrams), key, &blank->flow, BPF_NOEXIST))
		return NULL;
	return map_lookup(DMM_MAP(datagrams), key);
}

#endif /* DMM_DATAGRAM_H */

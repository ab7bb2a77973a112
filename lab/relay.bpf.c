/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * relay.bpf.c: leads all TCP over IPv4 of a NIC through the relay of lab/relay, both ways; the
 * compiler is told the devices: RELAY_NIC, RELAY_IN, RELAY_OUT (lab/relay.py).
 *
 * What the relay gives back bears a mark, so that it is not led there again: OUTER on its way to
 * the wire, INNER on its way to the host's own sockets.
 */
#include <linux/in.h>
#include <linux/pkt_cls.h>

#define OUTER 0x5e1a0001
#define INNER 0x5e1a0002
#define IP_PROTOCOL (14 + 9) /* behind the Ethernet header */
#define ETHERTYPE_IP __builtin_bswap16(0x0800)

static long (*redirect_neigh)(__u32 ifindex, void *params, int bytes,
			      __u64 flags) = (void *)BPF_FUNC_redirect_neigh;

/* At the NIC's egress */
int relay_egress(struct __sk_buff *skb)
{
	__u8 protocol = 0;

	if (skb->mark == OUTER || skb->protocol != ETHERTYPE_IP)
		return TC_ACT_UNSPEC;
	bpf_skb_load_bytes(skb, IP_PROTOCOL, &protocol, sizeof(protocol));
	return protocol == IPPROTO_TCP ? bpf_redirect(RELAY_IN, 0) : TC_ACT_UNSPEC;
}

/* At the ingress of the relay's device for the wire: the kernel finds the neighbour */
int relay_to_wire(struct __sk_buff *skb)
{
	skb->mark = OUTER;
	return redirect_neigh(RELAY_NIC, (void *)0, 0, 0);
}

/* At the NIC's ingress */
int relay_ingress(struct __sk_buff *skb)
{
	__u8 protocol = 0;

	if (skb->mark == INNER || skb->protocol != ETHERTYPE_IP)
		return TC_ACT_UNSPEC;
	bpf_skb_load_bytes(skb, IP_PROTOCOL, &protocol, sizeof(protocol));
	return protocol == IPPROTO_TCP ? bpf_redirect(RELAY_OUT, 0) : TC_ACT_UNSPEC;
}

/* At the ingress of the relay's device for the host: as if it had come by the NIC */
int relay_to_host(struct __sk_buff *skb)
{
	skb->mark = INNER;
	return bpf_redirect(RELAY_NIC, BPF_F_INGRESS);
}

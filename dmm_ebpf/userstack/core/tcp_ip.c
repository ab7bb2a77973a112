/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_ip.c: what the IP headers of one leg's packets say, and those of the other leg are to say:
 * DSCP, TTL, flow label; and by which way packets go.
 */
#include "tcp_int.h"

void ip_follow(struct env *env, struct ends *e, const struct pkt *pkt)
{
	if (pkt->link)
		e->link = pkt->link;
	if (pkt->link_mtu && pkt->link_mtu != e->f.mtu_dev)
		pmtu_device(env, e, pkt->link_mtu);
}

void ip_turn_back(struct ends *e, const struct pkt *pkt)
{
	if (e->f.passive && e->leg[DMM_LEG_INNER].state == TCP_SYN_SENT && pkt->link)
		e->link = pkt->link;
}

void ip_learn_app(struct ends *e, const struct pkt *pkt)
{
	if (pkt->payload_len || (pkt->flags & TH_SYN))
		e->tos = pkt->tos & (uint8_t)~WIRE_ECN_MASK;
	e->ttl = pkt->ttl;
	e->flow_label = pkt->flow_label;
}

void ip_learn_peer(struct ends *e, const struct pkt *pkt)
{
	if (pkt->payload_len || (pkt->flags & TH_SYN))
		e->peer_tos = pkt->tos & (uint8_t)~WIRE_ECN_MASK;
	e->peer_label = pkt->flow_label;
}

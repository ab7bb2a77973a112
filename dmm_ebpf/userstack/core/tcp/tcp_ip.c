/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_ip.c: what the IP headers of one leg's packets say, and those of the other leg are to say:
 * DSCP, TTL, flow label, DF; and by which way packets go.
 */
#include "tcp_int.h"

bool ip_follow(struct env *env, struct ends *e, const struct pkt *pkt)
{
	bool is_new = pkt->link && pkt->link != e->link;

	if (is_new)
		e->link = pkt->link;
	if (pkt->link_mtu && pkt->link_mtu != e->f.mtu_dev)
		pmtu_device(env, e, pkt->link_mtu);
	return is_new;
}

void ip_turn_back(struct ends *e, const struct pkt *pkt)
{
	if (e->f.passive && ends_end(e, DMM_LEG_INNER)->phase == END_ASKING && pkt->link)
		e->link = pkt->link;
}

void ip_learn_app(struct ends *e, const struct pkt *pkt)
{
	if (pkt->payload_len || (pkt->flags & TH_SYN))
		e->tos = pkt->tos & (uint8_t)~WIRE_ECN_MASK;
	e->ttl = pkt->ttl;
	e->may_cut = pkt->may_cut;
	e->flow_label = pkt->flow_label;
}

void ip_learn_peer(struct ends *e, const struct pkt *pkt)
{
	if (pkt->payload_len || (pkt->flags & TH_SYN))
		e->peer_tos = pkt->tos & (uint8_t)~WIRE_ECN_MASK;
	e->peer_label = pkt->flow_label;
}

/* What was answered by the former way goes by this one once more. */
static void answer_again(struct env *env, struct tcb *t)
{
	if (!tcb_outer(t)->again_ms || t->state != TCP_ESTABLISHED)
		return;
	t->flags |= TF_ACK_NOW;
	tcp_ready(env, t);
}

void tcp_path(struct env *env, struct end *e, enum end_path what)
{
	struct tcb *t = tcb_of(e);

	switch (what) {
	case END_PATH_MTU:
		pmtu_follow(env, t);
		break;
	case END_PATH_SEGMENT:
		pmtu_follow_segment(env, t);
		break;
	case END_PATH_WAY:
		answer_again(env, t);
		break;
	}
}

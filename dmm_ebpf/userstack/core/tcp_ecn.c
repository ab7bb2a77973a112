/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_ecn.c: explicit congestion notification (RFC 3168) on the outer leg.
 *
 * Our SYN asks for it once; a SYN sent again asks no more, for paths that drop what they do not know. New
 * data carries ECT(0); retransmissions, pure ACKs, SYNs and probes do not (section 6.1.4 to 6.1.6). The inner
 * leg has no queue worth a mark and stays without.
 *
 * Invariants: TF_ECN on an open leg: both ends agreed. An echo counts once per window: until our CWR,
 * which ends at ecn_end, is acknowledged, the peer still speaks of what was answered already.
 */
#include "core.h"

uint8_t ecn_syn_flags(const struct dmm_core *core, struct tcb *t)
{
	if (!tcb_is_outer(t) || core->cfg.ecn_off)
		return 0;
	if (t->state == TCP_SYN_RECV)
		return t->flags & TF_ECN ? TH_ECE : 0;
	if (t->flags & TF_SYN_RTX) {
		t->flags &= ~(uint32_t)TF_ECN;
		return 0;
	}
	t->flags |= TF_ECN;
	return TH_ECE | TH_CWR;
}

/* Section 6.1.1: what the peer's SYN or SYN-ACK says */
void ecn_learn_syn(const struct dmm_core *core, struct tcb *t, const struct pkt *pkt)
{
	uint8_t bits = pkt->flags & (TH_ECE | TH_CWR);
	bool on;

	if (!tcb_is_outer(t) || core->cfg.ecn_off)
		return;
	if (pkt->flags & TH_ACK)
		on = (t->flags & TF_ECN) && bits == TH_ECE;
	else
		on = bits == (TH_ECE | TH_CWR);
	t->flags = on ? t->flags | TF_ECN : t->flags & ~(uint32_t)TF_ECN;
}

/* Section 6.1.3: an acceptable data segment; its CE is echoed until the peer says CWR */
void ecn_input(struct dmm_core *core, struct tcb *t, const struct pkt *pkt)
{
	if (!(t->flags & TF_ECN) || !pkt->payload_len)
		return;
	if (pkt->flags & TH_CWR)
		t->flags &= ~(uint32_t)TF_ECN_ECHO;
	if ((pkt->tos & 3) != 3)
		return;
	core->counters[DMM_CORE_ECN_CE]++;
	if (!(t->flags & TF_ECN_ECHO)) {
		t->flags |= TF_ECN_ECHO | TF_ACK_NOW;
		tcp_ready(core, t);
	}
}

/* Section 6.1.2: true: this ACK echoes a mark */
bool ecn_echoed(struct dmm_core *core, struct tcb *t, const struct pkt *pkt)
{
	struct outer *o = &tcb_conn(t)->outer;

	if (!(t->flags & TF_ECN) || (pkt->flags & (TH_ECE | TH_SYN)) != TH_ECE)
		return false;
	if (!(t->flags & TF_ECN_CWR) && t->snd_una >= o->ecn_end) {
		core->counters[DMM_CORE_ECN_ECE]++;
		ecn_reduced(t);
	}
	return true;
}

/* The window was reduced, for whatever reason: the next new data says so */
void ecn_reduced(struct tcb *t)
{
	if (t->flags & TF_ECN)
		t->flags |= TF_ECN_CWR;
}

uint8_t ecn_ack_flags(const struct tcb *t)
{
	return t->flags & TF_ECN_ECHO ? TH_ECE : 0;
}

/* For a data segment; *tos gets the code point */
uint8_t ecn_data_flags(struct tcb *t, const struct seg *s, uint8_t *tos)
{
	if (!(t->flags & TF_ECN) || (s->flags & SEG_RETRANS))
		return 0;
	*tos = 2; /* ECT(0) */
	if (!(t->flags & TF_ECN_CWR))
		return 0;
	t->flags &= ~(uint32_t)TF_ECN_CWR;
	tcb_conn(t)->outer.ecn_end = seg_end(s);
	return TH_CWR;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_ecn.c: explicit congestion notification on the outer leg: which kind is agreed on, and RFC
 * 3168.
 *
 * Our SYN asks for accurate ECN (RFC 9768), which a peer that knows RFC 3168 only answers as if it
 * were asked for that. The first SYN that is sent again asks once more, the others ask for nothing,
 * for paths that drop what they do not know. New data carries ECT(0); retransmissions, pure ACKs,
 * SYNs and probes do not (RFC 3168 section 6.1.4 to 6.1.6). The inner leg has no queue worth a mark
 * and stays without.
 *
 * Invariants: on an open leg TF_ECN: both ends agreed on RFC 3168, TF_ACCECN: on RFC 9768; never
 * both. What was agreed on first stays; an end that said in any SYN that it does without sends
 * nothing ECT (RFC 9768 section 3.1.5). An echo of RFC 3168 counts once per window: until our CWR,
 * which ends at ecn_end, is acknowledged, the peer still speaks of what was answered already.
 */
#include "tcp_int.h"

/* The three flags as one number: AE, CWR, ECE */
enum { ACE_NONE = 0, ACE_ECE = 1, ACE_CWR_ECE = 3, ACE_NONCE = 5, ACE_ALL = 7 };

static uint32_t ace_of(const struct pkt *pkt)
{
	return (pkt->flags & (TH_AE | TH_CWR | TH_ECE)) >> 6;
}

uint16_t ecn_syn_flags(const struct env *env, struct tcb *t)
{
	bool rfc_3168 = env->cfg.accecn_off;

	if (!tcb_is_outer(t) || env->cfg.ecn_off)
		return 0;
	if (t->state == TCP_SYN_RECV)
		return t->flags & TF_ECN ? TH_ECE : 0;
	if ((t->flags & TF_SYN_RTX) && (rfc_3168 || t->retries > 1)) {
		t->flags |= TF_NO_ECT;
		return 0;
	}
	t->flags |= TF_ECN_ASKED;
	return rfc_3168 ? TH_ECE | TH_CWR : TH_ECE | TH_CWR | TH_AE;
}

/* What the SYN-ACK of a peer means that we asked (RFC 9768 table 2); 0: no ECN */
static uint32_t kind_of_answer(const struct env *env, uint32_t ace)
{
	if (env->cfg.accecn_off)
		return (ace & 3) == ACE_ECE ? TF_ECN : 0;
	switch (ace) {
	case ACE_NONE:
	case ACE_ALL: /* reflected by something that knows neither */
		return 0;
	case ACE_ECE:
	case ACE_NONCE:
		return TF_ECN;
	default:
		return TF_ACCECN;
	}
}

/*
 * What a SYN asks for; combinations that nobody uses yet ask for accurate ECN (RFC
 * 9768 section 3.1.3)
 */
static uint32_t kind_of_request(const struct env *env, uint32_t ace)
{
	if (env->cfg.accecn_off)
		return (ace & 3) == ACE_CWR_ECE ? TF_ECN : 0;
	if (ace == ACE_NONE)
		return 0;
	return ace == ACE_CWR_ECE ? TF_ECN : TF_ACCECN;
}

void ecn_learn_syn(const struct env *env, struct tcb *t, const struct pkt *pkt)
{
	bool answer = pkt->flags & TH_ACK, asked = t->flags & TF_ECN_ASKED;
	struct outer *o = tcb_outer(t);

	if (!tcb_is_outer(t) || env->cfg.ecn_off)
		return;
	memset(&o->accecn, 0, sizeof(o->accecn));
	t->flags &= ~(uint32_t)(TF_ECN | TF_ACCECN);
	if (!answer)
		t->flags |= kind_of_request(env, ace_of(pkt));
	else if (asked)
		t->flags |= kind_of_answer(env, ace_of(pkt));
	if (t->flags & TF_ACCECN)
		accecn_begin(t, pkt);
}

/* The same SYN once more */
void ecn_learn_syn_again(struct tcb *t, const struct pkt *pkt)
{
	if (t->flags & TF_ACCECN)
		accecn_syn_again(t, pkt);
	else if ((pkt->flags & (TH_ECE | TH_CWR)) != (TH_ECE | TH_CWR))
		t->flags &= ~(uint32_t)TF_ECN; /* the peer fell back */
}

/*
 * An acceptable segment. RFC 3168 section 6.1.3: the CE of data is echoed until the peer says CWR.
 */
void ecn_input(struct env *env, struct tcb *t, const struct pkt *pkt, uint64_t now_ns)
{
	if (t->flags & TF_ACCECN)
		accecn_input(env, t, pkt, now_ns);
	if (!(t->flags & TF_ECN) || !pkt->payload_len)
		return;
	if (pkt->flags & TH_CWR)
		t->flags &= ~(uint32_t)TF_ECN_ECHO;
	if ((pkt->tos & WIRE_ECN_MASK) != ECN_CE)
		return;
	env->counters[DMM_CORE_ECN_CE]++;
	if (!(t->flags & TF_ECN_ECHO)) {
		t->flags |= TF_ECN_ECHO | TF_ACK_NOW;
		tcp_ready(env, t);
	}
}

/* RFC 3168 section 6.1.2: whether this ACK echoes a mark, not how many there were */
uint32_t ecn_echoed(struct env *env, struct tcb *t, const struct pkt *pkt, uint32_t delivered_segs)
{
	struct outer *o = tcb_outer(t);

	if (t->flags & TF_ACCECN)
		return accecn_echoed(env, t, pkt, delivered_segs);
	if (!(t->flags & TF_ECN) || (pkt->flags & (TH_ECE | TH_SYN)) != TH_ECE)
		return 0;
	if (!(t->flags & TF_ECN_CWR) && t->snd_una >= o->ecn_end) {
		env->counters[DMM_CORE_ECN_ECE]++;
		ecn_reduced(t);
	}
	return 1;
}

/* The window was reduced, for whatever reason: the next new data says so */
void ecn_reduced(struct tcb *t)
{
	if (t->flags & TF_ECN)
		t->flags |= TF_ECN_CWR;
}

uint16_t ecn_ack_flags(const struct tcb *t)
{
	return t->flags & TF_ECN_ECHO ? TH_ECE : 0;
}

/*
 * Retransmissions are not ECT (RFC 3168 section 6.1.5), unless much is lost at random: then they
 * are, as draft-ietf-tcpm-generalized-ecn has it. Linux answers what is not ECT after what was by
 * acknowledging at once, and puts that off until its program lets go of the socket; the blocks of
 * all that came meanwhile, up to several hundred segments, are then told in one ACK of three. What
 * is never told is sent again.
 */
static bool retrans_is_ect(const struct tcb *t)
{
	return t->flags & TF_ECN && tcb_outer(t)->cc.spare == CC_SPARE_ALL;
}

/* For a data segment; *tos gets the code point */
uint16_t ecn_data_flags(struct tcb *t, const struct seg *s, uint8_t *tos)
{
	if (!(t->flags & (TF_ECN | TF_ACCECN)) || (t->flags & TF_NO_ECT))
		return 0;
	if (s->flags & SEG_RETRANS && !retrans_is_ect(t))
		return 0;
	*tos = ECN_ECT0;
	if (!(t->flags & TF_ECN_CWR))
		return 0;
	t->flags &= ~(uint32_t)TF_ECN_CWR;
	tcb_outer(t)->ecn_end = seg_end(s);
	return TH_CWR;
}

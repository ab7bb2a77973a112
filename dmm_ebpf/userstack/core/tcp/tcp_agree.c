/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_agree.c: what two stacks of ours agree on while the outer leg opens, by an experimental TCP
 * option (RFC 6994), and plain TCP wherever anything about it is not as it must be.
 *
 *	SYN	offer: what the end that opens can do, and a nonce
 *	SYN-ACK	answer: what both can do, and a check value of it and the nonce
 *	ACK	confirmation: the same, with another role; in every segment until the peer is heard
 *of
 *
 * It costs no round trip, and nothing waits for it. The opener knows by the answer, the other end
 * by the segment that ends its handshake: whichever of them that is, it was sent before anything of
 * the answering end could come, so it bears the confirmation, or somebody on the path has taken it
 * away. Meanwhile the opener's segments are shorter by the length of the option.
 *
 * An answer is none, and the connection plain TCP: without the option (unknown there, or taken away
 * on the path); with the offer itself (echoed); with a wrong check value, another version, what was
 * not offered, a wrong length, or twice. A repeated SYN with another offer, or with none, takes the
 * offer back, as a repeated SYN-ACK without it does with the answer. After AGREE_TRIES SYNs without
 * an answer the next goes without the option, and from then on the connection is plain TCP,
 * whatever is answered; when that is the one which gets through, the destination is spared for a
 * while, as Linux does with TCP Fast Open (RFC 7413 section 4.1.3.1), for a middlebox may drop what
 * it does not know. So do SYN-ACKs. Ends that both open (RFC 9293 figure 7) agree on nothing, and
 * no SYN cookie carries it.
 *
 * Space: eight bytes. The standard's options come first (MSS, window scale, SACK, timestamps,
 * accurate ECN): where they leave no room ours is left out. All of them leave eight in a SYN-ACK,
 * twenty in a SYN.
 *
 * Invariants: features are what both have offered, and used by nobody unless agree_has() says so.
 * Nothing here changes by a segment that is not acceptable.
 */
#include "tcp_int.h"

#define SPARE_NS (300 * NS_PER_S) /* at first; doubled each time that it happens again */

enum {
	/* SYNs, and SYN-ACKs, with the option before one goes without, as with MPTCP in Linux */
	AGREE_TRIES = 2,
	SPARE_DOUBLINGS = 8, /* 21 h */
	/* what this stack can do */
	FEATURES = DMM_FEATURE_COPIES | DMM_FEATURE_FEC,
};

static struct agree *agree_of(const struct tcb *t)
{
	return &tcb_outer(t)->agree;
}

/* Of eight bits: it shall tell an answer from chance and from mangling, not from an enemy, who sees
 * the nonce and may as well write the whole answer */
static uint8_t check_value(uint8_t nonce, enum wire_agree_role role, uint8_t features)
{
	uint32_t all = (uint32_t)nonce << 8 | (uint32_t)role << 4 | features;

	return (uint8_t)(all * 0x9e3779b1u >> 24);
}

static bool is_valid(const struct agree *a, const struct pkt *pkt, enum wire_agree_role role)
{
	const struct wire_agree *got = &pkt->agree;

	return pkt->n_agree == 1 && got->role == role && got->version == WIRE_AGREE_VERSION &&
	       got->value == check_value(a->nonce, role, got->features);
}

/* The places that a destination may have */
static struct agree_spared *spared_set(struct env *env, const uint8_t addr[16])
{
	uint64_t hash = siphash(env->isn_secret, addr, 2);

	return &env->spared[hash % (AGREE_SPARED / AGREE_WAYS) * AGREE_WAYS];
}

static struct agree_spared *spared_find(struct env *env, const uint8_t addr[16])
{
	struct agree_spared *set = spared_set(env, addr);

	for (uint32_t i = 0; i < AGREE_WAYS; i++) {
		if (set[i].until_ns && !memcmp(set[i].addr, addr, 16))
			return &set[i];
	}
	return NULL;
}

static bool is_spared(struct env *env, const struct tcb *t, uint64_t now_ns)
{
	const struct agree_spared *s = spared_find(env, tcb_ends(t)->f.pair.raddr);

	return s && s->until_ns > now_ns;
}

/* It takes the place of the one that is spared for the shortest time; one whose time is over is
 * kept as long as nobody needs its place, so that what happens again is known for that */
static void spare(struct env *env, const struct tcb *t, uint64_t now_ns)
{
	const uint8_t *addr = tcb_ends(t)->f.pair.raddr;
	struct agree_spared *set = spared_set(env, addr), *s = spared_find(env, addr);

	if (!s) {
		s = set;
		for (uint32_t i = 1; i < AGREE_WAYS; i++) {
			if (set[i].until_ns < s->until_ns)
				s = &set[i];
		}
		memset(s, 0, sizeof(*s));
		memcpy(s->addr, addr, 16);
	}
	if (s->until_ns > now_ns)
		return; /* by a connection that was begun together with this one */
	s->until_ns = now_ns + (SPARE_NS << min_u32(s->times, SPARE_DOUBLINGS));
	s->times++;
}

static void forgive(struct env *env, const struct tcb *t)
{
	struct agree_spared *s = spared_find(env, tcb_ends(t)->f.pair.raddr);

	if (s)
		memset(s, 0, sizeof(*s));
}

static void stay_plain(struct env *env, struct agree *a, enum dmm_agreement why,
		       enum dmm_core_counter counter)
{
	a->state = (uint8_t)why;
	a->features = 0;
	env->counters[counter]++;
}

static void put(struct wire_seg *seg, const struct agree *a, enum wire_agree_role role)
{
	struct wire_agree said = {.role = (uint8_t)role,
				  .version = WIRE_AGREE_VERSION,
				  .features = a->features,
				  .value = role == WIRE_AGREE_OFFER
						   ? a->nonce
						   : check_value(a->nonce, role, a->features)};

	if (seg->opt_len + WIRE_AGREE_LEN <= WIRE_TCP_OPT_MAX)
		wire_opt_agree(seg, &said);
}

/* The first SYN decides */
static void begin(struct env *env, struct tcb *t, struct agree *a, uint64_t now_ns)
{
	a->demand = env->cfg.negotiate == DMM_NEGOTIATE_DEMAND;
	if (!a->demand && is_spared(env, t, now_ns)) {
		stay_plain(env, a, DMM_AGREEMENT_SPARED, DMM_CORE_AGREE_SPARED);
		return;
	}
	a->state = DMM_AGREEMENT_OFFERED;
	a->features = FEATURES;
	a->nonce = (uint8_t)(xorshift64(&env->rng) >> 32);
}

void agree_syn(struct env *env, struct tcb *t, struct wire_seg *seg, uint64_t now_ns)
{
	struct agree *a = agree_of(t);

	if (!tcb_is_outer(t))
		return;
	if (t->state == TCP_SYN_SENT && !t->snd_nxt && env->cfg.negotiate)
		begin(env, t, a, now_ns);
	if (a->state != DMM_AGREEMENT_OFFERED && a->state != DMM_AGREEMENT_ANSWERED)
		return;
	if (t->retries >= AGREE_TRIES && !a->demand)
		stay_plain(env, a, DMM_AGREEMENT_UNANSWERED, DMM_CORE_AGREE_UNANSWERED);
	else
		put(seg, a, t->state == TCP_SYN_SENT ? WIRE_AGREE_OFFER : WIRE_AGREE_ANSWER);
}

static bool is_offer(const struct pkt *pkt)
{
	return pkt->n_agree == 1 && pkt->agree.role == WIRE_AGREE_OFFER &&
	       pkt->agree.version == WIRE_AGREE_VERSION && (pkt->agree.features & FEATURES);
}

static bool is_same_offer(const struct agree *a, const struct pkt *pkt)
{
	return is_offer(pkt) && pkt->agree.value == a->nonce &&
	       (pkt->agree.features & FEATURES) == a->features;
}

static void learn_offer(struct env *env, struct agree *a, const struct pkt *pkt)
{
	if (!env->cfg.negotiate)
		return;
	a->demand = env->cfg.negotiate == DMM_NEGOTIATE_DEMAND;
	if (!is_offer(pkt)) {
		if (pkt->n_agree)
			stay_plain(env, a, DMM_AGREEMENT_WRONG, DMM_CORE_AGREE_WRONG);
		else
			stay_plain(env, a, DMM_AGREEMENT_PLAIN, DMM_CORE_AGREE_PLAIN);
		return;
	}
	a->state = DMM_AGREEMENT_ANSWERED;
	a->nonce = pkt->agree.value;
	a->features = pkt->agree.features & FEATURES;
}

static void learn_answer(struct env *env, struct tcb *t, struct agree *a, const struct pkt *pkt,
			 uint64_t now_ns)
{
	if (a->state == DMM_AGREEMENT_UNANSWERED)
		spare(env, t, now_ns);
	if (a->state != DMM_AGREEMENT_OFFERED)
		return;
	forgive(env, t);
	if (!pkt->n_agree) {
		stay_plain(env, a, DMM_AGREEMENT_PLAIN, DMM_CORE_AGREE_PLAIN);
	} else if (pkt->agree.role == WIRE_AGREE_OFFER) {
		stay_plain(env, a, DMM_AGREEMENT_ECHOED, DMM_CORE_AGREE_ECHOED);
	} else if (!is_valid(a, pkt, WIRE_AGREE_ANSWER) || !pkt->agree.features ||
		   (pkt->agree.features & ~a->features)) {
		stay_plain(env, a, DMM_AGREEMENT_WRONG, DMM_CORE_AGREE_WRONG);
	} else {
		a->state = DMM_AGREEMENT_CONFIRMING;
		a->features = pkt->agree.features;
		env->counters[DMM_CORE_AGREED]++;
	}
}

void agree_learn_syn(struct env *env, struct tcb *t, const struct pkt *pkt, uint64_t now_ns)
{
	struct agree *a = agree_of(t);

	if (!tcb_is_outer(t))
		return;
	if (pkt->flags & TH_ACK) {
		learn_answer(env, t, a, pkt, now_ns);
	} else if (t->state == TCP_CLOSE) {
		learn_offer(env, a, pkt);
	} else if (env->cfg.negotiate || a->state) { /* a simultaneous open */
		a->demand = env->cfg.negotiate == DMM_NEGOTIATE_DEMAND;
		a->state = DMM_AGREEMENT_CROSSED;
		a->features = 0;
	}
}

/* The length of the confirmation comes or goes */
static void follow_mss(struct env *env, struct tcb *t)
{
	tcp_set_mss(env, t);
	tcb_outer(t)->cc.mss = t->mss;
}

void agree_syn_again(struct env *env, struct tcb *t, const struct pkt *pkt)
{
	struct agree *a = agree_of(t);

	if (!tcb_is_outer(t))
		return;
	if (a->state == DMM_AGREEMENT_ANSWERED && !is_same_offer(a, pkt)) {
		stay_plain(env, a, DMM_AGREEMENT_UNANSWERED, DMM_CORE_AGREE_UNANSWERED);
	} else if (a->state == DMM_AGREEMENT_CONFIRMING && (pkt->flags & TH_ACK) &&
		   !is_valid(a, pkt, WIRE_AGREE_ANSWER)) {
		stay_plain(env, a, DMM_AGREEMENT_UNCONFIRMED, DMM_CORE_AGREE_UNCONFIRMED);
		follow_mss(env, t);
	}
}

void agree_opened(struct env *env, struct tcb *t, const struct pkt *pkt)
{
	struct agree *a = agree_of(t);

	if (!tcb_is_outer(t) || a->state != DMM_AGREEMENT_ANSWERED)
		return;
	if (is_valid(a, pkt, WIRE_AGREE_CONFIRM) && pkt->agree.features == a->features) {
		a->state = DMM_AGREEMENT_AGREED;
		env->counters[DMM_CORE_AGREED]++;
	} else {
		stay_plain(env, a, DMM_AGREEMENT_UNCONFIRMED, DMM_CORE_AGREE_UNCONFIRMED);
	}
}

void agree_heard(struct env *env, struct tcb *t)
{
	struct agree *a = agree_of(t);

	if (!tcb_is_outer(t) || a->state != DMM_AGREEMENT_CONFIRMING)
		return;
	a->state = DMM_AGREEMENT_AGREED;
	follow_mss(env, t);
}

void agree_confirm(const struct tcb *t, struct wire_seg *seg)
{
	if (tcb_is_outer(t) && agree_of(t)->state == DMM_AGREEMENT_CONFIRMING)
		put(seg, agree_of(t), WIRE_AGREE_CONFIRM);
}

uint32_t agree_confirm_len(const struct tcb *t)
{
	return tcb_is_outer(t) && agree_of(t)->state == DMM_AGREEMENT_CONFIRMING ? WIRE_AGREE_LEN
										 : 0;
}

uint32_t agree_features(const struct tcb *t)
{
	uint8_t state = agree_of(t)->state;

	return state == DMM_AGREEMENT_AGREED || state == DMM_AGREEMENT_CONFIRMING
		       ? agree_of(t)->features
		       : 0;
}

bool agree_lacks(const struct tcb *t)
{
	return tcb_is_outer(t) && agree_of(t)->demand && !agree_features(t);
}

bool agree_may_open(const struct env *env, const struct pkt *syn)
{
	return env->cfg.negotiate != DMM_NEGOTIATE_DEMAND || is_offer(syn);
}

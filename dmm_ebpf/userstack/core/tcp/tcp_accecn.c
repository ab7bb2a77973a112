/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_accecn.c: accurate ECN (RFC 9768) on the outer leg: each end tells how many packets came
 * marked.
 *
 * Every segment but SYN and RST carries in its ACE field (the flags AE, CWR, ECE) the lowest bits
 * of r_cep, the number of packets that came with CE. The option carries the bytes that came with
 * each code point. A SYN-ACK, and the ACK that answers it, say in the ACE field instead how the SYN
 * or SYN-ACK came.
 *
 * Invariants: no ACK of data tells of more than two new marks, however many packets are taken in
 * before ACKs are pulled, so that the peer cannot lose count unless ACKs are lost
 * (section 3.2.2.5.1). What the peer tells counts only in a segment that acknowledges something
 * new: older ones arrive late. Data segments give their room to payload; the option goes where room
 * is left.
 *
 * Refuses: an ACE field or option that the path clears; then nothing is sent ECT (ACE), or counts
 * are taken from ACE alone (option). A path that changes the ECN field of our SYN or SYN-ACK gets
 * nothing ECT either. Receiving goes on in the same mode whatever happens (section 3.1.5).
 */
#include "tcp_int.h"

enum {
	CEP_INIT = 5, /* not 0: a cleared field is seen (section 3.2.1) */
	ACE_MASK = 7,
	BYTES_MASK = 0xffffff,
	TELL_EVERY_SHIFT = 22, /* the option goes at least once per 4 MiB of one code point */
	TOLD_MAX_DATA = 2,     /* marks that one ACK of data, */
	TOLD_MAX_PURE = 3,     /* and one ACK of ACKs tells of */
	TOLD_LIMIT = 6,
	OPT_PER_RTT = 3,
	SHARE_ONE = 256,
};

/* Section 3.2.2.1: how the SYN or SYN-ACK came, by code point */
static const uint8_t handshake_ace[] = {
	[ECN_NOT_ECT] = 2, [ECN_ECT1] = 3, [ECN_ECT0] = 4, [ECN_CE] = 6};

static struct accecn *accecn_of(const struct tcb *t)
{
	return &tcb_outer(t)->accecn;
}

static uint8_t ace_of(const struct pkt *pkt)
{
	return (pkt->flags & (TH_AE | TH_CWR | TH_ECE)) >> 6;
}

static uint16_t ace_flags(uint8_t ace)
{
	return (uint16_t)(ace << 6);
}

static void want_option(struct accecn *a, uint8_t acks)
{
	if (a->opt_due < acks)
		a->opt_due = acks & 3;
}

/* Section 3.2.3.2.4: two of the counters begin at 1 */
static void first_option(struct accecn *a, const struct pkt *pkt)
{
	if (!pkt->has_accecn || (a->flags & ACC_OPT_SEEN))
		return;
	a->flags |= ACC_OPT_SEEN;
	for (uint32_t ecn = ECN_ECT1; ecn <= ECN_ECT0; ecn++) {
		if ((pkt->accecn_fields & 1 << ecn) && !pkt->accecn[ecn - 1])
			a->flags |= ACC_OPT_BAD;
	}
}

/* Section 3.2.2.3: what we sent was not ECT; a router that makes something else of it would do so
 * with data
 */
static void check_path(struct tcb *t, uint8_t ace)
{
	if (ace == handshake_ace[ECN_ECT1] || ace == handshake_ace[ECN_ECT0] ||
	    ace == handshake_ace[ECN_CE])
		t->flags |= TF_NO_ECT;
}

void accecn_begin(struct tcb *t, const struct pkt *pkt)
{
	struct accecn *a = accecn_of(t);

	a->r_cep = a->s_cep = CEP_INIT;
	a->r_bytes[ECN_ECT1 - 1] = a->r_bytes[ECN_ECT0 - 1] = 1;
	a->syn_ecn = pkt->tos & WIRE_ECN_MASK;
	a->flags = ACC_FIRST;
	want_option(a, 2);
	if (!(pkt->flags & TH_ACK)) {
		a->flags |= ACC_SERVER;
		return;
	}
	a->flags |= ACC_HANDSHAKE;
	a->r_cep += a->syn_ecn == ECN_CE;
	check_path(t, ace_of(pkt));
	first_option(a, pkt);
}

/*
 * A SYN or SYN-ACK once more: our answer to it, which bore the option, may have been
 * dropped for that
 */
void accecn_syn_again(struct tcb *t, const struct pkt *pkt)
{
	struct accecn *a = accecn_of(t);

	a->flags |= ACC_OPT_OFF;
	if (t->state == TCP_SYN_RECV) {
		a->syn_ecn = pkt->tos & WIRE_ECN_MASK;
		if (!ace_of(pkt)) { /* the peer fell back */
			a->flags |= ACC_PLAIN_SYN;
			t->flags |= TF_NO_ECT;
		}
	} else if (t->snd_una == 1 && t->rcv_nxt == 1 && !(a->flags & ACC_SERVER)) {
		a->flags |= ACC_HANDSHAKE; /* the peer may still wait for the ACK of its SYN */
	}
}

/* Section 3.1.4.2 and 3.2.3.2.2: the second goes without the option, later ones ask for nothing */
void accecn_synack(struct tcb *t, struct wire_seg *seg)
{
	struct accecn *a = accecn_of(t);

	if (t->flags & TF_SYN_RTX)
		a->flags |= ACC_OPT_OFF;
	if (t->retries > 1) {
		a->flags |= ACC_PLAIN_SYN;
		t->flags |= TF_NO_ECT;
	}
	if (a->flags & ACC_PLAIN_SYN)
		return;
	seg->flags |= ace_flags(handshake_ace[a->syn_ecn]);
	if (!(a->flags & ACC_OPT_OFF) && seg->opt_len + WIRE_ACCECN_FULL <= WIRE_TCP_OPT_MAX)
		wire_opt_accecn(seg, a->r_bytes, false, true);
}

/* Section 3.2.2.1 (table 4) and 3.2.2.4 */
static void first_packet(struct tcb *t, const struct pkt *pkt)
{
	struct accecn *a = accecn_of(t);
	bool pure = !pkt->payload_len && !pkt->n_sack && !(pkt->flags & TH_FIN);
	uint8_t ace = ace_of(pkt);

	a->flags &= (uint8_t)~ACC_FIRST;
	if ((a->flags & ACC_SERVER) && pure)
		check_path(t, ace);
	/* three marks would make it 0 too */
	if (!ace && !pkt->n_sack && pkt->ack - t->iss - 1 < 3u * t->mss) {
		a->flags |= ACC_ACE_BAD;
		t->flags |= TF_NO_ECT;
	}
}

static void count_bytes(struct accecn *a, uint8_t ecn, uint32_t len)
{
	uint32_t *bytes = &a->r_bytes[ecn - 1], before = *bytes;

	*bytes += len;
	if (ecn == ECN_CE || ecn != a->last_counter)
		want_option(a, 2);
	else if ((*bytes ^ before) >> TELL_EVERY_SHIFT)
		want_option(a, 1);
	a->last_counter = ecn & WIRE_ECN_MASK;
}

void accecn_input(struct env *env, struct tcb *t, const struct pkt *pkt, uint64_t now_ns)
{
	struct accecn *a = accecn_of(t);
	uint8_t ecn = pkt->tos & WIRE_ECN_MASK;
	bool data = pkt->payload_len || t->unacked_segs;

	if (a->flags & ACC_FIRST)
		first_packet(t, pkt);
	if (ecn == ECN_CE) {
		env->counters[DMM_CORE_ECN_CE]++;
		if (a->ce_untold >= (data ? TOLD_MAX_DATA : TOLD_LIMIT))
			tcp_ack_apart(env, t, now_ns);
		a->r_cep++;
		a->ce_untold++;
		if ((pkt->payload_len && a->last_ecn != ECN_CE) ||
		    a->ce_untold >= (data ? TOLD_MAX_DATA : TOLD_MAX_PURE)) {
			t->flags |= TF_ACK_NOW;
			tcp_ready(env, t);
		}
	}
	a->last_ecn = ecn & WIRE_ECN_MASK;
	if (ecn != ECN_NOT_ECT && pkt->payload_len)
		count_bytes(a, ecn, pkt->payload_len);
}

/*
 * Section 3.2.3.2.2: the same bytes came again though an ACK told that they are here: it
 * bore our option
 */
void accecn_duplicate(struct tcb *t, uint64_t start, uint64_t now_ns)
{
	struct accecn *a = accecn_of(t);
	uint32_t since_ms = (uint32_t)(now_ns / NS_PER_MS) - a->opt_ms;

	/* sooner than our ACK can have got there it is a copy that was sent anyway */
	if (since_ms * NS_PER_MS < tcp_min_rtt_ns(t) / 2)
		return;
	if (a->opt_dsack && a->opt_dsack == (uint32_t)start)
		a->flags |= ACC_OPT_OFF;
}

/* Appendix A.1: at least so many segments came marked since the last option; false: not told */
static bool told_by_option(struct accecn *a, const struct pkt *pkt, uint32_t mss, uint32_t *segs)
{
	uint32_t bytes;

	first_option(a, pkt);
	if ((a->flags & ACC_OPT_BAD) || !(pkt->accecn_fields & 1 << ECN_CE))
		return false;
	bytes = (pkt->accecn[ECN_CE - 1] - a->s_ce_bytes) & BYTES_MASK;
	if (bytes > BYTES_MASK / 2)
		return false; /* from before */
	a->s_ce_bytes = pkt->accecn[ECN_CE - 1];
	*segs = (bytes + mss - 1) / mss;
	return true;
}

/*
 * Appendix A.2: three bits may have gone round more than once when ACKs were lost. Bytes tell, if
 * they are told. A peer whose options arrive tells of marks by option, so an ACK without one has no
 * more than ACE says. Else the share of marks that prevails says what is likely
 * (section 3.2.2.5.2), twice for safety.
 */
static uint32_t unwrap_marks(struct accecn *a, const struct pkt *pkt, uint32_t delivered_segs,
			     uint32_t mss)
{
	uint32_t marks = (uint32_t)(ace_of(pkt) - a->s_cep) & ACE_MASK, likely, segs;

	if (told_by_option(a, pkt, mss, &segs)) {
		likely = segs > a->s_marks ? segs - a->s_marks + ACE_MASK : 0;
		a->s_marks = 0;
	} else if ((a->flags & (ACC_OPT_SEEN | ACC_OPT_BAD)) == ACC_OPT_SEEN) {
		a->s_marks = (uint16_t)min_u32(a->s_marks + marks, UINT16_MAX);
		return marks;
	} else {
		likely = (uint32_t)(2ull * delivered_segs * a->ce_share / SHARE_ONE);
	}
	likely = min_u32(likely, delivered_segs);
	if (likely > marks)
		marks += (likely - marks) & ~(uint32_t)ACE_MASK;
	return marks;
}

uint32_t accecn_echoed(struct env *env, struct tcb *t, const struct pkt *pkt,
		       uint32_t delivered_segs)
{
	struct accecn *a = accecn_of(t);
	uint32_t marks, share;

	if (!delivered_segs || (t->flags & TF_NO_ECT) || (a->flags & ACC_ACE_BAD) ||
	    (pkt->flags & TH_SYN))
		return 0;
	marks = unwrap_marks(a, pkt, delivered_segs, t->mss);
	a->s_cep += (uint8_t)marks;
	env->counters[DMM_CORE_ECN_MARKS] += marks;
	share = (uint32_t)(min_u32(marks, delivered_segs) * (uint64_t)(SHARE_ONE - 1) /
			   delivered_segs);
	a->ce_share = (uint8_t)((7u * a->ce_share + share) / 8); /* goes down to 0 */
	return marks;
}

bool accecn_option_due(const struct tcb *t, uint64_t now_ns)
{
	const struct accecn *a = accecn_of(t);
	uint32_t since_ms;

	if (!(t->flags & TF_ACCECN) || (a->flags & ACC_OPT_OFF))
		return false;
	since_ms = (uint32_t)(now_ns / NS_PER_MS) - a->opt_ms;
	return a->opt_due || (a->last_counter && since_ms * NS_PER_MS * OPT_PER_RTT >= t->srtt_ns);
}

void accecn_ace(struct tcb *t, struct wire_seg *seg, bool pure)
{
	struct accecn *a = accecn_of(t);
	uint8_t ace = a->r_cep & ACE_MASK;

	if ((a->flags & ACC_HANDSHAKE) && pure)
		ace = handshake_ace[a->syn_ecn];
	a->flags &= (uint8_t)~ACC_HANDSHAKE;
	a->ce_untold = 0;
	seg->flags |= ace_flags(ace);
}

void accecn_option(struct tcb *t, struct wire_seg *seg, uint32_t room, uint64_t dsack_start,
		   uint64_t now_ns)
{
	struct accecn *a = accecn_of(t);
	bool ect1_first = a->r_bytes[ECN_ECT1 - 1] != 1; /* the peer uses that code point */

	if (room < WIRE_ACCECN_MIN || !accecn_option_due(t, now_ns))
		return;
	wire_opt_accecn(seg, a->r_bytes, ect1_first, room >= WIRE_ACCECN_FULL);
	a->opt_ms = (uint32_t)(now_ns / NS_PER_MS);
	a->opt_due = a->opt_due ? (a->opt_due - 1) & 3 : 0;
	if (dsack_start)
		a->opt_dsack = (uint32_t)dsack_start;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_open.c: the handshake of a leg (RFC 9293 sections 3.5 and 3.10.7.3): what a SYN says,
 * SYN-SENT, SYN-RECEIVED and what is special there.
 *
 * On the outer leg anybody may write a SYN, so it proves nothing; what acknowledges our SYN does,
 * for it names a number that only those on the path have seen. Therefore a SYN that comes in
 * SYN-SENT (simultaneous open) is answered, but stands for a possibility only: until our SYN is
 * acknowledged another SYN-ACK still counts as the answer to it, and a RST without that number
 * takes back the possibility alone. In SYN-RECEIVED a SYN with another number is nothing but a
 * segment outside the window: should its sender have given the first attempt up, our SYN-ACK finds
 * out. The inner leg's peer is this host's kernel: there it replaces the one that waits.
 */
#include "tcp_int.h"

#include <errno.h>

uint8_t tcp_pick_wscale(uint64_t limit)
{
	uint8_t ws = 0;

	while (ws < TCP_MAX_WSCALE && limit >> ws > 65535)
		ws++;
	return ws;
}

void tcp_learn_syn(struct env *env, struct tcb *t, const struct pkt *pkt, uint64_t now_ns)
{
	bool v4 = tcb_ends(t)->f.pair.family == WIRE_AF_INET;

	t->irs = pkt->seq;
	t->rcv_nxt = t->rcv_adv = t->last_ack_sent = 1;
	t->rcv_fin = 0;
	t->snd_wnd = t->max_wnd = pkt->wnd; /* never scaled in a SYN */
	t->snd_wl1 = 0;
	t->flags &= ~(uint32_t)(TF_TS | TF_SACK | TF_WS);
	t->flags |= (pkt->has_ts ? TF_TS : 0) | (pkt->has_sack_perm ? TF_SACK : 0) |
		    (pkt->has_wscale ? TF_WS : 0);
	ecn_learn_syn(env, t, pkt);
	agree_learn_syn(env, t, pkt, now_ns);
	t->snd_wscale = pkt->has_wscale ? pkt->wscale : 0;
	t->rcv_wscale = pkt->has_wscale ? tcp_pick_wscale(tcp_rcv_limit(env, t)) : 0;
	t->peer_mss = pkt->mss ? pkt->mss : (v4 ? 536 : 1220); /* RFC 9293 section 3.7.1 */
	if (t->peer_mss < TCP_MIN_MSS)
		t->peer_mss = TCP_MIN_MSS;
	t->ts_recent = pkt->has_ts ? pkt->tsval : 0;
	t->ts_recent_s = (uint32_t)(now_ns / NS_PER_S);
	t->last_rx_ns = now_ns;
	if (tcb_is_outer(t)) {
		tcb_ends(t)->peer_ttl = pkt->ttl;
		ip_learn_peer(tcb_ends(t), pkt);
	} else {
		ip_learn_app(tcb_ends(t), pkt);
	}
	tcp_set_mss(env, t);
	if (!tcb_is_outer(t) && pkt->mss) {
		pmtu_route(env, tcb_ends(t), pkt->mss);
		if (pkt->flags & TH_ACK)
			env->listener_mss[!v4] = pkt->mss;
	}
}

static void ask(struct env *env, struct tcb *t, enum tcp_event why, uint64_t now_ns)
{
	t->rcv_wscale = tcp_pick_wscale(tcp_rcv_limit(env, t));
	tcp_set_mss(env, t);
	tcp_event(env, t, why, now_ns);
	t->flags |= TF_SYN_DUE;
	tcp_ready(env, t);
}

void tcp_connect(struct env *env, struct tcb *t, uint32_t iss, uint64_t now_ns)
{
	t->iss = iss;
	t->last_rx_ns = now_ns;
	ask(env, t, TE_OPEN, now_ns);
}

bool open_acks_syn(const struct tcb *t, const struct pkt *pkt)
{
	return (pkt->flags & TH_ACK) && pkt->ack == t->iss + 1 && t->snd_nxt == 1;
}

static void cc_start(struct env *env, struct tcb *t, uint64_t now_ns)
{
	struct cc *cc = &tcb_outer(t)->cc;

	cc->ops = env->cc_ops;
	cc->mss = t->mss;
	cc->cwnd_bytes = (uint64_t)TCP_INIT_CWND_SEGS * t->mss;
	cc->srtt_ns = t->srtt_ns;
	cc->min_rtt_ns = tcp_min_rtt_ns(t);
	cc->rng = xorshift64(&env->rng) | 1;
	cc->ops->init(cc, now_ns);
	tcb_outer(t)->copying = copies_wanted(env, t);
	tcb_outer(t)->opened_ms = (uint32_t)(now_ns / NS_PER_MS);
	loss_start(env, t, now_ns);
}

void open_done(struct env *env, struct tcb *t, uint64_t now_ns)
{
	t->flags &= ~(uint32_t)(TF_SYN_DUE | TF_ECN_ASKED);
	t->snd_una = 1;
	hold_app_answers(env, t);
	t->retries = t->backoff = 0;
	tcp_set_rtx(env, t, RTX_NONE, NEVER);
	if (!(t->flags & TF_SYN_RTX))
		tcp_rtt_sample(env, t, now_ns - t->syn_ns, now_ns);
	else if (copies_wanted(env, t))
		paths_lend_rtt(env, t, now_ns);
	t->rack_dsack_round = 0;
	tcp_event(env, t, TE_SYN_ACKED, now_ns);
	tcp_keep_start(env, t, now_ns);
	if (tcb_is_outer(t))
		cc_start(env, t, now_ns);
	if (!env->up->established(env, &t->end))
		t->flags |= TF_HOLD;
}

bool open_is_refused(struct env *env, struct tcb *t, const struct pkt *pkt, uint64_t now_ns)
{
	if (likely(!agree_lacks(t)))
		return false;
	env->counters[DMM_CORE_AGREE_REFUSED]++;
	ctl_reset_unknown(env, t->leg, tcb_ends(t)->link, pkt);
	env->up->reset(env, &t->end, ECONNREFUSED, now_ns);
	return true;
}

/* A SYN-ACK that acknowledges our SYN, whose window a peer may use at once (RFC 7413, 4.2) */
static void answered(struct env *env, struct tcb *t, const struct pkt *pkt, uint64_t now_ns)
{
	uint64_t window = t->rcv_adv - t->rcv_nxt;

	tcp_learn_syn(env, t, pkt, now_ns);
	t->rcv_adv = t->rcv_nxt + window;
	if (open_is_refused(env, t, pkt, now_ns))
		return;
	t->flags |= TF_ACK_NOW;
	tcp_ready(env, t);
	copies_syn_acked(t, pkt, now_ns);
	open_done(env, t, now_ns);
}

static void refused(struct env *env, struct tcb *t, uint64_t now_ns)
{
	env->counters[DMM_CORE_RST_IN]++;
	env->up->reset(env, &t->end, ECONNREFUSED, now_ns);
}

/*
 * An app's kernel that still holds an old connection with these ports, in TIME-WAIT say, answers
 * our SYN by an ACK, and forgets it when our RST comes (RFC 9293 figure 9, RFC 1337): the SYN
 * follows on that, once, as Linux's does. On the outer leg anybody may have forged the ACK, which
 * changes nothing there.
 */
static void ask_behind_rst(struct env *env, struct tcb *t, const struct pkt *pkt)
{
	if (tcb_is_outer(t) || (pkt->flags & (TH_SYN | TH_RST)) || (t->flags & TF_SYN_RTX))
		return;
	t->flags |= TF_SYN_DUE | TF_SYN_RTX;
	tcp_ready(env, t);
}

void open_syn_sent(struct env *env, struct tcb *t, const struct pkt *pkt, uint64_t now_ns)
{
	bool ack_ok = open_acks_syn(t, pkt);

	if ((pkt->flags & TH_ACK) && !ack_ok) {
		env->counters[DMM_CORE_BAD_SEQ]++;
		ctl_reset_unknown(env, t->leg, tcb_ends(t)->link, pkt);
		ask_behind_rst(env, t, pkt);
	} else if (pkt->flags & TH_RST) {
		if (ack_ok)
			refused(env, t, now_ns);
	} else if ((pkt->flags & TH_SYN) && ack_ok) {
		answered(env, t, pkt, now_ns);
	} else if (pkt->flags & TH_SYN) {
		/* simultaneous open: our SYN goes again, as a SYN-ACK */
		tcp_learn_syn(env, t, pkt, now_ns);
		tcp_event(env, t, TE_SYN, now_ns);
		t->flags |= TF_SYN_DUE;
		tcp_ready(env, t);
	}
}

/* Back to SYN-SENT, as if the SYN had not come. That our SYN goes again is for a peer that it has
 * not reached. */
static void forget_syn(struct env *env, struct tcb *t, uint64_t now_ns)
{
	t->irs = t->ts_recent = 0;
	t->rcv_nxt = t->rcv_adv = t->last_ack_sent = 0;
	t->peer_mss = 0;
	t->flags &= ~(uint32_t)(TF_TS | TF_SACK | TF_WS | TF_ECN | TF_ACCECN | TF_ACK_NOW);
	t->flags |= TF_SYN_RTX;
	ask(env, t, TE_SYN_GONE, now_ns);
}

/* In SYN-RECEIVED, after we had asked; true: dealt with */
static bool in_simultaneous(struct env *env, struct tcb *t, const struct pkt *pkt, uint64_t now_ns)
{
	bool ack_ok = open_acks_syn(t, pkt);

	if (pkt->flags & TH_RST) {
		if (ack_ok)
			refused(env, t, now_ns);
		else if (pkt->flags & TH_ACK)
			env->counters[DMM_CORE_BAD_SEQ]++;
		else if (pkt->seq == t->irs + 1)
			forget_syn(env, t, now_ns);
		else
			return false;
		return true;
	}
	if (!ack_ok || !(pkt->flags & TH_SYN) || pkt->seq == t->irs)
		return false;
	answered(env, t, pkt, now_ns);
	return true;
}

/* The SYN that is being answered, once more */
static void syn_again(struct env *env, struct tcb *t, const struct pkt *pkt, uint64_t now_ns)
{
	bool copy = tcb_is_outer(t) && t->snd_nxt && copies_too_soon(now_ns - t->syn_ns);

	if (!copy)
		ecn_learn_syn_again(t, pkt);
	agree_syn_again(env, t, pkt);
	if (pkt->has_ts && (int32_t)(pkt->tsval - t->ts_recent) > 0)
		t->ts_recent = pkt->tsval; /* what we echo measures the SYN we answer */
	if (tcb_is_outer(t))
		ip_turn_back(tcb_ends(t), pkt);
	if (t->flags & TF_HOLD) {
		if (!tcb_is_outer(t))
			tcp_app_asks_again(env, t, now_ns);
		return;
	}
	t->flags |= TF_SYN_DUE | TF_SYN_RTX;
	tcp_ready(env, t);
}

bool open_syn_received(struct env *env, struct tcb *t, const struct pkt *pkt, uint64_t now_ns)
{
	if ((pkt->flags & (TH_SYN | TH_ACK)) != TH_SYN)
		return open_is_ours(t) && in_simultaneous(env, t, pkt, now_ns);
	if (pkt->seq == t->irs) {
		syn_again(env, t, pkt, now_ns);
		return true;
	}
	if (!(t->flags & TF_HOLD) || tcb_is_outer(t))
		return false;
	tcb_ends(t)->syn_seq = pkt->seq;
	tcp_learn_syn(env, t, pkt, now_ns);
	tcp_app_asks(env, t, 0, now_ns);
	return true;
}

bool open_syn_ack_again(struct env *env, struct tcb *t, const struct pkt *pkt, uint64_t now_ns)
{
	const uint16_t both = TH_SYN | TH_ACK;

	if (tcb_is_outer(t) || t->state != TCP_ESTABLISHED ||
	    (pkt->flags & (both | TH_RST)) != both)
		return false;
	if (pkt->seq != t->irs || pkt->ack != t->iss + 1)
		return false;
	tcp_app_answers_again(env, t, now_ns);
	return true;
}

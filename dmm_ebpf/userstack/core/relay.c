/* SPDX-License-Identifier: Apache-2.0 */
/*
 * relay.c: what an event on one leg means for the other.
 *
 * Active open (the app connects): the app's SYN is kept unanswered (TF_HOLD) until the outer handshake is
 * done, so connect() means what it says; a refusal becomes a RST to the app's kernel, an ICMP error an ICMP
 * error, silence silence. Passive open (the remote peer connects): the peer's SYN is kept until the kernel
 * has answered ours, and our ACK to the kernel until the peer's handshake is done, so accept() returns
 * neither early nor for a port scan. With a SYN cookie the order is another (cookie.c): the peer's handshake
 * is over when the kernel gets to see a SYN, so what the peer sends meanwhile is kept, unanswered, and a
 * refusal becomes a RST.
 *
 * Invariants: a connection ends when both legs have; a RST on one leg ends the other at once, except that
 * bytes which the kernel's window takes are delivered before its RST. FIN and data need nothing here: a FIN
 * only says that the other leg's send stream ends (tcp_in.c).
 */
#include "core.h"

static bool leg_over(const struct tcb *t)
{
	return t->state == TCP_CLOSE && !(t->flags & TF_RST_DUE);
}

void relay_closed(struct dmm_core *core, struct tcb *t)
{
	struct conn *c = tcb_conn(t);
	struct tcb *inner = &c->leg[DMM_LEG_INNER], *outer = &c->leg[DMM_LEG_OUTER];

	if (c->phase == CONN_DEAD || !(leg_over(inner) || inner->state == TCP_TIME_WAIT) ||
	    !(leg_over(outer) || outer->state == TCP_TIME_WAIT))
		return;
	if (leg_over(inner) && leg_over(outer)) {
		conn_kill(core, c, 0);
	} else if (list_empty(&c->queued)) {
		list_add_tail(&core->time_wait, &c->queued);
		c->time_wait = true;
		core->n_time_wait++;
	}
}

/* Ends a leg. flush: deliver first what its window takes, on the outer leg all that the app's kernel was told
 * has arrived; and what ends the handshake, since a RST alone takes a connection out of the queue of
 * accept(). */
static void leg_reset(struct dmm_core *core, struct tcb *t, bool flush)
{
	bool unanswered = t->state == TCP_SYN_SENT;

	if (t->state == TCP_CLOSE)
		return;
	if (t->state == TCP_TIME_WAIT || (unanswered && (tcb_is_outer(t) || !t->snd_nxt))) {
		tcp_release(core, t);
		return;
	}
	t->flags &= ~(uint32_t)TF_HOLD;
	t->flags |= TF_RST_DUE | (unanswered ? TF_RST_BARE : 0);
	if (flush && (stream_held(&t->snd) || tcp_is_greeting(t)) && t->state != TCP_SYN_RECV)
		t->flags |= TF_RST_FLUSH;
	else
		tcp_release(core, t);
	tcp_ready(core, t);
}

static void set_error(struct conn *c, uint32_t error)
{
	if (!c->error)
		c->error = (uint16_t)error;
}

void relay_reset(struct dmm_core *core, struct tcb *t, uint32_t error)
{
	struct tcb *peer = tcb_peer(t);

	set_error(tcb_conn(t), error);
	if (t->state == TCP_SYN_RECV)
		peer->flags &= ~(uint32_t)TF_ACK_NOW; /* nobody was ever there */
	tcp_release(core, t);
	leg_reset(core, peer, true);
	relay_closed(core, t);
}

void relay_refused(struct dmm_core *core, struct tcb *t, uint64_t now_ns)
{
	(void)now_ns;
	relay_reset(core, t, ECONNREFUSED);
}

void relay_abort(struct dmm_core *core, struct conn *c, uint32_t error)
{
	set_error(c, error);
	leg_reset(core, &c->leg[DMM_LEG_INNER], false);
	leg_reset(core, &c->leg[DMM_LEG_OUTER], false);
	relay_closed(core, &c->leg[DMM_LEG_OUTER]);
}

/* The app's kernel has bytes that are not acknowledged: its own time-out, which a RST would come before, is
 * what the app is to hear of (ETIMEDOUT) */
static void leg_mute(struct dmm_core *core, struct tcb *t, uint64_t now_ns)
{
	t->flags |= TF_HOLD;
	tcp_set_rtx(core, t, RTX_HOLD, now_ns + TCP_MUTE_S * NS_PER_S);
}

/* A timer has run out of retries */
void relay_gave_up(struct dmm_core *core, struct tcb *t, uint64_t now_ns)
{
	struct conn *c = tcb_conn(t);
	struct tcb *peer = tcb_peer(t);
	bool mute;

	set_error(c, ETIMEDOUT);
	/* the peer of a held leg was never answered, and is left to find out by itself, as without us */
	if (t->rtx_mode == RTX_HOLD || (t->flags & TF_HOLD && t->state == TCP_SYN_RECV) ||
	    (peer->flags & TF_HOLD && peer->state == TCP_SYN_RECV)) {
		conn_kill(core, c, 0);
		return;
	}
	mute = tcb_is_outer(t) && hold_pending(peer);
	leg_reset(core, t, false);
	if (mute)
		leg_mute(core, peer, now_ns);
	else
		leg_reset(core, peer, !tcb_is_outer(peer));
	relay_closed(core, t);
}

static void leg_hold(struct dmm_core *core, struct tcb *t, const struct pkt *pkt, uint64_t now_ns)
{
	tcp_learn_syn(core, t, pkt, now_ns);
	t->iss = conn_isn(core, tcb_conn(t), t->leg, now_ns);
	t->flags |= TF_HOLD;
	tcp_set_state(core, t, TCP_SYN_RECV);
	tcp_set_rtx(core, t, RTX_HOLD, now_ns + TCP_HOLD_S * NS_PER_S);
}

/* An end that came in one burst with the next SYN: who sent it is in LAST-ACK, and would challenge the SYN
 * that takes its place, which then comes again a second later only */
static void acknowledge_ends(struct dmm_core *core, struct conn *c, uint64_t now_ns)
{
	for (uint32_t leg = 0; leg < 2; leg++) {
		struct tcb *t = &c->leg[leg];

		if (t->state == TCP_TIME_WAIT && (t->flags & TF_ACK_NOW))
			tcp_ack_apart(core, t, now_ns);
	}
}

/* Our sequence numbers must lie in front of those of the old connection. Its peer is told if it may still
 * hold it; should the RST be lost or inexact, the answer to our SYN is reset in turn (RFC 9293 figure 9). */
static void replace(struct dmm_core *core, struct conn *old, uint32_t *floor, bool *has_floor,
		    uint64_t now_ns)
{
	const struct tcb *t;

	*has_floor = false;
	if (!old)
		return;
	t = &old->leg[DMM_LEG_OUTER];
	*floor = t->iss + (uint32_t)t->snd_nxt;
	*has_floor = true;
	acknowledge_ends(core, old, now_ns);
	if (t->state != TCP_TIME_WAIT && t->state != TCP_CLOSE) {
		struct wire_seg rst = {
			.flags = TH_RST | TH_ACK, .seq = *floor, .ack = t->irs + (uint32_t)t->rcv_nxt};
		struct wire_dir dir;

		ctl_dir(&old->pair, DMM_LEG_OUTER, &dir);
		ctl_push_tcp(core, DMM_LEG_OUTER, old->link, &dir, &rst);
	}
	conn_kill(core, old, 0);
}

/*
 * What the app's kernel has chosen for this connection, the peer sees. Its timestamps go on from those of the
 * last connection between the two hosts, also when another process or the kernel carried that: else a peer in
 * TIME-WAIT would refuse the SYN (RFC 6191, RFC 7323 section 5).
 */
static void take_after(struct conn *c, const struct pkt *syn, uint64_t now_ns)
{
	if (syn->has_ts)
		c->leg[DMM_LEG_OUTER].ts_offset = syn->tsval - (uint32_t)(now_ns / NS_PER_MS);
}

static void open_by_syn(struct dmm_core *core, struct conn *old, const struct dmm_core_addr_pair *pair,
			const struct pkt *pkt, uint32_t leg, uint64_t now_ns)
{
	uint32_t floor = 0;
	bool has_floor;
	struct conn *c;

	replace(core, old, &floor, &has_floor, now_ns);
	c = conn_create(core, pair, pkt);
	if (!c) {
		ctl_reset_unknown(core, leg, pkt->link, pkt);
		return;
	}
	c->passive = leg == DMM_LEG_OUTER;
	c->isn_floor = floor;
	c->has_isn_floor = has_floor;
	if (!c->passive)
		take_after(c, pkt, now_ns);
	core->counters[c->passive ? DMM_CORE_PASSIVE_OPEN : DMM_CORE_ACTIVE_OPEN]++;
	leg_hold(core, &c->leg[leg], pkt, now_ns);
	if (c->passive)
		halfopen_enter(core, c);
	relay_open(core, c, now_ns);
}

void relay_inner_syn(struct dmm_core *core, struct conn *old, const struct dmm_core_addr_pair *pair,
		     const struct pkt *pkt, uint64_t now_ns)
{
	open_by_syn(core, old, pair, pkt, DMM_LEG_INNER, now_ns);
}

void relay_outer_syn(struct dmm_core *core, struct conn *old, const struct dmm_core_addr_pair *pair,
		     const struct pkt *pkt, uint64_t now_ns)
{
	/* what replaces an old connection must know its sequence numbers, and comes from a peer that exists
	 */
	if (!old && cookie_wanted(core))
		cookie_answer(core, pair, pkt, now_ns);
	else
		open_by_syn(core, old, pair, pkt, DMM_LEG_OUTER, now_ns);
}

void relay_open(struct dmm_core *core, struct conn *c, uint64_t now_ns)
{
	struct tcb *next = &c->leg[c->passive ? DMM_LEG_INNER : DMM_LEG_OUTER];

	c->owned = 1;
	core_action(core, DMM_ACTION_OWN, c, 0);
	tcp_connect(core, next, conn_isn(core, c, next->leg, now_ns), now_ns);
}

/* To the app's kernel: the error that its SYN would have met */
static void icmp_to_app(struct dmm_core *core, const struct conn *c, uint8_t type, uint8_t code)
{
	struct wire_seg syn = {.seq = c->leg[DMM_LEG_INNER].irs, .flags = TH_SYN};
	struct wire_dir dir;

	ctl_dir(&c->pair, DMM_LEG_OUTER, &dir);
	ctl_push_icmp(core, DMM_LEG_INNER, c->link, &dir, &syn, type, code);
}

/* To the remote peer: the error with which the host's firewall met its SYN */
static void icmp_to_peer(struct dmm_core *core, const struct conn *c, uint8_t type, uint8_t code)
{
	struct wire_seg syn = {.seq = c->leg[DMM_LEG_OUTER].irs, .flags = TH_SYN};
	struct wire_dir dir;

	ctl_dir(&c->pair, DMM_LEG_INNER, &dir);
	ctl_push_icmp(core, DMM_LEG_OUTER, c->link, &dir, &syn, type, code);
}

void relay_unreachable(struct dmm_core *core, struct conn *c, uint32_t error, uint64_t now_ns)
{
	bool v4 = c->pair.family == WIRE_AF_INET;

	(void)now_ns;
	if (c->phase != CONN_OPENING)
		return;
	if (!c->passive) {
		if (error == ENETUNREACH)
			icmp_to_app(core, c, v4 ? 3 : 1, 0);
		else
			icmp_to_app(core, c, v4 ? 3 : 1, v4 ? 1 : 3);
	}
	conn_kill(core, c, error);
}

static void release_syn(struct dmm_core *core, struct tcb *t)
{
	t->flags &= ~(uint32_t)TF_HOLD;
	t->flags |= TF_SYN_DUE;
	tcp_set_rtx(core, t, RTX_NONE, NEVER);
	tcp_ready(core, t);
}

static void cc_start(struct dmm_core *core, struct conn *c, uint64_t now_ns)
{
	struct tcb *t = &c->leg[DMM_LEG_OUTER];
	struct cc *cc = &c->outer.cc;

	cc->ops = core->cc_ops;
	cc->mss = t->mss;
	cc->cwnd_bytes = (uint64_t)TCP_INIT_CWND_SEGS * t->mss;
	cc->srtt_ns = t->srtt_ns;
	cc->min_rtt_ns = tcp_min_rtt_ns(t);
	cc->rng = xorshift64(&core->rng) | 1;
	cc->ops->init(cc, now_ns);
}

/* A leg's handshake is done */
void relay_established(struct dmm_core *core, struct tcb *t, uint64_t now_ns)
{
	struct conn *c = tcb_conn(t);
	struct tcb *peer = tcb_peer(t);

	if (tcb_is_outer(t)) {
		halfopen_leave(core, c);
		cc_start(core, c, now_ns);
	}
	if (c->passive && tcb_is_outer(t) && peer->state == TCP_CLOSE) {
		t->flags |= TF_HOLD; /* by a cookie: the inner leg is yet to be opened */
		return;
	}
	if (peer->state == TCP_SYN_RECV && (peer->flags & TF_HOLD)) {
		/* this leg was opened for the peer's SYN, which can be answered now */
		if (c->passive)
			t->flags |= TF_HOLD;
		release_syn(core, peer);
		return;
	}
	c->phase = CONN_OPEN;
	peer->flags &= ~(uint32_t)TF_HOLD;
	tcp_ready(core, peer);
	tcp_ready(core, t);
}

static uint32_t icmp_errno(const struct pkt *pkt)
{
	if (pkt->family == WIRE_AF_INET)
		return pkt->icmp_code == 0 ? ENETUNREACH : pkt->icmp_code == 3 ? ECONNREFUSED : EHOSTUNREACH;
	return pkt->icmp_code == 0 ? ENETUNREACH : pkt->icmp_code == 4 ? ECONNREFUSED : EHOSTUNREACH;
}

static void icmp_outer(struct dmm_core *core, struct conn *c, const struct pkt *pkt)
{
	struct tcb *t = &c->leg[DMM_LEG_OUTER];
	uint32_t ahead = pkt->seq - t->iss - (uint32_t)t->snd_una;

	if (!t->snd_nxt || ahead >= t->snd_nxt - t->snd_una)
		return; /* quotes nothing that is in flight: RFC 5927 section 4 */
	if (pkt->icmp == ICMP_KIND_TOO_BIG) {
		pmtu_too_big(core, c, t->snd_una + ahead, pkt->icmp_mtu);
		return;
	}
	if (c->passive || (t->state != TCP_SYN_SENT && t->state != TCP_SYN_RECV))
		return; /* soft on an open connection: RFC 5927 section 5.2 */
	icmp_to_app(core, c, pkt->icmp_type, pkt->icmp_code);
	conn_kill(core, c, icmp_errno(pkt));
}

void relay_icmp(struct dmm_core *core, uint32_t leg, const struct pkt *pkt, uint64_t now_ns)
{
	struct dmm_core_addr_pair pair = {.family = pkt->family, .proto = WIRE_PROTO_TCP};
	bool outer = leg == DMM_LEG_OUTER;
	struct conn *c;

	(void)now_ns;
	memcpy(pair.laddr, outer ? pkt->saddr : pkt->daddr, 16);
	memcpy(pair.raddr, outer ? pkt->daddr : pkt->saddr, 16);
	pair.lport_be = outer ? pkt->sport_be : pkt->dport_be;
	pair.rport_be = outer ? pkt->dport_be : pkt->sport_be;
	c = conn_find(core, &pair);
	if (!c) {
		core->counters[DMM_CORE_NO_CONN]++;
		return;
	}
	if (c->phase == CONN_PARKED)
		return; /* no memory to wake it */
	if (outer) {
		icmp_outer(core, c, pkt);
		return;
	}
	conn_follow(core, c, pkt);
	if (c->passive && c->leg[0].state == TCP_SYN_SENT && pkt->seq == c->leg[0].iss &&
	    pkt->icmp == ICMP_KIND_UNREACH) {
		if (c->leg[1].state != TCP_SYN_RECV) {
			relay_reset(core, &c->leg[0], icmp_errno(pkt)); /* the peer's handshake is over */
			return;
		}
		icmp_to_peer(core, c, pkt->icmp_type, pkt->icmp_code);
		conn_kill(core, c, icmp_errno(pkt));
	}
}

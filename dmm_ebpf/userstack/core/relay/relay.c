/* SPDX-License-Identifier: Apache-2.0 */
/*
 * relay.c: what an event on one leg means for the other.
 *
 * Active open (the app connects): the app's SYN is kept unanswered (END_ASKED) until the peer has
 * answered ours, so connect() means what it says; a refusal becomes a RST to the app's kernel, an
 * ICMP error an ICMP error, silence silence. Our ACK to the peer is kept until the app's kernel has
 * acknowledged in turn: one whose app is gone, or only looks whether somebody listens (a load
 * balancer's check), resets instead, and the peer's app never has that connection. Passive open
 * (the remote peer connects): the peer's SYN is kept until the kernel has answered ours, and our
 * ACK to the kernel until the peer's handshake is done, so accept() returns neither early nor for a
 * port scan. With a SYN cookie the order is another (struct end_cookies): the peer's handshake is
 * over when the kernel gets to see a SYN, so what the peer sends meanwhile is kept, unanswered, and
 * a refusal becomes a RST.
 *
 * Phases of a connection (flow.h): what leads to each, what may leave the connection in it, what is
 * forbidden.
 *
 * CONN_OPENING, by open_by_syn() or open_by_cookie(): the leg whose peer has asked is held and
 * sends nothing; the other one sends its SYN, for which OWN was said before. When that is answered,
 * the held leg answers in turn, and the other one is held instead, until that one's handshake is
 * over. By a cookie it is over before, and the outer leg is held. Forbidden: data and FINs out of
 * either leg.
 *
 * CONN_OPEN, by established(), when both handshakes are over: all may leave. One leg may be closed
 * or in TIME-WAIT while the other goes on. ICMP errors but for the path MTU, and
 * dmm_core_unreachable(), change nothing any more. Forbidden: to go back to CONN_OPENING.
 *
 * CONN_PARKED, from CONN_OPEN and back (park.c): nothing leaves. Forbidden: to keep a pointer to
 * what stands behind the row, and to read it; conn_find() wakes the connection.
 *
 * CONN_DEAD, by conn_kill(), from all others: both legs are over, a SYN takes the connection's
 * place, or its room is needed. CLOSED and DISOWN are said. Forbidden: everything; no timer, list
 * or look-up leads to it, and conn_reap() frees it before the call of api.h returns.
 *
 * What an end tells (relay_events):
 *
 * established: as above.
 *
 * reset: the other leg is reset at once, except that bytes which the kernel's window takes, and
 * those of the app's that its kernel was told have arrived, go before the RST.
 *
 * gave_up: both legs are reset; where a SYN was never answered, or its answer never confirmed, both
 * peers are left to find out.
 *
 * closed: the connection ends when both legs are over; one of which nothing but TIME-WAIT is left
 * may be dropped to make room.
 *
 * quiet: it may be parked.
 *
 * fallen: all connections of the end's transport are reset, and those to come are TCP's.
 *
 * Data and FINs need nothing here: what one leg takes in is the other's to send, and a FIN only
 * says that this ends (tcp_in.c).
 */
#include "core.h"

static bool is_over(const struct end *e)
{
	return e->phase == END_CLOSED || e->phase == END_WAITING;
}

static void closed(struct env *env, struct end *e)
{
	struct dmm_core *core = env_core(env);
	struct conn *c = end_conn(e);
	const struct end *inner = conn_end(c, DMM_LEG_INNER), *outer = conn_end(c, DMM_LEG_OUTER);

	if (c->ends.f.phase == CONN_DEAD || !is_over(inner) || !is_over(outer))
		return;
	if (inner->phase == END_CLOSED && outer->phase == END_CLOSED) {
		conn_kill(core, c, 0);
	} else if (list_empty(&c->queued)) {
		list_add_tail(&core->time_wait, &c->queued);
		c->time_wait = true;
		core->n_time_wait++;
	}
}

static void set_error(struct conn *c, uint32_t error)
{
	if (!c->ends.f.error)
		c->ends.f.error = (uint16_t)error;
}

/* Its peer has asked, and has not confirmed the answer */
static bool is_asked(const struct end *e)
{
	return e->phase == END_ASKED || e->phase == END_ANSWERING;
}

static bool is_opening(const struct end *e)
{
	return e->phase == END_ASKING || is_asked(e);
}

/*
 * A handshake that was never over leaves nothing behind that the other end would have to be
 * told of first
 */
static void reset(struct env *env, struct end *e, uint32_t error, uint64_t now_ns)
{
	enum end_abort how = is_asked(e) ? END_ABORT_NOW : END_ABORT_FLUSH;
	struct dmm_core *core = env_core(env);

	set_error(end_conn(e), error);
	conn_abort(core, e, END_ABORT_PEER, now_ns);
	conn_abort(core, end_peer(e), how, now_ns);
	closed(env, e);
}

void relay_abort(struct dmm_core *core, struct conn *c, uint32_t error, uint64_t now_ns)
{
	set_error(c, error);
	conn_abort(core, conn_end(c, DMM_LEG_INNER), END_ABORT_NOW, now_ns);
	conn_abort(core, conn_end(c, DMM_LEG_OUTER), END_ABORT_NOW, now_ns);
	closed(&core->env, conn_end(c, DMM_LEG_OUTER));
}

static void gave_up(struct env *env, struct end *e, bool unanswered, uint64_t now_ns)
{
	enum end_abort how = end_is_outer(e) ? END_ABORT_MUTE : END_ABORT_NOW;
	struct dmm_core *core = env_core(env);
	struct conn *c = end_conn(e);

	set_error(c, ETIMEDOUT);
	/* who was never answered is left to find out by himself, as without us */
	if (unanswered) {
		conn_kill(core, c, 0);
		return;
	}
	conn_abort(core, end_peer(e), how, now_ns);
	conn_abort(core, e, END_ABORT_NOW, now_ns);
	closed(env, e);
}

/* Our sequence numbers must lie in front of those of the old connection. Its peer is told if it may
 * still hold it; should the RST be lost or inexact, the answer to our SYN is reset in turn (RFC
 * 9293 figure 9). */
static void replace(struct dmm_core *core, struct conn *old, uint32_t *floor, bool *has_floor,
		    uint64_t now_ns)
{
	const struct end_ops *ops;
	struct end *outer;

	*has_floor = false;
	if (!old)
		return;
	outer = conn_end(old, DMM_LEG_OUTER);
	ops = end_ops_of(&core->env, outer);
	if (ops->edge) {
		*floor = ops->edge(&core->env, outer);
		*has_floor = true;
	}
	conn_abort(core, conn_end(old, DMM_LEG_INNER), END_ABORT_APART, now_ns);
	conn_abort(core, outer, END_ABORT_APART, now_ns);
	conn_kill(core, old, 0);
}

/* Opens the leg whose peer has not asked */
static void open_other(struct dmm_core *core, struct conn *c, uint64_t now_ns)
{
	struct end *e = conn_end(c, c->ends.f.passive ? DMM_LEG_INNER : DMM_LEG_OUTER);

	c->ends.f.owned = 1;
	core_action(core, DMM_ACTION_OWN, c, 0);
	end_ops_of(&core->env, e)->open(&core->env, e, NULL, now_ns);
}

/* NULL: there is no room, and its peer was told */
static struct conn *make(struct dmm_core *core, uint32_t leg, const struct dmm_core_addr_pair *pair,
			 const struct pkt *pkt, uint8_t transport)
{
	struct conn *c = conn_create(core, pair, pkt, transport);

	if (!c) {
		ctl_reset_unknown(&core->env, leg, pkt->link, pkt);
		return NULL;
	}
	c->ends.f.passive = leg == DMM_LEG_OUTER;
	core->env.counters[c->ends.f.passive ? DMM_CORE_PASSIVE_OPEN : DMM_CORE_ACTIVE_OPEN]++;
	return c;
}

static void open_by_syn(struct dmm_core *core, uint32_t leg, struct conn *old,
			const struct dmm_core_addr_pair *pair, const struct pkt *pkt,
			uint64_t now_ns)
{
	uint32_t floor = 0;
	bool has_floor;
	struct conn *c;
	struct end *e;

	replace(core, old, &floor, &has_floor, now_ns);
	c = make(core, leg, pair, pkt, core->transport);
	if (!c)
		return;
	e = conn_end(c, leg);
	c->ends.isn_floor = floor;
	c->ends.has_isn_floor = has_floor;
	c->ends.syn_seq = pkt->seq;
	end_ops_of(&core->env, e)->open(&core->env, e, pkt, now_ns);
	if (c->ends.f.passive)
		halfopen_enter(core, c, now_ns);
	open_other(core, c, now_ns);
}

static bool cookie_wanted(const struct dmm_core *core)
{
	if (core->env.cfg.negotiate == DMM_NEGOTIATE_DEMAND)
		return false; /* no cookie carries an agreement: the oldest makes room */
	if (!core->env.ops[core->transport]->cookies)
		return false;
	if (core->env.cfg.syn_cookies == DMM_SYN_COOKIES_ALWAYS)
		return true;
	return core->env.cfg.syn_cookies != DMM_SYN_COOKIES_OFF && halfopen_full(core);
}

static void answer_by_cookie(struct dmm_core *core, const struct dmm_core_addr_pair *pair,
			     const struct pkt *syn, uint64_t now_ns)
{
	core->cookie_transport = core->transport;
	core->env.ops[core->transport]->cookies->answer(&core->env, pair, syn, now_ns);
}

/* A peer that does not offer what is demanded of it */
static void refuse(struct dmm_core *core, const struct pkt *syn)
{
	core->env.counters[DMM_CORE_AGREE_REFUSED]++;
	ctl_reset_unknown(&core->env, DMM_LEG_OUTER, syn->link, syn);
}

void relay_syn(struct dmm_core *core, uint32_t leg, struct conn *old,
	       const struct dmm_core_addr_pair *pair, const struct pkt *pkt, uint64_t now_ns)
{
	const struct end_ops *ops = core->env.ops[core_transport(core, leg)];

	/* what replaces an old connection must know its sequence numbers, and comes from a peer
	 * that exists
	 */
	if (unlikely(ops->may_open && !ops->may_open(&core->env, pkt)))
		refuse(core, pkt);
	else if (leg == DMM_LEG_OUTER && !old && cookie_wanted(core))
		answer_by_cookie(core, pair, pkt, now_ns);
	else
		open_by_syn(core, leg, old, pair, pkt, now_ns);
}

/* A cookie came back: the connection is made as if it had been there all the time */
static void open_by_cookie(struct dmm_core *core, const struct dmm_core_addr_pair *pair,
			   const struct pkt *pkt, const struct pkt *syn, uint64_t now_ns)
{
	struct conn *c = make(core, DMM_LEG_OUTER, pair, pkt, core->cookie_transport);
	const struct end_ops *ops = core->env.ops[core->cookie_transport];
	struct end *outer;

	if (!c)
		return;
	outer = conn_end(c, DMM_LEG_OUTER);
	c->ends.syn_seq = syn->seq;
	ops->cookies->restore(&core->env, outer, syn, pkt, now_ns);
	ops->input(&core->env, outer, pkt, now_ns);
	if (c->ends.f.phase != CONN_DEAD)
		open_other(core, c, now_ns);
}

void relay_unknown(struct dmm_core *core, uint32_t leg, const struct dmm_core_addr_pair *pair,
		   const struct pkt *pkt, uint64_t now_ns)
{
	uint32_t place = leg == DMM_LEG_OUTER ? core->cookie_transport : 0;
	const struct end_cookies *cookies = core->env.ops[place]->cookies;
	struct pkt syn;

	switch (cookies ? cookies->read(&core->env, pair, pkt, now_ns, &syn) : COOKIE_NONE) {
	case COOKIE_GOOD:
		open_by_cookie(core, pair, pkt, &syn, now_ns);
		break;
	case COOKIE_LATER:
		break;
	case COOKIE_NONE:
		core->env.counters[DMM_CORE_NO_CONN]++;
		ctl_reset_unknown(&core->env, leg, pkt->link, pkt);
		break;
	}
}

/* To the other leg: the error that its segment would have met on this one */
static void icmp_pass(struct dmm_core *core, const struct conn *c, uint32_t leg,
		      const struct wire_seg *seg, uint8_t type, uint8_t code)
{
	struct wire_dir dir;

	ctl_dir(&c->ends.f.pair, leg, &dir);
	ctl_push_icmp(&core->env, leg ^ 1, c->ends.link, &dir, seg, type, code);
}

/* Likewise, that the SYN would have met */
static void icmp_of_syn(struct dmm_core *core, const struct conn *c, uint32_t leg, uint8_t type,
			uint8_t code)
{
	struct wire_seg syn = {.seq = c->ends.syn_seq, .flags = TH_SYN};

	icmp_pass(core, c, leg, &syn, type, code);
}

/*
 * It ends nothing here (RFC 5927 section 5.2): what it is to the program that sends, its kernel
 * knows, by the socket (IP_RECVERR, and what ETIMEDOUT becomes). That asks for a number between
 * those that it has heard of last and has used last, which that of what came last is.
 */
static void icmp_when_open(struct dmm_core *core, struct conn *c, uint32_t leg,
			   const struct pkt *pkt)
{
	const struct end *sender = conn_end(c, leg ^ 1);
	const struct end_ops *ops = end_ops_of(&core->env, sender);
	struct wire_seg seg = {.flags = TH_ACK};

	if (!ops->taken || sender->phase != END_OPEN)
		return;
	seg.seq = ops->taken(&core->env, sender);
	icmp_pass(core, c, leg, &seg, pkt->icmp_type, pkt->icmp_code);
}

void relay_unreachable(struct dmm_core *core, struct conn *c, uint32_t error)
{
	bool v4 = c->ends.f.pair.family == WIRE_AF_INET;

	if (c->ends.f.phase != CONN_OPENING)
		return;
	if (!c->ends.f.passive) {
		if (error == ENETUNREACH)
			icmp_of_syn(core, c, DMM_LEG_OUTER, v4 ? 3 : 1, 0);
		else
			icmp_of_syn(core, c, DMM_LEG_OUTER, v4 ? 3 : 1, v4 ? 1 : 3);
	}
	conn_kill(core, c, error);
}

/* true: it may go on; else it waits, established, for go() */
static bool established(struct env *env, struct end *e)
{
	struct conn *c = end_conn(e);
	struct end *peer = end_peer(e);
	bool first = peer->phase == END_ASKED;

	if (end_is_outer(e))
		halfopen_leave(env_core(env), c);
	if (c->ends.f.passive && end_is_outer(e) && peer->phase == END_CLOSED)
		return false; /* by a cookie: the inner leg is yet to be opened */
	end_ops_of(env, peer)->go(env, peer);
	if (first)
		return false; /* what ends this handshake says that the other one has ended, too */
	c->ends.f.phase = CONN_OPEN;
	end_ops_of(env, e)->go(env, e);
	return true;
}

static bool quiet(struct env *env, struct end *e, uint64_t now_ns)
{
	return conn_park(env_core(env), end_conn(e), now_ns);
}

/* Those to come are TCP's */
static void fallen(struct env *env, struct end *e, uint64_t now_ns)
{
	struct dmm_core *core = env_core(env);
	uint8_t transport = e->transport;

	if (core->transport == transport)
		transport_fall_back(core);
	for (uint32_t i = 0; i < core->n_live; i++) {
		struct conn *c = core->slots[core->live[i]];
		struct end *outer;

		if (c->ends.f.phase == CONN_DEAD || c->ends.f.phase == CONN_PARKED)
			continue; /* what is called through a guard is never parked */
		outer = conn_end(c, DMM_LEG_OUTER);
		if (outer->transport == transport)
			reset(env, outer, ECONNABORTED, now_ns);
	}
}

const struct end_events relay_events = {
	.established = established,
	.reset = reset,
	.gave_up = gave_up,
	.closed = closed,
	.quiet = quiet,
	.fallen = fallen,
};

static uint32_t icmp_errno(const struct pkt *pkt)
{
	if (pkt->family == WIRE_AF_INET)
		return pkt->icmp_code == 0   ? ENETUNREACH
		       : pkt->icmp_code == 3 ? ECONNREFUSED
					     : EHOSTUNREACH;
	return pkt->icmp_code == 0   ? ENETUNREACH
	       : pkt->icmp_code == 4 ? ECONNREFUSED
				     : EHOSTUNREACH;
}

void relay_icmp(struct dmm_core *core, uint32_t leg, const struct pkt *pkt, uint64_t now_ns)
{
	struct dmm_core_addr_pair pair = {.family = pkt->family, .proto = WIRE_PROTO_TCP};
	bool outer = leg == DMM_LEG_OUTER;
	const struct end_ops *ops;
	struct conn *c;
	struct end *e;

	memcpy(pair.laddr, outer ? pkt->saddr : pkt->daddr, 16);
	memcpy(pair.raddr, outer ? pkt->daddr : pkt->saddr, 16);
	pair.lport_be = outer ? pkt->sport_be : pkt->dport_be;
	pair.rport_be = outer ? pkt->dport_be : pkt->sport_be;
	c = conn_find(core, &pair);
	if (!c) {
		core->env.counters[DMM_CORE_NO_CONN]++;
		return;
	}
	if (c->ends.f.phase == CONN_PARKED)
		return; /* no memory to wake it */
	e = conn_end(c, leg);
	ops = end_ops_of(&core->env, e);
	if (!ops->icmp || !ops->icmp(&core->env, e, pkt))
		return;
	if (e->phase == END_OPEN) {
		icmp_when_open(core, c, leg, pkt);
		return;
	}
	if (!is_opening(e) || c->ends.f.passive == outer)
		return;
	if (!outer && !is_asked(end_peer(e))) {
		reset(&core->env, e, icmp_errno(pkt), now_ns); /* the peer's handshake is over */
		return;
	}
	icmp_of_syn(core, c, leg, pkt->icmp_type, pkt->icmp_code);
	conn_kill(core, c, icmp_errno(pkt));
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp.c: one end of a TCP connection (RFC 9293), the same engine for both legs: how it begins and
 * ends, and what the layer above asks of it (tcp.h).
 *
 * Theory of operation. Sequence numbers are held in 64 bits: 0 is the SYN, byte n of the stream is
 * n + 1, the FIN follows the last byte; iss and irs translate to the wire, so nothing inside ever
 * wraps. A leg's send buffer (snd) is the other leg's receive buffer: in-order bytes are put there
 * as they arrive, the receive window is the room left there, and bytes leave it when this leg's
 * peer has acknowledged them. Nothing is sent by pushing: whatever gives a leg something to send
 * marks it ready (tcp_ready) and tcp_output() makes one packet when it is pulled.
 *
 * tcp_state.c  the states, and what leads from one to another
 * tcp_in.c     arrival: acceptability, RST, payload, FIN
 * tcp_merged.c arrival: segments that came as one packet
 * tcp_open.c   arrival: the handshake
 * tcp_cookie.c arrival: handshakes without an end (SYN cookies)
 * tcp_ack.c    acknowledgments: cumulative, SACK, windows, delivery rate
 * tcp_rtt.c    round-trip times
 * tcp_mss.c    how long a segment may be
 * tcp_rack.c   loss detection: RACK, tail loss probes, NewReno for peers without SACK
 * tcp_prr.c    how fast a recovery sends on the outer leg
 * tcp_inner.c  and on the inner leg
 * tcp_hold.c   what the app's kernel is told of before the peer has it
 * tcp_ecn.c    explicit congestion notification: what is agreed on, RFC 3168
 * tcp_accecn.c accurate ECN (RFC 9768)
 * tcp_agree.c  what two stacks of ours agree on beyond TCP
 * tcp_urg.c    urgent data
 * tcp_pmtu.c   path MTU: device, route, ICMP, black holes
 * tcp_undo.c   recovery that was needless: Eifel, DSACK, F-RTO
 * tcp_opt.c    SACK and ECN feedback in a segment's options
 * tcp_spare.c  copies of what is on the way while nothing else can be sent
 * tcp_copies.c copies of what the app waits for, where the path loses
 * tcp_parity_out.c parity of what was sent, for a peer that has agreed on it
 * tcp_parity_in.c  and what is repaired by the peer's
 * tcp_loss.c   how much it loses at random
 * tcp_paths.c  what is known of a path from earlier connections
 * tcp_out.c    departure: which segment is next
 * tcp_emit.c   departure: the packet
 * tcp_run.c    departure: which segments may share a packet that the device cuts
 * tcp_pace.c   departure: when
 * tcp_window.c how much the peer may send
 * tcp_deadline.c deadlines: when
 * tcp_timer.c  and what is done then
 * tcp_ip.c     what IP headers say on one leg and are to say on the other
 * tcp_sleep.c  when an end may be put away
 *
 * Invariants: snd_una <= snd_nxt; bytes below snd_una are not held; the right edge of the window
 * that was advertised (rcv_adv) never moves back; a state changes only in tcp_state.c.
 */
#include "tcp_end.h"
#include "tcp_int.h"

#include <stdio.h>

static void tcp_init(struct env *env, struct end *e)
{
	struct tcb *t = tcb_of(e);

	t->state = TCP_CLOSE;
	t->ts_offset = tcp_ts_offset(env, &tcb_ends(t)->f.pair, t->leg);
	t->rtx_ns = t->delack_ns = t->keep_ns = NEVER;
	t->quickacks = TCP_QUICKACKS;
	list_init(&t->ready);
	wheel_node_init(&t->timer);
	if (!tcb_is_outer(t))
		return;
	tcb_outer(t)->min_rtt_prev_ns = tcb_outer(t)->min_rtt_cur_ns = NEVER;
	tcb_outer(t)->pace_wake_ns = tcb_outer(t)->copy_wake_ns = NEVER;
	tcb_outer(t)->parity_wake_ns = NEVER;
}

/*
 * What the app's kernel has chosen for this connection, the peer sees. Its timestamps go on from
 * those of the last connection between the two hosts, also when another process or the kernel
 * carried that: else a peer in TIME-WAIT would refuse the SYN (RFC 6191, RFC 7323 section 5).
 */
static void be_taken_after(struct ends *e, const struct pkt *syn, uint64_t now_ns)
{
	e->has_ts_offset = syn->has_ts;
	e->ts_offset = syn->tsval - (uint32_t)(now_ns / NS_PER_MS);
}

static void tcp_open(struct env *env, struct end *e, const struct pkt *syn, uint64_t now_ns)
{
	struct tcb *t = tcb_of(e);

	if (!syn) {
		if (tcb_is_outer(t) && tcb_ends(t)->has_ts_offset)
			t->ts_offset = tcb_ends(t)->ts_offset;
		tcp_connect(env, t, end_first_number(env, &t->end, now_ns), now_ns);
		return;
	}
	if (!tcb_is_outer(t))
		be_taken_after(tcb_ends(t), syn, now_ns);
	tcp_learn_syn(env, t, syn, now_ns);
	t->iss = end_first_number(env, &t->end, now_ns);
	t->flags |= TF_HOLD;
	tcp_event(env, t, TE_SYN, now_ns);
	if (tcb_is_outer(t))
		tcp_set_rtx(env, t, RTX_HOLD, now_ns + TCP_HOLD_S * NS_PER_S);
	else
		tcp_app_asks(env, t, 0, now_ns);
}

static void tcp_go(struct env *env, struct end *e)
{
	struct tcb *t = tcb_of(e);

	if (t->phase == END_ASKED) {
		t->phase = END_ANSWERING;
		t->flags |= TF_SYN_DUE;
		tcp_set_rtx(env, t, RTX_NONE, NEVER);
	}
	t->flags &= ~(uint32_t)TF_HOLD;
	tcp_ready(env, t);
}

static void tcp_finish(struct env *env, struct end *e)
{
	tcb_of(e)->flags |= TF_FIN;
	end_ready(env, e);
}

/*
 * flush: deliver first what its window takes, on the outer leg all that the app's kernel was told
 * has arrived; and what ends the handshake, since a RST alone takes a connection out of the queue
 * of accept().
 */
static void abort_by_rst(struct env *env, struct tcb *t, bool flush)
{
	bool unanswered = t->state == TCP_SYN_SENT;

	if (t->state == TCP_CLOSE)
		return;
	if (t->state == TCP_TIME_WAIT || (unanswered && (tcb_is_outer(t) || !t->snd_nxt))) {
		tcp_release(env, t);
		return;
	}
	t->flags &= ~(uint32_t)TF_HOLD;
	t->flags |= TF_RST_DUE | (unanswered ? TF_RST_BARE : 0);
	if (flush && (stream_held(&t->snd) || tcp_is_greeting(t)) && t->state != TCP_SYN_RECV)
		t->flags |= TF_RST_FLUSH;
	else
		tcp_release(env, t);
	tcp_ready(env, t);
}

/* The app's kernel has bytes that are not acknowledged: its own time-out, which a RST would come
 * before, is what the app is to hear of (ETIMEDOUT) */
static void abort_by_silence(struct env *env, struct tcb *t, uint64_t now_ns)
{
	t->flags |= TF_HOLD;
	tcp_set_rtx(env, t, RTX_HOLD, now_ns + TCP_MUTE_S * NS_PER_S);
}

/* An end that came in one burst with the next SYN: who sent it is in LAST-ACK, and would challenge
 * the SYN that takes its place, which then comes again a second later only */
static void abort_apart(struct env *env, struct tcb *t, uint64_t now_ns)
{
	struct wire_seg rst = {.flags = TH_RST, .seq = t->iss + (uint32_t)t->snd_nxt};
	struct ends *e = tcb_ends(t);
	struct wire_dir dir;

	if (t->state == TCP_TIME_WAIT && (t->flags & TF_ACK_NOW))
		tcp_ack_apart(env, t, now_ns);
	if (t->state == TCP_TIME_WAIT || t->state == TCP_CLOSE || !t->snd_nxt)
		return;
	if (t->state != TCP_SYN_SENT) {
		rst.flags |= TH_ACK;
		rst.ack = t->irs + (uint32_t)t->rcv_nxt;
	}
	ctl_dir(&e->f.pair, t->leg, &dir);
	ctl_push_tcp(env, t->leg, e->link, &dir, &rst);
}

static void cc_end(struct cc *cc)
{
	if (cc->ops && cc->ops->release)
		cc->ops->release(cc);
}

static void tcp_abort(struct env *env, struct end *e, enum end_abort how, uint64_t now_ns)
{
	struct tcb *t = tcb_of(e);

	switch (how) {
	case END_ABORT_FREE:
		t->flags &= ~(uint32_t)TF_RST_DUE;
		tcp_release(env, t);
		if (tcb_is_outer(t))
			cc_end(&tcb_outer(t)->cc);
		break;
	case END_ABORT_PEER:
		tcp_release(env, t);
		break;
	case END_ABORT_NOW:
		abort_by_rst(env, t, false);
		break;
	case END_ABORT_MUTE:
		if (hold_pending(t)) {
			abort_by_silence(env, t, now_ns);
			break;
		}
		/* fall through */
	case END_ABORT_FLUSH:
		abort_by_rst(env, t, true);
		break;
	case END_ABORT_APART:
		abort_apart(env, t, now_ns);
		break;
	}
}

/* RFC 6191 section 2 */
static bool tcp_is_newer(const struct env *env, const struct end *e, const struct pkt *pkt)
{
	const struct tcb *t = tcb_of(e);
	bool beyond = (int32_t)(pkt->seq - t->irs - (uint32_t)t->rcv_nxt) > 0;
	int32_t later = (int32_t)(pkt->tsval - t->ts_recent);

	(void)env;
	if (!pkt->has_ts)
		return beyond;
	return !(t->flags & TF_TS) || later > 0 || (!later && beyond);
}

static uint32_t tcp_edge(const struct env *env, const struct end *e)
{
	(void)env;
	return tcb_of(e)->iss + (uint32_t)e->snd_nxt;
}

static uint32_t tcp_taken(const struct env *env, const struct end *e)
{
	const struct tcb *t = tcb_of(e);

	(void)env;
	return t->irs + (uint32_t)t->rcv_nxt;
}

/*
 * RFC 5927 section 4: what quotes nothing that is in flight has met nothing; on an open connection
 * an ACK alone may have met it, which is no longer than the next byte.
 */
static bool tcp_icmp(struct env *env, struct end *e, const struct pkt *pkt)
{
	struct tcb *t = tcb_of(e);
	uint32_t ahead = pkt->seq - t->iss - (uint32_t)t->snd_una;
	uint64_t inflight = t->snd_nxt - t->snd_una;
	bool outer = tcb_is_outer(t);

	if (!outer)
		ip_follow(env, tcb_ends(t), pkt);
	if (!t->snd_nxt || ahead > inflight)
		return false;
	if (ahead == inflight && (t->phase != END_OPEN || pkt->icmp == ICMP_KIND_TOO_BIG))
		return false;
	if (pkt->icmp == ICMP_KIND_TOO_BIG) {
		pmtu_too_big(env, t, t->snd_una + ahead, pkt->icmp_mtu);
		return false;
	}
	return outer || pkt->icmp == ICMP_KIND_UNREACH;
}

static void info_inner(const struct env *env, const struct end *e, struct dmm_conn_info *info)
{
	(void)env;
	info->inner_state = tcb_of(e)->state;
	info->bytes_received = e->snd.tail;
	info->rcvbuf_bytes = (uint32_t)stream_held(&e->snd);
}

static void info_outer(const struct env *env, const struct end *e, struct dmm_conn_info *info)
{
	const struct tcb *t = tcb_of(e);
	const struct outer *o = tcb_outer(t);
	uint64_t min_rtt_ns = tcp_min_rtt_ns(t);

	info->outer_state = t->state;
	info->bytes_sent = t->snd.head;
	info->segments_sent = o->segments_sent;
	info->retransmits = o->retransmits;
	info->rto_count = o->rto_count;
	info->copies = o->copies_sent;
	info->copies_needed = o->copies_needed;
	info->parity = o->parity_sent;
	info->peer_repaired = o->peer_repaired;
	info->repaired = o->repaired;
	info->cwnd_bytes = o->cc.cwnd_bytes;
	info->inflight_bytes = tcp_inflight(t);
	info->pacing_Bps = o->cc.pacing_Bps;
	info->delivery_Bps = o->delivery_Bps;
	info->srtt_us = (uint32_t)(t->srtt_ns / 1000);
	info->min_rtt_us = min_rtt_ns == NEVER ? 0 : (uint32_t)(min_rtt_ns / 1000);
	info->rttvar_us = (uint32_t)(t->rttvar_ns / 1000);
	info->mss = t->mss;
	info->sndbuf_bytes = (uint32_t)stream_held(&t->snd);
	if (t->state != TCP_SYN_SENT)
		info->ecn = t->flags & TF_ACCECN ? 2 : !!(t->flags & TF_ECN);
	info->agreed = agree_features(t);
	info->agreement = o->agree.state;
	snprintf(info->congestion, sizeof(info->congestion), "%s",
		 o->cc.ops ? o->cc.ops->name : env->cc_ops->name);
}

#define TCP_OPS                                                                                    \
	.name = "tcp", .init = tcp_init, .open = tcp_open, .go = tcp_go, .input = tcp_input,       \
	.output = tcp_output, .timer = tcp_timer, .abort = tcp_abort, .finish = tcp_finish,        \
	.room = tcp_room, .passed = tcp_passed, .ask = tcp_ask, .heard = tcp_heard,                \
	.urgent = tcp_urgent, .icmp = tcp_icmp, .taken = tcp_taken, .rests = tcp_rests,            \
	.sleep = tcp_sleep, .wake = tcp_wake

const struct end_ops tcp_inner = {
	TCP_OPS,
	.state_bytes = sizeof(struct tcb_inner),
	.info = info_inner,
};

const struct end_ops tcp_outer = {
	TCP_OPS,
	.state_bytes = sizeof(struct tcb_outer),
	.info = info_outer,
	.wants = tcp_wants,
	.path = tcp_path,
	.is_newer = tcp_is_newer,
	.edge = tcp_edge,
	.may_open = agree_may_open,
	.cookies = &tcp_cookies,
};

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_out.c: the next segment of a leg, made when it is pulled.
 *
 * Order: RST, SYN, an ACK that reports holes, retransmissions, new data, FIN, ACK, probes. Data
 * obeys the peer's window, on the outer leg also cwnd and pacing. tcp_emit.c makes the packet.
 */
#include "tcp_int.h"
#include "tcp_parity.h"

static uint32_t out_rst(struct env *env, struct tcb *t, uint8_t *buf, struct dmm_tx_meta *meta,
			uint64_t now_ns)
{
	struct wire_seg seg;
	uint32_t n;

	emit_fill(env, t, &seg, t->flags & TF_RST_BARE ? TH_RST : TH_RST | TH_ACK, emit_bare_seq(t),
		  0, now_ns);
	n = emit_packet(env, t, buf, meta, &seg, 0, 0, 0, 0);
	env->counters[DMM_CORE_RST_OUT]++;
	t->flags &= ~(uint32_t)TF_RST_DUE;
	tcp_release(env, t);
	env->up->closed(env, &t->end);
	return n;
}

static uint32_t out_syn(struct env *env, struct tcb *t, uint8_t *buf, struct dmm_tx_meta *meta,
			uint64_t now_ns)
{
	bool answer = t->state == TCP_SYN_RECV;
	struct wire_seg seg;
	uint64_t wait_ns;

	t->flags &= ~(uint32_t)(TF_SYN_DUE | TF_ACK_NOW);
	emit_fill(env, t, &seg, answer ? TH_SYN | TH_ACK : TH_SYN, 0, 0, now_ns);
	seg.flags |= ecn_syn_flags(env, t);
	wire_opt_mss(&seg, tcp_adv_mss(env, t));
	wire_opt_syn_tail(&seg, !answer || (t->flags & TF_SACK), !answer || (t->flags & TF_TS),
			  tcp_ts_now(t, now_ns), answer ? t->ts_recent : 0,
			  !answer || (t->flags & TF_WS), t->rcv_wscale);
	if (answer && (t->flags & TF_ACCECN))
		accecn_synack(t, &seg);
	agree_syn(env, t, &seg, now_ns);
	if (!t->snd_nxt) {
		t->syn_ns = now_ns;
		copies_plan_syn(env, t, now_ns);
	}
	t->snd_nxt = 1;
	if (t->rtx_mode != RTX_SYN) { /* a SYN that comes again puts nothing off */
		wait_ns = copies_syn_wait_ns(env, t, now_ns);
		tcp_set_rtx(env, t, RTX_SYN,
			    now_ns + (wait_ns ? wait_ns : copies_syn_rto_ns(env, t, now_ns)));
	}
	return emit_packet(env, t, buf, meta, &seg, 0, 0, 0, 0);
}

/*
 * One answer per connection and half second to what is not acceptable, as Linux; true: it was given
 */
static bool answered_lately(struct tcb *t, uint64_t now_ns)
{
	struct outer *o = tcb_outer(t);
	uint32_t now_ms = (uint32_t)(now_ns / NS_PER_MS) | 1;

	if (!tcb_is_outer(t))
		return false;
	if (o->challenge_ms && now_ms - o->challenge_ms < 500)
		return true;
	o->challenge_ms = now_ms;
	return false;
}

void tcp_stale_ack(struct env *env, struct tcb *t, uint64_t now_ns)
{
	if (answered_lately(t, now_ns))
		return;
	t->flags |= TF_ACK_NOW;
	tcp_ready(env, t);
}

/* RFC 5961 section 7. There is no limit for the whole stack: who uses it up by a connection of his
 * own could tell by it how other connections answer (CVE-2016-5696, and why Linux has turned its
 * own off). */
void tcp_challenge_ack(struct env *env, struct tcb *t, uint64_t now_ns)
{
	if (answered_lately(t, now_ns))
		return;
	env->counters[DMM_CORE_CHALLENGE_ACKS]++;
	t->flags |= TF_ACK_NOW;
	tcp_ready(env, t);
}

static void sent_data(struct env *env, struct tcb *t, struct seg *s, uint64_t now_ns)
{
	struct outer *o = tcb_outer(t);

	flight_sent(t->fl, s, now_ns);
	t->flags &= ~(uint32_t)TF_FORCE_RTX;
	if (t->rtx_mode == RTX_NONE || t->rtx_mode == RTX_TLP || t->rtx_mode == RTX_PERSIST)
		tcp_rearm(env, t, now_ns);
	if (!tcb_is_outer(t))
		return;
	if (t->fl->inflight_bytes == s->len)
		o->first_tx_ns = o->delivered_ns = now_ns;
	s->first_tx_ns = o->first_tx_ns;
	s->delivered_ns = o->delivered_ns;
	s->delivered_bytes = o->delivered_bytes;
	s->lost_total_bytes = o->lost_bytes;
	s->tx_inflight_bytes = (uint32_t)min_u64(t->fl->inflight_bytes, UINT32_MAX);
	s->flags = (uint16_t)((s->flags & ~SEG_APP_LIMITED) |
			      (o->app_limited_until ? SEG_APP_LIMITED : 0));
	o->cc.inflight_bytes = tcp_inflight(t);
	o->last_data_ns = now_ns;
	prr_sent(t, s->len);
	pace_sent(t, s->len, now_ns);
}

static uint32_t out_segment(struct env *env, struct tcb *t, uint8_t *buf, struct dmm_tx_meta *meta,
			    uint32_t idx, uint64_t now_ns)
{
	struct seg *s = flight_seg(t->fl, idx);
	uint32_t n = emit_segment(env, t, buf, meta, s, false, now_ns);

	sent_data(env, t, s, now_ns);
	return n;
}

static uint32_t out_again(struct env *env, struct tcb *t, uint8_t *buf, struct dmm_tx_meta *meta,
			  uint32_t idx, uint64_t now_ns)
{
	uint32_t n;

	flight_resend(t->fl, idx);
	env->counters[DMM_CORE_RETRANSMITS]++;
	if (tcb_is_outer(t)) {
		tcb_outer(t)->retransmits++;
		undo_on_resend(t, flight_seg(t->fl, idx), now_ns);
	} else {
		env->counters[DMM_CORE_INNER_RETRANSMITS]++;
	}
	n = out_segment(env, t, buf, meta, idx, now_ns);
	if (tcb_is_outer(t) && tcb_outer(t)->copying && !parity_goes(t))
		copies_plan_again(env, t, flight_seg(t->fl, idx), now_ns);
	return n;
}

static bool cwnd_allows(const struct tcb *t, uint32_t len)
{
	uint64_t inflight;

	if (!tcb_is_outer(t))
		return inner_allows(t, len);
	inflight = tcp_inflight(t);
	if (inflight && t->fl->prr.ssthresh_bytes)
		return len <= t->fl->prr.snd_cnt_bytes;
	return !inflight || inflight + t->fl->copy_bytes + parity_inflight(t) + len <=
				    tcb_outer(t)->cc.cwnd_bytes;
}

/* Longest payload of one packet */
static uint32_t max_payload(const struct env *env, const struct tcb *t, uint32_t cap)
{
	uint32_t headers =
		wire_ip_len(tcb_ends(t)->f.pair.family) + WIRE_TCP_LEN + WIRE_TCP_OPT_MAX;
	uint32_t gso = env->cfg.inner_gso_max;

	/* the pieces of a longer packet would all have the same urgent pointer */
	if (tcb_is_outer(t) || gso <= env->cfg.inner_mtu || t->snd_up > t->snd_nxt)
		return t->mss;
	gso = min_u32(min_u32(gso, cap), 65535);
	return gso > headers + t->mss ? gso - headers : t->mss;
}

/* How much new data to send now; *fin: the FIN goes with it */
static uint32_t new_length(const struct env *env, const struct tcb *t, uint32_t cap, bool any,
			   bool *fin)
{
	uint64_t unsent = end_unsent(&t->end), edge = t->snd_una + t->snd_wnd;
	uint64_t usable = edge > t->snd_nxt ? edge - t->snd_nxt : 0;
	uint32_t cut = parity_cut(t);
	uint64_t len = min_u64(min_u64(unsent, usable), min_u32(max_payload(env, t, cap), cut));

	*fin = false;
	if (t->flags & TF_FIN_SENT)
		return 0;
	if (len == unsent && (t->flags & TF_FIN) && usable > len)
		*fin = true;
	if (len == unsent)
		return (uint32_t)len;
	if (len < min_u32(t->mss, cut) && !any && len < t->max_wnd / 2)
		return 0; /* sender's silly window avoidance */
	if (len > t->mss)
		len -= len % t->mss;
	return (uint32_t)len;
}

static void idle_restart(const struct env *env, struct tcb *t, uint64_t now_ns)
{
	struct outer *o = tcb_outer(t);

	if (!tcb_is_outer(t) || t->fl || !o->last_data_ns)
		return;
	if (now_ns - o->last_data_ns > tcp_rto_ns(env, t))
		o->cc.ops->on_restart(&o->cc, now_ns - o->last_data_ns, now_ns);
}

/* A segment of new data on the scoreboard; NULL: no memory */
static struct seg *push_new(struct env *env, struct tcb *t, uint32_t len, bool fin, uint64_t now_ns)
{
	struct seg *s;

	if (!t->fl) {
		t->fl = flight_create(&env->mem);
		if (!t->fl)
			return NULL;
	}
	s = flight_push(&env->mem, t->fl, t->snd_nxt, len + fin);
	if (!s)
		return NULL;
	if (fin) {
		s->flags |= SEG_FIN;
		t->flags |= TF_FIN_SENT;
		tcp_event(env, t, TE_FIN_SENT, now_ns);
	}
	t->snd_nxt += len + fin;
	t->flags &= ~(uint32_t)TF_PUSH_ANY;
	if (t->rtx_mode == RTX_PERSIST)
		t->backoff = 0;
	return s;
}

/* What could be pulled next, one by one, joins the packet that seg is the header of; *more: how
 * many. Returns their payload. */
static uint32_t add_run(struct env *env, struct tcb *t, struct wire_seg *seg, uint32_t cap,
			uint32_t *more, uint64_t now_ns)
{
	uint32_t most = run_most(env, t, seg, cap), total = 0, len = t->mss;
	bool fin = false;

	while (total < most && len == t->mss && !fin) {
		struct seg *s;

		len = new_length(env, t, cap, false, &fin);
		if (!len || len > most - total || !cwnd_allows(t, len) ||
		    !opt_plain(env, t, len, now_ns) || pace_blocked(env, t, now_ns))
			break;
		s = push_new(env, t, len, fin, now_ns);
		if (!s)
			break;
		if (s->seq + len == t->snd.tail + 1)
			seg->flags |= TH_PSH | (fin ? TH_FIN : 0);
		sent_data(env, t, s, now_ns);
		total += len;
		++*more;
	}
	return total;
}

/* cap 0: nothing joins it */
static uint32_t out_new(struct env *env, struct tcb *t, uint8_t *buf, uint32_t cap,
			struct dmm_tx_meta *meta, uint32_t len, bool fin, uint64_t now_ns)
{
	uint64_t off = t->snd_nxt - 1;
	struct wire_seg seg;
	uint32_t more = 0;
	struct seg *s;
	uint8_t ecn;

	idle_restart(env, t, now_ns);
	s = push_new(env, t, len, fin, now_ns);
	if (!s)
		return 0;
	emit_head(env, t, s, false, &seg, &ecn, now_ns);
	sent_data(env, t, s, now_ns);
	if (cap && tcb_is_outer(t) && len == t->mss && !fin)
		len += add_run(env, t, &seg, cap, &more, now_ns);
	if (tcb_is_outer(t)) { /* less waits now */
		struct end *inner = tcb_peer(t);

		end_ops_of(env, inner)->room(env, inner);
	}
	return emit_packet(env, t, buf, meta, &seg, more, ecn, off, len);
}

/* Tail loss probe (RFC 8985 section 7.3): new data if there is any, else the last segment again */
static uint32_t out_tlp(struct env *env, struct tcb *t, uint8_t *buf, uint32_t cap,
			struct dmm_tx_meta *meta, uint64_t now_ns)
{
	uint32_t len, n;
	bool fin;

	t->flags &= ~(uint32_t)TF_TLP_DUE;
	if (!t->fl || t->fl->n_sacked || t->fl->lost_bytes)
		return 0;
	len = new_length(env, t, cap, false, &fin);
	if (len || fin) {
		n = out_new(env, t, buf, 0, meta, min_u32(len, t->mss), fin && len <= t->mss,
			    now_ns);
		t->fl->tlp_is_retrans = 0;
	} else {
		n = out_again(env, t, buf, meta, flight_idx(t->fl, t->fl->count - 1), now_ns);
		t->fl->tlp_is_retrans = 1;
	}
	t->fl->tlp_end = t->snd_nxt;
	tcp_set_rtx(env, t, RTX_RTO, t->fl->rto_ns);
	return n;
}

static void note_idle(struct env *env, struct tcb *t, uint64_t unsent, uint64_t now_ns)
{
	struct outer *o = tcb_outer(t);
	bool fin_due = (t->flags & (TF_FIN | TF_FIN_SENT)) == TF_FIN;

	if (!t->fl && (unsent || fin_due) && t->rtx_mode == RTX_NONE)
		tcp_set_rtx(env, t, RTX_PERSIST, now_ns + tcp_rto_ns(env, t));
	/*
	 * The peer's window counts as well: what is not sent for its sake says nothing of the path.
	 */
	if (tcb_is_outer(t) && cwnd_allows(t, t->mss))
		o->app_limited_until = max_u64(o->delivered_bytes + tcp_inflight(t), 1);
}

/* Nothing else is there to be sent: a copy of what the app waits for, if one is due */
static uint32_t out_copy(struct env *env, struct tcb *t, uint8_t *buf, struct dmm_tx_meta *meta,
			 uint64_t now_ns)
{
	struct seg *s;
	uint32_t idx, n;

	if (t->snd_nxt > tcb_outer(t)->copy_planned && t->fl)
		copies_plan(env, t, now_ns);
	if (!copies_next(env, t, now_ns, &idx))
		return 0;
	s = flight_seg(t->fl, idx);
	n = emit_segment(env, t, buf, meta, s, true, now_ns);
	copies_sent(env, t, s, now_ns);
	return n;
}

/* Nothing else can be sent: a copy of what is on the way, if that may help */
static uint32_t out_spare(struct env *env, struct tcb *t, uint8_t *buf, struct dmm_tx_meta *meta,
			  uint64_t now_ns)
{
	struct seg *s;
	uint32_t idx, n;

	if (!cwnd_allows(t, t->mss) || pace_blocked(env, t, now_ns) ||
	    !spare_pick(env, t, now_ns, &idx))
		return 0;
	s = flight_seg(t->fl, idx);
	n = emit_segment(env, t, buf, meta, s, true, now_ns);
	pace_sent(t, s->len, now_ns);
	spare_sent(env, t, s, now_ns);
	return n;
}

static bool frto_waits(const struct tcb *t)
{
	return tcb_is_outer(t) && tcb_outer(t)->frto != FRTO_OFF && !(t->flags & TF_FORCE_RTX);
}

/* RFC 5682 section 2.1 step 2b: up to two new segments before anything else is sent again; without
 * any the timeout is taken for real */
static bool frto_new_data(const struct env *env, struct tcb *t, uint32_t cap)
{
	struct outer *o = tcb_outer(t);
	bool fin;

	if (!tcb_is_outer(t) || o->frto != FRTO_NEW_DATA || t->snd_nxt >= o->undo_end + 2 * t->mss)
		return false;
	if (new_length(env, t, cap, false, &fin) || fin)
		return true;
	if (t->snd_nxt == o->undo_end)
		o->frto = FRTO_OFF;
	return false;
}

static uint32_t out_data(struct env *env, struct tcb *t, uint8_t *buf, uint32_t cap,
			 struct dmm_tx_meta *meta, uint64_t now_ns)
{
	uint32_t len, n, probe;
	bool fin;

	if (t->flags & TF_TLP_DUE) {
		n = out_tlp(env, t, buf, cap, meta, now_ns);
		if (n)
			return n;
	}
	if (t->fl && t->fl->lost.head != FLIGHT_NIL && !frto_new_data(env, t, cap)) {
		uint32_t idx = t->fl->lost.head;

		if (frto_waits(t))
			return 0;
		if (flight_seg(t->fl, idx)->flags & SEG_PROBE) {
			if (!pmtu_probe_lost(env, t, flight_seg(t->fl, idx), now_ns))
				return 0;
			idx = t->fl->lost.head;
		}
		if (!(t->flags & TF_FORCE_RTX) && !cwnd_allows(t, flight_seg(t->fl, idx)->len))
			return 0;
		if (pace_blocked(env, t, now_ns))
			return 0;
		return out_again(env, t, buf, meta, idx, now_ns);
	}
	len = new_length(env, t, cap, t->flags & TF_PUSH_ANY, &fin);
	if (!len && !fin) {
		note_idle(env, t, end_unsent(&t->end), now_ns);
		if (tcb_is_outer(t) && tcb_outer(t)->copying && !end_unsent(&t->end)) {
			n = parity_output(env, t, buf, meta, now_ns);
			if (!n && !parity_goes(t))
				n = out_copy(env, t, buf, meta, now_ns);
			if (n || parity_goes(t) || copies_are_enough(t))
				return n;
		}
		return out_spare(env, t, buf, meta, now_ns);
	}
	if ((len && !cwnd_allows(t, len)) || pace_blocked(env, t, now_ns))
		return 0;
	probe = len == t->mss ? pmtu_probe_len(env, t, cap, now_ns) : 0;
	n = out_new(env, t, buf, probe ? 0 : cap, meta, probe ? probe : len, fin, now_ns);
	if (!n) /* no memory for the scoreboard: a timer looks again */
		note_idle(env, t, end_unsent(&t->end), now_ns);
	else if (probe)
		pmtu_probe_sent(t);
	return n;
}

bool tcp_is_greeting(const struct tcb *t)
{
	return t->state == TCP_ESTABLISHED && (t->flags & TF_ACK_NOW) && t->rcv_nxt == 1;
}

uint32_t tcp_output(struct env *env, struct end *e, uint8_t *buf, uint32_t cap,
		    struct dmm_tx_meta *meta, uint64_t now_ns)
{
	struct tcb *t = tcb_of(e);
	uint32_t n;

	if ((t->flags & TF_HOLD) ||
	    cap < tcp_mtu(env, t)) /* a buffer the contract does not allow gets nothing */
		return 0;
	if ((t->flags & TF_RST_DUE) && !(t->flags & TF_RST_FLUSH))
		return out_rst(env, t, buf, meta, now_ns);
	if (t->state == TCP_CLOSE)
		return 0;
	if (t->state == TCP_SYN_SENT || t->state == TCP_SYN_RECV) {
		if ((t->flags & TF_SYN_DUE) || copies_syn_due(env, t, now_ns))
			return out_syn(env, t, buf, meta, now_ns);
		/* RFC 5961 and RFC 9293 want some answers at once, and not a SYN-ACK again */
		if (t->state == TCP_SYN_RECV && t->snd_nxt && (t->flags & TF_ACK_NOW))
			return emit_ack(env, t, buf, meta, t->snd_nxt, now_ns);
		return 0;
	}
	if (unlikely((t->flags & TF_ACK_NOW) && hold_is_mute(t)))
		t->flags &= ~(uint32_t)TF_ACK_NOW;
	if ((t->flags & TF_ACK_NOW) && (t->ooo || t->dsack_end))
		return emit_ack(env, t, buf, meta, emit_bare_seq(t), now_ns);
	if (t->state != TCP_TIME_WAIT) {
		n = out_data(env, t, buf, cap, meta, now_ns);
		if (n)
			return n;
	}
	/* all that the window takes has gone, or has arrived */
	if ((t->flags & TF_RST_DUE) && !(tcb_is_outer(t) && stream_held(&t->snd)) &&
	    !tcp_is_greeting(t))
		return out_rst(env, t, buf, meta, now_ns);
	if (t->flags & TF_ACK_NOW)
		return emit_ack(env, t, buf, meta, emit_bare_seq(t), now_ns);
	if (t->flags & TF_PROBE_DUE) {
		/* one sequence number before what the peer expects: it must answer */
		t->flags &= ~(uint32_t)TF_PROBE_DUE;
		return emit_ack(env, t, buf, meta, t->snd_una - 1, now_ns);
	}
	return 0;
}

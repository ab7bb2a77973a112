/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_out.c: the next segment of a leg, made when it is pulled.
 *
 * Order: RST, SYN, an ACK that reports holes, retransmissions, new data, FIN, ACK, probes. Data
 * obeys the peer's window, on the outer leg also cwnd and pacing. On the inner leg a segment may be
 * as long as a GSO packet; its checksum is left to the kernel. On the outer leg a packet may hold
 * several segments of new data, if the device cuts it (tcp_run.c).
 *
 * Longer than 600 lines, because every branch of that order reads the same few fields and comes
 * back to emit().
 */
#include "tcp_int.h"

enum { PARTS_FROM_BYTES = 1024 }; /* a shorter payload is copied in less time than told of */

void tcp_ready(struct env *env, struct tcb *t)
{
	/* code that goes on after conn_kill() must leave no trace in the lists */
	if (list_empty(&t->ready) && tcb_ends(t)->f.phase != CONN_DEAD)
		list_add_tail(&env->ready[t->leg], &t->ready);
}

void tcp_unready(struct tcb *t)
{
	list_del(&t->ready);
}

uint64_t tcp_inflight(const struct tcb *t)
{
	uint64_t dups;

	if (!t->fl)
		return 0;
	dups = (uint64_t)t->fl->reno_dups * t->mss; /* each has left the network */
	return t->fl->inflight_bytes - min_u64(dups, t->fl->inflight_bytes);
}

uint32_t tcp_mtu(const struct env *env, const struct tcb *t)
{
	return tcb_is_outer(t) ? tcb_ends(t)->f.mtu : env->cfg.inner_mtu;
}

/* What this host may send in a segment and take in one, as far as it knows without the peer */
static uint32_t own_mss(const struct env *env, const struct tcb *t)
{
	uint32_t mss = tcp_mtu(env, t) - wire_ip_len(tcb_ends(t)->f.pair.family) - WIRE_TCP_LEN;
	uint16_t most = tcb_is_outer(t) ? tcb_ends(t)->mss_most : 0;

	return most ? min_u32(mss, most) : mss;
}

uint16_t tcp_adv_mss(const struct env *env, const struct tcb *t)
{
	uint16_t other = tcb_is_outer(t) ? 0 : tcb_peer(t)->peer_mss;
	uint32_t mss = own_mss(env, t);

	return (uint16_t)(other ? min_u32(mss, other) : mss);
}

uint32_t tcp_peer_takes(const struct env *env, const struct tcb *t)
{
	const struct ends *e = tcb_ends(t);
	const struct tcb *inner = &e->leg[DMM_LEG_INNER];
	uint32_t most = t->peer_mss ? t->peer_mss : 65535, app;

	if (!tcb_is_outer(t) || !e->app_segment)
		return most;
	app = e->app_segment + (inner->flags & TF_TS ? WIRE_OPT_TS_LEN : 0u);
	if (app < TCP_MIN_MSS)
		app = TCP_MIN_MSS;
	return app < tcp_adv_mss(env, inner) ? min_u32(most, app) : most;
}

void tcp_set_mss(struct env *env, struct tcb *t)
{
	uint32_t mss = min_u32(own_mss(env, t), tcp_peer_takes(env, t));

	t->mss = (uint16_t)(mss - (t->flags & TF_TS ? WIRE_OPT_TS_LEN : 0));
}

uint64_t tcp_unsent(const struct tcb *t)
{
	return t->snd.tail + 1 - max_u64(min_u64(t->snd_nxt, t->snd.tail + 1), 1);
}

uint32_t tcp_ts_now(const struct tcb *t, uint64_t now_ns)
{
	return (uint32_t)(now_ns / NS_PER_MS) + t->ts_offset;
}

static uint32_t wire_seq(const struct tcb *t, uint64_t seq)
{
	return t->iss + (uint32_t)seq;
}

static void ack_sent(struct tcb *t)
{
	t->flags &= ~(uint32_t)(TF_ACK_NOW | TF_OOO_ACK);
	t->delack_ns = NEVER;
	t->unacked_segs = 0;
}

static void fill_seg(struct env *env, struct tcb *t, struct wire_seg *seg, uint16_t flags,
		     uint64_t seq, uint32_t len, uint64_t now_ns)
{
	uint64_t ack = hold_ack(t);

	seg->flags = flags;
	seg->seq = wire_seq(t, seq);
	seg->ack = flags & TH_ACK ? t->irs + (uint32_t)ack : 0;
	seg->opt_len = 0;
	seg->wnd = seg->urg = 0;
	if (flags & TH_RST)
		return;
	seg->wnd = window_take(env, t, ack, flags & TH_SYN);
	if (flags & TH_SYN)
		return;
	seg->flags |= ecn_ack_flags(t);
	if (unlikely(t->snd_up > seq))
		urg_mark(t, seg, seq);
	if (t->flags & TF_TS)
		wire_opt_ts(seg, tcp_ts_now(t, now_ns), t->ts_recent);
	if (!tcb_is_outer(t))
		hold_told(t, ack);
	if (opt_feedback(env, t, seg, len, now_ns))
		ack_sent(t);
	t->last_ack_sent = ack;
}

/* The checksum is left to the device */
static void vnet_partial(struct dmm_vnet *v, uint8_t family)
{
	v->flags = DMM_VNET_NEEDS_CSUM;
	v->csum_start = (uint16_t)wire_ip_len(family);
	v->csum_offset = WIRE_CSUM_OFFSET;
}

/* Likewise the cutting into segments */
static void vnet_gso(struct dmm_vnet *v, uint8_t family, uint32_t headers_len,
		     uint32_t segment_bytes)
{
	v->gso_type = family == WIRE_AF_INET ? DMM_VNET_GSO_TCPV4 : DMM_VNET_GSO_TCPV6;
	v->hdr_len = (uint16_t)headers_len;
	v->gso_size = (uint16_t)segment_bytes;
}

/* Each end sees in the IP header what the other has asked for */
static void dir_of(const struct tcb *t, struct wire_dir *dir)
{
	const struct ends *e = tcb_ends(t);
	bool outer = tcb_is_outer(t);

	ctl_dir(&e->f.pair, t->leg, dir);
	dir->tos = outer ? e->tos : e->peer_tos;
	dir->ttl = outer ? e->ttl : e->peer_ttl;
	dir->flow_label = outer ? e->flow_label : e->peer_label;
}

/* One packet into buf: headers of seg, the IP header's ECN code point, payload [off, off + len) of
 * the stream. more: segments, beyond the first, that the device makes of it. Returns its length. */
static uint32_t emit(struct env *env, struct tcb *t, uint8_t *buf, struct dmm_tx_meta *meta,
		     const struct wire_seg *seg, uint32_t more, uint8_t ecn, uint64_t off,
		     uint32_t len)
{
	struct ends *e = tcb_ends(t);
	struct wire_dir dir;
	uint32_t headers;

	dir_of(t, &dir);
	dir.tos |= ecn;
	dir.id = env->ip_id++;
	if (tcb_is_outer(t))
		env->ip_id = (uint16_t)(env->ip_id + more);
	headers = wire_headers(buf, &dir, seg, len);
	memset(meta, 0, sizeof(*meta));
	meta->link = e->link;
	meta->family = e->f.pair.family;
	if (tcb_is_outer(t)) {
		e->outer.segments_sent += 1 + more;
		if (!env_offload(env, e->link)->csum_partial) {
			wire_csum_full(buf, &dir, headers, len,
				       stream_copy_csum(&t->snd, off, buf + headers, len));
			return headers + len;
		}
	}
	vnet_partial(&meta->vnet, e->f.pair.family);
	if (tcb_is_outer(t) ? more : len > t->mss)
		vnet_gso(&meta->vnet, e->f.pair.family, headers, t->mss);
	if (more && (seg->flags & TH_CWR))
		meta->vnet.gso_type |= DMM_VNET_GSO_ECN;
	wire_csum_partial(buf, &dir, headers, len);
	if (env->parts && len >= PARTS_FROM_BYTES) {
		stream_parts(&t->snd, off, len, env->parts);
		mem_pin(&env->mem);
	} else {
		stream_copy(&t->snd, off, buf + headers, len);
	}
	return headers + len;
}

/*
 * The sequence number of what carries none of the stream. One beyond the peer's window is dropped
 * with all that it says (RFC 9293 section 3.10.7.4), and a peer may take its window back under what
 * was lost on the way: Linux tells zero when it has no memory, and would never hear that we have
 * what it sends. Where SND.NXT is beyond by no more than a window's rounding it stays, else the
 * segment might seem old (Linux: tcp_acceptable_seq()).
 */
static uint64_t bare_seq(const struct tcb *t)
{
	uint64_t edge = t->snd_una + t->snd_wnd,
		 rounding = t->snd_wnd ? (1u << t->snd_wscale) - 1 : 0;

	return t->snd_una && t->snd_nxt > edge + rounding ? edge : t->snd_nxt;
}

static uint32_t out_rst(struct env *env, struct tcb *t, uint8_t *buf, struct dmm_tx_meta *meta,
			uint64_t now_ns)
{
	struct wire_seg seg;
	uint32_t n;

	fill_seg(env, t, &seg, t->flags & TF_RST_BARE ? TH_RST : TH_RST | TH_ACK, bare_seq(t), 0,
		 now_ns);
	n = emit(env, t, buf, meta, &seg, 0, 0, 0, 0);
	env->counters[DMM_CORE_RST_OUT]++;
	t->flags &= ~(uint32_t)TF_RST_DUE;
	tcp_release(env, t);
	env->up->closed(env, t);
	return n;
}

static uint32_t out_syn(struct env *env, struct tcb *t, uint8_t *buf, struct dmm_tx_meta *meta,
			uint64_t now_ns)
{
	bool answer = t->state == TCP_SYN_RECV;
	struct wire_seg seg;

	t->flags &= ~(uint32_t)(TF_SYN_DUE | TF_ACK_NOW);
	fill_seg(env, t, &seg, answer ? TH_SYN | TH_ACK : TH_SYN, 0, 0, now_ns);
	seg.flags |= ecn_syn_flags(env, t);
	wire_opt_mss(&seg, tcp_adv_mss(env, t));
	wire_opt_syn_tail(&seg, !answer || (t->flags & TF_SACK), !answer || (t->flags & TF_TS),
			  tcp_ts_now(t, now_ns), answer ? t->ts_recent : 0,
			  !answer || (t->flags & TF_WS), t->rcv_wscale);
	if (answer && (t->flags & TF_ACCECN))
		accecn_synack(t, &seg);
	if (!t->snd_nxt)
		t->syn_ns = now_ns;
	t->snd_nxt = 1;
	if (t->rtx_mode != RTX_SYN) /* a SYN that comes again puts nothing off */
		tcp_set_rtx(env, t, RTX_SYN, now_ns + tcp_rto_ns(env, t));
	return emit(env, t, buf, meta, &seg, 0, 0, 0, 0);
}

static uint32_t out_ack(struct env *env, struct tcb *t, uint8_t *buf, struct dmm_tx_meta *meta,
			uint64_t seq, uint64_t now_ns)
{
	struct wire_seg seg;

	fill_seg(env, t, &seg, TH_ACK, seq, 0, now_ns);
	return emit(env, t, buf, meta, &seg, 0, 0, 0, 0);
}

void tcp_ack_apart(struct env *env, struct tcb *t, uint64_t now_ns)
{
	struct ends *e = tcb_ends(t);
	struct wire_seg seg;
	struct wire_dir dir;

	if (t->flags & TF_HOLD)
		return;
	fill_seg(env, t, &seg, TH_ACK, bare_seq(t), 0, now_ns);
	dir_of(t, &dir);
	ctl_push_tcp(env, t->leg, e->link, &dir, &seg);
}

/*
 * One answer per connection and half second to what is not acceptable, as Linux; true: it was given
 */
static bool answered_lately(struct tcb *t, uint64_t now_ns)
{
	struct outer *o = &tcb_ends(t)->outer;
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
	struct outer *o = &tcb_ends(t)->outer;

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

/*
 * The segment's header. A copy neither asks for ECN nor tells of it: marks are counted by segment.
 */
static void segment_head(struct env *env, struct tcb *t, const struct seg *s, bool copy,
			 struct wire_seg *seg, uint8_t *ecn, uint64_t now_ns)
{
	uint32_t payload = s->len - !!(s->flags & SEG_FIN);
	uint16_t flags = TH_ACK | (s->flags & SEG_FIN ? TH_FIN : 0);

	*ecn = 0;
	if (!copy)
		flags |= ecn_data_flags(t, s, ecn);
	if (s->seq + payload == t->snd.tail + 1)
		flags |= TH_PSH;
	fill_seg(env, t, seg, flags, s->seq, payload, now_ns);
	if (!copy && !(s->flags & SEG_RETRANS))
		opt_accecn(env, t, seg, payload, 0, now_ns);
}

static uint32_t make_segment(struct env *env, struct tcb *t, uint8_t *buf, struct dmm_tx_meta *meta,
			     const struct seg *s, bool copy, uint64_t now_ns)
{
	struct wire_seg seg;
	uint8_t ecn;

	segment_head(env, t, s, copy, &seg, &ecn, now_ns);
	return emit(env, t, buf, meta, &seg, 0, ecn, s->seq - 1, s->len - !!(s->flags & SEG_FIN));
}

static uint32_t out_segment(struct env *env, struct tcb *t, uint8_t *buf, struct dmm_tx_meta *meta,
			    uint32_t idx, uint64_t now_ns)
{
	struct seg *s = flight_seg(t->fl, idx);
	uint32_t n = make_segment(env, t, buf, meta, s, false, now_ns);

	sent_data(env, t, s, now_ns);
	return n;
}

static uint32_t out_again(struct env *env, struct tcb *t, uint8_t *buf, struct dmm_tx_meta *meta,
			  uint32_t idx, uint64_t now_ns)
{
	flight_resend(t->fl, idx);
	env->counters[DMM_CORE_RETRANSMITS]++;
	if (tcb_is_outer(t)) {
		tcb_ends(t)->outer.retransmits++;
		undo_on_resend(t, flight_seg(t->fl, idx), now_ns);
	} else {
		env->counters[DMM_CORE_INNER_RETRANSMITS]++;
	}
	return out_segment(env, t, buf, meta, idx, now_ns);
}

static bool cwnd_allows(const struct tcb *t, uint32_t len)
{
	uint64_t inflight;

	if (!tcb_is_outer(t))
		return inner_allows(t, len);
	inflight = tcp_inflight(t);
	if (inflight && t->fl->prr.ssthresh_bytes)
		return len <= t->fl->prr.snd_cnt_bytes;
	return !inflight || inflight + len <= tcb_ends(t)->outer.cc.cwnd_bytes;
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
	uint64_t unsent = tcp_unsent(t), edge = t->snd_una + t->snd_wnd;
	uint64_t usable = edge > t->snd_nxt ? edge - t->snd_nxt : 0;
	uint64_t len = min_u64(min_u64(unsent, usable), max_payload(env, t, cap));

	*fin = false;
	if (t->flags & TF_FIN_SENT)
		return 0;
	if (len == unsent && (t->flags & TF_FIN) && usable > len)
		*fin = true;
	if (len == unsent)
		return (uint32_t)len;
	if (len < t->mss && !any && len < t->max_wnd / 2)
		return 0; /* sender's silly window avoidance */
	if (len > t->mss)
		len -= len % t->mss;
	return (uint32_t)len;
}

static void idle_restart(const struct env *env, struct tcb *t, uint64_t now_ns)
{
	struct outer *o = &tcb_ends(t)->outer;

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
	segment_head(env, t, s, false, &seg, &ecn, now_ns);
	sent_data(env, t, s, now_ns);
	if (cap && tcb_is_outer(t) && len == t->mss && !fin)
		len += add_run(env, t, &seg, cap, &more, now_ns);
	if (tcb_is_outer(t))
		tcp_window_opened(env, tcb_peer(t)); /* less waits now */
	return emit(env, t, buf, meta, &seg, more, ecn, off, len);
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
	struct outer *o = &tcb_ends(t)->outer;
	bool fin_due = (t->flags & (TF_FIN | TF_FIN_SENT)) == TF_FIN;

	if (!t->fl && (unsent || fin_due) && t->rtx_mode == RTX_NONE)
		tcp_set_rtx(env, t, RTX_PERSIST, now_ns + tcp_rto_ns(env, t));
	/*
	 * The peer's window counts as well: what is not sent for its sake says nothing of the path.
	 */
	if (tcb_is_outer(t) && cwnd_allows(t, t->mss))
		o->app_limited_until = max_u64(o->delivered_bytes + tcp_inflight(t), 1);
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
	n = make_segment(env, t, buf, meta, s, true, now_ns);
	pace_sent(t, s->len, now_ns);
	spare_sent(env, t, s, now_ns);
	return n;
}

static bool frto_waits(const struct tcb *t)
{
	return tcb_is_outer(t) && tcb_ends(t)->outer.frto != FRTO_OFF && !(t->flags & TF_FORCE_RTX);
}

/* RFC 5682 section 2.1 step 2b: up to two new segments before anything else is sent again; without
 * any the timeout is taken for real */
static bool frto_new_data(const struct env *env, struct tcb *t, uint32_t cap)
{
	struct outer *o = &tcb_ends(t)->outer;
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
		note_idle(env, t, tcp_unsent(t), now_ns);
		return out_spare(env, t, buf, meta, now_ns);
	}
	if ((len && !cwnd_allows(t, len)) || pace_blocked(env, t, now_ns))
		return 0;
	probe = len == t->mss ? pmtu_probe_len(env, t, cap, now_ns) : 0;
	n = out_new(env, t, buf, probe ? 0 : cap, meta, probe ? probe : len, fin, now_ns);
	if (!n) /* no memory for the scoreboard: a timer looks again */
		note_idle(env, t, tcp_unsent(t), now_ns);
	else if (probe)
		pmtu_probe_sent(t);
	return n;
}

bool tcp_is_greeting(const struct tcb *t)
{
	return t->state == TCP_ESTABLISHED && (t->flags & TF_ACK_NOW) && t->rcv_nxt == 1;
}

uint32_t tcp_output(struct env *env, struct tcb *t, uint8_t *buf, uint32_t cap,
		    struct dmm_tx_meta *meta, uint64_t now_ns)
{
	uint32_t n;

	if ((t->flags & TF_HOLD) ||
	    cap < tcp_mtu(env, t)) /* a buffer the contract does not allow gets nothing */
		return 0;
	if ((t->flags & TF_RST_DUE) && !(t->flags & TF_RST_FLUSH))
		return out_rst(env, t, buf, meta, now_ns);
	if (t->state == TCP_CLOSE)
		return 0;
	if (t->state == TCP_SYN_SENT || t->state == TCP_SYN_RECV) {
		if (t->flags & TF_SYN_DUE)
			return out_syn(env, t, buf, meta, now_ns);
		/* RFC 5961 and RFC 9293 want some answers at once, and not a SYN-ACK again */
		if (t->state == TCP_SYN_RECV && t->snd_nxt && (t->flags & TF_ACK_NOW))
			return out_ack(env, t, buf, meta, t->snd_nxt, now_ns);
		return 0;
	}
	if ((t->flags & TF_ACK_NOW) && (t->ooo || t->dsack_end))
		return out_ack(env, t, buf, meta, bare_seq(t), now_ns);
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
		return out_ack(env, t, buf, meta, bare_seq(t), now_ns);
	if (t->flags & TF_PROBE_DUE) {
		/* one sequence number before what the peer expects: it must answer */
		t->flags &= ~(uint32_t)TF_PROBE_DUE;
		return out_ack(env, t, buf, meta, t->snd_una - 1, now_ns);
	}
	return 0;
}

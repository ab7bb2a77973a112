/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_in.c: a segment arrives (RFC 9293 section 3.10.7): acceptability, RST, SYN, payload, FIN. The
 * handshake is in tcp_open.c.
 *
 * Acceptability comes before any change of state. Refuses: everything RFC 9293, RFC 7323 (PAWS) and
 * RFC 5961 say to refuse; each refusal is counted, and answered where they say so.
 */
#include "tcp_int.h"
#include "tcp_parity.h"

#include <errno.h>

/* The peer's sequence number in 64 bits, near what is expected; negative: from before the SYN */
static int64_t rcv_unwrap(const struct tcb *t, uint32_t seq)
{
	return (int64_t)t->rcv_nxt + (int32_t)(seq - t->irs - (uint32_t)t->rcv_nxt);
}

static void ack_now(struct env *env, struct tcb *t)
{
	t->flags |= TF_ACK_NOW;
	tcp_ready(env, t);
}

static void set_dsack(struct tcb *t, int64_t start, int64_t end, uint64_t now_ns)
{
	if (start < 1)
		start = 1;
	if (end <= start || !(t->flags & TF_SACK))
		return;
	if (t->flags & TF_ACCECN)
		accecn_duplicate(t, (uint64_t)start, now_ns);
	t->dsack_start = (uint64_t)start;
	t->dsack_end = (uint64_t)end;
}

/* RFC 7323 section 5.3, and 5.5: TS.Recent of a connection idle for 24 days proves nothing. Only
 * compared here: it is stored when all else about the segment is acceptable too (accepted()). */
static bool paws_ok(const struct tcb *t, const struct pkt *pkt, uint64_t now_ns)
{
	uint32_t now_s = (uint32_t)(now_ns / NS_PER_S);

	if ((int32_t)(pkt->tsval - t->ts_recent) >= 0 || now_s - t->ts_recent_s > 24u * 86400)
		return true;
	return pkt->flags & TH_RST;
}

static bool seq_ok(const struct tcb *t, const struct pkt *pkt, int64_t seq)
{
	int64_t end = seq + pkt->payload_len + !!(pkt->flags & TH_SYN) + !!(pkt->flags & TH_FIN);

	/* Linux's rule: what was received since our last ACK may come again, for its ACK field */
	if (end >= (int64_t)t->last_ack_sent && seq <= (int64_t)t->rcv_adv)
		return true;
	/* a RST that some stacks send from before their FIN */
	return (pkt->flags & TH_RST) && (t->flags & TF_FIN_RCVD) && seq == (int64_t)t->rcv_nxt - 1;
}

/*
 * Late or early data whose numbers can be the peer's all the same: near the window, with
 * an acceptable ACK
 */
static bool seems_ours(const struct env *env, const struct tcb *t, const struct pkt *pkt,
		       int64_t seq)
{
	int64_t reach = (int64_t)tcp_rcv_limit(env, t), off = seq - (int64_t)t->rcv_nxt;

	if ((pkt->flags & (TH_SYN | TH_ACK)) != TH_ACK ||
	    (!pkt->payload_len && !(pkt->flags & TH_FIN)))
		return false;
	return off >= -reach && off <= reach && tcp_ack_ok(t, pkt->ack);
}

/*
 * The peer probes, or sends what we have, again and again: our answers may go by a way that is no
 * more, and while the app has nothing to send the kernel says no other. A peer whose window we had
 * closed would wait for ever.
 */
static void said_again(struct env *env, struct tcb *t, uint64_t now_ns)
{
	struct outer *o = tcb_outer(t);
	uint32_t now_ms = (uint32_t)(now_ns / NS_PER_MS) | 1;

	if (!o->again_ms)
		o->again_ms = now_ms;
	else if (now_ms - o->again_ms >= TCP_AGAIN_MS)
		tcp_ask_way(env, tcb_inner_of(tcb_ends(t)));
}

/* A segment that can be the peer's, from before what came last */
static bool is_behind(const struct tcb *t, const struct pkt *pkt, int64_t seq)
{
	return (pkt->flags & (TH_SYN | TH_RST | TH_ACK)) == TH_ACK && seq >= 0 &&
	       seq < (int64_t)t->rcv_nxt && tcp_ack_ok(t, pkt->ack);
}

/*
 * A segment that is not acceptable changes nothing; the answer is an ACK (RFC 9293, RFC 7323, RFC
 * 5961, each section cited above). The peer's own data is told of at once, as a duplicate if we
 * have it (RFC 2883): with an old timestamp it may as well be a late segment that fills a hole. For
 * all else one answer in a while is enough.
 */
static void refused(struct env *env, struct tcb *t, const struct pkt *pkt, int64_t seq,
		    uint64_t now_ns)
{
	int64_t end = seq + pkt->payload_len;

	if (pkt->flags & TH_RST)
		return;
	if (tcb_is_outer(t) && is_behind(t, pkt, seq))
		said_again(env, t, now_ns);
	if (hold_probe(env, t, pkt, seq, now_ns))
		return;
	if (!seems_ours(env, t, pkt, seq)) {
		tcp_stale_ack(env, t, now_ns);
		return;
	}
	if (end <= (int64_t)hold_ack(t))
		set_dsack(t, seq, end, now_ns);
	ack_now(env, t);
}

/* Parity stands where data stood that we have acknowledged (tcp_parity_out.c) */
static bool is_old_parity(const struct env *env, const struct tcb *t, const struct pkt *pkt,
			  int64_t seq)
{
	return parity_is(t, pkt) && seq > 0 && seq + pkt->payload_len <= (int64_t)t->rcv_nxt &&
	       seq + (int64_t)tcp_rcv_limit(env, t) > (int64_t)t->rcv_nxt &&
	       !(pkt->flags & (TH_SYN | TH_FIN | TH_RST));
}

/* Timestamp and sequence number are acceptable (RFC 9293 section 3.10.7.4, first check) */
static bool window_ok(struct env *env, struct tcb *t, const struct pkt *pkt, int64_t seq,
		      uint64_t now_ns)
{
	if (t->flags & TF_TS) {
		/* section 3.2: dropped without a word */
		if (!pkt->has_ts && !(pkt->flags & TH_RST)) {
			env->counters[DMM_CORE_PAWS]++;
			return false;
		}
		if (pkt->has_ts && !paws_ok(t, pkt, now_ns)) {
			env->counters[DMM_CORE_PAWS]++;
			refused(env, t, pkt, seq, now_ns);
			return false;
		}
	}
	if (seq_ok(t, pkt, seq) || is_old_parity(env, t, pkt, seq))
		return true;
	env->counters[DMM_CORE_BAD_SEQ]++;
	refused(env, t, pkt, seq, now_ns);
	return false;
}

/* An app that refuses what has come too far (IP_MINTTL, RFC 5082) is to see how far the packets
 * came. Which of the peer's segments brought what goes to the app is not kept, so the least TTL
 * that was seen counts. */
static void heard_of_peer(struct tcb *t, const struct pkt *pkt)
{
	struct ends *e = tcb_ends(t);

	ip_turn_back(e, pkt);
	ip_learn_peer(e, pkt);
	if (unlikely(pkt->ttl < e->peer_ttl))
		e->peer_ttl = pkt->ttl;
}

/*
 * RFC 7323 section 4.3; on the inner leg, while bytes are held, only what brings more (tcp_hold.c)
 */
static bool tells_ts(const struct tcb *t, const struct pkt *pkt, int64_t seq)
{
	int64_t end = seq + pkt->payload_len + !!(pkt->flags & TH_FIN);

	if (tcb_is_outer(t) || t->last_ack_sent == t->rcv_nxt)
		return seq <= (int64_t)t->last_ack_sent;
	return seq <= (int64_t)t->rcv_nxt && end > (int64_t)t->rcv_nxt;
}

/* All of a segment's numbers are acceptable: what it says of the peer, whatever else it brings */
static void accepted(struct env *env, struct tcb *t, const struct pkt *pkt, int64_t seq,
		     uint64_t now_ns)
{
	bool old_ack = (int32_t)(pkt->ack - t->iss - (uint32_t)t->snd_una) < 0;
	struct end *other = tcb_peer(t);

	t->last_rx_ns = now_ns;
	if (unlikely(t->keep_probes)) {
		t->keep_probes = 0;
		tcp_keep_start(env, t, now_ns);
	}
	/* not by an old ACK, as Linux has it (tcp_ack) */
	if ((t->flags & TF_TS) && tells_ts(t, pkt, seq) && !old_ack) {
		t->ts_recent = pkt->tsval;
		t->ts_recent_s = (uint32_t)(now_ns / NS_PER_S);
	}
	if (tcb_is_outer(t))
		heard_of_peer(t, pkt);
	else
		ip_learn_app(tcb_ends(t), pkt);
	if (unlikely(other->owed)) {
		other->owed = false;
		end_ops_of(env, other)->heard(env, other);
	}
}

static void in_rst(struct env *env, struct tcb *t, int64_t seq, uint64_t now_ns)
{
	bool exact = seq == (int64_t)t->rcv_nxt;

	if (t->state == TCP_TIME_WAIT) /* RFC 1337 */
		return;
	if (t->flags & TF_FIN_RCVD)
		exact |= seq == (int64_t)t->rcv_nxt - 1;
	/* the inner peer is this host's kernel, no one can forge its segments */
	if (!exact && tcb_is_outer(t)) {
		tcp_challenge_ack(env, t, now_ns); /* RFC 5961 section 3.2 */
		return;
	}
	env->counters[DMM_CORE_RST_IN]++;
	if (t->state == TCP_SYN_RECV)
		env->up->reset(env, &t->end, ECONNREFUSED, now_ns);
	else
		env->up->reset(env, &t->end, tcb_is_outer(t) ? ECONNRESET : 0, now_ns);
}

static void in_fin(struct env *env, struct tcb *t, uint64_t now_ns)
{
	struct end *peer = tcb_peer(t);

	t->rcv_nxt++;
	t->rcv_adv = max_u64(t->rcv_adv, t->rcv_nxt);
	t->flags |= TF_FIN_RCVD;
	if (t->ooo) {
		stream_cut(&env->mem, &peer->snd, peer->snd.tail);
		tcp_ooo_release(env, t);
	}
	if (tcb_is_outer(t) || t->state != TCP_ESTABLISHED)
		ack_now(env, t);
	end_ops_of(env, peer)->finish(env, peer);
	tcp_event(env, t, TE_FIN, now_ns);
	if (t->state == TCP_CLOSE_WAIT && !tcb_is_outer(t))
		hold_tell(env, t);
}

/* RFC 5681 section 4.2; on the inner leg what is not held goes at once */
static void in_order_ack(struct env *env, struct tcb *t, bool hole, uint32_t segs, uint64_t now_ns)
{
	t->unacked_segs += segs;
	if (!tcb_is_outer(t)) {
		if (hole) /* which was reported: what SACK blocks told of cannot be held any more */
			hold_lift(env, t, t->rcv_nxt);
		else
			hold_tell(env, t);
		return;
	}
	if (hole || t->ooo || t->quickacks || t->unacked_segs >= 2) {
		t->quickacks -= (uint8_t)min_u32(t->quickacks, segs);
		ack_now(env, t);
	} else if (t->delack_ns == NEVER) {
		tcp_set_deadline(env, t, &t->delack_ns, now_ns + TCP_DELACK_MS * NS_PER_MS);
	}
}

static void in_order(struct env *env, struct tcb *t, const uint8_t *data, uint32_t len,
		     uint32_t segs, uint64_t now_ns)
{
	struct end *peer = tcb_peer(t);
	struct stream *st = &peer->snd;
	uint64_t reserve = tcp_mem_reserve(env, t);
	bool hole = t->ooo;
	uint32_t got = stream_put(&env->mem, st, st->tail, data, len, reserve);

	if (got < len && t->ooo) {
		/* what lies beyond the hole makes room for what fills it; a receiver may (RFC 2018
		 * section 8)
		 */
		tcp_ooo_release(env, t);
		stream_cut(&env->mem, st, st->tail + got);
		got = stream_put(&env->mem, st, st->tail, data, len, reserve);
	}
	if (got < len) {
		env->counters[DMM_CORE_OOO_DROPPED]++;
		ack_now(env, t); /* we live, and this is all we take */
	}
	if (!tcb_is_outer(t) && got)
		hold_arrived(t, t->rcv_nxt);
	t->rcv_nxt += got;
	if (!tcb_is_outer(t) && got < len) /* what was dropped comes again first */
		hold_lift(env, t, t->rcv_nxt);
	if (t->ooo) {
		t->rcv_nxt = ranges_take(t->ooo, t->rcv_nxt);
		if (!t->ooo->n)
			tcp_ooo_release(env, t);
	}
	st->tail = t->rcv_nxt - 1;
	if (!got)
		return;
	if (tcb_is_outer(t))
		tcb_outer(t)->again_ms = 0;
	in_order_ack(env, t, hole, segs, now_ns);
	end_ready(env, peer);
}

static void out_of_order(struct env *env, struct tcb *t, uint64_t start, const uint8_t *data,
			 uint32_t len, uint64_t now_ns)
{
	struct stream *st = &tcb_peer(t)->snd;
	uint64_t dup = UINT64_MAX;
	uint32_t got;

	if (t->flags & TF_OOO_ACK)
		tcp_ack_apart(env, t, now_ns);
	t->flags |= TF_OOO_ACK;
	ack_now(env, t);
	if (!t->ooo) {
		t->ooo = mem_alloc(&env->mem, sizeof(*t->ooo));
		if (!t->ooo)
			return;
		memset(t->ooo, 0, sizeof(*t->ooo));
	}
	got = stream_put(&env->mem, st, start - 1, data, len, env->mem.limit_bytes / 8 * 3);
	if (got)
		dup = ranges_add(&env->mem, t->ooo, start, start + got);
	if (got < len || dup == UINT64_MAX)
		env->counters[DMM_CORE_OOO_DROPPED]++;
	else if (dup == len)
		set_dsack(t, (int64_t)start, (int64_t)(start + len), now_ns);
	if (!t->ooo->n)
		tcp_ooo_release(env, t);
}

static void in_payload(struct env *env, struct tcb *t, const struct pkt *pkt, int64_t seq,
		       uint64_t now_ns)
{
	const uint8_t *data = pkt->payload;
	int64_t start = seq, end = seq + pkt->payload_len;
	int64_t limit = (int64_t)(t->rcv_fin ? min_u64(t->rcv_fin, t->rcv_adv) : t->rcv_adv);

	if ((pkt->flags & TH_FIN) && !t->rcv_fin && end >= (int64_t)t->rcv_nxt &&
	    end <= (int64_t)t->rcv_adv)
		t->rcv_fin = (uint64_t)end;
	if (end > limit)
		end = limit;
	if (start < (int64_t)t->rcv_nxt) {
		int64_t skip = (int64_t)t->rcv_nxt - start, told = (int64_t)hold_ack(t);

		if (pkt->payload_len || (pkt->flags & TH_FIN))
			ack_now(env, t);
		set_dsack(t, start, end < told ? end : told, now_ns);
		if (tcb_is_outer(t) && end <= (int64_t)t->rcv_nxt)
			said_again(env, t, now_ns);
		data += skip < pkt->payload_len ? skip : pkt->payload_len;
		start += skip;
	}
	if (start < end) {
		if (start == (int64_t)t->rcv_nxt)
			in_order(env, t, data, (uint32_t)(end - start), merged_count(pkt), now_ns);
		else
			out_of_order(env, t, (uint64_t)start, data, (uint32_t)(end - start),
				     now_ns);
		if (tcb_is_outer(t)) {
			window_measure(t, pkt, now_ns);
			if (!parity_data(env, t, pkt, data, (uint64_t)start, (uint64_t)end, now_ns))
				return;
		}
	} else if (pkt->payload_len) {
		ack_now(env, t); /* nothing of it fits */
	}
	if (t->rcv_fin && t->rcv_nxt == t->rcv_fin && !(t->flags & TF_FIN_RCVD))
		in_fin(env, t, now_ns);
}

void tcp_take_repaired(struct env *env, struct tcb *t, const struct pkt *pkt, uint64_t seq,
		       const uint8_t *data, uint32_t len, uint64_t now_ns)
{
	struct pkt piece = *pkt;

	piece.segment_bytes = 0;
	piece.payload = data;
	piece.payload_len = len;
	piece.flags = TH_ACK;
	in_payload(env, t, &piece, (int64_t)seq, now_ns);
}

/* The ACK field of a synchronized connection's segment, or the one that ends a passive handshake */
static bool ack_field_ok(struct env *env, struct tcb *t, const struct pkt *pkt, uint64_t now_ns)
{
	if (t->state != TCP_SYN_RECV) {
		if (likely(tcp_ack_ok(t, pkt->ack)))
			return true;
		env->counters[DMM_CORE_BAD_SEQ]++;
		tcp_challenge_ack(env, t, now_ns);
		return false;
	}
	if (!(t->flags & TF_HOLD) && open_acks_syn(t, pkt))
		return true;
	env->counters[DMM_CORE_BAD_SEQ]++;
	ctl_reset_unknown(env, t->leg, tcb_ends(t)->link, pkt);
	return false;
}

/* false: the segment goes no further */
static bool in_syn_recv_acked(struct env *env, struct tcb *t, const struct pkt *pkt, int64_t seq,
			      uint64_t now_ns)
{
	t->snd_wnd = (uint32_t)pkt->wnd << t->snd_wscale;
	t->max_wnd = t->snd_wnd;
	t->snd_wl1 = (uint64_t)seq;
	agree_opened(env, t, pkt);
	if (open_is_refused(env, t, pkt, now_ns))
		return false;
	copies_syn_acked(t, pkt, now_ns);
	open_done(env, t, now_ns);
	return t->state == TCP_ESTABLISHED;
}

static void in_fin_acked(struct env *env, struct tcb *t, uint64_t now_ns)
{
	if ((t->flags & TF_FIN_SENT) && t->snd_una == t->snd_nxt)
		tcp_event(env, t, TE_FIN_ACKED, now_ns);
}

static void in_time_wait(struct env *env, struct tcb *t, const struct pkt *pkt, int64_t seq,
			 uint64_t now_ns)
{
	bool fin = pkt->flags & TH_FIN;

	if (fin && seq + pkt->payload_len + 1 == (int64_t)t->rcv_nxt)
		tcp_event(env, t, TE_FIN, now_ns);
	if (pkt->payload_len || fin)
		ack_now(env, t);
}

/* After the handshake, of the outer leg: what comes again now is a copy */
static bool came_soon(const struct tcb *t, uint64_t now_ns)
{
	uint32_t since_ms = (uint32_t)(now_ns / NS_PER_MS) - tcb_outer(t)->opened_ms;

	return copies_too_soon(since_ms * NS_PER_MS);
}

/* RFC 5961 section 4.2. The SYN-ACK itself once more tells that our answer may be lost. */
static void in_syn_synchronized(struct env *env, struct tcb *t, const struct pkt *pkt,
				uint64_t now_ns)
{
	bool again = pkt->seq == t->irs && (!(pkt->flags & TH_ACK) || pkt->ack == t->iss + 1);

	if (again && (t->flags & TF_ACCECN) && !came_soon(t, now_ns))
		accecn_syn_again(t, pkt);
	if (again)
		agree_syn_again(env, t, pkt);
	if (again && open_is_refused(env, t, pkt, now_ns))
		return;
	tcp_challenge_ack(env, t, now_ns);
}

/*
 * RFC 9293 section 3.10.7.4. Before accepted() nothing is written but counters, and that an
 * answer is due.
 */
static void in_synchronized(struct env *env, struct tcb *t, const struct pkt *in, uint64_t now_ns)
{
	struct pkt pkt = *in;
	/* where its last segment begins */
	uint32_t last = (merged_count(in) - 1) * in->segment_bytes;
	int64_t seq;

	if (unlikely(t->flags & TF_HOLD) && open_syn_ack_again(env, t, in, now_ns))
		return;
	if (unlikely(t->state == TCP_SYN_RECV)) {
		if (open_syn_received(env, t, &pkt, now_ns))
			return;
		if ((pkt.flags & TH_SYN) && pkt.seq == t->irs && t->snd_nxt == 1) {
			pkt.flags &= (uint16_t)~TH_SYN; /* the SYN-ACK's SYN was taken already */
			pkt.seq++;
		}
	}
	seq = rcv_unwrap(t, pkt.seq);
	if (!window_ok(env, t, &pkt, seq, now_ns))
		return;
	if (pkt.flags & TH_RST) {
		in_rst(env, t, seq, now_ns);
		return;
	}
	if (pkt.flags & TH_SYN) {
		in_syn_synchronized(env, t, &pkt, now_ns);
		return;
	}
	if (!(pkt.flags & TH_ACK) || !ack_field_ok(env, t, &pkt, now_ns))
		return;
	accepted(env, t, &pkt, seq, now_ns);
	if (t->state == TCP_SYN_RECV && !in_syn_recv_acked(env, t, &pkt, seq, now_ns))
		return;
	if (t->state == TCP_TIME_WAIT) {
		in_time_wait(env, t, &pkt, seq, now_ns);
		return;
	}
	agree_heard(env, t);
	ecn_input(env, t, &pkt, now_ns);
	tcp_ack(env, t, &pkt, (uint64_t)seq + last, now_ns);
	in_fin_acked(env, t, now_ns);
	if (unlikely(t->flags & TF_RST_DUE)) { /* nobody is there to take what it brings */
		tcp_ready(env, t);
		return;
	}
	if (hold_again(env, t, seq, seq + pkt.payload_len + !!(pkt.flags & TH_FIN)))
		return;
	if (t->state == TCP_ESTABLISHED || t->state == TCP_FIN_WAIT1 || t->state == TCP_FIN_WAIT2) {
		if (unlikely(parity_is(t, &pkt))) {
			parity_input(env, t, &pkt, seq, now_ns);
			return;
		}
		urg_input(env, t, &pkt, seq);
		in_payload(env, t, &pkt, seq, now_ns);
	} else if (pkt.payload_len || (pkt.flags & TH_FIN)) {
		ack_now(env, t); /* the FIN again: our ACK of it was lost */
	}
}

static void input_one(struct env *env, struct tcb *t, const struct pkt *pkt, uint64_t now_ns)
{
	switch (t->state) {
	case TCP_CLOSE:
		env->counters[DMM_CORE_NO_CONN]++;
		if (tcb_ends(t)->f.phase != CONN_DEAD)
			ctl_reset_unknown(env, t->leg, tcb_ends(t)->link, pkt);
		break;
	case TCP_SYN_SENT:
		open_syn_sent(env, t, pkt, now_ns);
		break;
	default:
		in_synchronized(env, t, pkt, now_ns);
	}
}

/* A SYN while the old connection is not wholly over: it will come again */
static bool is_too_early(const struct tcb *t, const struct pkt *pkt)
{
	return (pkt->flags & (TH_SYN | TH_ACK)) == TH_SYN &&
	       (t->state == TCP_CLOSE || (t->state == TCP_TIME_WAIT && !tcb_is_outer(t)));
}

void tcp_input(struct env *env, struct end *e, const struct pkt *pkt, uint64_t now_ns)
{
	struct tcb *t = tcb_of(e);
	struct pkt piece;

	if (!tcb_is_outer(t) && unlikely(ip_follow(env, tcb_ends(t), pkt)))
		ends_path(env, tcb_ends(t), END_PATH_WAY);
	if (unlikely(is_too_early(t, pkt)))
		return;
	if (unlikely(pkt->cut_bytes > tcb_ends(t)->app_segment))
		pmtu_app_segment(env, tcb_ends(t), pkt->cut_bytes);
	if (likely(!pkt->segment_bytes) || merged_is_plain(t, pkt)) {
		input_one(env, t, pkt, now_ns);
		return;
	}
	for (uint32_t off = 0; off < pkt->payload_len && t->state != TCP_CLOSE;
	     off += pkt->segment_bytes) {
		merged_piece(t, pkt, off, &piece);
		input_one(env, t, &piece, now_ns);
	}
}

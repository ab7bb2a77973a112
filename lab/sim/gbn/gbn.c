/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gbn.c: a transport for the outer leg: a window of fixed length, and after a time-out everything
 * again from the first byte that is missing ("go back n").
 *
 * It speaks in TCP segments without options but the MSS, so that any TCP is a peer for it; but it
 * has no congestion control, and so is for paths of one's own. An app that is silent is asked after
 * by its own kernel alone (keep-alive), nothing is parked, and ICMP errors are not heard.
 *
 * Invariants: snd_una <= snd_nxt <= sent; the stream is held from snd_una on; the right edge of the
 * window that was told never moves back.
 */
#include "gbn.h"

#include "end_export.h"
#include "wire/ctl.h"

#include <errno.h>

enum {
	WINDOW_BYTES = 64 * 1024, /* without a scale the peer's is no larger */
	TIMEOUT_MS = 250,	  /* of the first try; doubled for each */
	MOST_DOUBLINGS = 6,
	HOLD_S = 150, /* a peer that is kept without an answer has gone by then */
	DEFAULT_MSS = 536,
};

struct gbn {
	union {
		struct end end;
		struct {
			END_MEMBERS
		};
	};
	uint64_t sent;	  /* what is below was sent once at least */
	uint64_t rcv_nxt; /* what the peer's next byte is */
	uint64_t rcv_adv; /* the window's edge that it was told */
	uint64_t deadline_ns;
	uint64_t segments;
	uint32_t iss; /* what 0 is on the wire, ours */
	uint32_t irs; /* and the peer's */
	uint32_t snd_wnd;
	uint32_t tries;
	bool held;	/* nothing may leave before go() */
	bool due;	/* an ACK, in each phase what answers the peer */
	bool probe;	/* a byte although the window is shut, or a question */
	bool fin;	/* the stream ends at snd.tail */
	bool fin_rcvd;	/* the peer's has ended */
	bool fin_first; /* before that ours had */
	bool last;	/* once all has arrived: a RST */
};

static struct gbn *gbn_of(const struct end *e)
{
	return container_of(e, struct gbn, end);
}

/* ---- time ---- */

static void set_deadline(struct env *env, struct gbn *g, uint64_t deadline_ns)
{
	g->deadline_ns = deadline_ns;
	if (deadline_ns == NEVER || end_ends(&g->end)->f.phase == CONN_DEAD)
		wheel_cancel(&env->wheel, &g->timer);
	else
		wheel_arm(&env->wheel, &g->timer, deadline_ns);
}

static void wait_for_answer(struct env *env, struct gbn *g, uint64_t now_ns)
{
	uint32_t doublings = min_u32(g->tries, MOST_DOUBLINGS);

	set_deadline(env, g, now_ns + (TIMEOUT_MS * NS_PER_MS << doublings));
}

/* ---- beginning and end ---- */

static void init(struct env *env, struct end *e)
{
	(void)env;
	list_init(&e->ready);
	wheel_node_init(&e->timer);
	gbn_of(e)->deadline_ns = NEVER;
}

static void learn(struct gbn *g, const struct pkt *syn)
{
	g->irs = syn->seq;
	g->rcv_nxt = g->rcv_adv = 1;
	g->snd_wnd = syn->wnd;
	g->peer_mss = syn->mss ? syn->mss : DEFAULT_MSS;
	end_ends(&g->end)->peer_ttl = syn->ttl;
}

static void open(struct env *env, struct end *e, const struct pkt *syn, uint64_t now_ns)
{
	struct gbn *g = gbn_of(e);

	g->iss = end_first_number(env, e, now_ns);
	g->last_rx_ns = now_ns;
	if (syn) {
		learn(g, syn);
		g->phase = END_ASKED;
		g->held = true;
		set_deadline(env, g, now_ns + HOLD_S * NS_PER_S);
		return;
	}
	g->phase = END_ASKING;
	g->due = true;
	end_ready(env, e);
}

static void go(struct env *env, struct end *e)
{
	struct gbn *g = gbn_of(e);

	if (g->phase == END_ASKED) {
		g->phase = END_ANSWERING;
		g->due = true;
	}
	g->held = false;
	end_ready(env, e);
}

static void release(struct env *env, struct gbn *g, enum end_phase phase)
{
	stream_release(&env->mem, &g->snd);
	set_deadline(env, g, NEVER);
	list_del(&g->ready);
	g->phase = (uint8_t)phase;
	g->held = g->owed = false;
}

static void over(struct env *env, struct gbn *g, uint64_t now_ns)
{
	release(env, g, g->fin_first ? END_WAITING : END_CLOSED);
	if (g->phase == END_WAITING)
		set_deadline(env, g, now_ns + env->profile[g->leg].time_wait_ns);
	if (g->due) /* the last ACK */
		end_ready(env, &g->end);
	env->up->closed(env, &g->end);
}

/* What an end that is closed or waits has said: only its ACK may be due */
static bool says_nothing(const struct gbn *g)
{
	return g->phase == END_CLOSED || g->phase == END_WAITING || g->phase == END_LEAVING;
}

/* A RST that does not wait for its turn, for the end is freed */
static void reset_apart(struct env *env, const struct gbn *g)
{
	const struct ends *ends = end_ends(&g->end);
	struct wire_seg rst = {.flags = TH_RST | TH_ACK,
			       .seq = g->iss + (uint32_t)g->sent,
			       .ack = g->irs + (uint32_t)g->rcv_nxt};
	struct wire_dir dir;

	if (says_nothing(g) || !g->sent)
		return;
	ctl_dir(&ends->f.pair, g->leg, &dir);
	ctl_push_tcp(env, g->leg, ends->link, &dir, &rst);
}

static void gbn_abort(struct env *env, struct end *e, enum end_abort how, uint64_t now_ns)
{
	struct gbn *g = gbn_of(e);

	(void)now_ns;
	switch (how) {
	case END_ABORT_FREE:
	case END_ABORT_PEER:
		release(env, g, END_CLOSED);
		break;
	case END_ABORT_APART:
		reset_apart(env, g);
		break;
	case END_ABORT_FLUSH:
	case END_ABORT_MUTE:
		if (g->phase == END_OPEN && stream_held(&g->snd)) {
			g->last = true;
			end_ready(env, e);
			break;
		}
		/* fall through */
	case END_ABORT_NOW:
		if (g->phase == END_CLOSED || g->phase == END_LEAVING)
			break;
		if (g->phase == END_WAITING || g->phase == END_ASKING) {
			release(env, g, END_CLOSED);
			break;
		}
		release(env, g, END_LEAVING);
		end_ready(env, e);
		break;
	}
}

/* ---- what leaves ---- */

static uint32_t mss_of(const struct gbn *g)
{
	const struct flow *f = &end_ends(&g->end)->f;

	return min_u32(g->peer_mss, f->mtu - wire_ip_len(f->pair.family) - WIRE_TCP_LEN);
}

/* How much more the peer may send: what the app's kernel has yet to take is held here */
static uint16_t window(const struct env *env, const struct gbn *g)
{
	uint64_t held = stream_held(&end_peer(&g->end)->snd);
	uint64_t most = min_u64(env->profile[g->leg].rcv_limit_bytes, 65535);
	uint64_t edge = g->rcv_nxt + most - min_u64(held, most);

	return (uint16_t)(max_u64(edge, g->rcv_adv) - g->rcv_nxt);
}

/* One packet: flags, and len bytes of the stream from seq on */
static uint32_t emit(struct env *env, struct gbn *g, uint8_t *buf, struct dmm_tx_meta *meta,
		     uint16_t flags, uint64_t seq, uint32_t len)
{
	const struct ends *ends = end_ends(&g->end);
	struct wire_seg seg = {.flags = flags, .seq = g->iss + (uint32_t)seq};
	struct wire_dir dir;
	uint32_t headers;

	if (g->rcv_nxt) {
		seg.flags |= TH_ACK;
		seg.ack = g->irs + (uint32_t)g->rcv_nxt;
	}
	seg.wnd = window(env, g);
	g->rcv_adv = max_u64(g->rcv_adv, g->rcv_nxt + seg.wnd);
	if (flags & TH_SYN)
		wire_opt_mss(&seg, (uint16_t)(ends->f.mtu - wire_ip_len(ends->f.pair.family) -
					      WIRE_TCP_LEN));
	ctl_dir(&ends->f.pair, g->leg, &dir);
	dir.tos = ends->tos;
	dir.ttl = ends->ttl;
	dir.may_cut = ends->may_cut;
	dir.flow_label = ends->flow_label;
	dir.id = env->ip_id++;
	headers = wire_headers(buf, &dir, &seg, len);
	wire_csum_full(buf, &dir, headers, len,
		       len ? stream_copy_csum(&g->snd, seq - 1, buf + headers, len) : 0);
	*meta = (struct dmm_tx_meta){.link = ends->link, .family = ends->f.pair.family};
	g->sent = max_u64(g->sent, seq + len + !!(flags & (TH_SYN | TH_FIN)));
	g->due = false;
	g->segments++;
	return headers + len;
}

/* The next piece of the stream, or its end */
static uint32_t out_data(struct env *env, struct gbn *g, uint8_t *buf, struct dmm_tx_meta *meta,
			 uint64_t now_ns)
{
	uint64_t edge = g->snd_una + min_u64(g->snd_wnd, WINDOW_BYTES) + g->probe;
	uint64_t usable = edge > g->snd_nxt ? edge - g->snd_nxt : 0, unsent = end_unsent(&g->end);
	uint32_t len = (uint32_t)min_u64(min_u64(unsent, usable), mss_of(g)), n;
	bool fin = g->fin && len == unsent && usable > len && !end_fin_sent(&g->end);

	if (g->deadline_ns == NEVER && (unsent || fin))
		wait_for_answer(env, g, now_ns);
	if (!len && !fin)
		return 0;
	n = emit(env, g, buf, meta, fin ? TH_FIN : 0, g->snd_nxt, len);
	g->snd_nxt += len + fin;
	g->probe = false;
	if (fin && !g->fin_rcvd)
		g->fin_first = true;
	return n;
}

static uint32_t output(struct env *env, struct end *e, uint8_t *buf, uint32_t cap,
		       struct dmm_tx_meta *meta, uint64_t now_ns)
{
	struct gbn *g = gbn_of(e);
	uint32_t n = 0;

	if (g->held || cap < end_ends(e)->f.mtu)
		return 0;
	switch (g->phase) {
	case END_ASKING:
	case END_ANSWERING:
		if (!g->due)
			return 0;
		g->snd_nxt = 1;
		wait_for_answer(env, g, now_ns);
		return emit(env, g, buf, meta, TH_SYN, 0, 0);
	case END_LEAVING:
		n = emit(env, g, buf, meta, TH_RST, g->sent, 0);
		release(env, g, END_CLOSED);
		env->counters[DMM_CORE_RST_OUT]++;
		env->up->closed(env, e);
		return n;
	case END_OPEN:
		n = out_data(env, g, buf, meta, now_ns);
		break;
	default:
		break;
	}
	if (!n && g->probe && g->phase == END_OPEN) { /* a number that the peer must answer */
		g->probe = false;
		return emit(env, g, buf, meta, 0, g->snd_una - 1, 0);
	}
	return n || !g->due ? n : emit(env, g, buf, meta, 0, g->snd_nxt, 0);
}

/* ---- what comes ---- */

static void ack_due(struct env *env, struct gbn *g)
{
	g->due = true;
	end_ready(env, &g->end);
}

static void opened(struct env *env, struct gbn *g)
{
	g->snd_una = 1;
	g->tries = 0;
	g->phase = END_OPEN;
	set_deadline(env, g, NEVER);
	if (!env->up->established(env, &g->end))
		g->held = true;
	end_ready(env, &g->end);
}

static void in_ack(struct env *env, struct gbn *g, const struct pkt *pkt, uint64_t now_ns)
{
	struct end *other = end_peer(&g->end);
	uint64_t ack =
		g->snd_una + (uint64_t)(int64_t)(int32_t)(pkt->ack - g->iss - (uint32_t)g->snd_una);

	if ((int64_t)ack < (int64_t)g->snd_una || ack > g->sent)
		return;
	g->snd_wnd = pkt->wnd;
	end_ready(env, &g->end);
	if (!g->snd_wnd)
		g->tries = 0; /* it lives, and has no room */
	if (ack == g->snd_una)
		return;
	stream_drop(&env->mem, &g->snd, min_u64(ack - 1, g->snd.tail));
	g->snd_una = ack;
	g->snd_nxt = max_u64(g->snd_nxt, ack);
	g->tries = 0;
	if (g->snd_una < g->sent)
		wait_for_answer(env, g, now_ns);
	else
		set_deadline(env, g, NEVER);
	end_ops_of(env, other)->passed(env, other);
	if (g->last && !stream_held(&g->snd)) {
		release(env, g, END_LEAVING);
		end_ready(env, &g->end);
	}
}

/* Only what comes in order is taken: the rest comes again */
static void in_payload(struct env *env, struct gbn *g, const struct pkt *pkt, int64_t before)
{
	struct end *other = end_peer(&g->end);
	struct stream *st = &other->snd;
	uint32_t len = 0;

	if (before < pkt->payload_len && !g->fin_rcvd) {
		len = (uint32_t)min_u64(pkt->payload_len - (uint64_t)before,
					g->rcv_adv - g->rcv_nxt);
		len = stream_put(&env->mem, st, st->tail, pkt->payload + before, len,
				 env->mem.limit_bytes / 8);
		st->tail += len;
		g->rcv_nxt += len;
		end_ready(env, other);
	}
	if (!(pkt->flags & TH_FIN) || g->fin_rcvd || before + len != pkt->payload_len)
		return;
	g->rcv_nxt++;
	g->fin_rcvd = true;
	end_ops_of(env, other)->finish(env, other);
}

static void in_open(struct env *env, struct gbn *g, const struct pkt *pkt, uint64_t now_ns)
{
	int64_t before = (int32_t)(g->irs + (uint32_t)g->rcv_nxt - pkt->seq);

	if (pkt->payload_len || (pkt->flags & (TH_FIN | TH_SYN)) || before)
		ack_due(env, g);
	if ((pkt->flags & TH_SYN) || !(pkt->flags & TH_ACK))
		return;
	in_ack(env, g, pkt, now_ns);
	if (g->phase == END_OPEN && !g->last && before >= 0)
		in_payload(env, g, pkt, before);
	if (g->phase == END_OPEN && g->fin_rcvd && g->fin && g->snd_una == g->snd.tail + 2)
		over(env, g, now_ns);
}

static void in_reset(struct env *env, struct gbn *g, const struct pkt *pkt, uint64_t now_ns)
{
	bool exact = g->phase == END_ASKING ? (pkt->flags & TH_ACK) && pkt->ack == g->iss + 1
					    : pkt->seq == g->irs + (uint32_t)g->rcv_nxt;

	if (!exact || says_nothing(g))
		return;
	env->counters[DMM_CORE_RST_IN]++;
	env->up->reset(env, &g->end, g->phase == END_OPEN ? ECONNRESET : ECONNREFUSED, now_ns);
}

static void in_handshake(struct env *env, struct gbn *g, const struct pkt *pkt, uint64_t now_ns)
{
	bool acked = (pkt->flags & TH_ACK) && pkt->ack == g->iss + 1 && g->sent;

	if (g->phase == END_ANSWERING && (pkt->flags & TH_SYN)) {
		ack_due(env, g); /* our answer was lost */
	} else if (g->phase == END_ANSWERING && acked) {
		opened(env, g);
		if (g->phase == END_OPEN)
			in_open(env, g, pkt, now_ns);
	} else if (g->phase == END_ASKING && acked && (pkt->flags & TH_SYN)) {
		learn(g, pkt);
		g->due = true;
		opened(env, g);
	} else if (g->phase == END_ASKING && (pkt->flags & TH_ACK)) {
		ctl_reset_unknown(env, g->leg, end_ends(&g->end)->link, pkt);
	}
}

static void input(struct env *env, struct end *e, const struct pkt *pkt, uint64_t now_ns)
{
	struct end *other = end_peer(e);
	struct gbn *g = gbn_of(e);

	g->last_rx_ns = now_ns;
	if (other->owed) {
		other->owed = false;
		end_ops_of(env, other)->heard(env, other);
	}
	if (pkt->flags & TH_RST)
		in_reset(env, g, pkt, now_ns);
	else if (g->phase == END_OPEN)
		in_open(env, g, pkt, now_ns);
	else if (g->phase == END_WAITING && (pkt->payload_len || (pkt->flags & TH_FIN)))
		ack_due(env, g);
	else if (g->phase == END_CLOSED && end_ends(e)->f.phase != CONN_DEAD)
		ctl_reset_unknown(env, g->leg, end_ends(e)->link, pkt);
	else
		in_handshake(env, g, pkt, now_ns);
}

static void timer(struct env *env, struct end *e, uint64_t now_ns)
{
	const struct end_profile *profile = &env->profile[e->leg];
	struct gbn *g = gbn_of(e);
	bool opens = g->phase != END_OPEN;

	if (g->phase == END_WAITING) {
		release(env, g, END_CLOSED);
		env->up->closed(env, e);
		return;
	}
	if (g->phase == END_ASKED ||
	    ++g->tries > (opens ? profile->syn_retries : profile->retries)) {
		bool unanswered = g->phase == END_ASKED || end_peer(e)->phase == END_ASKED;

		env->up->gave_up(env, e, unanswered, now_ns);
		return;
	}
	env->counters[DMM_CORE_RTO]++;
	g->deadline_ns = NEVER;
	g->due |= opens;
	g->probe = !opens && g->snd_una == g->sent; /* nothing is on the way: the window is shut */
	if (!opens && g->snd_nxt > g->snd_una) {
		env->counters[DMM_CORE_RETRANSMITS]++;
		g->snd_nxt = g->snd_una;
	}
	end_ready(env, e);
}

/* ---- what the other end says ---- */

static void finish(struct env *env, struct end *e)
{
	gbn_of(e)->fin = true;
	end_ready(env, e);
}

/* A window that was as good as shut is not any more */
static void room(struct env *env, struct end *e)
{
	struct gbn *g = gbn_of(e);

	if (g->phase == END_OPEN && !g->fin_rcvd && g->rcv_adv - g->rcv_nxt < 2 * mss_of(g) &&
	    window(env, g) >= 2 * mss_of(g))
		ack_due(env, g);
}

static uint64_t wants(const struct env *env, const struct end *e)
{
	(void)env;
	(void)e;
	return 2ull * WINDOW_BYTES;
}

static enum end_care ask(struct env *env, struct end *e)
{
	struct gbn *g = gbn_of(e);

	if (g->snd_una < g->sent && g->snd_wnd)
		return g->tries ? END_STANDS : END_GETS_ON;
	g->probe = true;
	end_ready(env, e);
	return END_ASKS;
}

static void info(const struct env *env, const struct end *e, struct dmm_conn_info *info)
{
	const struct gbn *g = gbn_of(e);

	(void)env;
	info->outer_state = end_listing_state(e);
	info->bytes_sent = g->snd.head;
	info->segments_sent = g->segments;
	info->cwnd_bytes = WINDOW_BYTES;
	info->inflight_bytes = g->snd_nxt - g->snd_una;
	info->mss = mss_of(g);
	info->sndbuf_bytes = (uint32_t)stream_held(&g->snd);
}

static uint32_t edge(const struct env *env, const struct end *e)
{
	(void)env;
	return gbn_of(e)->iss + (uint32_t)gbn_of(e)->sent;
}

const struct end_ops gbn = {
	.name = "gbn",
	.state_bytes = sizeof(struct gbn),
	.init = init,
	.open = open,
	.go = go,
	.input = input,
	.output = output,
	.timer = timer,
	.abort = gbn_abort,
	.info = info,
	.finish = finish,
	.room = room,
	.passed = room,
	.wants = wants,
	.ask = ask,
	.edge = edge,
};
END_EXPORT(gbn);

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_window.c: how much a leg lets its peer send: its receive window, tuned to what the other leg
 * gets rid of and to what memory there is.
 *
 * A direction may hold as much as the least of these:
 *
 * - rcvbuf_bytes or sndbuf_bytes;
 * - its share of the memory: four times what is left, after three eighths are put by (dynamic
 * thresholds: Choudhury and Hahne, IEEE/ACM Trans. Networking 6(2), 1998). One direction alone gets
 * half of all memory; n that want more than there is end up with equal parts, and what one leaves
 * the others find. What is put by serves those that come later or hold little, until three quarters
 * are in use: then the stack is full (load.c);
 * - from the peer: twice what came in a round trip and the app's kernel took in one (as Linux has
 * it, tcp_rcv_space_adjust()), 256 KiB to begin with. While that grows on a far path, sixteen or,
 * when it is much, six times: a peer whose rate doubles is not held up. Beyond that, as far as it
 * reaches, what came out of order (likewise): a hole, whose filler may be lost again, leaves the
 * peer all it had. Where the app does not read, its kernel takes nothing, and nothing grows;
 * - from the app: what waits to be sent is no more than the path takes in REFILL_NS. The rest is
 * better kept by the app's kernel: there it makes the app wait, and the app can see it.
 *
 * Invariants: the right edge that was advertised (rcv_adv) never moves back, so together more may
 * be promised than there is; who then finds no memory drops, and the peer sends again (tcp_in.c).
 */
#include "tcp_int.h"

enum {
	FIRST_BYTES = 256 * 1024, /* that the peer may send before anything was measured */
	STEADY_SPACES = 2,	  /* round trips' worth of bytes under way, or here and not taken */
	GROWING_SPACES = 6,	  /* likewise, while it grows */
	SMALL_SPACES = 16,	  /* and as long as that is less than SMALL_BYTES */
	SMALL_BYTES = 8 << 20,
	FAR_NS = 10000000,	      /* a round trip in which a sender can no more than double */
	GROWING_ROUNDS = 6,	      /* and for so many round trips after */
	EXTENT_SPACES = 14,	      /* round trips' worth of bytes that may lie behind a hole */
	LEAST_BYTES = 64 * 1024,      /* that a direction may hold however much the others do */
	LEAST_ROUND_NS = 1000000,     /* a near peer is also held up by this host's scheduler */
	UNKNOWN_ROUND_NS = 100000000, /* no round trip was measured yet */
	TICK_SHIFT = 16,	      /* a tick is 65,536 ns */
	REFILL_NS = 4000000,	      /* within which the app's kernel sends more once it may */
	FEW_CHUNKS = 2,
	MOST_RTT_MS = 10000,
};

#define NO_RTT UINT32_MAX

uint64_t tcp_rcv_limit(const struct env *env, const struct tcb *t)
{
	return tcp_profile(env, t)->rcv_limit_bytes;
}

uint64_t tcp_mem_reserve(const struct env *env, const struct tcb *t)
{
	uint64_t limit = env->mem.limit_bytes;
	bool few = tcb_peer(t)->snd.n_chunks < FEW_CHUNKS;

	if (tcb_is_outer(t))
		return few ? 0 : limit / 8;
	return few ? limit / 16 * 3 : limit / 4;
}

static uint64_t over(uint64_t bytes, uint64_t kept)
{
	return bytes > kept ? bytes - kept : 0;
}

/* What this direction may hold of the memory as things are */
static uint64_t mem_share(const struct env *env, const struct tcb *t)
{
	uint64_t limit = env->mem.limit_bytes, left = mem_chunks_left(&env->mem);
	uint64_t mine = (uint64_t)tcb_peer(t)->snd.n_chunks * MEM_CHUNK_BYTES;
	uint64_t share = (over(left, limit / 8 * 3) + mine) / 5 * 4;
	uint64_t least = min_u64(LEAST_BYTES, max_u64(limit / 64, FEW_CHUNKS * MEM_CHUNK_BYTES));

	return max_u64(share, min_u64(least, mine + over(left, tcp_mem_reserve(env, t)) / 2));
}

/* Bytes that are held in order and beyond, by chunks */
static uint32_t arrived_bytes(const struct stream *st)
{
	uint64_t in_order =
		(st->tail + MEM_CHUNK_BYTES - 1) / MEM_CHUNK_BYTES - st->head / MEM_CHUNK_BYTES;

	return (uint32_t)(st->tail + (st->n_chunks - in_order) * MEM_CHUNK_BYTES);
}

/*
 * Of what came in elapsed ticks, the part of one round trip. Negative: out-of-order data
 * was given up.
 */
static uint32_t per_round(int32_t bytes, uint32_t round, uint32_t elapsed)
{
	return bytes <= 0 ? 0 : (uint32_t)((uint64_t)bytes * round / elapsed);
}

/*
 * A round trip as what comes tells it (RFC 7323 section 4.1: what is echoed is the time of our
 * ACK), the shortest of the last one; before that, and without timestamps, as the handshake told
 * it.
 */
static uint64_t round_ns(const struct tcb *t)
{
	const struct outer *o = tcb_outer(t);
	uint64_t told_ns = t->srtt_ns ? t->srtt_ns : UNKNOWN_ROUND_NS;

	return max_u64(o->rcv_rtt_ms != NO_RTT ? o->rcv_rtt_ms * NS_PER_MS : told_ns,
		       LEAST_ROUND_NS);
}

/* What came in a round trip, and what the app's kernel took in it */
static void space_measured(struct tcb *t, uint32_t came, uint32_t taken)
{
	struct outer *o = tcb_outer(t);

	/* what waited behind a hole is taken all at once, and came in several round trips */
	o->rcv_came = max_u32(came, o->rcv_came - o->rcv_came / 8);
	taken = min_u32(taken, o->rcv_came);
	if (taken > o->rcv_space + o->rcv_space / 8 && round_ns(t) >= FAR_NS)
		o->rcv_grows = GROWING_ROUNDS;
	else if (!t->ooo && taken < o->rcv_space / 2)
		o->rcv_grows = 0;
	else if (o->rcv_grows)
		o->rcv_grows--;
	o->rcv_space = max_u32(o->rcv_space, taken);
}

/* Payload behind that of a packet's first segment */
static uint32_t later_bytes(const struct pkt *pkt)
{
	return pkt->segment_bytes ? pkt->payload_len - pkt->segment_bytes : 0;
}

void window_measure(struct tcb *t, const struct pkt *pkt, uint64_t now_ns)
{
	const struct stream *st = &tcb_peer(t)->snd;
	struct outer *o = tcb_outer(t);
	uint32_t tick = (uint32_t)(now_ns >> TICK_SHIFT), elapsed = tick - o->rcv_round_tick;
	uint32_t round = (uint32_t)(round_ns(t) >> TICK_SHIFT), rtt_ms = NO_RTT, arrived, came,
		 taken;

	if (t->flags & TF_TS && pkt->has_ts)
		rtt_ms = tcp_ts_now(t, now_ns) - pkt->tsecr;
	o->rcv_rtt_new_ms = min_u32(o->rcv_rtt_new_ms, rtt_ms);
	if (o->rcv_measured && elapsed < round)
		return;
	arrived = arrived_bytes(st) - later_bytes(pkt);
	if (o->rcv_measured) {
		came = per_round((int32_t)(arrived - o->rcv_round_came), round, elapsed);
		taken = per_round((int32_t)((uint32_t)st->head - o->rcv_round_taken), round,
				  elapsed);
		space_measured(t, came, taken);
	}
	if (!o->rcv_measured)
		o->rcv_rtt_ms = NO_RTT;
	else if (o->rcv_rtt_new_ms <= MOST_RTT_MS)
		o->rcv_rtt_ms = o->rcv_rtt_new_ms;
	/* as the packet's other segments would tell it, came they alone */
	o->rcv_rtt_new_ms = rtt_ms;
	o->rcv_measured = 1;
	o->rcv_round_came = arrived;
	o->rcv_round_taken = (uint32_t)st->head;
	o->rcv_round_tick = tick;
}

/* How far what came out of order reaches beyond what is in order */
static uint64_t ooo_extent(const struct tcb *t)
{
	return t->ooo && t->ooo->n ? t->ooo->v[t->ooo->first + t->ooo->n - 1].end - t->rcv_nxt : 0;
}

static uint64_t room_for_peer(const struct tcb *t)
{
	const struct outer *o = tcb_outer(t);
	uint64_t space = o->rcv_space, ahead = space * STEADY_SPACES;
	uint64_t behind = max_u64(FIRST_BYTES, space * EXTENT_SPACES);

	if (o->rcv_grows)
		ahead = max_u64(min_u64(space * SMALL_SPACES, SMALL_BYTES), space * GROWING_SPACES);
	return max_u64(FIRST_BYTES, ahead) + min_u64(ooo_extent(t), behind);
}

/*
 * What may wait for the path: as much of a window as goes before the app's kernel can
 * have sent more
 */
uint64_t tcp_wants(const struct env *env, const struct end *e)
{
	const struct tcb *t = tcb_of(e);
	uint64_t soon = tcb_outer(t)->cc.cwnd_bytes;

	(void)env;
	if (t->srtt_ns > REFILL_NS)
		soon = soon * REFILL_NS / t->srtt_ns;
	return max_u64(TCP_NOTSENT_MIN_BYTES, soon);
}

static uint64_t rcv_room(const struct env *env, const struct tcb *t)
{
	const struct end *peer = tcb_peer(t);
	uint64_t limit = tcp_rcv_limit(env, t);
	uint64_t most = min_u64(limit, mem_share(env, t)), room;

	if (tcb_is_outer(t))
		most = min_u64(most, room_for_peer(t));
	room = over(most, stream_held(&peer->snd));
	if (!tcb_is_outer(t))
		room = min_u64(room,
			       over(end_ops_of(env, peer)->wants(env, peer), end_unsent(peer)));
	/* silly window avoidance, RFC 9293 section 3.8.6.2.2 */
	if (room < min_u64(limit / 2, t->mss))
		room = 0;
	return room;
}

void tcp_room(struct env *env, struct end *e)
{
	struct tcb *t = tcb_of(e);
	uint64_t most = 65535ull << t->rcv_wscale; /* what the field can say */
	uint64_t cur, room, least;

	if ((t->flags & TF_FIN_RCVD) ||
	    (t->state != TCP_ESTABLISHED && t->state != TCP_FIN_WAIT1 && t->state != TCP_FIN_WAIT2))
		return;
	cur = t->rcv_adv - t->rcv_nxt;
	room = min_u64(rcv_room(env, t), most);
	least = min_u64(tcp_rcv_limit(env, t) / 4, min_u64(max_u64(2 * t->mss, 65536), most / 2));
	if (room >= 2 * cur && room >= cur + least) {
		t->flags |= TF_ACK_NOW;
		tcp_ready(env, t);
	}
}

void tcp_passed(struct env *env, struct end *e)
{
	tcp_room(env, e);
	if (!end_is_outer(e))
		hold_tell(env, tcb_of(e));
}

uint16_t window_take(struct env *env, struct tcb *t, uint64_t ack, bool syn)
{
	uint64_t edge = max_u64(t->rcv_adv, t->rcv_nxt + rcv_room(env, t));
	uint8_t ws = syn ? 0 : t->rcv_wscale;
	/* rounded down, though the peer may see it retracted by that (RFC 7323 section 2.4):
	 * rounded up it would let a peer that sends in small pieces go on for ever */
	uint64_t wnd = min_u64((edge - ack) >> ws, 65535);

	t->rcv_adv = max_u64(t->rcv_adv, ack + (wnd << ws));
	return (uint16_t)wnd;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_window.c: how much a leg lets its peer send: its receive window, tuned to what the path takes and to
 * what memory there is.
 *
 * A direction may hold as much as the least of these:
 *
 * - rcvbuf_max_bytes or sndbuf_max_bytes;
 * - its share of the memory: four times what is left, after three eighths are put by (dynamic thresholds:
 *   Choudhury and Hahne, IEEE/ACM Trans. Networking 6(2), 1998). One direction alone gets half of all memory;
 * n that want more than there is end up with equal parts, and what one leaves the others find. What is put by
 *   serves those that come later or hold little, until three quarters are in use: then the stack is full
 *   (load.c);
 * - from the peer: sixteen times what has come in the best round trip so far, 256 KiB to begin with. So a
 * peer whose rate doubles, or that waits for a segment lost twice or thrice, is not held up, and one that is
 * slow is not promised what others need;
 * - from the app: what the path will soon take. The rest is better kept by the app's kernel, which makes the
 *   app wait.
 *
 * Invariants: the right edge that was advertised (rcv_adv) never moves back, so together more may be promised
 * than there is; who then finds no memory drops, and the peer sends again (tcp_in.c).
 */
#include "core.h"

enum {
	FIRST_BYTES = 256 * 1024, /* that the peer may send before it has shown its rate */
	ROUNDS_HELD = 16,	  /* round trips' worth of bytes */
	LEAST_BYTES = 64 * 1024,  /* that a direction may hold however much the others do */
	LEAST_ROUND_MS = 4,	  /* a near peer is also held up by this host's scheduler */
	UNKNOWN_ROUND_MS = 100,	  /* no round trip was measured yet */
	FEW_CHUNKS = 2,
};

uint64_t tcp_rcv_limit(const struct dmm_core *core, const struct tcb *t)
{
	return tcb_is_outer(t) ? core->cfg.rcvbuf_max_bytes : core->cfg.sndbuf_max_bytes;
}

uint64_t tcp_mem_reserve(const struct dmm_core *core, const struct tcb *t)
{
	uint64_t limit = core->mem.limit_bytes;
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
static uint64_t mem_share(const struct dmm_core *core, const struct tcb *t)
{
	uint64_t limit = core->mem.limit_bytes, left = mem_chunks_left(&core->mem);
	uint64_t mine = (uint64_t)tcb_peer(t)->snd.n_chunks * MEM_CHUNK_BYTES;
	uint64_t share = (over(left, limit / 8 * 3) + mine) / 5 * 4;
	uint64_t least = min_u64(LEAST_BYTES, max_u64(limit / 64, FEW_CHUNKS * MEM_CHUNK_BYTES));

	return max_u64(share, min_u64(least, mine + over(left, tcp_mem_reserve(core, t)) / 2));
}

void window_measure(struct tcb *t, uint32_t later_bytes, uint64_t now_ns)
{
	const struct stream *st = &tcb_peer(t)->snd;
	struct outer *o = &tcb_conn(t)->outer;
	/* chunks; those beyond hold what came out of order */
	uint64_t in_order = (st->tail + MEM_CHUNK_BYTES - 1) / MEM_CHUNK_BYTES - st->head / MEM_CHUNK_BYTES;
	uint32_t now_ms = (uint32_t)(now_ns / NS_PER_MS), arrived, want = 1;
	uint64_t round_ms;
	int32_t grown;

	if (t->rcv_want && (int32_t)(now_ms - o->rcv_round_ms) < 0)
		return;
	arrived = (uint32_t)(st->tail + (st->n_chunks - in_order) * MEM_CHUNK_BYTES);
	arrived -= later_bytes;
	grown = (int32_t)(arrived - o->rcv_round_mark); /* negative: what was out of order was given up */
	if (t->rcv_want && grown > 0)
		want = (uint32_t)min_u64((uint64_t)grown * ROUNDS_HELD, TCP_MAX_WINDOW);
	t->rcv_want = want > t->rcv_want ? want : t->rcv_want;
	o->rcv_round_mark = arrived;
	round_ms = t->srtt_ns ? t->srtt_ns / NS_PER_MS : UNKNOWN_ROUND_MS;
	o->rcv_round_ms = now_ms + (uint32_t)max_u64(round_ms, LEAST_ROUND_MS);
}

static uint64_t rcv_room(const struct dmm_core *core, const struct tcb *t)
{
	const struct tcb *peer = tcb_peer(t);
	const struct outer *o = &tcb_conn(t)->outer;
	uint64_t limit = tcp_rcv_limit(core, t);
	uint64_t most = min_u64(limit, mem_share(core, t)), room;

	if (tcb_is_outer(t))
		most = min_u64(most, max_u64(FIRST_BYTES, t->rcv_want));
	room = over(most, stream_held(&peer->snd));
	if (!tcb_is_outer(t))
		room = min_u64(room,
			       over(max_u64(TCP_NOTSENT_MIN_BYTES, 2 * o->cc.cwnd_bytes), tcp_unsent(peer)));
	if (room < min_u64(limit / 2, t->mss)) /* silly window avoidance, RFC 9293 section 3.8.6.2.2 */
		room = 0;
	return room;
}

void tcp_window_opened(struct dmm_core *core, struct tcb *t)
{
	uint64_t most = 65535ull << t->rcv_wscale; /* what the field can say */
	uint64_t cur, room, least;

	if ((t->flags & TF_FIN_RCVD) ||
	    (t->state != TCP_ESTABLISHED && t->state != TCP_FIN_WAIT1 && t->state != TCP_FIN_WAIT2))
		return;
	cur = t->rcv_adv - t->rcv_nxt;
	room = min_u64(rcv_room(core, t), most);
	least = min_u64(tcp_rcv_limit(core, t) / 4, min_u64(max_u64(2 * t->mss, 65536), most / 2));
	if (room >= 2 * cur && room >= cur + least) {
		t->flags |= TF_ACK_NOW;
		tcp_ready(core, t);
	}
}

uint16_t window_take(struct dmm_core *core, struct tcb *t, bool syn)
{
	uint64_t edge = max_u64(t->rcv_adv, t->rcv_nxt + rcv_room(core, t));
	uint8_t ws = syn ? 0 : t->rcv_wscale;
	uint64_t wnd = edge - t->rcv_nxt;

	/* what was promised must not shrink by rounding */
	wnd = edge == t->rcv_adv ? (wnd + (1u << ws) - 1) >> ws : wnd >> ws;
	wnd = min_u64(wnd, 65535);
	t->rcv_adv = max_u64(t->rcv_adv, t->rcv_nxt + (wnd << ws));
	return (uint16_t)wnd;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * check.h: the invariants of tcp.c, flight.h and the relay, checked on a live core;
 * a breach aborts.
 */
#ifndef SIM_CHECK_H
#define SIM_CHECK_H

#include "holds.h"
#include "legs.h"

static inline uint64_t check_list(const struct flight *fl, const struct seg_list *l, uint32_t flags,
				  uint32_t *n)
{
	uint32_t prev = FLIGHT_NIL;
	uint64_t sum = 0, time_ns = 0;

	for (uint32_t i = l->head; i != FLIGHT_NIL; i = flight_seg(fl, i)->next) {
		const struct seg *s = flight_seg(fl, i);

		CHECK(flight_nth(fl, i) < fl->count);
		CHECK(s->prev == prev);
		CHECK((s->flags & (SEG_LOST | SEG_SACKED)) == flags);
		if (!flags) {
			CHECK(s->xmit_ns >= time_ns);
			time_ns = s->xmit_ns;
		}
		sum += s->len;
		prev = i;
		++*n;
	}
	CHECK(l->tail == prev);
	return sum;
}

static inline void check_flight(const struct tcb *t)
{
	const struct flight *fl = t->fl;
	uint64_t seq = t->snd_una, copied = 0;
	uint32_t n = 0, sacked = 0;

	if (!fl)
		return;
	CHECK(fl->count > 0);
	for (uint32_t i = 0; i < fl->count; i++) {
		const struct seg *s = flight_seg(fl, flight_idx(fl, i));

		CHECK(s->seq == seq && s->len);
		seq = seg_end(s);
		sacked += !!(s->flags & SEG_SACKED);
		copied += (uint64_t)s->len * ((s->flags & SEG_COPIES) / SEG_COPIES_ONE);
	}
	CHECK(seq == t->snd_nxt);
	CHECK(sacked == fl->n_sacked);
	CHECK(check_list(fl, &fl->tx, 0, &n) == fl->inflight_bytes);
	CHECK(copied == fl->copy_bytes);
	CHECK(check_list(fl, &fl->lost, SEG_LOST, &n) == fl->lost_bytes);
	CHECK(n + sacked == fl->count);
}

static inline void check_ranges(const struct tcb *t)
{
	uint64_t at = t->rcv_nxt;

	if (!t->ooo)
		return;
	CHECK(t->ooo->n > 0);
	for (uint32_t i = 0; i < t->ooo->n; i++) {
		const struct range *r = &t->ooo->v[t->ooo->first + i];

		CHECK(r->start > at && r->end > r->start);
		at = r->end;
	}
	CHECK(at <= t->rcv_adv);
}

static inline void check_core(const struct dmm_core *core)
{
	uint64_t chunks = 0;
	uint32_t half_open = 0;
	uint32_t parked = 0;

	for (uint32_t i = 0; i < core->n_live; i++) {
		const struct conn *c = core->slots[core->live[i]];

		CHECK(c->ends.f.live_pos == i);
		parked += c->ends.f.phase == CONN_PARKED;
		if (c->ends.f.phase == CONN_PARKED)
			continue;
		half_open += c->ends.f.half_open;
		if (c->ends.f.passive && leg_of(c, DMM_LEG_OUTER)->state == TCP_SYN_RECV)
			CHECK(c->ends.f.half_open);
		for (uint32_t l = 0; l < 2; l++) {
			const struct tcb *t = leg_of(c, l), *peer = leg_of(c, !l);

			CHECK(t->snd_una <= t->snd_nxt);
			CHECK(t->snd.head <= t->snd.tail);
			chunks += t->snd.n_chunks;
			if (t->state == TCP_CLOSE || t->state == TCP_TIME_WAIT)
				continue;
			CHECK(t->rcv_nxt <= t->rcv_adv);
			CHECK(t->snd_nxt == t->snd_una || t->fl || t->snd_una == 0);
			CHECK(!t->snd_una || t->snd.head == min_u64(t->snd_una - 1, t->snd.tail));
			if (peer->state != TCP_CLOSE && peer->state != TCP_TIME_WAIT &&
			    peer->rcv_nxt)
				CHECK(t->snd.tail + 1 + !!(peer->flags & TF_FIN_RCVD) ==
				      peer->rcv_nxt);
			check_flight(t);
			check_ranges(t);
		}
	}
	CHECK(half_open == core->n_half_open && half_open <= core->env.cfg.half_open_max);
	CHECK(parked == core->n_parked);
	CHECK(chunks * MEM_CHUNK_BYTES == core->env.mem.chunk_bytes);
	CHECK(core->env.mem.chunk_bytes <= core->env.mem.limit_bytes);
}

/* What still has to go from this leg and is not on the way */
static inline bool check_owes(const struct tcb *t)
{
	return t->snd.tail + 1 > max_u64(t->snd_nxt, 1) ||
	       (t->flags & (TF_FIN | TF_FIN_SENT)) == TF_FIN;
}

static inline void check_leg_rests(const struct conn *c, const struct tcb *t)
{
	uint64_t due_ns = min_u64(min_u64(t->rtx_ns, t->delack_ns), t->keep_ns);
	bool waits = t->flags & TF_HOLD;

	if (tcb_is_outer(t))
		due_ns = min_u64(due_ns,
				 min_u64(outer_of(c)->pace_wake_ns, outer_of(c)->copy_wake_ns));
	if (tcb_is_outer(t))
		due_ns = min_u64(due_ns, outer_of(c)->parity_wake_ns);
	CHECK(list_empty(&t->ready));
	if (t->state == TCP_CLOSE) {
		CHECK(due_ns == NEVER && !t->timer.tick && !t->fl);
		return;
	}
	/* held behind the other leg's handshake, which has a timer; else it has its own */
	CHECK(due_ns != NEVER || (waits && leg_of(c, !t->leg)->rtx_ns != NEVER));
	CHECK(due_ns == NEVER || (t->timer.tick && t->timer.tick <= wheel_tick_of(due_ns)));
	if (t->fl)
		CHECK(t->rtx_mode == RTX_RTO || t->rtx_mode == RTX_TLP || t->rtx_mode == RTX_REO);
	else if (t->state == TCP_SYN_SENT || t->state == TCP_SYN_RECV)
		CHECK(t->rtx_mode == RTX_SYN || t->rtx_mode == RTX_HOLD || waits);
	else if (t->state == TCP_TIME_WAIT)
		CHECK(t->rtx_mode == RTX_TIME_WAIT);
	else if (check_owes(t) && !waits)
		CHECK(t->rtx_mode == RTX_PERSIST ||
		      (tcb_is_outer(t) && outer_of(c)->pace_wake_ns != NEVER));
	CHECK(t->rtx_mode == RTX_NONE || t->rtx_ns != NEVER);
}

/*
 * When nothing is left to be sent now (dmm_core_poll() said so, and both legs were drained): no
 * open connection may wait for ever. Each leg has a deadline, what is in flight or owed one of its
 * own.
 */
static inline void check_core_rests(const struct dmm_core *core)
{
	CHECK(!core->n_parked || core->park_next_ns != NEVER);
	for (uint32_t i = 0; i < core->n_live; i++) {
		const struct conn *c = core->slots[core->live[i]];

		if (c->ends.f.phase == CONN_PARKED)
			continue;
		CHECK(leg_of(c, 0)->state != TCP_CLOSE || leg_of(c, 1)->state != TCP_CLOSE);
		check_leg_rests(c, leg_of(c, 0));
		check_leg_rests(c, leg_of(c, 1));
	}
}

#endif /* SIM_CHECK_H */

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_spare.c: copies of what is on the way, sent in time that nothing else can use.
 *
 * Theory of operation. With random loss p a retransmission is lost like any other segment, and
 * everything behind the hole waits a round trip more. While new data can go that costs nothing. It
 * does when the peer's window is full of what waits behind the hole, or when the app has no more:
 * then the sender idles, and the number of round trips, not the rate, is the limit. A Linux
 * receiver also opens its window by what its program reads in a round trip, so the start of a flow
 * is such a time. In it, what is on the way is sent again, oldest first: holes that were sent again
 * once, and, when much is lost, everything. A pass over them begins at most three times in a round
 * trip.
 *
 * A copy changes nothing of what is known about its segment: RACK goes on from the transmission
 * proper, and a copy that arrives only fills the hole sooner. Copies are paced like data, and with
 * what is in flight they are no more than cc.spare_bytes in a round trip, one segment a pass at
 * least: they must not make the queue that a probe for bandwidth looks for. Only a congestion
 * control that knows the loss to be random asks for them (cc.spare). Their duplicates come back as
 * DSACKs, which therefore prove nothing for two round trips (spare_explains_dsack).
 */
#include "tcp_int.h"

enum { PASSES_PER_RTT = 3, MIN_PASS_NS = 1000000 };

static uint64_t pass_ns(const struct tcb *t)
{
	return max_u64(t->srtt_ns / PASSES_PER_RTT, MIN_PASS_NS);
}

static bool worth_a_copy(const struct outer *o, const struct seg *s)
{
	return !(s->flags & (SEG_LOST | SEG_PROBE)) &&
	       (o->cc.spare == CC_SPARE_ALL || s->flags & SEG_RETRANS);
}

/* The next segment of this pass; false: the pass is over */
static bool pass_next(struct tcb *t, struct outer *o, uint32_t *idx)
{
	struct flight *fl = t->fl;
	uint32_t nth = flight_next_unsacked(fl, flight_lower_bound(fl, o->spare_seq));

	for (; nth < fl->count; nth = flight_next_unsacked(fl, nth + 1)) {
		const struct seg *s;

		*idx = flight_idx(fl, nth);
		s = flight_seg(fl, *idx);
		if (s->len > o->spare_left || (o->cc.spare != CC_SPARE_ALL && s->seq >= fl->fack))
			break;
		o->spare_seq = seg_end(s);
		if (!worth_a_copy(o, s))
			continue;
		o->spare_left -= s->len;
		return true;
	}
	return false;
}

static bool pass_begin(struct env *env, struct tcb *t, struct outer *o, uint64_t now_ns)
{
	uint64_t next_ns = o->spare_pass_ns + pass_ns(t), room;

	if (now_ns < next_ns) {
		tcp_set_deadline(env, t, &o->pace_wake_ns, next_ns);
		return false;
	}
	o->spare_pass_ns = now_ns;
	o->spare_seq = t->snd_una;
	room = o->cc.spare_bytes - min_u64(tcp_inflight(t), o->cc.spare_bytes);
	o->spare_left = (uint32_t)min_u64(max_u64(room / PASSES_PER_RTT, t->mss), UINT32_MAX);
	return true;
}

bool spare_pick(struct env *env, struct tcb *t, uint64_t now_ns, uint32_t *idx)
{
	struct outer *o = tcb_outer(t);

	if (!tcb_is_outer(t) || !o->cc.spare || !t->fl || !(t->flags & TF_SACK) || !t->snd_wnd)
		return false;
	if (o->cc.spare != CC_SPARE_ALL && !t->fl->n_sacked)
		return false;
	if (!o->spare_seq && !pass_begin(env, t, o, now_ns))
		return false;
	if (pass_next(t, o, idx))
		return true;
	o->spare_seq = 0;
	tcp_set_deadline(env, t, &o->pace_wake_ns, o->spare_pass_ns + pass_ns(t));
	return false;
}

void spare_sent(struct env *env, struct tcb *t, struct seg *s, uint64_t now_ns)
{
	struct outer *o = tcb_outer(t);

	s->flags |= SEG_COPIED;
	env->counters[DMM_CORE_SPARE_COPIES]++;
	o->retransmits++;
	o->spare_ns = now_ns;
}

bool spare_explains_dsack(const struct tcb *t, uint64_t now_ns)
{
	const struct outer *o = tcb_outer(t);

	return tcb_is_outer(t) && o->spare_ns && now_ns - o->spare_ns < 2 * t->srtt_ns;
}

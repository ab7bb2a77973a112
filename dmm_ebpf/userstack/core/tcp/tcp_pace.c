/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_pace.c: data of the outer leg leaves at the rate the congestion control asks for, not in
 * bursts.
 *
 * A clock that each packet moves on by the time it takes at that rate: while it is ahead of now,
 * nothing goes.
 *
 * Invariants: pace_ns is never behind now by more than the quantum and what a late timer may cost;
 * without a pacing rate nothing here delays anything.
 */
#include "tcp_int.h"

/* How late the caller may be without the rate falling behind: what a busy host's scheduler takes */
#define PACE_LATE_NS 4000000ull

/* A millisecond's worth, two segments at least */
static uint64_t quantum_bytes(const struct tcb *t)
{
	return max_u64(min_u64(tcb_outer(t)->cc.pacing_Bps / 1000, 65536), 2u * t->mss);
}

/* Pacing lets the clock run behind by what is sent together */
static uint64_t quantum_ns(const struct tcb *t)
{
	return quantum_bytes(t) * NS_PER_S / tcb_outer(t)->cc.pacing_Bps;
}

uint64_t pace_burst_bytes(const struct tcb *t)
{
	return tcb_outer(t)->cc.pacing_Bps ? quantum_bytes(t) : UINT64_MAX;
}

bool pace_blocked(struct env *env, struct tcb *t, uint64_t now_ns)
{
	struct outer *o = tcb_outer(t);

	if (!tcb_is_outer(t) || !o->cc.pacing_Bps || o->pace_ns <= now_ns)
		return false;
	tcp_set_deadline(env, t, &o->pace_wake_ns,
			 o->pace_ns + quantum_ns(t) - t->mss * NS_PER_S / o->cc.pacing_Bps);
	return true;
}

void pace_sent(struct tcb *t, uint32_t len, uint64_t now_ns)
{
	struct outer *o = tcb_outer(t);
	uint64_t late_ns, least_ns;

	if (!o->cc.pacing_Bps)
		return;
	/*
	 * A timer that fired late, not a pause of the app's, when there is more in flight:
	 * made up for
	 */
	late_ns = t->fl->inflight_bytes > len ? PACE_LATE_NS : 0;
	least_ns = now_ns - min_u64(now_ns, quantum_ns(t) + late_ns);
	o->pace_ns = max_u64(o->pace_ns, least_ns) + len * NS_PER_S / o->cc.pacing_Bps;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_rtt.c: round-trip times: smoothed (RFC 6298), and on the outer leg the shortest of the last 5
 * to 10 s.
 */
#include "tcp_int.h"

enum { MIN_RTT_WINDOW_NS = 5000000000ll, MAX_RTT_NS = 60000000000ll };

uint64_t tcp_min_rtt_ns(const struct tcb *t)
{
	const struct outer *o = tcb_outer(t);

	if (!tcb_is_outer(t))
		return t->srtt_ns ? t->srtt_ns : NEVER;
	return min_u64(o->min_rtt_prev_ns, o->min_rtt_cur_ns);
}

static void min_rtt_update(struct outer *o, uint64_t rtt_ns, uint64_t now_ns)
{
	if (now_ns >= o->min_rtt_turn_ns) {
		/* a window in which nothing was measured leaves no minimum to keep */
		o->min_rtt_prev_ns =
			now_ns < o->min_rtt_turn_ns + MIN_RTT_WINDOW_NS ? o->min_rtt_cur_ns : NEVER;
		o->min_rtt_cur_ns = NEVER;
		o->min_rtt_turn_ns = now_ns + MIN_RTT_WINDOW_NS;
	}
	o->min_rtt_cur_ns = min_u64(o->min_rtt_cur_ns, rtt_ns);
}

void tcp_rtt_sample(struct env *env, struct tcb *t, uint64_t rtt_ns, uint64_t now_ns)
{
	uint64_t err;

	(void)env;
	rtt_ns = max_u64(min_u64(rtt_ns, MAX_RTT_NS), 1000);
	if (!t->srtt_ns) {
		t->srtt_ns = rtt_ns;
		t->rttvar_ns = rtt_ns / 2;
	} else {
		err = rtt_ns > t->srtt_ns ? rtt_ns - t->srtt_ns : t->srtt_ns - rtt_ns;
		t->rttvar_ns = (3 * t->rttvar_ns + err) / 4;
		t->srtt_ns = (7 * t->srtt_ns + rtt_ns) / 8;
	}
	if (tcb_is_outer(t))
		min_rtt_update(tcb_outer(t), rtt_ns, now_ns);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_deadline.c: deadlines of a leg.
 *
 * One wheel node per leg serves all its deadlines. It is armed for the earliest that was ever asked
 * for and moved lazily: a deadline that moves later (the retransmission timer does so with each
 * ACK) leaves the node alone, and the node finds, when it fires, that nothing is due yet.
 */
#include "tcp_int.h"

static uint64_t next_deadline(const struct tcb *t)
{
	uint64_t at = min_u64(min_u64(t->rtx_ns, t->delack_ns), t->keep_ns);

	if (!tcb_is_outer(t))
		return at;
	at = min_u64(at, tcb_outer(t)->copy_wake_ns);
	at = min_u64(at, tcb_outer(t)->parity_wake_ns);
	return min_u64(at, tcb_outer(t)->pace_wake_ns);
}

static void arm(struct env *env, struct tcb *t, uint64_t deadline_ns)
{
	if (deadline_ns != NEVER && (!t->timer.tick || wheel_tick_of(deadline_ns) < t->timer.tick))
		wheel_arm(&env->wheel, &t->timer, deadline_ns);
}

void tcp_set_deadline(struct env *env, struct tcb *t, uint64_t *field, uint64_t deadline_ns)
{
	*field = deadline_ns;
	if (tcb_ends(t)->f.phase != CONN_DEAD)
		arm(env, t, deadline_ns);
}

void tcp_set_rtx(struct env *env, struct tcb *t, enum rtx_mode mode, uint64_t deadline_ns)
{
	t->rtx_mode = (uint8_t)mode;
	tcp_set_deadline(env, t, &t->rtx_ns, deadline_ns);
}

void tcp_timer_start(struct env *env, struct tcb *t)
{
	/* what fired may have armed it already, for later than what has not */
	arm(env, t, next_deadline(t));
}

/* RFC 6298 section 2, with Linux's lower bound; the backoff is included */
uint64_t tcp_rto_ns(const struct env *env, const struct tcb *t)
{
	uint64_t rto_ns = TCP_INIT_RTO_MS * NS_PER_MS;

	if (t->srtt_ns)
		rto_ns = t->srtt_ns + max_u64(4 * t->rttvar_ns, TCP_MIN_RTO_MS * NS_PER_MS);
	return min_u64(rto_ns << min_u32(t->backoff, 12), tcp_profile(env, t)->max_rto_ns);
}

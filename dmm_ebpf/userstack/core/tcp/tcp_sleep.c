/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_sleep.c: an end that is quiet, so that it may be put away as it is, and moved.
 *
 * Refuses: an end with anything in flight, held, due or out of order.
 */
#include "tcp_int.h"
#include "tcp_parity.h"

enum {
	DUE_FLAGS = TF_ACK_NOW | TF_HOLD | TF_SYN_DUE | TF_RST_DUE | TF_PROBE_DUE | TF_TLP_DUE |
		    TF_PUSH_ANY | TF_RST_FLUSH,
};

static bool is_quiet(const struct env *env, const struct tcb *t, uint64_t now_ns)
{
	if (t->state != TCP_ESTABLISHED && t->state != TCP_CLOSE_WAIT && t->state != TCP_FIN_WAIT2)
		return false;
	if (now_ns - t->last_rx_ns < env->cfg.park_ns || t->keep_probes || (t->flags & DUE_FLAGS))
		return false;
	if ((t->flags & (TF_FIN | TF_FIN_SENT)) == TF_FIN)
		return false;
	return !t->fl && !t->ooo && !t->snd.ring && t->rtx_ns == NEVER && t->delack_ns == NEVER &&
	       list_empty(&t->ready);
}

bool tcp_rests(const struct env *env, const struct end *e, uint64_t now_ns)
{
	const struct tcb *t = tcb_of(e);

	return is_quiet(env, t, now_ns) &&
	       (!tcb_is_outer(t) ||
		(tcb_outer(t)->pace_wake_ns == NEVER && tcb_outer(t)->copy_wake_ns == NEVER &&
		 tcb_outer(t)->parity_wake_ns == NEVER));
}

uint64_t tcp_sleep(struct env *env, struct end *e)
{
	struct tcb *t = tcb_of(e);

	if (tcb_is_outer(t)) {
		copies_release(env, tcb_outer(t));
		parity_release(env, tcb_outer(t));
	}
	t->keep_ns = tcp_keep_due_ns(env, t);
	wheel_cancel(&env->wheel, &t->timer);
	/* nodes point to themselves while they are on no list; they are made again, not kept */
	memset(&t->ready, 0, sizeof(t->ready));
	memset(&t->timer, 0, sizeof(t->timer));
	return t->keep_ns;
}

void tcp_wake(struct env *env, struct end *e)
{
	struct tcb *t = tcb_of(e);

	list_init(&t->ready);
	wheel_node_init(&t->timer);
	if (!env)
		return;
	/* due now: should nothing else happen, it is parked again at the next chance */
	if (tcb_is_outer(t))
		t->keep_ns = min_u64(t->keep_ns, t->last_rx_ns + env->cfg.park_ns);
	tcp_timer_start(env, t);
}

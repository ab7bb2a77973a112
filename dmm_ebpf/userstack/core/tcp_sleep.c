/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_sleep.c: two ends that are quiet, so that they may be put away as they are, and moved.
 *
 * Refuses: ends with anything in flight, held, due or out of order.
 */
#include "tcp_int.h"

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

bool tcp_sleep(struct env *env, struct ends *e, uint64_t now_ns, uint64_t *due_ns)
{
	if (e->outer.pace_wake_ns != NEVER || !is_quiet(env, &e->leg[0], now_ns) ||
	    !is_quiet(env, &e->leg[1], now_ns))
		return false;
	*due_ns = NEVER;
	for (uint32_t l = 0; l < 2; l++) {
		struct tcb *t = &e->leg[l];

		t->keep_ns = tcp_keep_due_ns(env, t);
		*due_ns = min_u64(*due_ns, t->keep_ns);
		wheel_cancel(&env->wheel, &t->timer);
		/*
		 * nodes point to themselves while they are on no list; they are made
		 * again, not kept
		 */
		memset(&t->ready, 0, sizeof(t->ready));
		memset(&t->timer, 0, sizeof(t->timer));
	}
	return true;
}

void tcp_wake(struct env *env, struct ends *e)
{
	for (uint32_t l = 0; l < 2; l++) {
		list_init(&e->leg[l].ready);
		wheel_node_init(&e->leg[l].timer);
		if (env)
			tcp_timer_start(env, &e->leg[l]);
	}
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_state.c: the states of an end (RFC 9293 section 3.3.2): what leads from one to another, the
 * only place where one changes, and what is freed on the way.
 *
 * What may leave an end in each state, besides a RST that is due, and what is forbidden there. An
 * end that is held (TF_HOLD) sends nothing in any state.
 *
 * CLOSE         Nothing. Only a RST that is due is left of it: no buffer, no timer.
 * SYN-SENT      The SYN. Nothing else, for nothing is known of the peer.
 * SYN-RECEIVED  The SYN-ACK, or a bare ACK where an answer is due at once. No data either way, no
 * FIN. ESTABLISHED   All but SYNs. CLOSE-WAIT    Likewise. Nothing more is taken in: the peer's
 * stream has ended. FIN-WAIT-1    ACKs, and the FIN and what is before it once more. No new data,
 * also not in the states below. FIN-WAIT-2    ACKs and keep-alive probes. All that was sent has
 * arrived; what the peer sends is taken in. CLOSING       As in FIN-WAIT-1, but nothing more is
 * taken in. LAST-ACK      Likewise. TIME-WAIT     ACKs. It has one timer and nothing else.
 */
#include "tcp_int.h"
#include "tcp_parity.h"

/* Where an event leads from a state, in the order of RFC 9293; 0: nowhere, it changes nothing. A
 * RST, a time-out and an abort lead from everywhere to CLOSE: tcp_release(). */
static const uint8_t arms[TE_EVENTS][TCP_CLOSING + 1] = {
	/* 3.10.1, OPEN call, active */
	[TE_OPEN][TCP_CLOSE] = TCP_SYN_SENT,
	/*
	 * 3.10.4, CLOSE call: once all that is before the FIN was sent, the FIN is, and
	 * the state follows
	 */
	[TE_FIN_SENT][TCP_ESTABLISHED] = TCP_FIN_WAIT1,
	[TE_FIN_SENT][TCP_CLOSE_WAIT] = TCP_LAST_ACK,
	/*
	 * 3.10.7.2, LISTEN, third: check for a SYN. The listener is the app's, or the
	 * other leg's peer.
	 */
	[TE_SYN][TCP_CLOSE] = TCP_SYN_RECV,
	/*
	 * 3.10.7.3, SYN-SENT, fourth: check the SYN bit. Without an ACK of ours:
	 * a simultaneous open.
	 */
	[TE_SYN][TCP_SYN_SENT] = TCP_SYN_RECV,
	[TE_SYN_ACKED][TCP_SYN_SENT] = TCP_ESTABLISHED,
	/*
	 * 3.10.7.4, second: check the RST bit, after a simultaneous open; tcp_open.c says why
	 * not to CLOSE
	 */
	[TE_SYN_GONE][TCP_SYN_RECV] = TCP_SYN_SENT,
	/* 3.10.7.4, fifth: check the ACK field */
	[TE_SYN_ACKED][TCP_SYN_RECV] = TCP_ESTABLISHED,
	[TE_FIN_ACKED][TCP_FIN_WAIT1] = TCP_FIN_WAIT2,
	[TE_FIN_ACKED][TCP_CLOSING] = TCP_TIME_WAIT,
	[TE_FIN_ACKED][TCP_LAST_ACK] = TCP_CLOSE,
	/* 3.10.7.4, eighth: check the FIN bit */
	[TE_FIN][TCP_ESTABLISHED] = TCP_CLOSE_WAIT,
	[TE_FIN][TCP_FIN_WAIT1] = TCP_CLOSING,
	[TE_FIN][TCP_FIN_WAIT2] = TCP_TIME_WAIT,
	[TE_FIN][TCP_TIME_WAIT] = TCP_TIME_WAIT, /* the wait begins anew */
	/* 3.10.8, TIME-WAIT time-out */
	[TE_TIME_WAITED][TCP_TIME_WAIT] = TCP_CLOSE,
};

static void set_state(struct env *env, struct tcb *t, enum tcp_state state)
{
	static const uint8_t phases[TCP_CLOSING + 1] = {
		[TCP_ESTABLISHED] = END_OPEN,	[TCP_SYN_SENT] = END_ASKING,
		[TCP_SYN_RECV] = END_ANSWERING, [TCP_FIN_WAIT1] = END_OPEN,
		[TCP_FIN_WAIT2] = END_OPEN,	[TCP_TIME_WAIT] = END_WAITING,
		[TCP_CLOSE] = END_CLOSED,	[TCP_CLOSE_WAIT] = END_OPEN,
		[TCP_LAST_ACK] = END_OPEN,	[TCP_CLOSING] = END_OPEN,
	};

	t->state = (uint8_t)state;
	t->phase = phases[state];
	if (state == TCP_SYN_RECV && tcp_is_held(t))
		t->phase = END_ASKED;
	if (state == TCP_CLOSE && (t->flags & TF_RST_DUE))
		t->phase = END_LEAVING;
	if (state == TCP_CLOSE_WAIT && !tcb_is_outer(t)) {
		uint64_t deadline_ns = t->last_rx_ns + tcp_profile(env, t)->half_closed_ns;

		tcp_set_deadline(env, t, &t->keep_ns, deadline_ns);
	}
}

void tcp_ooo_release(struct env *env, struct tcb *t)
{
	if (!t->ooo)
		return;
	ranges_release(&env->mem, t->ooo);
	mem_free(&env->mem, t->ooo, sizeof(*t->ooo));
	t->ooo = NULL;
}

void tcp_release(struct env *env, struct tcb *t)
{
	flight_destroy(&env->mem, t->fl);
	t->fl = NULL;
	tcp_ooo_release(env, t);
	stream_release(&env->mem, &t->snd);
	wheel_cancel(&env->wheel, &t->timer);
	t->rtx_ns = t->delack_ns = t->keep_ns = NEVER;
	t->rtx_mode = RTX_NONE;
	if (tcb_is_outer(t)) {
		tcb_outer(t)->pace_wake_ns = NEVER;
		copies_release(env, tcb_outer(t));
		parity_release(env, tcb_outer(t));
	}
	t->owed = false;
	t->flags &= TF_RST_DUE | TF_RST_BARE | TF_TS;
	/* also one that waited for the handshake, to let bytes go first */
	if (t->flags & TF_RST_DUE)
		tcp_ready(env, t);
	else
		list_del(&t->ready);
	set_state(env, t, TCP_CLOSE);
}

static void enter_time_wait(struct env *env, struct tcb *t, uint64_t now_ns)
{
	uint32_t keep = t->flags & (TF_ACK_NOW | TF_TS | TF_SACK | TF_WS | TF_ACCECN | TF_FIN_RCVD |
				    TF_FIN_SENT);
	bool again = t->state == TCP_TIME_WAIT;

	if (!again) {
		tcp_release(env, t);
		set_state(env, t, TCP_TIME_WAIT);
		t->flags = keep;
		if (keep & TF_ACK_NOW)
			tcp_ready(env, t);
	}
	tcp_set_rtx(env, t, RTX_TIME_WAIT, now_ns + tcp_profile(env, t)->time_wait_ns);
	if (!again)
		env->up->closed(env, &t->end);
}

void tcp_event(struct env *env, struct tcb *t, enum tcp_event event, uint64_t now_ns)
{
	enum tcp_state to = arms[event][t->state];

	if (!to)
		return;
	if (to == TCP_TIME_WAIT) {
		enter_time_wait(env, t, now_ns);
	} else if (to == TCP_CLOSE) {
		tcp_release(env, t);
		env->up->closed(env, &t->end);
	} else {
		set_state(env, t, to);
	}
}

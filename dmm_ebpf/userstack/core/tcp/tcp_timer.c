/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_timer.c: what happens when a deadline of a leg is over (tcp_deadline.c), and which of them is
 * for what is in flight.
 */
#include "tcp_end.h"
#include "tcp_int.h"

enum {
	SYN_ALONE_MS = 1500,	 /* so long the outer leg asks by itself, */
	SYN_APART_MS = 500,	 /* and so long not again because the app's kernel does */
	SYNACK_ALONE_MS = 900,	 /* so long it answers by itself; no kernel repeats itself sooner */
	APP_LATE_MS = 2000,	 /* what the app's kernel sends again may come so late */
	ANSWER_LATE_MS = 4000,	 /* likewise its SYN-ACK, of which one more may be lost, */
	ANSWER_LEAST_MS = 20000, /* and which is waited for so long at least */
};

/*
 * The timer that fits what is in flight: a tail loss probe before the retransmission
 * timeout (RFC 8985)
 */
void tcp_rearm(struct env *env, struct tcb *t, uint64_t now_ns)
{
	if (!t->fl)
		return;
	if (t->fl->rto_ns == NEVER)
		t->fl->rto_ns = now_ns + tcp_rto_ns(env, t);
	if (tcp_tlp_allowed(t)) /* never later than the timeout, which the probe then puts off
				   (section 7.2) */
		tcp_set_rtx(env, t, RTX_TLP, min_u64(now_ns + tcp_pto_ns(t), t->fl->rto_ns));
	else
		tcp_set_rtx(env, t, RTX_RTO, t->fl->rto_ns);
}

static uint32_t max_retries(const struct env *env, const struct tcb *t)
{
	uint8_t other = tcb_peer(t)->phase;
	const struct end_profile *p = tcp_profile(env, t);

	return other == END_CLOSED || other == END_LEAVING || other == END_WAITING
		       ? p->orphan_retries
		       : p->retries;
}

/* The outer leg, whose peer has asked, and does not confirm our SYN-ACK */
static bool is_answering_peer(const struct tcb *t)
{
	return tcb_is_outer(t) && t->state == TCP_SYN_RECV && !open_is_ours(t);
}

static void give_up(struct env *env, struct tcb *t, uint64_t now_ns)
{
	bool unanswered = is_answering_peer(t) || t->rtx_mode == RTX_HOLD ||
			  t->phase == END_ASKED || tcb_peer(t)->phase == END_ASKED;

	env->up->gave_up(env, &t->end, unanswered, now_ns);
}

static bool is_asking_alone(const struct tcb *t, uint64_t now_ns)
{
	return now_ns - t->syn_ns < SYN_ALONE_MS * NS_PER_MS;
}

static void ask_again(struct env *env, struct tcb *t, uint64_t now_ns)
{
	t->backoff++;
	t->flags |= TF_SYN_DUE | TF_SYN_RTX;
	copies_plan_syn(env, t, now_ns);
	tcp_ready(env, t);
}

/* No later than this something more comes of the app's kernel, whose timeouts double */
static uint64_t next_by_ns(uint64_t interval_ns, uint32_t times, uint32_t late_ms, uint64_t now_ns)
{
	uint64_t most_ns = max_u64(interval_ns, TCP_INIT_RTO_MS * NS_PER_MS) * times;

	return now_ns + min_u64(most_ns + late_ms * NS_PER_MS, TCP_HOLD_S * NS_PER_S);
}

/*
 * The app's kernel has sent its SYN for the first time, or again. A socket that is closed, or whose
 * time is over, says nothing more: then the attempt goes without a word, as it does without us.
 */
void tcp_app_asks(struct env *env, struct tcb *inner, uint64_t interval_ns, uint64_t now_ns)
{
	tcp_set_rtx(env, inner, RTX_HOLD, next_by_ns(interval_ns, 2, APP_LATE_MS, now_ns));
}

static void answer_again(struct env *env, struct tcb *t, uint64_t now_ns)
{
	t->retries = (uint8_t)min_u32(t->retries + 1u, UINT8_MAX);
	ask_again(env, t, now_ns);
}

/*
 * Linux sends a SYN-ACK as often as the listener's socket and its namespace want it (TCP_SYNCNT,
 * net.ipv4.tcp_synack_retries), and its queue allows. So the outer leg answers again when the app's
 * kernel does, and by itself only before that can be, on a path that is known to be short.
 */
static void fire_synack(struct env *env, struct tcb *t, uint64_t now_ns)
{
	uint64_t end_ns = t->syn_ns + ANSWER_LEAST_MS * NS_PER_MS;

	if (now_ns - t->syn_ns < SYNACK_ALONE_MS * NS_PER_MS)
		answer_again(env, t, now_ns);
	else if (now_ns < end_ns)
		tcp_set_rtx(env, t, RTX_SYN, end_ns);
	else
		give_up(env, t, now_ns);
}

void tcp_app_answers_again(struct env *env, struct tcb *inner, uint64_t now_ns)
{
	uint64_t interval_ns = now_ns - inner->last_rx_ns;
	struct end *other = tcb_peer(inner);
	struct tcb *t;

	inner->last_rx_ns = now_ns;
	if (end_ops_of(env, other) != &tcp_outer || !is_answering_peer(tcb_of(other)))
		return;
	t = tcb_of(other);
	answer_again(env, t, now_ns);
	tcp_set_rtx(env, t, RTX_SYN,
		    max_u64(next_by_ns(interval_ns, 4, ANSWER_LATE_MS, now_ns),
			    t->syn_ns + ANSWER_LEAST_MS * NS_PER_MS));
}

static void fire_syn(struct env *env, struct tcb *t, uint64_t now_ns)
{
	uint32_t limit = tcp_profile(env, t)->syn_retries;
	uint64_t wait_ns = copies_syn_wait_ns(env, t, now_ns);

	if (wait_ns) {
		tcp_set_rtx(env, t, RTX_SYN, now_ns + wait_ns);
		return;
	}
	if (is_answering_peer(t)) {
		fire_synack(env, t, now_ns);
		return;
	}
	if (t->state == TCP_SYN_RECV && !open_is_ours(t))
		limit = TCP_SYNACK_RETRIES;
	if (++t->retries > limit) {
		give_up(env, t, now_ns);
		return;
	}
	if (is_asking_alone(t, now_ns) || !tcb_is_outer(t) || t->state != TCP_SYN_SENT) {
		ask_again(env, t, now_ns);
		return;
	}
	t->backoff++;
	tcp_set_rtx(env, t, RTX_SYN, now_ns + copies_syn_rto_ns(env, t, now_ns));
}

/*
 * After the first of our SYNs that time out the peer is asked as often as the app's kernel asks: no
 * later than without us, as many times as the app wants (TCP_SYNCNT), and no more once it has given
 * up.
 */
void tcp_app_asks_again(struct env *env, struct tcb *inner, uint64_t now_ns)
{
	uint64_t interval_ns = now_ns - inner->last_rx_ns, sent_ns;
	struct end *other = tcb_peer(inner);
	struct tcb *t;

	inner->last_rx_ns = now_ns;
	tcp_app_asks(env, inner, interval_ns, now_ns);
	if (end_ops_of(env, other) != &tcp_outer || other->phase != END_ASKING)
		return;
	t = tcb_of(other);
	if (t->state != TCP_SYN_SENT || t->rtx_mode != RTX_SYN)
		return;
	sent_ns = t->backoff ? t->rtx_ns - copies_syn_rto_ns(env, t, now_ns) : t->syn_ns;
	if (is_asking_alone(t, now_ns) && now_ns - sent_ns < SYN_APART_MS * NS_PER_MS)
		return;
	t->retries = (uint8_t)min_u32(t->retries + 1u, tcp_profile(env, t)->syn_retries);
	tcp_set_rtx(env, t, RTX_NONE, NEVER);
	ask_again(env, t, now_ns);
}

/*
 * The kernel answers a probe of the inner leg by the way that it would take now, and so the outer
 * leg learns of another route, neighbour or device (ip_follow()), also when the app itself has
 * nothing to send. Of an app that has closed there may be no socket any more, which would say RST.
 */
void tcp_ask_way(struct env *env, struct tcb *inner)
{
	if (inner->state != TCP_ESTABLISHED)
		return;
	inner->flags |= TF_PROBE_DUE;
	tcp_ready(env, inner);
}

enum end_care tcp_ask(struct env *env, struct end *e)
{
	struct tcb *t = tcb_of(e);

	if (!tcb_is_outer(t)) {
		tcp_ask_way(env, t);
		return END_ASKS;
	}
	if (t->fl && t->snd_wnd)
		return t->backoff ? END_STANDS : END_GETS_ON;
	if (!t->fl) {
		t->flags |= TF_PROBE_DUE;
		tcp_ready(env, t);
	}
	return END_ASKS;
}

static void fire_rto(struct env *env, struct tcb *t, uint64_t now_ns)
{
	struct outer *o = tcb_outer(t);
	struct cc *cc = &o->cc;
	uint64_t lost;

	/* a peer that took its window back but answers is alive (Linux: tcp_retransmit_timer) */
	if (t->snd_wnd || now_ns - t->last_rx_ns > TCP_SILENT_MS * NS_PER_MS)
		t->retries++;
	if (t->retries > max_retries(env, t)) {
		give_up(env, t, now_ns);
		return;
	}
	env->counters[DMM_CORE_RTO]++;
	if (tcb_is_outer(t))
		copies_lost(t, flight_seg(t->fl, t->fl->head));
	t->backoff = (uint8_t)min_u32(t->backoff + 1u, 12);
	lost = rack_mark_all_lost(t);
	t->fl->tlp_end = 0;
	if (tcb_is_outer(t)) {
		undo_on_timeout(t);
		prr_end(t);
		ecn_reduced(t);
		pmtu_on_timeout(env, t);
	}
	t->flags |= TF_RECOVERY | TF_FORCE_RTX;
	t->fl->recovery_end = t->snd_nxt;
	t->fl->rto_ns = now_ns + tcp_rto_ns(env, t);
	tcp_set_rtx(env, t, RTX_RTO, t->fl->rto_ns);
	tcp_ready(env, t);
	if (!tcb_is_outer(t)) {
		inner_lost(t, 0);
		return;
	}
	if (t->retries > 1)
		tcp_ask_way(env, tcb_inner_of(tcb_ends(t)));
	o->rto_count++;
	o->lost_bytes += lost;
	cc->inflight_bytes = 0;
	cc->in_recovery = 1;
	cc->ops->on_rto(cc, now_ns);
}

static void fire_reo(struct env *env, struct tcb *t, uint64_t now_ns)
{
	uint64_t wait_ns;
	uint64_t lost = rack_detect(t, now_ns, &wait_ns);

	tcp_report_loss(env, t, lost, now_ns);
	if (wait_ns)
		tcp_set_rtx(env, t, RTX_REO, min_u64(now_ns + wait_ns, t->fl->rto_ns));
	else
		tcp_rearm(env, t, now_ns);
}

/*
 * Zero window (RFC 9293 section 3.8.6.1): as long as the peer answers there is no end to the probes
 */
static void fire_persist(struct env *env, struct tcb *t, uint64_t now_ns)
{
	if (++t->retries > max_retries(env, t)) {
		give_up(env, t, now_ns);
		return;
	}
	if (t->snd_una + t->snd_wnd > t->snd_nxt)
		t->flags |= TF_PUSH_ANY;
	else
		t->flags |= TF_PROBE_DUE | (t->snd_up > t->snd_nxt ? TF_ACK_NOW : 0);
	t->backoff = (uint8_t)min_u32(t->backoff + 1u, 12);
	tcp_set_rtx(env, t, RTX_PERSIST, now_ns + min_u64(tcp_rto_ns(env, t), 60 * NS_PER_S));
	tcp_ready(env, t);
}

static void fire_rtx(struct env *env, struct tcb *t, uint64_t now_ns)
{
	enum rtx_mode mode = t->rtx_mode;

	tcp_set_rtx(env, t, RTX_NONE, NEVER);
	switch (mode) {
	case RTX_NONE:
		break;
	case RTX_HOLD:
		give_up(env, t, now_ns);
		break;
	case RTX_SYN:
		fire_syn(env, t, now_ns);
		break;
	case RTX_RTO:
		if (t->fl)
			fire_rto(env, t, now_ns);
		break;
	case RTX_TLP:
		if (!t->fl)
			break;
		t->flags |= TF_TLP_DUE;
		t->fl->rto_ns = now_ns + tcp_rto_ns(env, t);
		tcp_set_rtx(env, t, RTX_RTO, t->fl->rto_ns);
		tcp_ready(env, t);
		break;
	case RTX_REO:
		if (t->fl)
			fire_reo(env, t, now_ns);
		break;
	case RTX_PERSIST:
		fire_persist(env, t, now_ns);
		break;
	case RTX_TIME_WAIT:
		tcp_event(env, t, TE_TIME_WAITED, now_ns);
		break;
	}
}

static uint64_t keep_period_ns(const struct env *env, const struct tcb *t)
{
	const struct end_profile *p = tcp_profile(env, t);

	return t->state == TCP_CLOSE_WAIT ? p->half_closed_ns : p->keepalive_ns;
}

uint64_t tcp_keep_due_ns(const struct env *env, const struct tcb *t)
{
	return t->last_rx_ns + keep_period_ns(env, t);
}

/* The outer leg's timer also looks whether the connection can be parked: when both legs may have
 * been quiet for long enough, and then from time to time */
void tcp_keep_start(struct env *env, struct tcb *t, uint64_t now_ns)
{
	uint64_t due_ns = tcp_keep_due_ns(env, t), park_ns;

	if (tcb_is_outer(t)) {
		park_ns = max_u64(t->last_rx_ns, tcb_peer(t)->last_rx_ns) + env->cfg.park_ns;
		due_ns = min_u64(due_ns, park_ns > now_ns ? park_ns : now_ns + env->cfg.park_ns);
	}
	tcp_set_deadline(env, t, &t->keep_ns, due_ns);
}

/* RFC 9293 section 3.8.4 on the outer leg; on the inner leg it finds kernel sockets that are gone
 * without a word */
static void fire_keepalive(struct env *env, struct tcb *t, uint64_t now_ns)
{
	uint64_t period_ns = keep_period_ns(env, t);

	if (now_ns < t->last_rx_ns + period_ns) {
		tcp_keep_start(env, t, now_ns);
		return;
	}
	if (t->fl || t->rtx_mode == RTX_PERSIST) { /* those timers find a dead peer sooner */
		tcp_set_deadline(env, t, &t->keep_ns, now_ns + period_ns);
		return;
	}
	if (t->keep_probes >= TCP_KEEPALIVE_PROBES) {
		give_up(env, t, now_ns);
		return;
	}
	t->keep_probes++;
	t->flags |= TF_PROBE_DUE;
	tcp_set_deadline(env, t, &t->keep_ns,
			 now_ns + min_u64(period_ns, TCP_KEEPALIVE_INTVL_S * NS_PER_S));
	tcp_ready(env, t);
}

void tcp_timer(struct env *env, struct end *end, uint64_t now_ns)
{
	struct tcb *t = tcb_of(end);
	struct ends *e = tcb_ends(t);

	if (t->delack_ns <= now_ns) {
		t->delack_ns = NEVER;
		t->flags |= TF_ACK_NOW;
		tcp_ready(env, t);
	}
	if (tcb_is_outer(t) && tcb_outer(t)->pace_wake_ns <= now_ns) {
		tcb_outer(t)->pace_wake_ns = NEVER;
		tcp_ready(env, t);
	}
	if (tcb_is_outer(t) && tcb_outer(t)->copy_wake_ns <= now_ns) {
		tcb_outer(t)->copy_wake_ns = NEVER;
		tcp_ready(env, t);
	}
	if (tcb_is_outer(t) && tcb_outer(t)->parity_wake_ns <= now_ns) {
		tcb_outer(t)->parity_wake_ns = NEVER;
		tcp_ready(env, t);
	}
	if (t->keep_ns <= now_ns) {
		t->keep_ns = NEVER;
		fire_keepalive(env, t, now_ns);
	}
	if (t->rtx_ns <= now_ns && e->f.phase != CONN_DEAD)
		fire_rtx(env, t, now_ns);
	if (e->f.phase == CONN_DEAD)
		return;
	if (tcb_is_outer(t) && now_ns - t->last_rx_ns >= env->cfg.park_ns &&
	    env->up->quiet(env, end, now_ns))
		return;
	tcp_timer_start(env, t);
}

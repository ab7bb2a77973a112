/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_timer.c: deadlines of a leg.
 *
 * One wheel node per leg serves all its deadlines. It is armed for the earliest that was ever asked
 * for and moved lazily: a deadline that moves later (the retransmission timer does so with each
 * ACK) leaves the node alone, and the node finds, when it fires, that nothing is due yet.
 */
#include "tcp_int.h"

static uint64_t next_deadline(const struct tcb *t)
{
	uint64_t at = min_u64(min_u64(t->rtx_ns, t->delack_ns), t->keep_ns);

	return tcb_is_outer(t) ? min_u64(at, tcb_ends(t)->outer.pace_wake_ns) : at;
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

/* RFC 6298 section 2, with Linux's lower bound; the backoff is included */
uint64_t tcp_rto_ns(const struct env *env, const struct tcb *t)
{
	uint64_t rto_ns = TCP_INIT_RTO_MS * NS_PER_MS;

	if (t->srtt_ns)
		rto_ns = t->srtt_ns + max_u64(4 * t->rttvar_ns, TCP_MIN_RTO_MS * NS_PER_MS);
	return min_u64(rto_ns << min_u32(t->backoff, 12), tcp_profile(env, t)->max_rto_ns);
}

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
	uint8_t other = tcb_peer(t)->state;
	const struct end_profile *p = tcp_profile(env, t);

	return other == TCP_CLOSE || other == TCP_TIME_WAIT ? p->orphan_retries : p->retries;
}

static bool is_unanswered(const struct tcb *t)
{
	return t->state == TCP_SYN_RECV && tcp_is_held(t);
}

static void give_up(struct env *env, struct tcb *t, uint64_t now_ns)
{
	bool unanswered = t->rtx_mode == RTX_HOLD || is_unanswered(t) || is_unanswered(tcb_peer(t));

	env->up->gave_up(env, t, unanswered, now_ns);
}

static void fire_syn(struct env *env, struct tcb *t, uint64_t now_ns)
{
	uint32_t limit = tcp_profile(env, t)->syn_retries;

	if (t->state == TCP_SYN_RECV && !open_is_ours(t))
		limit = TCP_SYNACK_RETRIES;
	if (++t->retries > limit) {
		give_up(env, t, now_ns);
		return;
	}
	t->backoff++;
	t->flags |= TF_SYN_DUE | TF_SYN_RTX;
	tcp_ready(env, t);
}

/*
 * The kernel answers a probe of the inner leg by the way that it would take now, and so the outer
 * leg learns of another route, neighbour or device (ip_follow()), also when the app itself has
 * nothing to send. Of an app that has closed there may be no socket any more, which would say RST.
 */
static void ask_way(struct env *env, struct tcb *inner)
{
	if (inner->state != TCP_ESTABLISHED)
		return;
	inner->flags |= TF_PROBE_DUE;
	tcp_ready(env, inner);
}

static void fire_rto(struct env *env, struct tcb *t, uint64_t now_ns)
{
	struct ends *e = tcb_ends(t);
	struct cc *cc = &e->outer.cc;
	uint64_t lost;

	/* a peer that took its window back but answers is alive (Linux: tcp_retransmit_timer) */
	if (t->snd_wnd || now_ns - t->last_rx_ns > TCP_SILENT_MS * NS_PER_MS)
		t->retries++;
	if (t->retries > max_retries(env, t)) {
		give_up(env, t, now_ns);
		return;
	}
	env->counters[DMM_CORE_RTO]++;
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
		ask_way(env, tcb_peer(t));
	e->outer.rto_count++;
	e->outer.lost_bytes += lost;
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

void tcp_timer_start(struct env *env, struct tcb *t)
{
	/* what fired may have armed it already, for later than what has not */
	arm(env, t, next_deadline(t));
}

void tcp_timer(struct env *env, struct tcb *t, uint64_t now_ns)
{
	struct ends *e = tcb_ends(t);

	if (t->delack_ns <= now_ns) {
		t->delack_ns = NEVER;
		t->flags |= TF_ACK_NOW;
		tcp_ready(env, t);
	}
	if (tcb_is_outer(t) && e->outer.pace_wake_ns <= now_ns) {
		e->outer.pace_wake_ns = NEVER;
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
	    env->up->quiet(env, t, now_ns))
		return;
	tcp_timer_start(env, t);
}

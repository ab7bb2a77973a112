/* SPDX-License-Identifier: Apache-2.0 */
/*
 * endasked.c: the transport that another thread computes: what the core calls it for, and its
 * making. See endask_int.h.
 */
#include "endask_int.h"

#include <stdlib.h>

#include "../userstack/core/base/stream.h"
#include "../userstack/core/base/wheel.h"
#include "../userstack/core/wire/ctl.h"

enum { HOLD_S = 150 }; /* a peer that is kept without an answer has gone by then */

static void init(struct env *env, struct end *e)
{
	struct asked *t = asked_of(e);
	struct asker *a = asker_of(env, t);

	t->deadline_ns = NEVER;
	t->handle = ++a->handles;
	__atomic_fetch_add(&a->ends, 1, __ATOMIC_RELAXED);
}

static void open(struct env *env, struct end *e, const struct pkt *syn, uint64_t now_ns)
{
	struct asked *t = asked_of(e);
	struct end_answer answer;

	asker_of(env, t)->now_ns = now_ns;
	t->last_rx_ns = now_ns;
	t->phase = syn ? END_ASKED : END_ASKING;
	t->held = !!syn;
	if (syn)
		end_ends(e)->peer_ttl = syn->ttl;
	if (!asked_asks(env, t, END_QUESTION_OPEN, syn, &answer))
		return;
	if (syn)
		asked_set_deadline(env, t, now_ns + HOLD_S * NS_PER_S);
	end_ready(env, e);
}

static void go(struct env *env, struct end *e)
{
	struct asked *t = asked_of(e);

	if (t->phase == END_ASKED) {
		t->phase = END_ANSWERING;
		asked_set_deadline(env, t, NEVER);
	}
	t->held = false;
	end_ready(env, e);
}

static void input(struct env *env, struct end *e, const struct pkt *pkt, uint64_t now_ns)
{
	struct end *other = end_peer(e);
	struct asked *t = asked_of(e);
	struct end_answer answer;

	asker_of(env, t)->now_ns = now_ns;
	t->last_rx_ns = now_ns;
	if (other->owed) {
		other->owed = false;
		end_ops_of(env, other)->heard(env, other);
	}
	if (asked_is_dead(t))
		return;
	if (t->phase == END_CLOSED)
		ctl_reset_unknown(env, t->leg, end_ends(e)->link, pkt);
	else
		asked_asks(env, t, END_QUESTION_INPUT, pkt, &answer);
}

static uint32_t emit(struct env *env, struct asked *t, const struct end_ask_segment *s,
		     uint8_t *buf, struct dmm_tx_meta *meta)
{
	const struct ends *ends = end_ends(&t->end);
	struct wire_seg seg = {
		.flags = (uint16_t)s->flags, .seq = s->seq, .ack = s->ack, .wnd = (uint16_t)s->wnd};
	uint32_t headers, used = s->seq + s->len + !!(s->flags & (TH_SYN | TH_FIN));
	struct wire_dir dir;

	if (s->mss)
		wire_opt_mss(&seg, (uint16_t)s->mss);
	ctl_dir(&ends->f.pair, t->leg, &dir);
	dir.tos = ends->tos;
	dir.ttl = ends->ttl;
	dir.flow_label = ends->flow_label;
	dir.id = env->ip_id++;
	headers = wire_headers(buf, &dir, &seg, s->len);
	wire_csum_full(buf, &dir, headers, s->len,
		       s->len ? stream_copy_csum(&t->snd, s->from, buf + headers, s->len) : 0);
	*meta = (struct dmm_tx_meta){.link = ends->link, .family = ends->f.pair.family};
	t->told = max_u64(t->told, t->received + s->wnd);
	if (!t->segments++ || (int32_t)(used - t->edge) > 0)
		t->edge = used;
	return headers + s->len;
}

static uint32_t output(struct env *env, struct end *e, uint8_t *buf, uint32_t cap,
		       struct dmm_tx_meta *meta, uint64_t now_ns)
{
	struct asked *t = asked_of(e);
	struct end_answer answer;

	asker_of(env, t)->now_ns = now_ns;
	if (t->held || t->phase == END_CLOSED || t->phase == END_ASKED || cap < end_ends(e)->f.mtu)
		return 0;
	if (!asked_asks(env, t, END_QUESTION_OUTPUT, NULL, &answer) || !answer.next.there ||
	    asked_is_dead(t) || t->phase == END_CLOSED)
		return 0;
	return emit(env, t, &answer.next, buf, meta);
}

static void timer(struct env *env, struct end *e, uint64_t now_ns)
{
	struct asked *t = asked_of(e);
	struct end_answer answer;

	asker_of(env, t)->now_ns = now_ns;
	t->deadline_ns = NEVER;
	if (t->phase == END_WAITING) {
		asked_release(env, t, END_CLOSED);
		env->up->closed(env, e);
	} else if (t->phase == END_ASKED) {
		env->up->gave_up(env, e, true, now_ns);
	} else {
		env->counters[DMM_CORE_RTO]++;
		asked_asks(env, t, END_QUESTION_TIMER, NULL, &answer);
	}
}

/* A connection has ended. Nobody waits for that: a hundred thousand may end at once. */
static void forget(struct env *env, struct asked *t)
{
	struct asker *a = asker_of(env, t);
	struct end_answer answer;
	bool noted = false;

	if (!t->handle)
		return;
	__atomic_fetch_sub(&a->ends, 1, __ATOMIC_RELAXED);
	if (turns_begin(&a->turns) && a->ask.released_n < END_ASK_RELEASED) {
		a->ask.released[a->ask.released_n++] = t->handle;
		noted = a->ask.released_n < END_ASK_RELEASED;
	}
	turns_over(&a->turns);
	if (!noted && !a->guard.off) /* no room is left until the worker has seen those */
		asked_question(env, t, END_QUESTION_RELEASE, NULL, &answer);
	t->handle = 0;
}

static void end_abort(struct env *env, struct end *e, enum end_abort how, uint64_t now_ns)
{
	struct asked *t = asked_of(e);

	if (now_ns)
		asker_of(env, t)->now_ns = now_ns;
	switch (how) {
	case END_ABORT_FREE:
		asked_release(env, t, END_CLOSED);
		forget(env, t);
		break;
	case END_ABORT_PEER:
		asked_release(env, t, END_CLOSED);
		break;
	case END_ABORT_APART:
		asked_reset_peer(env, t);
		break;
	case END_ABORT_FLUSH:
	case END_ABORT_MUTE:
		if (t->phase == END_OPEN && stream_held(&t->snd)) {
			t->last = true;
			end_ready(env, e);
			break;
		}
		/* fall through */
	case END_ABORT_NOW:
		asked_end_now(env, t);
		break;
	}
}

static void info(const struct env *env, const struct end *e, struct dmm_conn_info *info)
{
	const struct asked *t = asked_of(e);

	(void)env;
	info->outer_state = end_listing_state(e);
	info->bytes_sent = t->snd.head;
	info->segments_sent = t->segments;
	info->inflight_bytes = t->snd_nxt - t->snd_una;
	info->mss = asked_mss(t);
	info->sndbuf_bytes = (uint32_t)stream_held(&t->snd);
}

static void finish(struct env *env, struct end *e)
{
	asked_of(e)->finished = true;
	end_ready(env, e);
}

/* A window that was as good as shut is not any more */
static void room(struct env *env, struct end *e)
{
	struct asked *t = asked_of(e);
	struct end_answer answer;

	if (t->phase == END_OPEN && !t->peer_finished && asked_has(env, t, END_QUESTION_ROOM) &&
	    t->told < t->received + 2 * asked_mss(t) && asked_room(env, t) >= 2 * asked_mss(t))
		asked_asks(env, t, END_QUESTION_ROOM, NULL, &answer);
}

static uint64_t wants(const struct env *env, const struct end *e)
{
	return asker_of(env, asked_of(e))->wants_bytes;
}

static enum end_care care(struct env *env, struct end *e)
{
	struct asked *t = asked_of(e);
	struct end_answer answer;

	if (t->snd_una < t->snd_nxt || !asked_has(env, t, END_QUESTION_PROBE))
		return END_GETS_ON;
	asked_asks(env, t, END_QUESTION_PROBE, NULL, &answer);
	return END_ASKS;
}

static uint32_t edge(const struct env *env, const struct end *e)
{
	(void)env;
	return asked_of(e)->edge;
}

static const struct end_ops ops = {
	.name = "asked",
	.state_bytes = sizeof(struct asked),
	.init = init,
	.open = open,
	.go = go,
	.input = input,
	.output = output,
	.timer = timer,
	.abort = end_abort,
	.info = info,
	.finish = finish,
	.room = room,
	.passed = room,
	.wants = wants,
	.ask = care,
	.edge = edge,
};

/* ---- the asker ---- */

static void forget_broken(struct end_guard *g, struct env *env, struct end *e)
{
	(void)g;
	forget(env, asked_of(e));
}

static uint32_t call(struct end_guard *g, struct end_call *one)
{
	struct asker *a = g->arg;
	bool before = a->failed, failed;

	a->failed = false;
	end_ops_call(&ops, one);
	failed = a->failed;
	a->failed = before;
	return !failed;
}

struct end_guard *end_asker_create(const char *name, uint32_t questions, uint64_t wants_bytes,
				   uint64_t patience_ns)
{
	struct asker *a = calloc(1, sizeof(*a));

	if (!a)
		return NULL;
	a->guard.own = &ops;
	a->guard.call = call;
	a->guard.forget = forget_broken;
	a->guard.arg = a;
	if (!end_guard_init(&a->guard, name)) {
		free(a);
		return NULL;
	}
	turns_init(&a->turns, patience_ns);
	a->has = questions;
	a->wants_bytes = wants_bytes;
	return &a->guard;
}

void end_asker_destroy(struct end_guard *guard)
{
	struct asker *a = guard->arg;

	end_guard_deinit(guard);
	turns_deinit(&a->turns);
	free(a);
}

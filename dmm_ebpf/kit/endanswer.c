/* SPDX-License-Identifier: Apache-2.0 */
/*
 * endanswer.c: what an answer of the thread that computes a transport means: whether it is one, and
 * then for the streams, the timer, the other end and whoever owns the connection. See endask_int.h.
 */
#include "endask_int.h"

#include <stdio.h>

#include "../userstack/core/base/stream.h"
#include "../userstack/core/base/wheel.h"
#include "../userstack/core/wire/ctl.h"

void asked_set_deadline(struct env *env, struct asked *t, uint64_t deadline_ns)
{
	t->deadline_ns = deadline_ns;
	if (deadline_ns == NEVER || asked_is_dead(t))
		wheel_cancel(&env->wheel, &t->timer);
	else
		wheel_arm(&env->wheel, &t->timer, deadline_ns);
}

void asked_release(struct env *env, struct asked *t, enum end_phase phase)
{
	stream_release(&env->mem, &t->snd);
	asked_set_deadline(env, t, NEVER);
	list_del(&t->ready);
	t->phase = (uint8_t)phase;
	t->held = t->owed = false;
}

/* ---- how it ends ---- */

/* Its peer has asked, or was sent something, and waits */
static bool may_be_reset(const struct asked *t)
{
	return t->phase == END_ASKED ||
	       (t->segments && (t->phase == END_OPEN || t->phase == END_ANSWERING));
}

void asked_reset_peer(struct env *env, struct asked *t)
{
	const struct ends *ends = end_ends(&t->end);
	struct end_answer answer;
	struct wire_seg rst;
	struct wire_dir dir;

	if (!may_be_reset(t) || !asked_has(env, t, END_QUESTION_RESET) ||
	    !asked_question(env, t, END_QUESTION_RESET, NULL, &answer) || !answer.next.there)
		return;
	rst = (struct wire_seg){.flags = (uint16_t)(TH_RST | (answer.next.flags & TH_ACK)),
				.seq = answer.next.seq,
				.ack = answer.next.ack};
	ctl_dir(&ends->f.pair, t->leg, &dir);
	ctl_push_tcp(env, t->leg, ends->link, &dir, &rst);
	env->counters[DMM_CORE_RST_OUT]++;
}

void asked_end_now(struct env *env, struct asked *t)
{
	asked_reset_peer(env, t);
	asked_release(env, t, END_CLOSED);
}

/* ---- whether it is an answer ---- */

/* From which phase it may say which */
static bool may_become(uint32_t from, uint32_t to)
{
	if (to == END_OPEN)
		return from == END_ASKING || from == END_ANSWERING || from == END_OPEN;
	if (to == END_WAITING || to == END_CLOSED)
		return from == END_OPEN || from == to;
	return from == to;
}

static const char *wrong_segment(const struct asked *t, const struct end_ask_segment *s)
{
	if (s->flags & ~(uint32_t)ASKED_FLAGS)
		return "flags that a segment has not";
	if (s->wnd > UINT16_MAX || s->mss > UINT16_MAX)
		return "a window or an MSS of more than 65535";
	if (s->len > asked_mss(t))
		return "more than the path takes in a segment";
	if (s->len &&
	    (s->from < t->snd.head || s->from > t->snd.tail || s->len > t->snd.tail - s->from))
		return "bytes that the stream does not hold";
	return NULL;
}

/* What is wrong with an answer; NULL: nothing */
static const char *wrong(const struct asked *t, const struct end_answer *n, const struct pkt *pkt)
{
	uint64_t last = t->snd.tail + 1 + t->finished, top = max_u64(t->top, n->nxt);
	uint32_t len = pkt ? min_u32(pkt->payload_len, END_ASK_PAYLOAD) : 0;

	if (!may_become(t->phase, n->phase))
		return "a phase that does not follow";
	if (n->nxt > last || n->una > top || n->una < t->snd_una || n->una > n->nxt)
		return "positions that are none of the stream's";
	if (n->take_from > len || n->take_len > len - n->take_from)
		return "to take more than the segment has";
	if (n->lost > END_LOST_GAVE_UP || (n->lost == END_LOST_RESET && n->error > 4095))
		return "an error that there is not";
	return n->next.there ? wrong_segment(t, &n->next) : NULL;
}

/* ---- what it means ---- */

static void opened(struct env *env, struct asked *t)
{
	t->phase = END_OPEN;
	t->snd_una = max_u64(t->snd_una, 1);
	t->snd_nxt = max_u64(t->snd_nxt, 1);
	t->top = max_u64(t->top, 1);
	if (!env->up->established(env, &t->end))
		t->held = true;
	end_ready(env, &t->end);
}

static void arrived(struct env *env, struct asked *t)
{
	struct end *other = end_peer(&t->end);
	uint64_t upto = min_u64(t->snd_una - 1, t->snd.tail);

	if (upto <= t->snd.head)
		return;
	stream_drop(&env->mem, &t->snd, upto);
	end_ops_of(env, other)->passed(env, other);
}

static void take(struct env *env, struct asked *t, const struct end_answer *n,
		 const struct pkt *pkt)
{
	struct end *other = end_peer(&t->end);
	struct stream *st = &other->snd;
	uint32_t len = (uint32_t)min_u64(n->take_len, asked_room(env, t));
	bool whole = len == n->take_len;

	if (len && !t->peer_finished) {
		uint32_t had = stream_put(&env->mem, st, st->tail, pkt->payload + n->take_from, len,
					  env->mem.limit_bytes / 8);

		whole &= had == len;
		st->tail += had;
		t->received += had;
		end_ready(env, other);
	}
	if (!n->peer_finished || t->peer_finished || !whole)
		return;
	t->peer_finished = true;
	end_ops_of(env, other)->finish(env, other);
}

static void over(struct env *env, struct asked *t, const struct end_answer *n)
{
	uint64_t until_ns = asker_of(env, t)->now_ns + env->profile[t->leg].time_wait_ns;

	asked_release(env, t, (enum end_phase)n->phase);
	if (n->phase == END_WAITING)
		asked_set_deadline(env, t, until_ns);
	if (n->phase == END_WAITING && n->ready)
		end_ready(env, &t->end);
	env->up->closed(env, &t->end);
}

static void lost(struct env *env, struct asked *t, const struct end_answer *n)
{
	uint64_t now_ns = asker_of(env, t)->now_ns;

	if (n->lost == END_LOST_RESET) {
		env->counters[DMM_CORE_RST_IN]++;
		env->up->reset(env, &t->end, n->error, now_ns);
	} else {
		env->up->gave_up(env, &t->end, end_peer(&t->end)->phase == END_ASKED, now_ns);
	}
}

/* What holds for an open end */
static void go_on(struct env *env, struct asked *t, const struct end_answer *n,
		  const struct pkt *pkt)
{
	arrived(env, t);
	if (t->phase == END_OPEN && !t->last)
		take(env, t, n, pkt);
	if (t->phase == END_OPEN && t->last && !stream_held(&t->snd)) {
		asked_end_now(env, t);
		env->up->closed(env, &t->end);
	} else if (t->phase == END_OPEN && n->phase != END_OPEN && t->peer_finished) {
		over(env, t, n);
	}
}

/* false: it is nonsense, and the call has failed. Whoever is told of something may end it. */
static bool apply(struct env *env, struct asked *t, enum end_question type,
		  const struct end_answer *n, const struct pkt *pkt)
{
	const char *what = wrong(t, n, pkt);
	struct asker *a = asker_of(env, t);

	if (what) {
		snprintf(a->guard.why, sizeof(a->guard.why), "%s answered with %s",
			 end_question_name(type), what);
		a->failed = true;
		return false;
	}
	if (n->nxt < t->snd_nxt && t->phase == END_OPEN)
		env->counters[DMM_CORE_RETRANSMITS]++;
	t->snd_una = n->una;
	t->snd_nxt = n->nxt;
	t->top = max_u64(t->top, n->nxt);
	if (t->phase != END_WAITING)
		asked_set_deadline(env, t, n->deadline_ns);
	if (n->ready)
		end_ready(env, &t->end);
	if (n->lost) {
		lost(env, t, n);
		return true;
	}
	if (n->phase == END_OPEN && t->phase != END_OPEN)
		opened(env, t);
	if (t->phase == END_OPEN)
		go_on(env, t, n, pkt);
	return true;
}

bool asked_asks(struct env *env, struct asked *t, enum end_question type, const struct pkt *pkt,
		struct end_answer *answer)
{
	return asked_question(env, t, type, pkt, answer) && apply(env, t, type, answer, pkt);
}

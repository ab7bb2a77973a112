/* SPDX-License-Identifier: Apache-2.0 */
/*
 * endask.c: the questions of a transport that another thread computes: what they tell, and that
 * they are answered. See endask_int.h.
 */
#include "endask_int.h"

#include <stdio.h>

uint32_t asked_mss(const struct asked *t)
{
	const struct flow *f = &end_ends(&t->end)->f;

	return f->mtu - wire_ip_len(f->pair.family) - WIRE_TCP_LEN;
}

uint64_t asked_room(const struct env *env, const struct asked *t)
{
	uint64_t most = env->profile[t->leg].rcv_limit_bytes;

	return most - min_u64(most, stream_held(&end_peer(&t->end)->snd));
}

bool asked_has(const struct env *env, const struct asked *t, enum end_question type)
{
	return asker_of(env, t)->has & 1u << type;
}

static void fill_segment(struct end_ask *ask, const struct pkt *pkt)
{
	uint32_t len = min_u32(pkt->payload_len, END_ASK_PAYLOAD);

	ask->came = (struct end_ask_segment){.there = 1,
					     .flags = pkt->flags & ASKED_FLAGS,
					     .seq = pkt->seq,
					     .ack = pkt->ack,
					     .wnd = pkt->wnd,
					     .mss = pkt->mss,
					     .len = len};
	if (len)
		memcpy(ask->payload, pkt->payload, len);
}

static void fill(struct asker *a, const struct env *env, const struct asked *t, uint32_t type,
		 const struct pkt *pkt)
{
	const struct end_profile *profile = &env->profile[t->leg];
	const struct ends *ends = end_ends(&t->end);
	struct end_ask *ask = &a->ask;

	ask->type = type;
	ask->failed = 0;
	ask->handle = t->handle;
	ask->now_ns = a->now_ns;
	ask->head = t->snd.head;
	ask->tail = t->snd.tail;
	ask->received = t->received;
	ask->room = asked_room(env, t);
	ask->finished = t->finished;
	ask->first_number = end_first_number(env, &t->end, a->now_ns);
	ask->mss = asked_mss(t);
	ask->syn_retries = profile->syn_retries;
	ask->retries = profile->retries;
	ask->family = ends->f.pair.family;
	ask->came.there = 0;
	if (pkt)
		fill_segment(ask, pkt);
	ask->answer = (struct end_answer){.una = t->snd_una,
					  .nxt = t->snd_nxt,
					  .deadline_ns = t->deadline_ns,
					  .phase = t->phase,
					  .peer_finished = t->peer_finished};
}

bool asked_question(struct env *env, struct asked *t, enum end_question type, const struct pkt *pkt,
		    struct end_answer *answer)
{
	struct asker *a = asker_of(env, t);
	const char *what = end_question_name(type);
	bool idle = turns_begin(&a->turns), answered;

	if (idle)
		fill(a, env, t, type, pkt);
	answered = idle && turns_wait(&a->turns);
	if (!answered) {
		turns_tell(&a->turns, a->guard.why, sizeof(a->guard.why), what, idle);
		__atomic_store_n(&a->guard.off, 1, __ATOMIC_RELEASE);
		a->failed = true;
	} else if (a->ask.failed) {
		snprintf(a->guard.why, sizeof(a->guard.why), "%.*s", END_WHY_BYTES - 1, a->ask.why);
		a->failed = true;
	} else {
		*answer = a->ask.answer;
	}
	turns_over(&a->turns);
	return answered && !a->failed;
}

/* ---- for the worker ---- */

const char *end_question_name(uint32_t type)
{
	static const char *const names[END_QUESTIONS] = {"open", "input", "output", "timer",
							 "room", "probe", "reset",  "release"};

	return type < END_QUESTIONS ? names[type] : "?";
}

struct end_ask *end_asker_next(struct end_guard *guard)
{
	struct asker *a = guard->arg;

	return turns_next(&a->turns) ? &a->ask : NULL;
}

uint64_t end_asker_ends(const struct end_guard *guard)
{
	const struct asker *a = guard->arg;

	return __atomic_load_n(&a->ends, __ATOMIC_RELAXED);
}

void end_asker_end(struct end_guard *guard)
{
	struct asker *a = guard->arg;

	turns_end(&a->turns);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* ask.c: see ask.h. */
#include "ask.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "turns.h"

struct cc_asker {
	struct cc_guard guard;
	struct turns turns;
	uint64_t handles;
	uint64_t connections; /* atomic */
	struct cc_ask ask;
};

static void fill(struct cc_ask *ask, const struct cc *cc, const struct cc_call *call)
{
	ask->type = call->type;
	ask->failed = 0;
	ask->handle = cc->priv[0];
	ask->now_ns = call->now_ns;
	ask->idle_ns = call->idle_ns;
	ask->cwnd_bytes = cc->cwnd_bytes;
	ask->pacing_Bps = cc->pacing_Bps;
	ask->spare_bytes = cc->spare_bytes;
	ask->inflight_bytes = cc->inflight_bytes;
	ask->srtt_ns = cc->srtt_ns;
	ask->min_rtt_ns = cc->min_rtt_ns;
	ask->spare = cc->spare;
	ask->mss = cc->mss;
	ask->in_recovery = cc->in_recovery;
	if (call->sample)
		ask->sample = *call->sample;
}

static void take_over(struct cc *cc, const struct cc_ask *ask)
{
	cc->cwnd_bytes = ask->cwnd_bytes;
	cc->pacing_Bps = ask->pacing_Bps;
	cc->spare_bytes = ask->spare_bytes;
	cc->spare = ask->spare;
}

/* A connection has ended. Nobody waits for that: a hundred thousand may end at once. Returns
 * whether it is noted; else there is no room until the worker has seen those before. */
static bool note_release(struct cc_asker *a, uint64_t handle)
{
	bool noted = false;

	if (turns_begin(&a->turns) && a->ask.released_n < CC_ASK_RELEASED) {
		a->ask.released[a->ask.released_n++] = handle;
		noted = a->ask.released_n < CC_ASK_RELEASED;
	}
	turns_over(&a->turns);
	return noted;
}

static uint32_t put(struct cc_guard *g, struct cc *cc, const struct cc_call *call)
{
	struct cc_asker *a = g->arg;
	bool answered = false, idle;

	if (call->type == CC_INIT)
		__atomic_fetch_add(&a->connections, 1, __ATOMIC_RELAXED);
	else if (call->type == CC_RELEASE)
		__atomic_fetch_sub(&a->connections, 1, __ATOMIC_RELAXED);
	if (call->type == CC_RELEASE && note_release(a, cc->priv[0]))
		return 1;
	idle = turns_begin(&a->turns);
	if (idle) {
		if (call->type == CC_INIT)
			cc->priv[0] = ++a->handles;
		fill(&a->ask, cc, call);
		answered = turns_wait(&a->turns);
	}
	if (answered && a->ask.failed)
		snprintf(g->why, sizeof(g->why), "%.*s", CC_WHY_BYTES - 1, a->ask.why);
	else if (answered && call->type != CC_RELEASE)
		take_over(cc, &a->ask);
	else
		turns_tell(&a->turns, g->why, sizeof(g->why), cc_call_name(call->type), idle);
	if (!answered)
		__atomic_store_n(&g->off, 1, __ATOMIC_RELEASE);
	answered = answered && !a->ask.failed;
	turns_over(&a->turns);
	return answered;
}

struct cc_ask *cc_asker_next(struct cc_guard *guard)
{
	struct cc_asker *a = guard->arg;

	return turns_next(&a->turns) ? &a->ask : NULL;
}

uint64_t cc_asker_connections(const struct cc_guard *guard)
{
	const struct cc_asker *a = guard->arg;

	return __atomic_load_n(&a->connections, __ATOMIC_RELAXED);
}

void cc_asker_end(struct cc_guard *guard)
{
	struct cc_asker *a = guard->arg;

	turns_end(&a->turns);
}

struct cc_guard *cc_asker_create(const char *name, uint32_t has, uint64_t patience_ns)
{
	struct cc_asker *a = calloc(1, sizeof(*a));

	if (!a)
		return NULL;
	turns_init(&a->turns, patience_ns);
	a->guard.call = put;
	a->guard.arg = a;
	a->guard.has = has;
	cc_guard_init(&a->guard, name, &cc_cubic);
	return &a->guard;
}

void cc_asker_destroy(struct cc_guard *guard)
{
	struct cc_asker *a = guard->arg;

	turns_deinit(&a->turns);
	free(a);
}

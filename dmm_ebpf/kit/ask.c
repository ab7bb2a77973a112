/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ask.c: see ask.h. Invariant: ask belongs to the worker while state is TAKEN, to who asks
 * otherwise; after GIVEN_UP or ENDED nobody asks.
 */
#include "ask.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define NS_PER_S 1000000000ull
#define NS_PER_MS 1000000ull

enum state { IDLE, ASKED, TAKEN, ANSWERED, GIVEN_UP, ENDED };

struct cc_asker {
	struct cc_guard guard;
	pthread_mutex_t lock;
	pthread_cond_t turn; /* state has changed */
	enum state state;
	uint64_t patience_ns;
	uint64_t handles;
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

/* Returns whether an answer came in time. Under the lock. */
static bool wait_for_answer(struct cc_asker *a)
{
	struct timespec until;
	uint64_t ns;

	clock_gettime(CLOCK_MONOTONIC, &until);
	ns = (uint64_t)until.tv_nsec + a->patience_ns;
	until.tv_sec += (time_t)(ns / NS_PER_S);
	until.tv_nsec = (long)(ns % NS_PER_S);
	while (a->state == ASKED || a->state == TAKEN) {
		if (pthread_cond_timedwait(&a->turn, &a->lock, &until))
			return a->state == ANSWERED;
	}
	return a->state == ANSWERED;
}

/* A connection has ended. Nobody waits for that: a hundred thousand may end at once. Returns
 * whether it is noted; else there is no room until the worker has seen those before. */
static bool note_release(struct cc_asker *a, uint64_t handle)
{
	bool noted = false;

	pthread_mutex_lock(&a->lock);
	if (a->state == IDLE && a->ask.released_n < CC_ASK_RELEASED) {
		a->ask.released[a->ask.released_n++] = handle;
		noted = a->ask.released_n < CC_ASK_RELEASED;
	}
	pthread_mutex_unlock(&a->lock);
	return noted;
}

static uint32_t put(struct cc_guard *g, struct cc *cc, const struct cc_call *call)
{
	struct cc_asker *a = g->arg;
	bool answered = false, ended;

	if (call->type == CC_RELEASE && note_release(a, cc->priv[0]))
		return 1;
	pthread_mutex_lock(&a->lock);
	ended = a->state != IDLE;
	if (!ended) {
		if (call->type == CC_INIT)
			cc->priv[0] = ++a->handles;
		fill(&a->ask, cc, call);
		a->state = ASKED;
		pthread_cond_broadcast(&a->turn);
		answered = wait_for_answer(a);
		a->state = answered ? IDLE : GIVEN_UP;
	}
	if (answered && a->ask.failed)
		snprintf(g->why, sizeof(g->why), "%.*s", CC_WHY_BYTES - 1, a->ask.why);
	else if (answered && call->type != CC_RELEASE)
		take_over(cc, &a->ask);
	else
		snprintf(g->why, sizeof(g->why),
			 ended ? "%s cannot be called: its thread has ended"
			       : "%s did not return within %llu ms",
			 cc_call_name(call->type),
			 (unsigned long long)(a->patience_ns / NS_PER_MS));
	if (!answered)
		__atomic_store_n(&g->off, 1, __ATOMIC_RELEASE);
	answered = answered && !a->ask.failed;
	pthread_mutex_unlock(&a->lock);
	return answered;
}

struct cc_ask *cc_asker_next(struct cc_guard *guard)
{
	struct cc_asker *a = guard->arg;
	struct cc_ask *next = NULL;

	pthread_mutex_lock(&a->lock);
	if (a->state == TAKEN) {
		a->state = ANSWERED;
		pthread_cond_broadcast(&a->turn);
	}
	while (a->state == IDLE || a->state == ANSWERED)
		pthread_cond_wait(&a->turn, &a->lock);
	if (a->state == ASKED) {
		a->state = TAKEN;
		next = &a->ask;
	}
	pthread_mutex_unlock(&a->lock);
	return next;
}

void cc_asker_end(struct cc_guard *guard)
{
	struct cc_asker *a = guard->arg;

	pthread_mutex_lock(&a->lock);
	if (a->state != GIVEN_UP)
		a->state = ENDED;
	pthread_cond_broadcast(&a->turn);
	pthread_mutex_unlock(&a->lock);
}

struct cc_guard *cc_asker_create(const char *name, uint32_t has, uint64_t patience_ns)
{
	struct cc_asker *a = calloc(1, sizeof(*a));
	pthread_condattr_t attr;

	if (!a)
		return NULL;
	pthread_mutex_init(&a->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&a->turn, &attr);
	pthread_condattr_destroy(&attr);
	a->patience_ns = patience_ns;
	a->guard.call = put;
	a->guard.arg = a;
	a->guard.has = has;
	cc_guard_init(&a->guard, name, &cc_cubic);
	return &a->guard;
}

void cc_asker_destroy(struct cc_guard *guard)
{
	struct cc_asker *a = guard->arg;

	pthread_mutex_destroy(&a->lock);
	pthread_cond_destroy(&a->turn);
	free(a);
}

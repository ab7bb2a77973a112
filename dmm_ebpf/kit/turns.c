/* SPDX-License-Identifier: Apache-2.0 */
/*
 * turns.c: see turns.h. Invariant: the question belongs to the worker while turn is TURN_TAKEN, to
 * who asks otherwise; after TURN_GIVEN_UP or TURN_ENDED nobody asks.
 */
#include "turns.h"

#include <stdio.h>
#include <time.h>
#include "../userstack/core/units.h"

void turns_init(struct turns *t, uint64_t patience_ns)
{
	pthread_condattr_t attr;

	pthread_mutex_init(&t->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&t->moved, &attr);
	pthread_condattr_destroy(&attr);
	t->turn = TURN_IDLE;
	t->patience_ns = patience_ns;
}

void turns_deinit(struct turns *t)
{
	pthread_mutex_destroy(&t->lock);
	pthread_cond_destroy(&t->moved);
}

bool turns_begin(struct turns *t)
{
	pthread_mutex_lock(&t->lock);
	return t->turn == TURN_IDLE;
}

bool turns_wait(struct turns *t)
{
	struct timespec until;
	uint64_t ns;
	bool answered;
	int late = 0;

	t->turn = TURN_ASKED;
	pthread_cond_broadcast(&t->moved);
	clock_gettime(CLOCK_MONOTONIC, &until);
	ns = (uint64_t)until.tv_nsec + t->patience_ns;
	until.tv_sec += (time_t)(ns / NS_PER_S);
	until.tv_nsec = (long)(ns % NS_PER_S);
	while (!late && (t->turn == TURN_ASKED || t->turn == TURN_TAKEN))
		late = pthread_cond_timedwait(&t->moved, &t->lock, &until);
	answered = t->turn == TURN_ANSWERED;
	t->turn = answered ? TURN_IDLE : TURN_GIVEN_UP;
	return answered;
}

void turns_over(struct turns *t)
{
	pthread_mutex_unlock(&t->lock);
}

void turns_tell(const struct turns *t, char *why, uint32_t bytes, const char *what, bool asked)
{
	if (asked)
		snprintf(why, bytes, "%s did not return within %llu ms", what,
			 (unsigned long long)(t->patience_ns / NS_PER_MS));
	else
		snprintf(why, bytes, "%s cannot be called: its thread has ended", what);
}

bool turns_next(struct turns *t)
{
	bool asked;

	pthread_mutex_lock(&t->lock);
	if (t->turn == TURN_TAKEN) {
		t->turn = TURN_ANSWERED;
		pthread_cond_broadcast(&t->moved);
	}
	while (t->turn == TURN_IDLE || t->turn == TURN_ANSWERED)
		pthread_cond_wait(&t->moved, &t->lock);
	asked = t->turn == TURN_ASKED;
	if (asked)
		t->turn = TURN_TAKEN;
	pthread_mutex_unlock(&t->lock);
	return asked;
}

void turns_end(struct turns *t)
{
	pthread_mutex_lock(&t->lock);
	if (t->turn != TURN_GIVEN_UP)
		t->turn = TURN_ENDED;
	pthread_cond_broadcast(&t->moved);
	pthread_mutex_unlock(&t->lock);
}

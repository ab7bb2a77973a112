/* SPDX-License-Identifier: Apache-2.0 */
/*
 * turns.h: one asks, another answers: who asks never waits longer than its patience, and a worker
 * that does not answer in time is given up for good.
 *
 * Who asks writes the question between turns_begin() and turns_wait(), and reads the answer between
 * that and turns_over(); the worker has it between two turns_next().
 */
#ifndef DMM_KIT_TURNS_H
#define DMM_KIT_TURNS_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

enum turn { TURN_IDLE, TURN_ASKED, TURN_TAKEN, TURN_ANSWERED, TURN_GIVEN_UP, TURN_ENDED };

struct turns {
	pthread_mutex_t lock;
	pthread_cond_t moved; /* turn has changed */
	enum turn turn;
	uint64_t patience_ns;
};

void turns_init(struct turns *t, uint64_t patience_ns);
/* When no worker is in turns_next() */
void turns_deinit(struct turns *t);

/* Takes the lock. false: nobody answers any more. turns_over() must follow. */
bool turns_begin(struct turns *t);
/* Asks, and waits. false: it takes too long, and nobody is asked any more. */
bool turns_wait(struct turns *t);
/* Lets the lock go */
void turns_over(struct turns *t);
/* How a question that was not answered ended; asked: what turns_begin() said */
void turns_tell(const struct turns *t, char *why, uint32_t bytes, const char *what, bool asked);

/* For the worker: the last question is answered; waits for the next. false: there will be none. */
bool turns_next(struct turns *t);
/* There will be none. */
void turns_end(struct turns *t);

#endif /* DMM_KIT_TURNS_H */

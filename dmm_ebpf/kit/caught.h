/* SPDX-License-Identifier: Apache-2.0 */
/*
 * caught.h: calls of a shared object of somebody else's that do not end the process.
 *
 * A call that is ended by a signal of its own making (SIGSEGV, SIGBUS, SIGFPE, SIGILL), or that
 * does not come back, is left by siglongjmp(3). It is left where it may be: while the foreign code
 * itself runs, or what it has called but for our own functions, which are let come to their end
 * first. What runs them when a signal of the first kind comes is left at once.
 */
#ifndef DMM_KIT_CAUGHT_H
#define DMM_KIT_CAUGHT_H

#include <pthread.h>
#include <stdint.h>

/* Code from one address to before another */
struct code {
	uintptr_t from;
	uintptr_t to;
};

/* An object that is called; of one thread at a time */
struct caught {
	struct code code;
	pthread_t thread; /* that is in a call, or was last */
	uint32_t depth;	  /* of calls within each other */
	uint64_t calls;	  /* odd: it is in one */
	uint64_t seen;	  /* calls, when it was last looked at */
	uint64_t ended;	  /* calls, as of the one that is not to go on */
};

/* inside: an address within the object. */
void caught_init(struct caught *c, const void *inside);
/* what(arg). Returns 0, or which signal has ended it. */
int caught_call(struct caught *c, void (*what)(void *), void *arg);
/* To be called now and then, from another thread: a call that was there the last time, and still
 * is, ends. */
void caught_look(struct caught *c);
/* Writes into why how the call of what, which gave number, has ended */
void caught_tell(char *why, uint32_t bytes, const char *what, int number);

#endif /* DMM_KIT_CAUGHT_H */

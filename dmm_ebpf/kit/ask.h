/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ask.h: a congestion control that another thread computes, as one written in Python.
 *
 * Who runs connections never waits for it longer than its patience: a call is a question, copied,
 * to a worker that takes it, answers, and takes the next. A worker that does not answer in time is
 * given up for good: its guard is off, and what it may still write goes to a question that nobody
 * reads.
 *
 * Text below is read by cffi, which strips lines that start with '#'.
 */
#ifndef DMM_KIT_ASK_H
#define DMM_KIT_ASK_H

#include "../userstack/core/cc/cc_guard.h"

struct cc_asker;

/* So many connections may have ended before the worker is told */
enum { CC_ASK_RELEASED = 64 };

/* A question. The worker changes cwnd_bytes, pacing_Bps, spare and spare_bytes, or sets failed and
 * why; it forgets the connections that are released, and sets their number to 0. */
struct cc_ask {
	uint32_t type; /* enum cc_call_type; CC_RELEASE: there is nothing else to do */
	uint32_t failed;
	uint64_t handle; /* of the connection; not 0 */
	uint64_t now_ns;
	uint64_t idle_ns;
	uint64_t cwnd_bytes; /* these and what follows: of struct cc */
	uint64_t pacing_Bps;
	uint64_t spare_bytes;
	uint64_t inflight_bytes;
	uint64_t srtt_ns;
	uint64_t min_rtt_ns;
	uint32_t spare;
	uint32_t mss;
	uint32_t in_recovery;
	uint32_t pad;
	struct cc_sample sample;
	char why[CC_WHY_BYTES];
	uint32_t released_n;
	uint32_t pad2;
	uint64_t released[CC_ASK_RELEASED]; /* handles */
};

/* has: bits of enum cc_call_type that the worker is asked; CC_INIT and CC_RELEASE are among them.
 * NULL: no memory. */
struct cc_guard *cc_asker_create(const char *name, uint32_t has, uint64_t patience_ns);
/* When no connection has it and no worker is in cc_asker_next(). */
void cc_asker_destroy(struct cc_guard *guard);

/* For the worker: the last question is answered; waits for the next. NULL: there will be none. */
struct cc_ask *cc_asker_next(struct cc_guard *guard);
/* How many connections have it */
uint64_t cc_asker_connections(const struct cc_guard *guard);

/* There will be none. */
void cc_asker_end(struct cc_guard *guard);

#endif /* DMM_KIT_ASK_H */

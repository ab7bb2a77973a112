/* SPDX-License-Identifier: Apache-2.0 */
/*
 * verdict.h: the one invariant of every simulation, judged connection by connection from what the
 * two apps saw: the streams arrived exactly, or an app was told of an error. Anything else is a
 * fault of the core (or of the laboratory).
 */
#ifndef SIM_VERDICT_H
#define SIM_VERDICT_H

#include "kern.h"

#include <stdio.h>

struct verdicts {
	uint64_t complete; /* both streams whole, both ends told so */
	uint64_t errors;   /* an app saw an errno */
	uint64_t aborted;  /* an app reset it on purpose, and the other has seen no error yet */
	uint64_t wrong;	   /* segments with bytes that nobody sent there */
	/* the end of the stream came early, or late: not where the sender put it */
	uint64_t truncated;
	uint64_t hung; /* an app still waits at the end of the simulation */
};

static inline bool verdict_is_over(const struct ksock *a, const struct ksock *b)
{
	return a->state == K_DONE && (b->state == K_DONE || b->state == K_CLOSED);
}

static inline bool verdict_truncated(const struct ksock *reader, const struct ksock *writer)
{
	return reader->fin_got && !reader->stale &&
	       !(writer->fin_put && reader->got == writer->fin_at);
}

static inline void verdict_add(struct verdicts *n, const struct ksock *a, const struct ksock *b)
{
	bool whole = a->fin_got && b->fin_got && !a->aborted && !b->aborted && !b->stale;

	n->wrong += a->mismatch + b->mismatch;
	if (verdict_truncated(a, b) || verdict_truncated(b, a))
		n->truncated++;
	else if (!verdict_is_over(a, b))
		n->hung++;
	else if (a->error || b->error)
		n->errors++;
	else if (whole)
		n->complete++;
	else if (a->aborted || b->aborted)
		n->aborted++;
	else
		n->truncated++;
}

static inline void verdict_print(const struct verdicts *n)
{
	printf("complete=%lu\nerrors=%lu\naborted=%lu\nwrong=%lu\ntruncated=%lu\nhung=%lu\n",
	       n->complete, n->errors, n->aborted, n->wrong, n->truncated, n->hung);
}

#endif /* SIM_VERDICT_H */

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cc_guard.h: a congestion control of somebody else's, with every answer checked.
 *
 * A connection is given guard->ops, which call the plug-in by guard->call and look at what it has
 * set. What fails, or sets nonsense, is a fault: it is counted, the first one's sentence is kept,
 * and its connection goes on by guard->safe from the window that it had. Built-in controls are
 * called without any of this.
 *
 * Text below is read by cffi, which strips lines that start with '#'.
 */
#ifndef DMM_CC_GUARD_H
#define DMM_CC_GUARD_H

#include "cc.h"

enum cc_call_type {
	CC_INIT = 0,
	CC_ON_ACK,
	CC_ON_ENTER_RECOVERY,
	CC_ON_EXIT_RECOVERY,
	CC_ON_RTO,
	CC_ON_RESTART,
	CC_ON_UNDO,
	CC_RELEASE,
	CC_CALLS
};

/* One call of a function of struct cc_ops */
struct cc_call {
	uint32_t type; /* enum cc_call_type */
	uint32_t pad;
	uint64_t now_ns;		/* 0: of CC_RELEASE */
	uint64_t idle_ns;		/* of CC_ON_RESTART */
	const struct cc_sample *sample; /* of CC_ON_ACK */
};

enum { CC_WHY_BYTES = 200, CC_NAME_BYTES = 16 };

struct cc_guard {
	struct cc_ops ops; /* what connections have */
	char name[CC_NAME_BYTES];
	/* Does the call. Returns 1, or 0: it failed, and why says how */
	uint32_t (*call)(struct cc_guard *guard, struct cc *cc, const struct cc_call *call);
	void *arg; /* of call */
	/* bit CC_x: the plug-in has that function; what it has not is done by cc_guard.c */
	uint32_t has;
	uint32_t off; /* 1: it is not called any more */
	const struct cc_ops *safe;
	uint64_t faults;
	uint64_t fallen;	  /* connections that went on by safe */
	char why[CC_WHY_BYTES];	  /* of the fault that is being told of */
	char first[CC_WHY_BYTES]; /* of the first one; empty: there was none */
};

/* name: as listings show it, cut to what fits. call, arg and has are set by the caller before. */
void cc_guard_init(struct cc_guard *guard, const char *name, const struct cc_ops *safe);

/* The guard of a connection that has guard->ops */
struct cc_guard *cc_guard_of(const struct cc *cc);

/* The name of a function of struct cc_ops */
const char *cc_call_name(uint32_t type);

/* Which functions ops has, as bits of enum cc_call_type */
uint32_t cc_ops_has(const struct cc_ops *ops);

/* Calls a function of ops, if it is there */
void cc_ops_call(const struct cc_ops *ops, struct cc *cc, const struct cc_call *call);

#endif /* DMM_CC_GUARD_H */

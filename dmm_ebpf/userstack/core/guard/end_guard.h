/* SPDX-License-Identifier: Apache-2.0 */
/*
 * end_guard.h: a transport of somebody else's, with every call of it checked.
 *
 * Connections are given guard->ops, which call the plug-in by guard->call and look at what it
 * leaves. What fails, or leaves nonsense, is a fault: it is counted, the first one's sentence is
 * kept, and the end is broken: the plug-in is not called for it any more, and in the core's next
 * turn its connection ends with an error. One that is off is called for none of its ends, which all
 * end so; connections to come are TCP's. Built-in transports are called without any of this.
 *
 * Idle connections of a plug-in are not put away, and it has no SYN cookies.
 *
 * Text below is read by cffi, which strips lines that start with '#'.
 */
#ifndef DMM_END_GUARD_H
#define DMM_END_GUARD_H

#include <stdint.h>

struct end;
struct end_ops;
struct env;
struct pkt;
struct dmm_tx_meta;
struct dmm_conn_info;

/* The functions of struct end_ops that are called through a guard */
enum end_call_type {
	END_CALL_INIT = 0,
	END_CALL_OPEN,
	END_CALL_GO,
	END_CALL_INPUT,
	END_CALL_OUTPUT,
	END_CALL_TIMER,
	END_CALL_ABORT,
	END_CALL_INFO,
	END_CALL_FINISH,
	END_CALL_ROOM,
	END_CALL_PASSED,
	END_CALL_WANTS,
	END_CALL_ASK,
	END_CALL_NEEDED, /* those above must be there */
	END_CALL_HEARD = END_CALL_NEEDED,
	END_CALL_URGENT,
	END_CALL_PATH,
	END_CALL_ICMP,
	END_CALL_IS_NEWER,
	END_CALL_EDGE,
	END_CALLS
};

/* One call; what a function does not take is 0 */
struct end_call {
	uint32_t type; /* enum end_call_type */
	uint32_t what; /* enum end_abort, or enum end_path */
	struct env *env;
	struct end *e;
	const struct pkt *pkt;
	uint64_t now_ns;
	uint8_t *buf;
	uint64_t cap;
	struct dmm_tx_meta *meta;
	struct dmm_conn_info *info;
	uint64_t result; /* what it returned */
};

enum { END_WHY_BYTES = 200, END_NAME_BYTES = 16 };

struct end_guard {
	const struct end_ops *ops; /* what connections have */
	const struct end_ops *own; /* the plug-in's */
	char name[END_NAME_BYTES];
	/* Does the call. Returns 1, or 0: it failed, and why says how */
	uint32_t (*call)(struct end_guard *guard, struct end_call *call);
	/* A broken end is freed, of which the plug-in is not told. NULL: nothing is to be done */
	void (*forget)(struct end_guard *guard, struct env *env, struct end *e);
	void *arg;    /* of both */
	uint32_t off; /* 1: it is not called any more */
	uint32_t pad;
	uint64_t faults;
	uint64_t fallen;	   /* connections that ended by them */
	char why[END_WHY_BYTES];   /* of the fault that is being told of */
	char first[END_WHY_BYTES]; /* of the first one; empty: there was none */
};

/*
 * name: as listings show it, cut to what fits. own, call and arg are set by the caller before.
 * Returns 0: out of memory.
 */
uint32_t end_guard_init(struct end_guard *guard, const char *name);
/* When no core has its ops any more */
void end_guard_deinit(struct end_guard *guard);

/* The guard of an end that has a guard's ops */
struct end_guard *end_guard_of(const struct env *env, const struct end *e);

/* The name of a function of struct end_ops */
const char *end_call_name(uint32_t type);

/* The first function that ops lacks and must have; NULL: there is none */
const char *end_ops_lack(const struct end_ops *ops);

/* Calls a function of ops, if it is there */
void end_ops_call(const struct end_ops *ops, struct end_call *call);

#endif /* DMM_END_GUARD_H */

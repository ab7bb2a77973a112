/* SPDX-License-Identifier: Apache-2.0 */
/*
 * end.h: the seam between an end of a connection (a transport, tcp.h) and who owns connections
 * (relay.c): what an end tells. What it can be told are the functions of tcp.h.
 *
 * Whoever is told may call tcp_abort() and tcp_go() for both ends meanwhile, and mark the
 * connection dead (CONN_DEAD), so an end looks at what is left of it when the call returns. Memory
 * stays until the core's turn is over, but for quiet().
 */
#ifndef DMM_END_H
#define DMM_END_H

#include <stdbool.h>
#include <stdint.h>

struct env;
struct tcb;

/* What kind of peer the ends of one leg speak to, in numbers */
struct end_profile {
	uint64_t max_rto_ns;
	uint64_t time_wait_ns;
	uint64_t keepalive_ns;	 /* of silence, before it is asked whether it is there */
	uint64_t half_closed_ns; /* likewise, once its stream has ended */
	/* the most that is received of it and not yet acknowledged on the other leg */
	uint64_t rcv_limit_bytes;
	uint32_t syn_retries; /* of a SYN; those of a SYN-ACK are the same for all */
	uint32_t retries;
	uint32_t orphan_retries; /* once the other end is closed or in TIME-WAIT */
};

struct end_events {
	/*
	 * The handshake of this end is done. true: it may go on; false: it is held until tcp_go()
	 */
	bool (*established)(struct env *env, struct tcb *t);
	/* Its peer has ended it: error is an errno, 0: none that an app would see */
	void (*reset)(struct env *env, struct tcb *t, uint32_t error, uint64_t now_ns);
	/* A timer has run out of retries, and the end waits for tcp_abort(). unanswered: there is a
	 * SYN that one of both ends was never allowed to answer. */
	void (*gave_up)(struct env *env, struct tcb *t, bool unanswered, uint64_t now_ns);
	/* It is in TIME-WAIT or closed, and has nothing more to send */
	void (*closed)(struct env *env, struct tcb *t);
	/* Nothing has come for park_ns. true: both ends were put away, t is void */
	bool (*quiet)(struct env *env, struct tcb *t, uint64_t now_ns);
};

#endif /* DMM_END_H */

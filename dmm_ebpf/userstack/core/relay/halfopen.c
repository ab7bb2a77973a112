/* SPDX-License-Identifier: Apache-2.0 */
/*
 * halfopen.c: connections that a remote peer has begun and not yet made sure of: its ACK of our
 * SYN-ACK is missing.
 *
 * Owns the list of them, oldest first, and its length. A connection is in it from the peer's SYN
 * until the outer leg is established or the connection ends.
 *
 * Invariant: no more than half_open_max are in it. What is beyond is for SYN cookies
 * (struct end_cookies), or, without them, takes the place of the oldest: a peer that exists answers
 * within a round trip, so the oldest is the one most likely forged (RFC 4987 section 3.4).
 */
#include "core.h"

bool halfopen_full(const struct dmm_core *core)
{
	return core->n_half_open >= core->env.cfg.half_open_max;
}

/* Silent towards the peer, which most likely does not exist. The kernel's half of it would keep a
 * place in the listen queue for a minute: it is reset. */
static void drop(struct dmm_core *core, struct conn *c, uint64_t now_ns)
{
	conn_abort(core, conn_end(c, DMM_LEG_INNER), END_ABORT_APART, now_ns);
	core->env.counters[DMM_CORE_HALF_OPEN_DROPPED]++;
	conn_kill(core, c, ECONNABORTED);
}

void halfopen_enter(struct dmm_core *core, struct conn *c, uint64_t now_ns)
{
	while (halfopen_full(core))
		drop(core, container_of(core->half_open.next, struct conn, queued), now_ns);
	c->ends.f.half_open = true;
	core->n_half_open++;
	list_add_tail(&core->half_open, &c->queued);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * halfopen.c: connections that a remote peer has begun and not yet made sure of: its ACK of our SYN-ACK is
 * missing.
 *
 * Owns the list of them, oldest first, and its length. A connection is in it from the peer's SYN until the
 * outer leg is established or the connection ends.
 *
 * Invariant: no more than half_open_max are in it. What is beyond is for SYN cookies (cookie.c), or, without
 * them, takes the place of the oldest: a peer that exists answers within a round trip, so the oldest is the
 * one most likely forged (RFC 4987 section 3.4).
 */
#include "core.h"

bool halfopen_full(const struct dmm_core *core)
{
	return core->n_half_open >= core->cfg.half_open_max;
}

void halfopen_leave(struct dmm_core *core, struct conn *c)
{
	if (!c->half_open)
		return;
	c->half_open = false;
	core->n_half_open--;
	list_del(&c->queued);
}

/* Silent towards the peer, which most likely does not exist. The kernel's half of it would keep a place in
 * the listen queue for a minute: it is reset. */
static void drop(struct dmm_core *core, struct conn *c)
{
	const struct tcb *inner = &c->leg[DMM_LEG_INNER];
	bool answered = inner->state == TCP_ESTABLISHED;
	struct wire_seg rst = {.flags = TH_RST, .seq = inner->iss + 1};
	struct wire_dir dir;

	if (answered || (inner->state == TCP_SYN_SENT && inner->snd_nxt)) {
		if (answered) {
			rst.flags |= TH_ACK;
			rst.ack = inner->irs + (uint32_t)inner->rcv_nxt;
		}
		ctl_dir(&c->pair, DMM_LEG_INNER, &dir);
		ctl_push_tcp(core, DMM_LEG_INNER, c->link, &dir, &rst);
	}
	core->counters[DMM_CORE_HALF_OPEN_DROPPED]++;
	conn_kill(core, c, ECONNABORTED);
}

void halfopen_enter(struct dmm_core *core, struct conn *c)
{
	while (halfopen_full(core))
		drop(core, container_of(core->half_open.next, struct conn, queued));
	c->half_open = true;
	core->n_half_open++;
	list_add_tail(&core->half_open, &c->queued);
}

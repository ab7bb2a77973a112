/* SPDX-License-Identifier: Apache-2.0 */
/*
 * core.h: the core's own view of itself: struct dmm_core, struct conn, and what the files of the
 * relay call of each other. Nothing outside core/ includes it, except tests that look inside.
 *
 * A conn has two legs, an end (end.h) each: the inner one faces the host's kernel, the outer one
 * the path. What an end is made of only its transport knows; relay.c says what an event on one leg
 * means for the other.
 */
#ifndef DMM_CORE_H
#define DMM_CORE_H

#include <errno.h>

#include "../api.h"
#include "../wire/ctl.h"
#include "../base/env.h"
#include "../base/flow.h"
#include "../wire/fragment.h"
#include "../end.h"
#include "../base/util.h"
#include "../wire/wire.h"

/* What both ends keep lies behind it: conn_bytes() in all */
struct conn {
	struct ends ends;   /* first: its row is all that there is of a parked one */
	struct list queued; /* reap, time_wait or half_open list */
	bool time_wait;	    /* in core.time_wait */
};

enum { HANDLE_SLOT_BITS = 24 };

struct udp_copies;

struct action_queue {
	struct dmm_action *v;
	uint32_t cap; /* power of two */
	uint32_t head;
	uint32_t count;
};

struct dmm_core {
	struct env env;		       /* all that the layers below are given */
	struct end_profile profile[2]; /* by leg */
	struct fragments *fragments;
	struct udp_copies *copies;   /* of datagrams; NULL: they were never allowed */
	uint8_t transport;	     /* of outer ends from now on, a place in env.ops */
	uint8_t cookie_transport;    /* by which the latest SYN cookie was made */
	uint32_t by[ENV_TRANSPORTS]; /* connections, by their outer end's transport */
	uint32_t room_bytes;	     /* of the largest connection that there can be */
	struct conn *looked_at;	     /* room for a copy of one */
	uint8_t *squeezed;	     /* room for what park.c writes down of one */
	struct wheel park_wheel;     /* of parked connections */
	uint64_t park_next_ns;	     /* no later than the first deadline in it */
	uint32_t n_parked;
	uint64_t secret[2];
	struct conn **slots; /* by handle */
	uint32_t *free_slots;
	uint8_t *slot_gen; /* makes a handle of a reused slot differ */
	uint32_t *live;	   /* slots in use, dense */
	uint32_t n_live;
	uint32_t *buckets; /* slot + 1; 0: empty */
	uint32_t bucket_mask;
	struct list reap;
	struct list time_wait; /* oldest first */
	uint32_t n_time_wait;
	struct list half_open; /* oldest first */
	uint32_t n_half_open;
	struct ctl_queue ctl[2];
	struct action_queue actions;
};

static inline struct dmm_core *env_core(struct env *env)
{
	return container_of(env, struct dmm_core, env);
}

static inline struct conn *end_conn(const struct end *e)
{
	return container_of(end_ends(e), struct conn, ends);
}

static inline struct end *conn_end(const struct conn *c, uint32_t leg)
{
	return ends_end(&c->ends, leg);
}

/* Of a connection whose outer end has that transport: struct conn and what both ends keep */
static inline uint32_t conn_bytes(const struct dmm_core *core, uint32_t transport)
{
	return (uint32_t)sizeof(struct conn) + core->env.ops[0]->state_bytes +
	       core->env.ops[transport]->state_bytes;
}

/* The place in env.ops of the ends of a leg that are made from now on */
static inline uint8_t core_transport(const struct dmm_core *core, uint32_t leg)
{
	return leg == DMM_LEG_OUTER ? core->transport : 0;
}

static inline void conn_abort(struct dmm_core *core, struct end *e, enum end_abort how,
			      uint64_t now_ns)
{
	end_ops_of(&core->env, e)->abort(&core->env, e, how, now_ns);
}

/* transports.c: which transports there are, and which of them the core has. false: there is none as
 * cfg says, or no memory. */
bool transports_init(struct dmm_core *core);
void transports_deinit(struct dmm_core *core);
/* Outer ends are TCP's from now on */
void transport_fall_back(struct dmm_core *core);

/* datagrams.c: cfg.negotiate has changed */
void datagrams_agree(struct dmm_core *core);
void datagrams_deinit(struct dmm_core *core);
/* When dmm_core_datagram_next() has something; NEVER: nothing is planned */
uint64_t datagrams_due_ns(const struct dmm_core *core);

/* conn.c: the table of connections */
bool conn_table_init(struct dmm_core *core);
void conn_table_deinit(struct dmm_core *core);
/* Wakes it if it is parked; without memory for that it comes back parked */
struct conn *conn_find(struct dmm_core *core, const struct dmm_core_addr_pair *pair);
struct conn *conn_by_handle(struct dmm_core *core, uint32_t handle);
/* By pkt, which says the way and its MTU; its outer end is of that transport. NULL: limit reached;
 * counted */
struct conn *conn_create(struct dmm_core *core, const struct dmm_core_addr_pair *pair,
			 const struct pkt *pkt, uint8_t transport);
/* Marks it for freeing at the end of the API call; error goes into the CLOSED action */
void conn_kill(struct dmm_core *core, struct conn *c, uint32_t error);
void conn_reap(struct dmm_core *core);
/* Frees all without a word to anyone: the core is going to be destroyed */
void conn_forget_all(struct dmm_core *core);
/* c takes over the place in the table of the object that had its handle */
static inline void conn_replace(struct dmm_core *core, struct conn *c)
{
	core->slots[c->ends.f.handle & ((1u << HANDLE_SLOT_BITS) - 1)] = c;
}

void core_action(struct dmm_core *core, uint32_t type, const struct conn *c, uint32_t error);

/* park.c: true: c was quiet and is parked, the pointer is void */
bool conn_park(struct dmm_core *core, struct conn *c, uint64_t now_ns);
/* The connection, awake; NULL: no memory, it stays as it is */
struct conn *conn_wake(struct dmm_core *core, struct conn *parked);
/* What conn_wake() would make, for looking at only */
void conn_unpark_copy(const struct dmm_core *core, struct conn *to, const struct conn *parked);
/* A connection, parked or not, as it is now; good until the next call */
const struct conn *conn_look(const struct dmm_core *core, const struct conn *c);
/* Bytes that squeezed must have for it */
uint32_t park_room(uint32_t conn_bytes);
/* Frees the object; the table still refers to it */
void conn_free_parked(struct dmm_core *core, struct conn *parked);
/* Wakes those with a deadline that is due */
void park_poll(struct dmm_core *core, uint64_t now_ns);

/* halfopen.c: connections whose peer has not ended its handshake */
bool halfopen_full(const struct dmm_core *core);
/* Makes room by dropping the oldest */
void halfopen_enter(struct dmm_core *core, struct conn *c, uint64_t now_ns);
/* Nothing if it is not in there */
static inline void halfopen_leave(struct dmm_core *core, struct conn *c)
{
	if (!c->ends.f.half_open)
		return;
	c->ends.f.half_open = false;
	core->n_half_open--;
	list_del(&c->queued);
}

/* relay.c: what one leg's events mean for the other; the first three are what came in on leg */
void relay_syn(struct dmm_core *core, uint32_t leg, struct conn *old,
	       const struct dmm_core_addr_pair *pair, const struct pkt *pkt, uint64_t now_ns);
/* A segment, not a SYN, of no connection */
void relay_unknown(struct dmm_core *core, uint32_t leg, const struct dmm_core_addr_pair *pair,
		   const struct pkt *pkt, uint64_t now_ns);
void relay_icmp(struct dmm_core *core, uint32_t leg, const struct pkt *pkt, uint64_t now_ns);
void relay_unreachable(struct dmm_core *core, struct conn *c, uint32_t error);
void relay_abort(struct dmm_core *core, struct conn *c, uint32_t error, uint64_t now_ns);
extern const struct end_events relay_events;

#endif /* DMM_CORE_H */

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * conn.c: the table of connections: create, find, free, and the queue of actions.
 *
 * Invariants: a conn is in the hash from conn_create() until conn_reap(); pointers to it stay good
 * until the API call or its timer's turn ends, because conn_kill() only marks it. A handle names
 * one connection: a reused slot gets another generation.
 *
 * Refuses: connections beyond max_connections (the oldest in TIME_WAIT gives way first) or when
 * buffers are nearly full.
 */
#include "core.h"

#include <stdlib.h>

bool conn_table_init(struct dmm_core *core)
{
	uint32_t max = core->env.cfg.max_connections;
	uint32_t n_buckets = pow2_ceil(max);

	core->slots = calloc(max, sizeof(*core->slots));
	core->free_slots = calloc(max, sizeof(*core->free_slots));
	core->slot_gen = calloc(max, sizeof(*core->slot_gen));
	core->live = calloc(max, sizeof(*core->live));
	core->buckets = calloc(n_buckets, sizeof(*core->buckets));
	core->bucket_mask = n_buckets - 1;
	if (!core->slots || !core->free_slots || !core->slot_gen || !core->live || !core->buckets)
		return false;
	for (uint32_t i = 0; i < max; i++)
		core->free_slots[i] = max - 1 - i;
	list_init(&core->reap);
	list_init(&core->time_wait);
	list_init(&core->half_open);
	return true;
}

void conn_table_deinit(struct dmm_core *core)
{
	free(core->slots);
	free(core->free_slots);
	free(core->slot_gen);
	free(core->live);
	free(core->buckets);
	free(core->actions.v);
}

static uint32_t *bucket_of(struct dmm_core *core, const struct dmm_core_addr_pair *pair)
{
	_Static_assert(sizeof(*pair) == 40, "whole words, no padding");
	return &core->buckets[siphash(core->secret, pair, 5) & core->bucket_mask];
}

struct conn *conn_find(struct dmm_core *core, const struct dmm_core_addr_pair *pair)
{
	uint32_t at = *bucket_of(core, pair);

	while (at) {
		struct conn *c = core->slots[at - 1];

		if (!memcmp(&c->ends.f.pair, pair, sizeof(*pair))) {
			struct conn *awake =
				unlikely(c->ends.f.phase == CONN_PARKED) ? conn_wake(core, c) : c;

			return awake ? awake : c;
		}
		at = c->ends.f.hash_next;
	}
	return NULL;
}

struct conn *conn_by_handle(struct dmm_core *core, uint32_t handle)
{
	uint32_t slot = handle & ((1u << HANDLE_SLOT_BITS) - 1);
	struct conn *c = slot < core->env.cfg.max_connections ? core->slots[slot] : NULL;

	return c && c->ends.f.handle == handle ? c : NULL;
}

/* A doubling array: actions are few and pulled often */
void core_action(struct dmm_core *core, uint32_t type, const struct conn *c, uint32_t error)
{
	struct action_queue *q = &core->actions;
	struct dmm_action *a;

	if (q->count == q->cap) {
		uint32_t cap = q->cap ? q->cap * 2 : 64;
		struct dmm_action *v = calloc(cap, sizeof(*v));

		if (!v)
			return;
		for (uint32_t i = 0; i < q->count; i++)
			v[i] = q->v[(q->head + i) & (q->cap - 1)];
		free(q->v);
		q->v = v;
		q->cap = cap;
		q->head = 0;
	}
	a = &q->v[(q->head + q->count++) & (q->cap - 1)];
	a->type = type;
	a->conn = c->ends.f.handle;
	a->error = error;
	a->pad = 0;
	a->pair = c->ends.f.pair;
}

static void unhash(struct dmm_core *core, struct conn *c)
{
	uint32_t slot = c->ends.f.handle & ((1u << HANDLE_SLOT_BITS) - 1);
	uint32_t *at = bucket_of(core, &c->ends.f.pair);

	while (*at != slot + 1)
		at = &core->slots[*at - 1]->ends.f.hash_next;
	*at = c->ends.f.hash_next;
}

/* Out of the hash at once: a successor with the same addresses may be made in the same call */
void conn_kill(struct dmm_core *core, struct conn *c, uint32_t error)
{
	if (c->ends.f.phase == CONN_DEAD)
		return;
	for (uint32_t l = 0; l < 2; l++)
		conn_abort(core, conn_end(c, l), END_ABORT_FREE, 0);
	unhash(core, c);
	halfopen_leave(core, c);
	if (c->time_wait)
		core->n_time_wait--;
	c->time_wait = false;
	c->ends.f.phase = CONN_DEAD;
	if (error)
		c->ends.f.error = (uint16_t)error;
	core_action(core, DMM_ACTION_CLOSED, c, c->ends.f.error);
	if (c->ends.f.owned)
		core_action(core, DMM_ACTION_DISOWN, c, 0);
	list_del(&c->queued);
	list_add_tail(&core->reap, &c->queued);
}

static void free_slot(struct dmm_core *core, const struct conn *c)
{
	uint32_t slot = c->ends.f.handle & ((1u << HANDLE_SLOT_BITS) - 1);
	uint32_t last = core->live[--core->n_live];

	core->live[c->ends.f.live_pos] = last;
	core->slots[last]->ends.f.live_pos = c->ends.f.live_pos;
	core->slots[slot] = NULL;
	core->slot_gen[slot]++;
	core->free_slots[core->env.cfg.max_connections - core->n_live - 1] = slot;
}

void conn_reap(struct dmm_core *core)
{
	while (!list_empty(&core->reap)) {
		struct conn *c = container_of(core->reap.next, struct conn, queued);
		uint8_t transport = conn_end(c, DMM_LEG_OUTER)->transport;

		list_del(&c->queued);
		free_slot(core, c);
		core->by[transport]--;
		mem_free(&core->env.mem, c, conn_bytes(core, transport));
	}
}

void conn_forget_all(struct dmm_core *core)
{
	while (core->n_live) {
		struct conn *c = core->slots[core->live[0]];

		if (c->ends.f.phase == CONN_PARKED) {
			free_slot(core, c);
			conn_free_parked(core, c);
			continue;
		}
		conn_kill(core, c, 0);
		conn_reap(core);
	}
}

static bool have_room(struct dmm_core *core)
{
	if (mem_chunks_left(&core->env.mem) < core->env.mem.limit_bytes / 8)
		return false;
	if (core->n_live < core->env.cfg.max_connections)
		return true;
	if (!list_empty(&core->time_wait)) {
		conn_kill(core, container_of(core->time_wait.next, struct conn, queued), 0);
		conn_reap(core);
	}
	return core->n_live < core->env.cfg.max_connections;
}

/* Where the ends lie, and what pkt, the first of the connection, says of its way */
static void init_ends(struct dmm_core *core, struct ends *e, const struct pkt *pkt,
		      uint8_t transport)
{
	struct flow *f = &e->f;

	e->link = pkt->link;
	f->mtu_dev = pkt->link_mtu ? pkt->link_mtu : (uint16_t)core->env.cfg.inner_mtu;
	f->mtu_most = 65535;
	f->mtu = wire_link_mtu(f->pair.family, f->mtu_dev);
	e->at[0] = sizeof(struct conn);
	e->at[1] = (uint16_t)(e->at[0] + core->env.ops[0]->state_bytes);
	for (uint32_t leg = 0; leg < 2; leg++) {
		struct end *end = ends_end(e, leg);

		end->at = e->at[leg];
		end->to_peer = (int16_t)(e->at[!leg] - e->at[leg]);
		end->leg = (uint8_t)leg;
		end->transport = leg == DMM_LEG_OUTER ? transport : 0;
	}
	for (uint32_t leg = 0; leg < 2; leg++) {
		struct end *end = ends_end(e, leg);

		end_ops_of(&core->env, end)->init(&core->env, end);
	}
}

struct conn *conn_create(struct dmm_core *core, const struct dmm_core_addr_pair *pair,
			 const struct pkt *pkt, uint8_t transport)
{
	uint32_t bytes = conn_bytes(core, transport);
	struct conn *c = have_room(core) ? mem_alloc(&core->env.mem, bytes) : NULL;
	uint32_t slot, *bucket;

	if (!c) {
		core->env.counters[DMM_CORE_REFUSED_LIMIT]++;
		return NULL;
	}
	memset(c, 0, bytes);
	core->by[transport]++;
	slot = core->free_slots[core->env.cfg.max_connections - core->n_live - 1];
	c->ends.f.pair = *pair;
	c->ends.f.handle = slot | (uint32_t)core->slot_gen[slot] << HANDLE_SLOT_BITS;
	c->ends.f.live_pos = core->n_live;
	c->ends.f.phase = CONN_OPENING;
	list_init(&c->queued);
	init_ends(core, &c->ends, pkt, transport);
	core->slots[slot] = c;
	core->live[core->n_live++] = slot;
	bucket = bucket_of(core, pair);
	c->ends.f.hash_next = *bucket;
	*bucket = slot + 1;
	return c;
}

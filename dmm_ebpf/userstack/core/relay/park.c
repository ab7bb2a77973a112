/* SPDX-License-Identifier: Apache-2.0 */
/*
 * park.c: idle connections, put away small.
 *
 * A connection is mostly zeros, short numbers and deadlines that are never. When both legs have
 * been quiet for cfg.park_ns it is written down as its significant bytes only, less than half of
 * its size, and nothing of it is lost: what congestion control learnt is there when it wakes. A
 * packet, an ICMP error or a deadline (keep-alive) wakes it.
 *
 * Owns: struct parked and its wheel. Invariants: a parked connection has its place in the table
 * (slots, hash chain, live), where it is the head of a struct conn with phase CONN_PARKED and
 * nothing behind that; it is on no list, holds no payload, and one wheel node keeps the earliest
 * deadline of both legs.
 *
 * Refuses: a connection with anything in flight, held, due or out of order; one that some pointer
 * inside refers to.
 */
#include "core.h"

enum {
	HEAD_BYTES = sizeof(struct flow),
	/* a word's code, 4 bits: its number of significant bytes, or */
	CODE_NEVER = 9,
	CODE_AGO = 8, /* CODE_AGO + n: n bytes, how long before parking it was */
	AGO_MIN_BYTES = 2,
	AGO_MAX_BYTES = 5,
};

struct parked {
	struct flow f; /* as a struct conn begins */
	struct wheel_node timer;
	uint64_t parked_ns;
	uint16_t size;	   /* of this object */
	uint8_t transport; /* of its outer end */
	uint8_t body[];	   /* codes, two in a byte, then the bytes */
};

/* Of a connection of so many bytes, behind its row */
static uint32_t body_words(uint32_t bytes)
{
	return (bytes - HEAD_BYTES) / 8;
}

static uint32_t codes_bytes(uint32_t bytes)
{
	return (body_words(bytes) + 1) / 2;
}

uint32_t park_room(uint32_t bytes)
{
	return codes_bytes(bytes) + 8 * body_words(bytes);
}

_Static_assert(offsetof(struct conn, ends) == 0 && offsetof(struct ends, f) == 0,
	       "what the table reads is in front");

static struct parked *parked_of(struct conn *c)
{
	return (struct parked *)(void *)c;
}

static uint32_t word_bytes(uint64_t w)
{
	return w ? (71 - (uint32_t)__builtin_clzll(w)) / 8 : 0;
}

/*
 * Into core->squeezed; returns the length. 0: a word points into the connection itself, which moves
 */
static uint32_t squeeze(struct dmm_core *core, const struct conn *c, uint32_t bytes,
			uint64_t now_ns)
{
	const uint8_t *in = (const uint8_t *)c + HEAD_BYTES;
	uint32_t len = codes_bytes(bytes), words = body_words(bytes);
	uint8_t *body = core->squeezed;

	memset(body, 0, len);
	for (uint32_t i = 0; i < words; i++) {
		uint32_t n, ago, code;
		uint64_t w;

		memcpy(&w, in + 8 * i, 8);
		if (w - (uintptr_t)c < bytes)
			return 0;
		code = n = word_bytes(w);
		ago = max_u64(word_bytes(now_ns - w), AGO_MIN_BYTES);
		if (w == NEVER) {
			code = CODE_NEVER;
			n = 0;
		} else if (ago <= AGO_MAX_BYTES && ago < n) {
			code = CODE_AGO + ago;
			n = ago;
			w = now_ns - w;
		}
		body[i / 2] |= (uint8_t)(code << (4 * (i & 1)));
		for (uint32_t b = 0; b < n; b++)
			body[len++] = (uint8_t)(w >> (8 * b));
	}
	return len;
}

static void unsqueeze(const struct dmm_core *core, struct conn *c, const struct parked *p)
{
	uint32_t bytes = conn_bytes(core, p->transport), words = body_words(bytes);
	const uint8_t *from = p->body + codes_bytes(bytes);
	uint8_t *out = (uint8_t *)c + HEAD_BYTES;

	for (uint32_t i = 0; i < words; i++) {
		uint32_t code = p->body[i / 2] >> (4 * (i & 1)) & 15;
		uint32_t n = code > CODE_NEVER ? code - CODE_AGO : code;
		uint64_t w = 0;

		if (code == CODE_NEVER) {
			w = NEVER;
		} else {
			for (uint32_t b = 0; b < n; b++)
				w |= (uint64_t)from[b] << (8 * b);
			from += n;
			if (code > CODE_NEVER)
				w = p->parked_ns - w;
		}
		memcpy(out + 8 * i, &w, 8);
	}
}

static void park_arm(struct dmm_core *core, struct parked *p, uint64_t deadline_ns)
{
	wheel_arm(&core->park_wheel, &p->timer, deadline_ns);
	core->park_next_ns = min_u64(core->park_next_ns, deadline_ns);
}

static bool rests(const struct dmm_core *core, const struct conn *c, uint64_t now_ns)
{
	for (uint32_t leg = 0; leg < 2; leg++) {
		const struct end *e = conn_end(c, leg);
		const struct end_ops *ops = end_ops_of(&core->env, e);

		if (!ops->rests || !ops->rests(&core->env, e, now_ns))
			return false;
	}
	return true;
}

/* env NULL: a copy to be looked at */
static void wake(const struct dmm_core *core, struct env *env, struct conn *c)
{
	list_init(&c->queued);
	for (uint32_t leg = 0; leg < 2; leg++) {
		struct end *e = conn_end(c, leg);

		end_ops_of(&core->env, e)->wake(env, e);
	}
}

bool conn_park(struct dmm_core *core, struct conn *c, uint64_t now_ns)
{
	uint8_t transport = conn_end(c, DMM_LEG_OUTER)->transport;
	uint32_t bytes = conn_bytes(core, transport), len;
	uint64_t due_ns = NEVER;
	struct parked *p;

	if (c->ends.f.phase != CONN_OPEN || !list_empty(&c->queued) || !rests(core, c, now_ns))
		return false;
	for (uint32_t leg = 0; leg < 2; leg++) {
		struct end *e = conn_end(c, leg);

		due_ns = min_u64(due_ns, end_ops_of(&core->env, e)->sleep(&core->env, e));
	}
	memset(&c->queued, 0, sizeof(c->queued));
	len = squeeze(core, c, bytes, now_ns);
	p = len ? mem_alloc(&core->env.mem, sizeof(*p) + len) : NULL;
	if (!p) {
		wake(core, &core->env, c);
		return false;
	}
	p->f = c->ends.f;
	memcpy(p->body, core->squeezed, len);
	p->size = (uint16_t)(sizeof(*p) + len);
	p->transport = transport;
	p->parked_ns = now_ns;
	wheel_node_init(&p->timer);
	park_arm(core, p, due_ns);
	mem_free(&core->env.mem, c, bytes);
	c = (struct conn *)(void *)p;
	c->ends.f.phase = CONN_PARKED;
	conn_replace(core, c);
	core->n_parked++;
	return true;
}

static void unpark(const struct dmm_core *core, struct env *env, struct conn *to,
		   const struct conn *parked)
{
	const struct parked *p = (const struct parked *)(const void *)parked;

	to->ends.f = p->f;
	unsqueeze(core, to, p);
	to->ends.f.phase = CONN_OPEN;
	wake(core, env, to);
}

void conn_unpark_copy(const struct dmm_core *core, struct conn *to, const struct conn *parked)
{
	unpark(core, NULL, to, parked);
}

const struct conn *conn_look(const struct dmm_core *core, const struct conn *c)
{
	if (c->ends.f.phase != CONN_PARKED)
		return c;
	conn_unpark_copy(core, core->looked_at, c);
	return core->looked_at;
}

void conn_free_parked(struct dmm_core *core, struct conn *c)
{
	struct parked *p = parked_of(c);

	wheel_cancel(&core->park_wheel, &p->timer);
	mem_free(&core->env.mem, p, p->size);
	core->n_parked--;
}

struct conn *conn_wake(struct dmm_core *core, struct conn *parked)
{
	uint32_t bytes = conn_bytes(core, parked_of(parked)->transport);
	struct conn *c = mem_alloc(&core->env.mem, bytes);

	if (!c) {
		core->env.counters[DMM_CORE_NO_MEMORY]++;
		return NULL;
	}
	unpark(core, &core->env, c, parked);
	conn_free_parked(core, parked);
	conn_replace(core, c);
	return c;
}

void park_poll(struct dmm_core *core, uint64_t now_ns)
{
	struct wheel_node *n;

	wheel_advance(&core->park_wheel, now_ns);
	while ((n = wheel_pop(&core->park_wheel))) {
		struct parked *p = container_of(n, struct parked, timer);

		if (!conn_wake(core, (struct conn *)(void *)p))
			wheel_arm(&core->park_wheel, n, now_ns + NS_PER_S);
	}
	core->park_next_ns = wheel_next_ns(&core->park_wheel);
}

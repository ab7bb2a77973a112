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
	BODY_WORDS = (sizeof(struct conn) - HEAD_BYTES) / 8,
	CODES_BYTES = (BODY_WORDS + 1) / 2,
	BODY_MAX_BYTES = CODES_BYTES + 8 * BODY_WORDS,
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
	uint32_t size;	/* of this object */
	uint8_t body[]; /* codes, two in a byte, then the bytes */
};

_Static_assert(sizeof(struct conn) % 8 == 0, "whole words");
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

/* Returns the length of body; 0: a word points into the connection itself, which moves */
static uint32_t squeeze(uint8_t *body, const struct conn *c, uint64_t now_ns)
{
	const uint8_t *in = (const uint8_t *)c + HEAD_BYTES;
	uint32_t len = CODES_BYTES;

	memset(body, 0, CODES_BYTES);
	for (uint32_t i = 0; i < BODY_WORDS; i++) {
		uint32_t n, ago, code;
		uint64_t w;

		memcpy(&w, in + 8 * i, 8);
		if (w - (uintptr_t)c < sizeof(*c))
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

static void unsqueeze(struct conn *c, const struct parked *p)
{
	const uint8_t *from = p->body + CODES_BYTES;
	uint8_t *out = (uint8_t *)c + HEAD_BYTES;

	for (uint32_t i = 0; i < BODY_WORDS; i++) {
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

bool conn_park(struct dmm_core *core, struct conn *c, uint64_t now_ns)
{
	uint8_t body[BODY_MAX_BYTES];
	struct parked *p;
	uint64_t due_ns;
	uint32_t len;

	if (c->ends.f.phase != CONN_OPEN || !list_empty(&c->queued) ||
	    !tcp_sleep(&core->env, &c->ends, now_ns, &due_ns))
		return false;
	memset(&c->queued, 0, sizeof(c->queued));
	len = squeeze(body, c, now_ns);
	p = len ? mem_alloc(&core->env.mem, sizeof(*p) + len) : NULL;
	if (!p) {
		list_init(&c->queued);
		tcp_wake(&core->env, &c->ends);
		return false;
	}
	p->f = c->ends.f;
	memcpy(p->body, body, len);
	p->size = (uint32_t)sizeof(*p) + len;
	p->parked_ns = now_ns;
	wheel_node_init(&p->timer);
	park_arm(core, p, due_ns);
	mem_free(&core->env.mem, c, sizeof(*c));
	c = (struct conn *)(void *)p;
	c->ends.f.phase = CONN_PARKED;
	conn_replace(core, c);
	core->n_parked++;
	return true;
}

void conn_unpark_copy(struct conn *to, const struct conn *parked)
{
	const struct parked *p = (const struct parked *)(const void *)parked;

	to->ends.f = p->f;
	unsqueeze(to, p);
	to->ends.f.phase = CONN_OPEN;
	list_init(&to->queued);
	tcp_wake(NULL, &to->ends);
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
	struct conn *c = mem_alloc(&core->env.mem, sizeof(*c));
	struct tcb *outer;

	if (!c) {
		core->env.counters[DMM_CORE_NO_MEMORY]++;
		return NULL;
	}
	conn_unpark_copy(c, parked);
	conn_free_parked(core, parked);
	conn_replace(core, c);
	/* due now: should nothing else happen, it is parked again at the next chance */
	outer = &c->ends.leg[DMM_LEG_OUTER];
	outer->keep_ns = min_u64(outer->keep_ns, outer->last_rx_ns + core->env.cfg.park_ns);
	tcp_wake(&core->env, &c->ends);
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

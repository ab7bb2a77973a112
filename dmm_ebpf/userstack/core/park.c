/* SPDX-License-Identifier: Apache-2.0 */
/*
 * park.c: idle connections, put away small.
 *
 * A connection is mostly zeros, short numbers and deadlines that are never. When both legs have been quiet
 * for cfg.park_ns it is written down as its significant bytes only, less than half of its size, and nothing
 * of it is lost: what congestion control learnt is there when it wakes. A packet, an ICMP error or a deadline
 * (keep-alive) wakes it.
 *
 * Owns: struct parked and its wheel. Invariants: a parked connection has its place in the table (slots, hash
 * chain, live), where it is the head of a struct conn with phase CONN_PARKED and nothing behind that; it is
 * on no list, holds no payload, and one wheel node keeps the earliest deadline of both legs.
 *
 * Refuses: a connection with anything in flight, held, due or out of order; one that some pointer inside
 * refers to.
 */
#include "core.h"

enum {
	HEAD_BYTES = offsetof(struct conn, isn_floor),
	BODY_WORDS = (sizeof(struct conn) - HEAD_BYTES) / 8,
	CODES_BYTES = (BODY_WORDS + 1) / 2,
	BODY_MAX_BYTES = CODES_BYTES + 8 * BODY_WORDS,
	/* a word's code, 4 bits: its number of significant bytes, or */
	CODE_NEVER = 9,
	CODE_AGO = 8, /* CODE_AGO + n: n bytes, how long before parking it was */
	AGO_MIN_BYTES = 2,
	AGO_MAX_BYTES = 5,
	DUE_FLAGS = TF_ACK_NOW | TF_HOLD | TF_SYN_DUE | TF_RST_DUE | TF_PROBE_DUE | TF_TLP_DUE | TF_PUSH_ANY |
		    TF_RST_FLUSH,
};

struct parked {
	uint64_t head[HEAD_BYTES / 8]; /* the beginning of struct conn */
	struct wheel_node timer;
	uint64_t parked_ns;
	uint32_t size;	/* of this object */
	uint8_t body[]; /* codes, two in a byte, then the bytes */
};

_Static_assert(HEAD_BYTES % 8 == 0 && sizeof(struct conn) % 8 == 0, "whole words");
_Static_assert(offsetof(struct conn, half_open) < HEAD_BYTES, "what the table reads is in the head");

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

/* Nodes point to themselves while they are on no list; they are made again, not kept */
static void links_init(struct conn *c)
{
	list_init(&c->queued);
	for (uint32_t l = 0; l < 2; l++) {
		list_init(&c->leg[l].ready);
		wheel_node_init(&c->leg[l].timer);
	}
}

static void links_clear(struct conn *c)
{
	memset(&c->queued, 0, sizeof(c->queued));
	for (uint32_t l = 0; l < 2; l++) {
		memset(&c->leg[l].ready, 0, sizeof(c->leg[l].ready));
		memset(&c->leg[l].timer, 0, sizeof(c->leg[l].timer));
	}
}

static bool leg_quiet(const struct dmm_core *core, const struct tcb *t, uint64_t now_ns)
{
	if (t->state != TCP_ESTABLISHED && t->state != TCP_CLOSE_WAIT && t->state != TCP_FIN_WAIT2)
		return false;
	if (now_ns - t->last_rx_ns < core->cfg.park_ns || t->keep_probes || (t->flags & DUE_FLAGS))
		return false;
	if ((t->flags & (TF_FIN | TF_FIN_SENT)) == TF_FIN)
		return false;
	return !t->fl && !t->ooo && !t->snd.ring && t->rtx_ns == NEVER && t->delack_ns == NEVER &&
	       list_empty(&t->ready);
}

static bool conn_quiet(const struct dmm_core *core, const struct conn *c, uint64_t now_ns)
{
	return c->phase == CONN_OPEN && list_empty(&c->queued) && c->outer.pace_wake_ns == NEVER &&
	       leg_quiet(core, &c->leg[0], now_ns) && leg_quiet(core, &c->leg[1], now_ns);
}

static void park_arm(struct dmm_core *core, struct parked *p, uint64_t deadline_ns)
{
	wheel_arm(&core->park_wheel, &p->timer, deadline_ns);
	core->park_next_ns = min_u64(core->park_next_ns, deadline_ns);
}

bool conn_park(struct dmm_core *core, struct conn *c, uint64_t now_ns)
{
	uint8_t body[BODY_MAX_BYTES];
	uint64_t due_ns = NEVER;
	struct parked *p;
	uint32_t len;

	if (!conn_quiet(core, c, now_ns))
		return false;
	for (uint32_t l = 0; l < 2; l++) {
		c->leg[l].keep_ns = tcp_keep_due_ns(core, &c->leg[l]);
		due_ns = min_u64(due_ns, c->leg[l].keep_ns);
		wheel_cancel(&core->wheel, &c->leg[l].timer);
	}
	links_clear(c);
	len = squeeze(body, c, now_ns);
	p = len ? mem_alloc(&core->mem, sizeof(*p) + len) : NULL;
	if (!p) {
		links_init(c);
		for (uint32_t l = 0; l < 2; l++)
			tcp_timer_start(core, &c->leg[l]);
		return false;
	}
	memcpy(p->head, c, HEAD_BYTES);
	memcpy(p->body, body, len);
	p->size = (uint32_t)sizeof(*p) + len;
	p->parked_ns = now_ns;
	wheel_node_init(&p->timer);
	park_arm(core, p, due_ns);
	mem_free(&core->mem, c, sizeof(*c));
	c = (struct conn *)(void *)p;
	c->phase = CONN_PARKED;
	conn_replace(core, c);
	core->n_parked++;
	return true;
}

void conn_unpark_copy(struct conn *to, const struct conn *parked)
{
	const struct parked *p = (const struct parked *)(const void *)parked;

	memcpy(to, p->head, HEAD_BYTES);
	unsqueeze(to, p);
	to->phase = CONN_OPEN;
	links_init(to);
}

void conn_free_parked(struct dmm_core *core, struct conn *c)
{
	struct parked *p = parked_of(c);

	wheel_cancel(&core->park_wheel, &p->timer);
	mem_free(&core->mem, p, p->size);
	core->n_parked--;
}

struct conn *conn_wake(struct dmm_core *core, struct conn *parked)
{
	struct conn *c = mem_alloc(&core->mem, sizeof(*c));
	struct tcb *outer;

	if (!c) {
		core->counters[DMM_CORE_NO_MEMORY]++;
		return NULL;
	}
	conn_unpark_copy(c, parked);
	conn_free_parked(core, parked);
	conn_replace(core, c);
	/* due now: should nothing else happen, it is parked again at the next chance */
	outer = &c->leg[DMM_LEG_OUTER];
	outer->keep_ns = min_u64(outer->keep_ns, outer->last_rx_ns + core->cfg.park_ns);
	for (uint32_t l = 0; l < 2; l++)
		tcp_timer_start(core, &c->leg[l]);
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

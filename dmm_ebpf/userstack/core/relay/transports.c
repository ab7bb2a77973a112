/* SPDX-License-Identifier: Apache-2.0 */
/*
 * transports.c: the transports of the outer leg by name, and which of them a core has.
 *
 * A connection keeps the transport that it was made with. So a transport has its place in env.ops
 * as long as connections have it, or new ones get it, or a SYN cookie of its may come back. TCP
 * always has one.
 */
#include "../tcp/tcp_end.h"
#include "core.h"

#include <stdlib.h>

enum { INNER_TCP, OUTER_TCP };

static const struct end_ops *const all[] = {
	&tcp_outer,
};

static const struct end_ops *find(const char *name)
{
	for (uint32_t i = 0; i < sizeof(all) / sizeof(*all); i++) {
		if (!strcmp(all[i]->name, name))
			return all[i];
	}
	return NULL;
}

const char *dmm_core_transport(uint32_t index)
{
	return index < sizeof(all) / sizeof(*all) ? all[index]->name : NULL;
}

static bool is_free(const struct dmm_core *core, uint32_t place)
{
	return place != OUTER_TCP && !core->by[place] && place != core->transport &&
	       place != core->cookie_transport;
}

/* 0: there is none */
static uint32_t place_of(const struct dmm_core *core, const struct end_ops *ops)
{
	uint32_t found = 0;

	for (uint32_t i = ENV_TRANSPORTS - 1; i > INNER_TCP; i--) {
		if (core->env.ops[i] == ops)
			return i;
		if (!core->env.ops[i] || is_free(core, i))
			found = i;
	}
	return found;
}

/* Room for what looks at a connection of so many bytes, and writes it down */
static bool make_room(struct dmm_core *core, uint64_t bytes)
{
	struct conn *looked_at;
	uint8_t *squeezed;

	if (bytes % 8 || bytes > INT16_MAX)
		return false;
	if (bytes <= core->room_bytes)
		return true;
	looked_at = calloc(1, bytes);
	squeezed = calloc(1, park_room((uint32_t)bytes));
	if (!looked_at || !squeezed) {
		free(looked_at);
		free(squeezed);
		return false;
	}
	transports_deinit(core);
	core->looked_at = looked_at;
	core->squeezed = squeezed;
	core->room_bytes = (uint32_t)bytes;
	return true;
}

uint32_t dmm_core_set_transport_ops(struct dmm_core *core, const struct end_ops *ops)
{
	uint64_t bytes = sizeof(struct conn) + (uint64_t)tcp_inner.state_bytes + ops->state_bytes;
	uint32_t place = place_of(core, ops);

	if (!place || !make_room(core, bytes))
		return 0;
	core->env.ops[place] = ops;
	core->transport = (uint8_t)place;
	return 1;
}

uint32_t dmm_core_set_transport(struct dmm_core *core, const char *name)
{
	const struct end_ops *ops = find(name);

	return ops ? dmm_core_set_transport_ops(core, ops) : 0;
}

bool transports_init(struct dmm_core *core)
{
	const char *name = core->env.cfg.transport;

	core->env.ops[INNER_TCP] = &tcp_inner;
	core->env.ops[OUTER_TCP] = &tcp_outer;
	return dmm_core_set_transport_ops(core, &tcp_outer) &&
	       dmm_core_set_transport(core, *name ? name : tcp_outer.name);
}

void transport_fall_back(struct dmm_core *core)
{
	core->transport = OUTER_TCP;
}

void transports_deinit(struct dmm_core *core)
{
	free(core->looked_at);
	free(core->squeezed);
}

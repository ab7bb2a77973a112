/* SPDX-License-Identifier: Apache-2.0 */
/* routeentries.c: what prefixes say, and their ports as entries of a trie (routetable.h, abi.h). */
#include "routetable.h"

#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>

#include "../../../bpf/abi.h"
#include "learnt.h"
#include "routeemission.h"

enum {
	PORT_BITS_BEFORE = 48, /* of struct dmm_port_key between prefixlen and port_be */
	SET_WORDS = MOST_KEY / 4,
	OWN_WORDS = 3, /* of a set's key, for each of the prefix's routes */
};

uint32_t plan_of(const struct emission *e, uint32_t route)
{
	return e->plan ? e->plan[route] : PLAN_OWN;
}

static uint32_t entries_of(const struct emission *e, uint32_t template)
{
	return e->starts[template] - e->starts[template - 1];
}

/* Whether the ports of a prefix are asked in a set, and its template is in the plan still */
static int wants_set(const struct emission *e, uint32_t plan)
{
	return plan != PLAN_OWN && plan != PLAN_SKIP && e->whole[plan - 1] == NAMED_MISS;
}

/* The route of the table that a template names, for the prefix whose first route is given */
static uint32_t resolve(const struct emission *e, uint32_t route, uint32_t named)
{
	if (named < NAMED_OWN)
		return named;
	for (named -= NAMED_OWN; named; named--)
		route = e->links[route] & ROUTE_NONE;
	return route;
}

/* What the policy calls a route; all elements that are there by one route to a set alike. */
static uint32_t number_of(const struct emission *e, uint32_t route)
{
	if (route >= e->written)
		route = e->written + e->via[route - e->written];
	return e->base + route;
}

/*
 * The bits of struct dmm_node_value's stack: rank beside the stack itself. named: what a
 * template's entry has of the rank, protocol and ports.
 */
static uint32_t ranked(const struct emission *e, uint32_t route, uint32_t named)
{
	uint32_t rank = (uint32_t)e->routes.lengths[route] << DMM_RANK_LENGTH_SHIFT | named;

	if (route < e->written)
		rank |= DMM_RANK_POLICY;
	return e->numbers[e->routes.stack[route]] | rank << DMM_RANK_SHIFT;
}

static struct dmm_node_value inline_value(const struct emission *e, uint32_t route)
{
	return (struct dmm_node_value){.route = number_of(e, route), .stack = ranked(e, route, 0)};
}

/*
 * What decides the ports of a prefix, beside its table: the template, the length, and of each of
 * its routes its stack, how far behind the first one its number is, and whether it is an element.
 */
static uint32_t set_key(const struct emission *e, uint32_t route, uint32_t *key)
{
	uint32_t size = 2, first = number_of(e, route);

	key[0] = plan_of(e, route);
	key[1] = e->routes.lengths[route];
	while (size + OWN_WORDS <= SET_WORDS) {
		key[size++] = e->numbers[e->routes.stack[route]];
		key[size++] = number_of(e, route) - first;
		key[size++] = route < e->written;
		route = e->links ? e->links[route] & ROUTE_NONE : ROUTE_NONE;
		if (route == ROUTE_NONE)
			return size;
	}
	return 0; /* too many: it has a set of its own */
}

static int set_add(struct port_sets *sets, const struct emission *e, uint32_t route)
{
	if (sets->count == sets->room) {
		uint32_t room = sets->room ? 2 * sets->room : 64;
		uint32_t *grown = realloc(sets->routes, 2 * sizeof(*grown) * room);

		if (!grown)
			return -1;
		sets->routes = grown;
		sets->room = room;
	}
	sets->routes[2 * sets->count] = route;
	sets->routes[2 * sets->count + 1] = plan_of(e, route);
	sets->count++;
	sets->entries += entries_of(e, plan_of(e, route));
	return 0;
}

static int sets_find(struct port_sets *sets, const struct emission *e, struct learnt *known,
		     uint32_t *plan)
{
	uint32_t key[SET_WORDS], set;

	for (uint32_t i = 0; i < e->count; i++) {
		uint32_t size;

		if (!wants_set(e, plan[i]))
			continue;
		size = set_key(e, i, key);
		if (!learnt_get(known, key, size * sizeof(*key), &set)) {
			set = sets->count;
			if (set_add(sets, e, i) || learnt_put(known, key, size * sizeof(*key), set))
				return -1;
		}
		plan[i] = PLAN_SET | set;
	}
	return 0;
}

struct port_sets *port_sets_new(const struct emission *e, uint32_t *plan)
{
	struct port_sets *sets = calloc(1, sizeof(*sets));
	struct learnt *known = learnt_new();

	if (!sets || !known || (plan && sets_find(sets, e, known, plan))) {
		port_sets_free(sets);
		sets = NULL;
	}
	learnt_free(known);
	return sets;
}

void port_sets_free(struct port_sets *sets)
{
	if (sets)
		free(sets->routes);
	free(sets);
}

struct dmm_node_value emission_value(const struct emission *e, uint32_t route)
{
	uint32_t plan = plan_of(e, route);

	if (plan == PLAN_OWN)
		return inline_value(e, route);
	if (plan & PLAN_SET)
		return (struct dmm_node_value){
			.route = number_of(e, route),
			.stack = DMM_NODE_PORTS | (e->first_set + 1 + (plan & ~PLAN_SET)),
		};
	return inline_value(e, resolve(e, route, e->whole[plan - 1]));
}

/* One entry of the set where e stands, by the prefix that it was made for. */
static void pack_port(const struct emission *e, const uint32_t *words, struct dmm_port_key *key,
		      struct dmm_port_value *value)
{
	uint32_t proto_port = htonl(words[1]), first = e->sets->routes[2 * e->set], route;

	*key = (struct dmm_port_key){.prefixlen = words[0] & 0xff,
				     .portset = htonl(e->first_set + 1 + e->set)};
	memcpy((char *)key + sizeof(*key) - sizeof(proto_port), &proto_port, sizeof(proto_port));
	*value = (struct dmm_port_value){.route = DMM_ROUTE_NONE};
	if (words[2] == NAMED_MISS)
		return;
	route = resolve(e, first, words[2]);
	value->route = number_of(e, route);
	value->stack = ranked(e, route, words[0] >> 8);
	if (words[2] >= NAMED_OWN) {
		value->route -= number_of(e, first);
		value->stack |= DMM_PORT_OWN;
	}
}

uint32_t emit_ports(struct emission *e, void *keys, void *values, uint32_t room)
{
	struct dmm_port_key *key = keys;
	struct dmm_port_value *value = values;
	uint32_t made = 0;

	for (; e->set < e->sets->count; e->set++, e->entry = 0) {
		uint32_t template = e->sets->routes[2 * e->set + 1];

		for (; e->entry < entries_of(e, template); e->entry++, made++) {
			const uint32_t *words =
				e->words + TEMPLATE_WORDS * (e->starts[template - 1] + e->entry);

			if (made == room)
				return made;
			pack_port(e, words, &key[made], &value[made]);
		}
	}
	return made;
}

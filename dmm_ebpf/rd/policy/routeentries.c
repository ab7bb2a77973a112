/* SPDX-License-Identifier: Apache-2.0 */
/* routeentries.c: routes packed as the entries of the kernel's tries (routetable.h, abi.h). */
#include "routetable.h"

#include <arpa/inet.h>
#include <string.h>

#include "../../../bpf/abi.h"

enum { PORT_BITS_BEFORE = 48 }; /* of struct dmm_port_key between prefixlen and port_be */

static uint32_t plan_of(const struct emission *e, uint32_t route)
{
	return e->plan ? e->plan[route] : PLAN_OWN;
}

static uint32_t entries_of(const struct emission *e, uint32_t template)
{
	return e->starts[template] - e->starts[template - 1];
}

/* Whether the ports of a prefix are asked in a set of their own */
static int has_set(const struct emission *e, uint32_t plan)
{
	return plan != PLAN_OWN && plan != PLAN_SKIP && e->whole[plan - 1] == NAMED_MISS;
}

struct emission_size emission_size(const struct emission *e)
{
	struct emission_size size = {0};

	for (uint32_t i = 0; i < e->count; i++) {
		uint32_t plan = plan_of(e, i);

		if (plan == PLAN_SKIP)
			continue;
		if (e->routes.families[i] == 4)
			size.routes4++;
		else
			size.routes6++;
		if (has_set(e, plan)) {
			size.sets++;
			size.ports += entries_of(e, plan);
		}
	}
	return size;
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

static void pack_key(const struct emission *e, uint8_t family, void *keys, uint32_t at)
{
	uint64_t hi = e->routes.addrs_hi[e->route], lo = e->routes.addrs_lo[e->route];
	uint32_t prefixlen = 32u + e->routes.lengths[e->route];

	if (family == 4) {
		struct dmm_route4_key *key = (struct dmm_route4_key *)keys + at;

		*key = (struct dmm_route4_key){
			.prefixlen = prefixlen, .table = e->table, .addr_be = htonl((uint32_t)lo)};
	} else {
		struct dmm_route6_key *key = (struct dmm_route6_key *)keys + at;
		uint32_t words[4] = {htonl((uint32_t)(hi >> 32)), htonl((uint32_t)hi),
				     htonl((uint32_t)(lo >> 32)), htonl((uint32_t)lo)};

		*key = (struct dmm_route6_key){.prefixlen = prefixlen, .table = e->table};
		memcpy(key->addr, words, sizeof(words));
	}
}

/* What the policy calls a route; all elements that are there by one route to a set alike. */
static uint32_t number_of(const struct emission *e, uint32_t route)
{
	if (route >= e->written)
		route = e->written + e->via[route - e->written];
	return e->base + route;
}

static struct dmm_route_value inline_value(const struct emission *e, uint32_t route)
{
	return (struct dmm_route_value){.route = number_of(e, route),
					.stack = e->numbers[e->routes.stack[route]]};
}

uint32_t emit_routes(struct emission *e, uint8_t family, void *keys, void *values, uint32_t room)
{
	struct dmm_route_value *value = values;
	uint32_t made = 0;

	for (; e->route < e->count && made < room; e->route++) {
		uint32_t plan = plan_of(e, e->route);

		e->set += has_set(e, plan);
		if (plan == PLAN_SKIP || e->routes.families[e->route] != family)
			continue;
		pack_key(e, family, keys, made);
		if (plan == PLAN_OWN)
			value[made] = inline_value(e, e->route);
		else if (has_set(e, plan))
			value[made] = (struct dmm_route_value){.route = DMM_ROUTE_NONE,
							       .portset = htonl(e->set)};
		else
			value[made] = inline_value(e, resolve(e, e->route, e->whole[plan - 1]));
		made++;
	}
	return made;
}

static void pack_port(const struct emission *e, const uint32_t *words, struct dmm_port_key *key,
		      struct dmm_port_value *value)
{
	uint32_t proto_port = htonl(words[1]);

	*key = (struct dmm_port_key){.prefixlen = words[0], .portset = htonl(e->set)};
	memcpy((char *)key + sizeof(*key) - sizeof(proto_port), &proto_port, sizeof(proto_port));
	*value = (struct dmm_port_value){.route = DMM_ROUTE_NONE};
	if (words[2] != NAMED_MISS) {
		uint32_t route = resolve(e, e->route, words[2]);

		value->route = number_of(e, route);
		value->stack = e->numbers[e->routes.stack[route]];
	}
}

uint32_t emit_ports(struct emission *e, void *keys, void *values, uint32_t room)
{
	struct dmm_port_key *key = keys;
	struct dmm_port_value *value = values;
	uint32_t made = 0;

	for (; e->route < e->count; e->route++, e->entry = 0) {
		uint32_t plan = plan_of(e, e->route);

		if (!has_set(e, plan))
			continue;
		e->set += !e->entry; /* the first of this prefix's */
		for (; e->entry < entries_of(e, plan); e->entry++, made++) {
			const uint32_t *words =
				e->words + TEMPLATE_WORDS * (e->starts[plan - 1] + e->entry);

			if (made == room) {
				e->set -= !e->entry; /* it is counted when it comes */
				return made;
			}
			pack_port(e, words, &key[made], &value[made]);
		}
	}
	return made;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_routes.c: libFuzzer target for routetable.h.
 *
 * The input is a routes file, in a block of exactly its size, so that AddressSanitizer sees each
 * read behind it. Lines that are not plain are passed over; what the others have behind the first
 * comma is one of a few texts that were learnt.
 *
 * Checked: what is read are whole lines, and prefixes without host bits; routes of one prefix are
 * in one chain, in order; what is said to lie around a prefix does; as many entries are packed as
 * were counted, however little room there is at a time; and each node has its place.
 */
#include "../sim/holds.h"
#include "../../dmm_ebpf/rd/policy/routetable.h"

#include <stdlib.h>
#include <string.h>

#include "../../bpf/abi.h"

enum { MOST_ROWS = 512, FEW_ROWS = 5, MATCHES = 4 };

struct table {
	uint8_t families[MOST_ROWS], lengths[MOST_ROWS], stack[MOST_ROWS];
	uint64_t hi[MOST_ROWS], lo[MOST_ROWS];
	uint32_t match[MOST_ROWS], origin[MOST_ROWS];
	uint32_t count;
};

static const uint8_t takes_all[MATCHES] = {1, 0, 0, 0};

static struct routes columns(struct table *t, uint32_t from)
{
	return (struct routes){t->families + from, t->lengths + from, t->stack + from, t->hi + from,
			       t->lo + from,	   t->match + from,   t->origin + from};
}

static uint64_t mask(uint32_t bits)
{
	return bits >= 64 ? UINT64_MAX : bits ? UINT64_MAX << (64 - bits) : 0;
}

/* Whether the first length bits of both addresses are equal */
static int agree(const struct table *t, uint32_t a, uint32_t b, uint32_t length)
{
	if (t->families[a] == 4)
		return !(((t->lo[a] ^ t->lo[b]) << 32) & mask(length));
	return !((t->hi[a] ^ t->hi[b]) & mask(length)) &&
	       !((t->lo[a] ^ t->lo[b]) & mask(length > 64 ? length - 64 : 0));
}

static void check_row(const struct table *t, uint32_t row)
{
	uint32_t length = t->lengths[row], is_v4 = t->families[row] == 4;

	CHECK(is_v4 || t->families[row] == 6);
	CHECK(length <= (is_v4 ? 32u : 128u));
	CHECK(t->match[row] < MATCHES && t->stack[row] < 3);
	if (is_v4) {
		CHECK(!t->hi[row] && !(t->lo[row] >> 32));
		CHECK(!(t->lo[row] << 32 & ~mask(length)));
	} else {
		CHECK(!(t->hi[row] & ~mask(length)));
		CHECK(!(t->lo[row] & ~mask(length > 64 ? length - 64 : 0)));
	}
}

static void read_all(struct table *t, const char *text, size_t size)
{
	static const char *const tails[] = {",,wan", "tcp,443,wan", "udp,53,lan", ",\"1, 2\",wan"};
	struct learnt *l = learnt_new();
	const char *end = text + size;
	uint32_t line = 0;

	for (uint32_t i = 0; i < MATCHES; i++)
		CHECK(!learnt_put(l, tails[i], strlen(tails[i]), i << 8 | i % 3));
	while (text < end && t->count + FEW_ROWS <= MOST_ROWS) {
		struct routes out = columns(t, t->count);
		struct lines_read done;
		const char *newline;

		lines_read(l, text, (size_t)(end - text), line, &out, FEW_ROWS, &done);
		CHECK(done.bytes <= (size_t)(end - text) && done.rows <= FEW_ROWS);
		CHECK(done.rows <= done.lines && (!done.bytes || text[done.bytes - 1] == '\n'));
		for (uint32_t i = 0; i < done.rows; i++) {
			CHECK(t->origin[t->count] > line);
			CHECK(t->origin[t->count] <= line + done.lines);
			check_row(t, t->count++);
		}
		text += done.bytes;
		line += done.lines;
		if (done.rows == FEW_ROWS)
			continue;
		newline = memchr(text, '\n', (size_t)(end - text));
		text = newline ? newline + 1 : end;
		line++;
	}
	learnt_free(l);
}

static void check_chains(const struct table *t, const struct prefixes *p)
{
	uint32_t later = 0;

	for (uint32_t i = 0; i < t->count; i++) {
		uint32_t next = p->links[i] & ROUTE_NONE, parent;

		later += p->links[i] >> 31;
		CHECK(next == ROUTE_NONE || (next > i && next < t->count));
		CHECK(next == ROUTE_NONE ||
		      (t->families[next] == t->families[i] && t->lengths[next] == t->lengths[i] &&
		       agree(t, i, next, t->lengths[i])));
		parent = prefixes_parent(p, i, t->match[i]);
		CHECK(routes_containing(&p->routes, t->count, i, t->families[i], t->hi[i],
					t->lo[i]) == i);
		CHECK(parent == ROUTE_NONE || (t->families[parent] == t->families[i] &&
					       t->lengths[parent] < t->lengths[i] &&
					       agree(t, i, parent, t->lengths[parent])));
	}
	CHECK(later == p->later);
}

static void make_plan(const struct prefixes *p, uint32_t *plan)
{
	uint32_t key[MOST_GROUP + 1], at = 0, known = 0;
	struct learnt *l = learnt_new();

	while ((at = plan_run(p, takes_all, l, plan, at)) < p->count) {
		uint32_t size = plan_key(p, takes_all, at, key);

		plan[at] = 1 + known++ % 2;
		CHECK(!learnt_put(l, key, size * sizeof(*key), plan[at]));
		at++;
	}
	learnt_free(l);
}

static uint32_t ports_emitted(const struct emission *e)
{
	struct dmm_port_key keys[3];
	struct dmm_port_value values[3];
	struct emission place = *e;
	uint32_t made, all = 0;

	do {
		made = emit_ports(&place, keys, values, 3);
		all += made;
	} while (made == 3);
	return all;
}

static void check_order(const struct table *t, const struct emission *e)
{
	for (uint32_t i = 1; i < e->ordered; i++) {
		uint32_t a = e->order[i - 1], b = e->order[i];

		CHECK(t->families[a] >= t->families[b]);
		CHECK(t->families[a] > t->families[b] || t->hi[a] < t->hi[b] ||
		      (t->hi[a] == t->hi[b] &&
		       (t->lo[a] < t->lo[b] ||
			(t->lo[a] == t->lo[b] && t->lengths[a] < t->lengths[b]))));
	}
}

/* Each node has a place of its own, and all places have one. */
static void check_nodes(const struct emission *e)
{
	static struct dmm_route_node nodes[FOREST_ROOM];
	static uint32_t keys[FOREST_ROOM];
	static uint8_t is_there[4 * MOST_ROWS * DMM_ROUTE_DIGITS];
	struct forest *f = forest_new();
	struct emission place = *e;
	uint32_t all = 0, most = 0, is_last = 0;

	memset(is_there, 0, sizeof(is_there));
	while (!is_last) {
		uint32_t made;

		is_last = place.at == place.ordered;
		made = is_last ? forest_end(f, keys, nodes)
			       : forest_run(f, &place, keys, nodes, FOREST_ROOM);
		for (uint32_t i = 0; i < made; i++) {
			CHECK(keys[i] < sizeof(is_there) && !is_there[keys[i]]);
			is_there[keys[i]] = 1;
			most = keys[i] > most ? keys[i] : most;
		}
		all += made;
	}
	CHECK(all == most + 1 && is_there[0]);
	forest_free(f);
}

static void check_entries(struct table *t, const struct prefixes *p)
{
	static const uint32_t starts[] = {0, 0, 5}, whole[] = {NAMED_OWN, NAMED_MISS};
	static const uint32_t words[15] = {[2] = NAMED_OWN, [5] = NAMED_MISS};
	static const uint32_t numbers[3] = {7, 8, 9};
	uint32_t plan[MOST_ROWS], via[MOST_ROWS] = {0}, order[MOST_ROWS];
	struct emission e = {.routes = columns(t, 0), .count = t->count, .plan = plan};
	struct port_sets *sets;

	make_plan(p, plan);
	e.links = p->links;
	e.starts = starts;
	e.words = words;
	e.whole = whole;
	e.numbers = numbers;
	e.written = t->count / 2;
	e.via = via;
	sets = port_sets_new(&e, plan);
	CHECK(sets && sets->entries == 5 * sets->count);
	e.sets = sets;
	e.order = order;
	e.ordered = emission_order(&e, order);
	CHECK(e.ordered + p->later == t->count);
	CHECK(ports_emitted(&e) == sets->entries);
	check_order(t, &e);
	check_nodes(&e);
	port_sets_free(sets);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct table t = {.count = 0};
	struct routes routes;
	struct prefixes *p;
	char *text = malloc(size + !size);

	memcpy(text, data, size);
	read_all(&t, text, size);
	free(text);
	routes = columns(&t, 0);
	p = prefixes_new(&routes, t.count);
	CHECK(p);
	check_chains(&t, p);
	check_entries(&t, p);
	prefixes_free(p);
	return 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * routetable.h: what is done once for each of a million routes, for routes.py, routes_file.py and
 * compile_routes.py, which say what it means.
 *
 * C does the plain cases and decides nothing of its own: where a line, or a prefix, is not like
 * one that Python has explained to it before, it stops there, and Python does that one. So there
 * is one definition of each refusal and each precedence, and it is not here.
 *
 * Integers are in host order where nothing else is said. Nothing is printed, no file is read, no
 * system call is made.
 *
 * cffi reads the declarations from this file, too (build_routetable.py), without lines that start
 * with '#': so no macros with values here.
 */
#ifndef DMM_ROUTETABLE_H
#define DMM_ROUTETABLE_H

#include <stddef.h>
#include <stdint.h>

enum {
	ROUTE_NONE = 0x7fffffff, /* no route; routes of a table are fewer */
	PLAN_OWN = 0,		 /* in a plan: the prefix carries its one route inline */
	PLAN_SKIP = 0x7fffffff,	 /* in a plan: an earlier route has the same prefix */
	PLAN_SET = 0x40000000,	 /* in a plan: the rest is a set, from 0, in a template's place */
	NAMED_OWN = 0x40000000,	 /* in a template: the prefix's own route of that place */
	NAMED_MISS = 0x7fffffff, /* in a template: no route */
	/* of each entry: prefixlen, and above its eight bits what enum dmm_route_rank has of
	 * protocol and ports; proto and port as a word; named */
	TEMPLATE_WORDS = 3,
	MOST_LEARNT = 32768,
	MOST_KEY = 256,	 /* bytes of what is learnt; what is longer is never found */
	MOST_GROUP = 63, /* routes of one prefix that plan_key() takes */
};

/*
 * The columns of a RouteTable, or of a part of one: family 4 or 6, prefix length, address (of
 * IPv4 in addrs_lo alone), and the numbers that the table gives.
 */
struct routes {
	uint8_t *families, *lengths, *stack;
	uint64_t *addrs_hi, *addrs_lo;
	uint32_t *match, *origin;
};

/* See bulk.blocks_apart(); does nothing where the C library is not glibc. */
void blocks_apart(void);

/* What was learnt: numbers by bytes. It forgets all when it has MOST of them. */
struct learnt *learnt_new(void);
void learnt_free(struct learnt *l);
/* 0, or -1: no memory */
int learnt_put(struct learnt *l, const void *key, size_t size, uint32_t number);

struct lines_read {
	size_t bytes; /* of the text, whole lines */
	uint32_t lines, rows;
};

/*
 * Reads lines of a routes file from text, all of whose lines end in '\n', into out, until one comes
 * that is not plain, or room rows are there. tails: what stands behind the first comma, by its
 * bytes: match << 8 | stack. line: of the file, that before the first one.
 */
void lines_read(const struct learnt *tails, const char *text, size_t size, uint32_t line,
		const struct routes *out, uint32_t room, struct lines_read *done);

/* The first route, from that one on, whose prefix contains an address of the family; else count. */
uint32_t routes_containing(const struct routes *routes, uint32_t count, uint32_t from,
			   uint8_t family, uint64_t hi, uint64_t lo);

/*
 * The prefixes of a table. links: for each route the next one of the same prefix, or ROUTE_NONE,
 * with the top bit where an earlier one has that prefix.
 */
struct prefixes {
	struct routes routes;
	uint32_t count, mask;
	uint32_t *slots, *links;
	uint32_t later; /* routes that are not the first of their prefix */
	uint32_t n_lengths[2];
	uint8_t length[2][129]; /* of IPv4 and IPv6, those that there are, longest first */
};

/* Of the first count routes, which stay where they are; NULL: no memory. */
struct prefixes *prefixes_new(const struct routes *routes, uint32_t count);
void prefixes_free(struct prefixes *p);
/* The first route, from that one on, whose prefix has others, too, that come later; else count. */
uint32_t links_shared(const uint32_t *links, uint32_t count, uint32_t from);
/* The first route of a prefix, or ROUTE_NONE. */
uint32_t prefixes_first(const struct prefixes *p, uint8_t family, uint8_t length, uint64_t hi,
			uint64_t lo);

/*
 * The first route of the next shorter prefix around that of a route, or ROUTE_NONE. Prefixes whose
 * one route has the match hidden are passed over.
 */
uint32_t prefixes_parent(const struct prefixes *p, uint32_t route, uint32_t hidden);

/*
 * The first of another table's routes, from that one on, that the table of p does not have, or
 * count. matches, stacks: what p's table calls the other's; ROUTE_NONE: it has none such.
 */
uint32_t prefixes_lack(const struct prefixes *p, const struct routes *routes, uint32_t count,
		       uint32_t from, const uint32_t *matches, const uint32_t *stacks);
/*
 * Fills plan from a route on, for as long as the template is known: PLAN_OWN, PLAN_SKIP, or the
 * template's number from 1. Returns where it is not, or count. takes_all: by match, 1 where every
 * protocol and port matches. templates: by plan_key().
 */
uint32_t plan_run(const struct prefixes *p, const uint8_t *takes_all,
		  const struct learnt *templates, uint32_t *plan, uint32_t from);
/*
 * What decides the template of a prefix, by its first route: the parent, and the match of each of
 * its routes. Returns how many words of key, which has room for MOST_GROUP + 1; 0: too many.
 */
uint32_t plan_key(const struct prefixes *p, const uint8_t *takes_all, uint32_t route,
		  uint32_t *key);

/*
 * The port sets of one table. Prefixes that are alike in all but the numbers of their own routes
 * share one, in which those count from that of the prefix's first: a million prefixes for one port
 * have one.
 */
struct port_sets {
	uint32_t count, room;
	uint32_t *routes; /* by set: the first route of a prefix that has it, and its template */
	uint32_t entries;
};

/*
 * What the prefixes of one table say, and the entries of its ports.
 *
 * plan, links: NULL where every prefix has one route, which takes all. Template t has the entries
 * starts[t-1] to starts[t] of words, TEMPLATE_WORDS each, and whole[t-1] is the one route that it
 * stands for, or NAMED_MISS. named: a route of the table, NAMED_OWN + n, or NAMED_MISS. numbers:
 * of the stacks, by the table's numbers of them. via: of each route from written on, which are
 * elements of sets, how far behind that its number is. first_set: the port sets before those of
 * this table; keys have it in network order, for the kernel's trie grows from its first byte on,
 * and neighbours in it are found in its cache. order: see emission_order().
 */
struct emission {
	struct routes routes;
	uint32_t count;
	const uint32_t *plan, *links, *starts, *words, *whole, *numbers;
	const uint32_t *via;
	uint32_t written;
	uint32_t base, table, first_set;
	const struct port_sets *sets;
	const uint32_t *order;
	uint32_t ordered;
	uint32_t at;	     /* of order, the next prefix */
	uint32_t set, entry; /* the next entry of ports */
};

/* Finds the sets, and writes them into the plan, which has templates alone; NULL: no memory. */
struct port_sets *port_sets_new(const struct emission *e, uint32_t *plan);
void port_sets_free(struct port_sets *sets);
/*
 * The first route of each prefix in the order in which forest_run() takes them; returns how many
 * they are. order has room for count.
 */
uint32_t emission_order(const struct emission *e, uint32_t *order);
/*
 * Packs struct dmm_port_key and dmm_port_value, from where e stands; returns how many, less than
 * room at the end alone.
 */
uint32_t emit_ports(struct emission *e, void *keys, void *values, uint32_t room);

enum { FOREST_ROOM = 2048 }; /* nodes, at the least */

/* The trees of all tables, whose nodes are packed as soon as they are whole. NULL: no memory. */
struct forest *forest_new(void);
void forest_free(struct forest *f);
/*
 * Goes on with a table, one after the other by number, until its prefixes are through or there is
 * no room, FOREST_ROOM at least. Packs the places and struct dmm_route_node; returns how many.
 */
uint32_t forest_run(struct forest *f, struct emission *e, uint32_t *keys, void *nodes,
		    uint32_t room);
/* What is left when every table is through. */
uint32_t forest_end(struct forest *f, uint32_t *keys, void *nodes);

#endif

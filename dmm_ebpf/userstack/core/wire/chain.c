// SPDX-License-Identifier: Apache-2.0
/* chain.c: see chain.h. */
#include "chain.h"

enum {
	IP4_BYTES = 20,
	IP6_BYTES = 40,
	HEADER_BYTES = 8, /* the least of an extension header, and all of a fragment's */
	OPTION_PAD1 = 0,
	OPTION_IF_UNKNOWN = 0xc0,
};

static bool read4(const uint8_t *p, uint32_t len, struct chain *c)
{
	uint16_t fragment;

	if (len < IP4_BYTES)
		return false;
	c->at = (p[0] & 0xf) * 4u;
	c->end = get_be16(p + 2);
	if (c->at < IP4_BYTES || c->end < c->at || c->end > len)
		return false;
	fragment = get_be16(p + 6);
	c->fragment = fragment & 0x3fff;
	c->more = fragment & 0x2000;
	c->offset = (fragment & 0x1fff) * 8u;
	c->id = get_be16(p + 4);
	c->proto = p[9];
	c->front = c->at;
	c->next_at = 9;
	return true;
}

/*
 * RFC 8200 section 4.2: the highest two bits of an option's type say what becomes of who does
 * not know it.
 */
static bool options_ok(const uint8_t *o, uint32_t left)
{
	while (left) {
		uint32_t bytes = 1;

		if (o[0] != OPTION_PAD1) {
			if (left < 2 || o[1] + 2u > left || (o[0] & OPTION_IF_UNKNOWN))
				return false;
			bytes = o[1] + 2u;
		}
		o += bytes;
		left -= bytes;
	}
	return true;
}

/* The fragment's header at c->at, of at least 8 bytes */
static bool fragment_read(const uint8_t *p, struct chain *c)
{
	uint16_t word = get_be16(p + c->at + 2);

	if (!(word & 0xfff9))
		return true;
	if (c->fragment)
		return false;
	c->fragment = true;
	c->more = word & 1;
	c->offset = word & 0xfff8;
	c->id = get_be32(p + c->at + 4);
	c->front = c->at;
	return true;
}

/* The header of type c->proto at c->at; false: it is refused. */
static bool header_pass(const uint8_t *p, struct chain *c)
{
	uint32_t bytes = HEADER_BYTES;
	const uint8_t *h = p + c->at;

	if (c->end - c->at < HEADER_BYTES)
		return false;
	if (c->proto == CHAIN_FRAGMENT) {
		if (!fragment_read(p, c))
			return false;
	} else {
		bytes = (h[1] + 1u) * HEADER_BYTES;
		if (bytes > c->end - c->at)
			return false;
		if (c->proto == CHAIN_ROUTING ? h[3] != 0 : !options_ok(h + 2, bytes - 2))
			return false;
	}
	if (!c->fragment)
		c->next_at = c->at;
	c->proto = h[0];
	c->at += bytes;
	return true;
}

static bool is_passed(uint8_t proto)
{
	return proto == CHAIN_HOP_BY_HOP || proto == CHAIN_ROUTING || proto == CHAIN_FRAGMENT ||
	       proto == CHAIN_DESTINATION;
}

static bool read6(const uint8_t *p, uint32_t len, struct chain *c)
{
	if (len < IP6_BYTES)
		return false;
	c->at = IP6_BYTES;
	c->end = IP6_BYTES + get_be16(p + 4);
	if (c->end > len)
		return false;
	c->proto = p[6];
	c->next_at = 6;
	while (is_passed(c->proto)) {
		if (c->proto == CHAIN_HOP_BY_HOP && c->at != IP6_BYTES)
			/* RFC 8200 section 4.1: right behind the IPv6 header, or nowhere */
			return false;
		if (!header_pass(p, c))
			return false;
		if (c->fragment)
			return true; /* what is behind is looked at when all of it is there */
	}
	return true;
}

bool chain_read(const uint8_t *p, uint32_t len, struct chain *chain)
{
	memset(chain, 0, sizeof(*chain));
	if (!len)
		return false;
	if (p[0] >> 4 == 4)
		return read4(p, len, chain);
	return p[0] >> 4 == 6 && read6(p, len, chain);
}

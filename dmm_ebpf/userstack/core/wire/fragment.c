// SPDX-License-Identifier: Apache-2.0
/* fragment.c: see fragment.h. */
#include "fragment.h"

#include <stdlib.h>

#include "wire.h"

enum {
	CHUNKS_EACH = FRAGMENT_MAX_BYTES / MEM_CHUNK_BYTES,
	IP4_TTL = 8,
	IP6_HOP_LIMIT = 7,
	ECN_NOT_ECT_BIT = 1, /* 1 << the field */
	ECN_CE_BIT = 8,
};

struct key {
	uint8_t saddr[16];
	uint8_t daddr[16];
	uint32_t id;
	uint8_t proto; /* IPv4; 0: IPv6, where fragments may differ in it */
	uint8_t version;
	uint8_t leg;
	uint8_t pad;
};

struct range {
	uint32_t start, end;
};

/* A packet that is not whole. wait_until_ns 0: none. */
struct broken {
	struct key key;
	uint64_t wait_until_ns;
	uint32_t total;	  /* bytes that its fragments carry; 0: the last has not come */
	uint16_t header;  /* bytes; 0: the first has not come */
	uint16_t next_at; /* as in struct chain */
	uint8_t next;	  /* what the first fragment says that it carries */
	uint8_t ttl, ecn; /* the least; a bit for each value */
	bool spoilt;	  /* nothing is kept but that it was there */
	uint8_t n_ranges;
	struct range ranges[FRAGMENT_RANGES]; /* what is there, in order, none touching another */
	uint8_t *chunks[CHUNKS_EACH];
	uint8_t head[FRAGMENT_HEADER_MAX];
};

struct fragments {
	struct mem *mem;
	uint64_t *dropped;
	uint32_t n; /* in use */
	uint32_t n_chunks;
	struct broken broken[FRAGMENT_PACKETS];
	uint8_t out[FRAGMENT_HEADER_MAX + FRAGMENT_MAX_BYTES];
};

struct fragments *fragments_create(struct mem *mem, uint64_t *dropped)
{
	struct fragments *f = calloc(1, sizeof(*f));

	if (!f)
		return NULL;
	f->mem = mem;
	f->dropped = dropped;
	return f;
}

static void payload_free(struct fragments *f, struct broken *b)
{
	for (uint32_t i = 0; i < CHUNKS_EACH; i++) {
		if (!b->chunks[i])
			continue;
		mem_chunk_put(f->mem, b->chunks[i]);
		b->chunks[i] = NULL;
		f->n_chunks--;
	}
}

/* What comes of it later is known by its place, until its time is over. */
static void spoil(struct fragments *f, struct broken *b)
{
	payload_free(f, b);
	b->spoilt = true;
	++*f->dropped;
}

static void forget(struct fragments *f, struct broken *b)
{
	payload_free(f, b);
	b->wait_until_ns = 0;
	f->n--;
}

/* Whose first fragment never came may be nobody's here. */
static void give_up(struct fragments *f, struct broken *b)
{
	*f->dropped += b->header && !b->spoilt;
	forget(f, b);
}

void fragments_destroy(struct fragments *f)
{
	if (!f)
		return;
	for (uint32_t i = 0; i < FRAGMENT_PACKETS; i++)
		payload_free(f, &f->broken[i]);
	free(f);
}

static void key_of(struct key *key, const uint8_t *p, const struct chain *c, uint32_t leg)
{
	memset(key, 0, sizeof(*key));
	key->version = p[0] >> 4;
	key->leg = (uint8_t)leg;
	key->id = c->id;
	if (key->version == 4) {
		memcpy(key->saddr, p + 12, 4);
		memcpy(key->daddr, p + 16, 4);
		key->proto = c->proto;
	} else {
		memcpy(key->saddr, p + 8, 16);
		memcpy(key->daddr, p + 24, 16);
	}
}

/*
 * Who has waited longest, of those that hold payload if holding is asked for, and are not not_me.
 */
static struct broken *oldest(struct fragments *f, bool holding, const struct broken *not_me)
{
	struct broken *found = NULL;

	for (uint32_t i = 0; i < FRAGMENT_PACKETS; i++) {
		struct broken *b = &f->broken[i];

		if (!b->wait_until_ns || b == not_me || (holding && b->spoilt))
			continue;
		if (!found || b->wait_until_ns < found->wait_until_ns)
			found = b;
	}
	return found;
}

/* The packet's place, a new one if it has none. */
static struct broken *place(struct fragments *f, const struct key *key, uint64_t now_ns)
{
	struct broken *spare = NULL;

	for (uint32_t i = 0; i < FRAGMENT_PACKETS; i++) {
		struct broken *b = &f->broken[i];

		if (!b->wait_until_ns)
			spare = b;
		else if (!memcmp(&b->key, key, sizeof(*key)))
			return b;
	}
	if (!spare) {
		spare = oldest(f, false, NULL);
		give_up(f, spare);
	}
	memset(spare, 0, sizeof(*spare));
	spare->key = *key;
	spare->wait_until_ns = now_ns + (key->version == 4 ? FRAGMENT_WAIT4_NS : FRAGMENT_WAIT6_NS);
	spare->ttl = UINT8_MAX;
	f->n++;
	return spare;
}

static bool chunk_for(struct fragments *f, struct broken *b, uint32_t i)
{
	if (b->chunks[i])
		return true;
	if (f->n_chunks == FRAGMENT_CHUNKS) {
		struct broken *victim = oldest(f, true, b);

		if (!victim)
			return false;
		give_up(f, victim);
	}
	b->chunks[i] = mem_chunk_get(f->mem, f->mem->limit_bytes / 2);
	f->n_chunks += !!b->chunks[i];
	return b->chunks[i];
}

static bool bytes_put(struct fragments *f, struct broken *b, uint32_t start, const uint8_t *data,
		      uint32_t len)
{
	while (len) {
		uint32_t in = start % MEM_CHUNK_BYTES, n = min_u32(len, MEM_CHUNK_BYTES - in);

		if (!chunk_for(f, b, start / MEM_CHUNK_BYTES))
			return false;
		memcpy(b->chunks[start / MEM_CHUNK_BYTES] + in, data, n);
		start += n;
		data += n;
		len -= n;
	}
	return true;
}

static bool bytes_same(const struct broken *b, uint32_t start, const uint8_t *data, uint32_t len)
{
	while (len) {
		uint32_t in = start % MEM_CHUNK_BYTES, n = min_u32(len, MEM_CHUNK_BYTES - in);

		if (memcmp(b->chunks[start / MEM_CHUNK_BYTES] + in, data, n) != 0)
			return false;
		start += n;
		data += n;
		len -= n;
	}
	return true;
}

enum found { NEW, TWICE, OVERLAPS };

/* Where start to end lies among what is there; *at: in front of which range. */
static enum found range_find(const struct broken *b, uint32_t start, uint32_t end, uint32_t *at)
{
	uint32_t i = 0;

	while (i < b->n_ranges && b->ranges[i].end <= start)
		i++;
	*at = i;
	if (i == b->n_ranges || end <= b->ranges[i].start)
		return NEW;
	return start >= b->ranges[i].start && end <= b->ranges[i].end ? TWICE : OVERLAPS;
}

/* Adds what overlaps none, in front of range at; false: too many holes. */
static bool range_add(struct broken *b, uint32_t at, uint32_t start, uint32_t end)
{
	bool before = at && b->ranges[at - 1].end == start;
	bool behind = at < b->n_ranges && b->ranges[at].start == end;

	if (before) {
		b->ranges[at - 1].end = behind ? b->ranges[at].end : end;
		if (!behind)
			return true;
		memmove(&b->ranges[at], &b->ranges[at + 1],
			(b->n_ranges - at - 1u) * sizeof(struct range));
		b->n_ranges--;
		return true;
	}
	if (behind) {
		b->ranges[at].start = start;
		return true;
	}
	if (b->n_ranges == FRAGMENT_RANGES)
		return false;
	memmove(&b->ranges[at + 1], &b->ranges[at], (b->n_ranges - at) * sizeof(struct range));
	b->ranges[at] = (struct range){start, end};
	b->n_ranges++;
	return true;
}

/* Whether a packet may end, or go on, where this fragment says. */
static bool end_fits(struct broken *b, const struct chain *c, uint32_t end)
{
	uint32_t last = b->n_ranges ? b->ranges[b->n_ranges - 1].end : 0;

	if (c->more)
		return !b->total || end <= b->total;
	if (b->total ? b->total != end : last > end)
		return false;
	b->total = end;
	return true;
}

static bool header_keep(struct broken *b, const uint8_t *p, const struct chain *c)
{
	if (c->front > FRAGMENT_HEADER_MAX)
		return false;
	memcpy(b->head, p, c->front);
	b->header = (uint16_t)c->front;
	b->next_at = (uint16_t)c->next_at;
	b->next = c->proto;
	return true;
}

static void marks_note(struct broken *b, const uint8_t *p)
{
	bool v4 = p[0] >> 4 == 4;
	uint8_t ttl = p[v4 ? IP4_TTL : IP6_HOP_LIMIT],
		tos = v4 ? p[1] : (uint8_t)(get_be16(p) >> 4);

	b->ecn |= (uint8_t)(1 << (tos & 3));
	if (ttl < b->ttl)
		b->ttl = ttl;
}

static bool keep(struct fragments *f, struct broken *b, const uint8_t *p, const struct chain *c,
		 uint32_t at)
{
	uint32_t len = c->end - c->at;

	if (!end_fits(b, c, c->offset + len) || (!c->offset && !header_keep(b, p, c)))
		return false;
	marks_note(b, p);
	return bytes_put(f, b, c->offset, p + c->at, len) &&
	       range_add(b, at, c->offset, c->offset + len);
}

/* Whether a fragment can be one: RFC 8200 section 4.5; what it makes of its packet may have no more
 * than an IP packet has. */
static bool is_sound(const uint8_t *p, const struct chain *c)
{
	uint32_t len = c->end - c->at;
	bool v4 = p[0] >> 4 == 4;

	if (!len || (c->more && len % 8))
		return false;
	if (v4 && csum_fold(csum_add(p, c->at, 0)) != 0xffff)
		return false;
	return c->offset + len + c->front <= 65535u + (v4 ? 0u : WIRE_IP6_LEN);
}

/*
 * RFC 3168 section 5.3, and as Linux's ip_frag_ecn_table: what all of it says; false: it cannot be.
 */
static bool ecn_join(const struct broken *b, uint8_t *head)
{
	bool v4 = head[0] >> 4 == 4;

	if ((b->ecn & ECN_NOT_ECT_BIT) && b->ecn != ECN_NOT_ECT_BIT)
		return false;
	if (b->ecn & ECN_CE_BIT)
		head[1] |= v4 ? 3 : 3 << 4;
	return true;
}

static uint32_t join(struct fragments *f, const struct broken *b)
{
	uint32_t len = b->header + b->total, at = b->header;
	uint8_t *out = f->out;

	memcpy(out, b->head, b->header);
	for (uint32_t i = 0; at < len; i++) {
		uint32_t n = min_u32(len - at, MEM_CHUNK_BYTES);

		memcpy(out + at, b->chunks[i], n);
		at += n;
	}
	if (out[0] >> 4 == 4) {
		uint16_t csum;

		put_be16(out + 2, (uint16_t)len);
		put_be16(out + 6, get_be16(out + 6) & 0x4000);
		out[IP4_TTL] = b->ttl;
		memset(out + 10, 0, 2);
		csum = (uint16_t)~csum_fold(csum_add(out, b->header, 0));
		memcpy(out + 10, &csum, 2);
	} else {
		put_be16(out + 4, (uint16_t)(len - WIRE_IP6_LEN));
		out[IP6_HOP_LIMIT] = b->ttl;
		out[b->next_at] = b->next;
	}
	return len;
}

/* Takes extension headers off a packet with no fragment's in it: at *packet, to f->out. */
static enum fragment_result strip(struct fragments *f, const uint8_t **packet, uint32_t *len)
{
	const uint8_t *p = *packet;
	struct chain c;

	if (!chain_read(p, *len, &c) || c.fragment)
		return FRAGMENT_REFUSED;
	if (p[0] >> 4 == 6 && c.at != WIRE_IP6_LEN) {
		memmove(f->out, p, WIRE_IP6_LEN);
		memmove(f->out + WIRE_IP6_LEN, p + c.at, c.end - c.at);
		put_be16(f->out + 4, (uint16_t)(c.end - c.at));
		f->out[6] = c.proto;
		*packet = f->out;
		*len = c.end - c.at + WIRE_IP6_LEN;
	}
	return FRAGMENT_WHOLE;
}

static enum fragment_result complete(struct fragments *f, struct broken *b, const uint8_t **packet,
				     uint32_t *len)
{
	if (!b->header || !b->total || b->n_ranges != 1 || b->ranges[0].start ||
	    b->ranges[0].end != b->total)
		return FRAGMENT_KEPT;
	if (b->header + b->total > 65535u + (b->head[0] >> 4 == 4 ? 0u : WIRE_IP6_LEN) ||
	    !ecn_join(b, b->head)) {
		spoil(f, b);
		return FRAGMENT_DROPPED;
	}
	*len = join(f, b);
	*packet = f->out;
	forget(f, b);
	return strip(f, packet, len);
}

static enum fragment_result take(struct fragments *f, const uint8_t **packet, uint32_t *len,
				 uint32_t leg, const struct chain *c, uint64_t now_ns)
{
	const uint8_t *p = *packet;
	struct broken *b;
	struct key key;
	uint32_t at;

	if (!is_sound(p, c))
		return FRAGMENT_REFUSED;
	key_of(&key, p, c, leg);
	b = place(f, &key, now_ns);
	if (b->spoilt)
		return FRAGMENT_KEPT;
	switch (range_find(b, c->offset, c->offset + c->end - c->at, &at)) {
	case TWICE:
		if (bytes_same(b, c->offset, p + c->at, c->end - c->at))
			return FRAGMENT_KEPT;
		break;
	case NEW:
		if (keep(f, b, p, c, at))
			return complete(f, b, packet, len);
		break;
	case OVERLAPS:
		break;
	}
	spoil(f, b);
	return FRAGMENT_DROPPED;
}

enum fragment_result fragment_take(struct fragments *f, uint32_t leg, const uint8_t **packet,
				   uint32_t *len, bool *joined, uint64_t now_ns)
{
	struct chain c;

	*joined = false;
	if (!chain_read(*packet, *len, &c))
		return FRAGMENT_REFUSED;
	if (!c.fragment)
		return strip(f, packet, len);
	*joined = true;
	fragments_expire(f, now_ns);
	return take(f, packet, len, leg, &c, now_ns);
}

uint64_t fragments_expire(struct fragments *f, uint64_t now_ns)
{
	uint64_t next = NEVER;

	if (!f->n)
		return NEVER;
	for (uint32_t i = 0; i < FRAGMENT_PACKETS; i++) {
		struct broken *b = &f->broken[i];

		if (!b->wait_until_ns)
			continue;
		if (b->wait_until_ns > now_ns) {
			next = min_u64(next, b->wait_until_ns);
			continue;
		}
		give_up(f, b);
	}
	return next;
}

uint64_t fragments_held_bytes(const struct fragments *f)
{
	return (uint64_t)f->n_chunks * MEM_CHUNK_BYTES;
}

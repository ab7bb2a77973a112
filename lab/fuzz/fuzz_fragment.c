/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_fragment.c: libFuzzer target for fragment.c and chain.c, against the same rules written down
 * naively, a byte at a time.
 *
 * The input is a program: fragments of a few packets, with contents that follow from their place or
 * are bent, raw packets, and time. Checked after each step: the verdict, what was put together, the
 * bound on memory; at the end that all memory came back.
 */
#include "../sim/holds.h"
#include "wire/fragment.h"
#include "fuzz.h"
#include "wire/wire.h"

enum { NAMES = 4, MAX_STEPS = 200, ECN_CE_VALUE = 3, RAW = 6, TIME = 7 };

/* A packet as the rules see it. Names: bit 0: IPv6; bit 1: another identification. */
struct model {
	bool known, spoilt, first;
	uint64_t until_ns;
	uint32_t total, last;
	uint8_t ttl, marks;
	uint8_t there[65536 + 64], bytes[65536 + 64];
};

static struct model models[NAMES];

static uint32_t holes_and_all(const struct model *m)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < m->last; i++)
		n += m->there[i] && !(i && m->there[i - 1]);
	return n;
}

static enum fragment_result model_new(struct model *m, uint32_t at, const uint8_t *data,
				      uint32_t len, bool more, bool v6)
{
	uint32_t end = at + len;

	if (more ? m->total && end > m->total : m->total ? m->total != end : m->last > end)
		return FRAGMENT_DROPPED;
	if (!more)
		m->total = end;
	if (end > m->last)
		m->last = end;
	memcpy(m->bytes + at, data, len);
	memset(m->there + at, 1, len);
	m->first = m->first || !at;
	if (holes_and_all(m) > FRAGMENT_RANGES)
		return FRAGMENT_DROPPED;
	if (!m->first || !m->total || m->last != m->total || holes_and_all(m) != 1)
		return FRAGMENT_KEPT;
	if ((m->marks & 1 && m->marks != 1) || m->total + (v6 ? 0 : 20) > 65535)
		return FRAGMENT_DROPPED;
	return FRAGMENT_WHOLE;
}

static enum fragment_result model_take(struct model *m, uint32_t at, const uint8_t *data,
				       uint32_t len, bool more, bool v6, uint8_t tos, uint8_t ttl)
{
	uint32_t old = 0, end = at + len;
	bool same = true;
	enum fragment_result result;

	if (!len || (more && len % 8) || end + (v6 ? 0 : 20) > 65535)
		return FRAGMENT_REFUSED;
	if (m->spoilt)
		return FRAGMENT_KEPT;
	for (uint32_t i = at; i < end; i++) {
		old += m->there[i];
		same = same && m->bytes[i] == data[i - at];
	}
	if (old == len && same)
		return FRAGMENT_KEPT;
	m->marks |= (uint8_t)(1 << (tos & 3));
	if (ttl < m->ttl)
		m->ttl = ttl;
	result = old ? FRAGMENT_DROPPED : model_new(m, at, data, len, more, v6);
	m->spoilt = result == FRAGMENT_DROPPED;
	return result;
}

static uint32_t build(uint8_t *p, uint32_t name, uint32_t at, const uint8_t *data, uint32_t len,
		      bool more, uint8_t tos, uint8_t ttl)
{
	bool v6 = name & 1;
	uint32_t head = v6 ? 48 : 20;
	uint16_t csum;

	memset(p, 0, head);
	if (v6) {
		put_be16(p, (uint16_t)(6 << 12 | tos << 4));
		put_be16(p + 4, (uint16_t)(len + 8));
		p[6] = CHAIN_FRAGMENT;
		p[7] = ttl;
		p[8] = 0x20;
		p[24] = 0x20;
		p[40] = CHAIN_TCP;
		put_be16(p + 42, (uint16_t)(at | more));
		put_be32(p + 44, name);
	} else {
		p[0] = 0x45;
		p[1] = tos;
		put_be16(p + 2, (uint16_t)(len + 20));
		put_be16(p + 4, (uint16_t)name);
		put_be16(p + 6, (uint16_t)(at / 8 | more << 13));
		p[8] = ttl;
		p[9] = CHAIN_TCP;
		p[12] = p[16] = 10;
		csum = (uint16_t)~csum_fold(csum_add(p, 20, 0));
		memcpy(p + 10, &csum, 2);
	}
	memcpy(p + head, data, len);
	return head + len;
}

static void check_whole(const struct model *m, const uint8_t *p, uint32_t len, bool v6)
{
	uint32_t head = v6 ? 40 : 20;

	CHECK(len == head + m->total && !chain_is_long(p, len));
	CHECK(!memcmp(p + head, m->bytes, m->total));
	CHECK(p[v6 ? 7 : 8] == m->ttl && p[v6 ? 6 : 9] == CHAIN_TCP);
	CHECK(v6 ? get_be16(p + 4) == m->total : get_be16(p + 2) == len);
	CHECK(v6 || csum_fold(csum_add(p, 20, 0)) == 0xffff);
	CHECK(!(m->marks & 1 << ECN_CE_VALUE) || ((v6 ? p[1] >> 4 : p[1]) & 3) == ECN_CE_VALUE);
}

static enum fragment_result give(struct fragments *f, const uint8_t *p, uint32_t len, uint64_t now,
				 const uint8_t **out, uint32_t *out_len)
{
	/* so that AddressSanitizer sees each read behind it */
	uint8_t *exact = malloc(len ? len : 1);
	enum fragment_result result = FRAGMENT_REFUSED;
	bool joined;

	memcpy(exact, p, len);
	*out = exact;
	*out_len = len;
	if (len >= 20 && chain_is_long(exact, len))
		result = fragment_take(f, 1, out, out_len, &joined, now);
	free(exact);
	return result;
}

static void step_fragment(struct fragments *f, struct input *in, uint32_t what, uint64_t now)
{
	static uint8_t packet[65536 + 64], data[65536];
	uint32_t name = what >> 3 & 3, units = take(in, 2),
		 at = (units & (what & 128 ? 0x1fff : 0x1ff)) * 8;
	bool more = what & 32, v6 = name & 1;
	uint32_t len = what & 64 ? take(in, 1) * 8 : take(in, 2) % 9000;
	uint32_t bent = units & 0x8000 ? take(in, 2) : UINT32_MAX;
	uint8_t marks = (uint8_t)take(in, 1), ttl = (uint8_t)(marks >> 2), tos = marks & 3;
	struct model *m = &models[name];
	const uint8_t *out;
	uint32_t out_len;

	if (len + 48 > 65535 || (!at && !more)) /* no fragment at all */
		return;
	for (uint32_t i = 0; i < len; i++)
		data[i] = (uint8_t)((at + i) * 7 + ((at + i) >> 8) + name);
	if (bent < len)
		data[bent] ^= 1;
	for (uint32_t i = 0; i < NAMES; i++)
		if (models[i].known && models[i].until_ns <= now)
			models[i].known = false;
	if (!m->known) {
		memset(m, 0, sizeof(*m));
		m->ttl = 255;
	}
	enum fragment_result want = model_take(m, at, data, len, more, v6, tos, ttl);
	enum fragment_result got = give(
		f, packet, build(packet, name, at, data, len, more, tos, ttl), now, &out, &out_len);

	CHECK(want == got);
	if (got != FRAGMENT_REFUSED && !m->known) {
		m->known = true;
		m->until_ns = now + (v6 ? FRAGMENT_WAIT6_NS : FRAGMENT_WAIT4_NS);
	}
	if (got == FRAGMENT_WHOLE) {
		check_whole(m, out, out_len, v6);
		m->known = false;
	}
}

/* A packet of the input's own, of addresses that no name has */
static void step_raw(struct fragments *f, struct input *in, uint64_t now)
{
	uint8_t packet[512];
	uint32_t len = min_u32(take(in, 1) * 2, sizeof(packet)), out_len;
	const uint8_t *out;

	for (uint32_t i = 0; i < len; i++)
		packet[i] = (uint8_t)take(in, 1);
	if (len < 40)
		return;
	packet[0] = (uint8_t)(packet[0] & 1 ? 0x60 : 0x45 + (packet[0] >> 4) % 3);
	packet[packet[0] >> 4 == 6 ? 8 : 12] = 11;
	put_be16(packet + (packet[0] >> 4 == 6 ? 4 : 2),
		 (uint16_t)(packet[0] >> 4 == 6 ? len - 40 : len));
	if (packet[0] >> 4 == 4) {
		uint16_t csum;

		memset(packet + 10, 0, 2);
		csum = (uint16_t)~csum_fold(csum_add(packet, (packet[0] & 15) * 4u, 0));
		memcpy(packet + 10, &csum, 2);
	}
	if (give(f, packet, len, now, &out, &out_len) == FRAGMENT_WHOLE)
		CHECK(out_len <= FRAGMENT_HEADER_MAX + FRAGMENT_MAX_BYTES);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, size};
	struct fragments *f;
	uint64_t now = NS_PER_S, dropped = 0;
	struct mem mem;

	mem_init(&mem, 64 << 20);
	f = fragments_create(&mem, &dropped);
	for (uint32_t i = 0; i < NAMES; i++)
		models[i].known = false;
	for (uint32_t i = 0; i < MAX_STEPS && in.left; i++) {
		uint32_t what = take(&in, 1);

		if ((what & 7) == TIME)
			now += take(&in, 1) * NS_PER_S / 2;
		else if ((what & 7) == RAW)
			step_raw(f, &in, now);
		else
			step_fragment(f, &in, what, now);
		CHECK(fragments_held_bytes(f) == mem.chunk_bytes);
		CHECK(fragments_held_bytes(f) <= (uint64_t)FRAGMENT_CHUNKS * MEM_CHUNK_BYTES);
		CHECK(fragments_expire(f, now) > now);
	}
	CHECK(fragments_expire(f, now + FRAGMENT_WAIT6_NS) == NEVER);
	CHECK(!mem.chunk_bytes);
	fragments_destroy(f);
	mem_deinit(&mem);
	return 0;
}

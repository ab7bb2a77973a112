/* SPDX-License-Identifier: Apache-2.0 */
/* stream.c: see stream.h */
#include "stream.h"

#include "csum.h"

static uint8_t **stream_slot(const struct stream *st, uint64_t chunk)
{
	return &st->ring[chunk & (st->ring_cap - 1)];
}

/* The ring must reach from head's chunk to chunk last */
static bool stream_reach(struct mem *m, struct stream *st, uint64_t last)
{
	uint64_t first = st->head / MEM_CHUNK_BYTES;
	uint64_t need = last - first + 1;
	uint32_t cap;
	uint8_t **ring;

	if (likely(need <= st->ring_cap))
		return true;
	if (need > 1u << 24)
		return false;
	cap = pow2_ceil((uint32_t)max_u64(need, 8));
	ring = mem_alloc(m, cap * sizeof(*ring));
	if (!ring)
		return false;
	memset(ring, 0, cap * sizeof(*ring));
	for (uint64_t c = first; c < first + st->ring_cap; c++)
		ring[c & (cap - 1)] = *stream_slot(st, c);
	mem_free(m, st->ring, st->ring_cap * sizeof(*ring));
	st->ring = ring;
	st->ring_cap = cap;
	return true;
}

/* Fills an empty slot's first n bytes: by a chunk of its own, or where the bytes lie. */
static bool slot_fill(struct mem *m, uint8_t **slot, const uint8_t *data, uint32_t n, bool cut,
		      uint64_t reserve)
{
	if (cut && n == MEM_CHUNK_BYTES && mem_piece(m, data, reserve)) {
		*slot = (uint8_t *)(uintptr_t)data;
		return true;
	}
	*slot = mem_chunk_get(m, reserve);
	return *slot != NULL;
}

uint32_t stream_put(struct mem *m, struct stream *st, uint64_t off, const uint8_t *data,
		    uint32_t len, uint64_t reserve)
{
	/* What comes out of order shares its chunks with what is to come. */
	bool cut = off == st->tail && mem_may_cut(m, data, len);
	uint32_t done = 0;

	if (!len || !stream_reach(m, st, (off + len - 1) / MEM_CHUNK_BYTES))
		return 0;
	while (done < len) {
		uint8_t **slot = stream_slot(st, (off + done) / MEM_CHUNK_BYTES);
		uint32_t at = (off + done) % MEM_CHUNK_BYTES;
		uint32_t n = min_u32(len - done, MEM_CHUNK_BYTES - at);

		if (!*slot) {
			if (!slot_fill(m, slot, data + done, n, cut, reserve))
				break;
			st->n_chunks++;
		}
		if (*slot != data + done)
			memcpy(*slot + at, data + done, n);
		done += n;
	}
	return done;
}

static void stream_free_slot(struct mem *m, struct stream *st, uint64_t chunk)
{
	uint8_t **slot = stream_slot(st, chunk);

	if (!*slot)
		return;
	mem_chunk_put(m, *slot);
	*slot = NULL;
	st->n_chunks--;
}

void stream_drop(struct mem *m, struct stream *st, uint64_t upto)
{
	uint64_t chunk = st->head / MEM_CHUNK_BYTES;

	if (st->n_chunks) {
		for (; chunk < upto / MEM_CHUNK_BYTES; chunk++)
			stream_free_slot(m, st, chunk);
	}
	st->head = upto;
}

void stream_cut(struct mem *m, struct stream *st, uint64_t from)
{
	uint64_t first = (from + MEM_CHUNK_BYTES - 1) / MEM_CHUNK_BYTES;
	uint64_t end = st->head / MEM_CHUNK_BYTES + st->ring_cap;

	for (uint64_t c = first; c < end && st->n_chunks; c++)
		stream_free_slot(m, st, c);
}

void stream_release(struct mem *m, struct stream *st)
{
	for (uint32_t i = 0; i < st->ring_cap && st->n_chunks; i++)
		stream_free_slot(m, st, i);
	mem_free(m, st->ring, st->ring_cap * sizeof(*st->ring));
	st->ring = NULL;
	st->ring_cap = 0;
}

void stream_copy(const struct stream *st, uint64_t off, uint8_t *dst, uint32_t len)
{
	while (len) {
		uint32_t at = off % MEM_CHUNK_BYTES;
		uint32_t n = min_u32(len, MEM_CHUNK_BYTES - at);

		memcpy(dst, *stream_slot(st, off / MEM_CHUNK_BYTES) + at, n);
		off += n;
		dst += n;
		len -= n;
	}
}

uint64_t stream_copy_csum(const struct stream *st, uint64_t off, uint8_t *dst, uint32_t len)
{
	uint64_t sum = 0;
	bool odd = false;

	while (len) {
		uint32_t at = off % MEM_CHUNK_BYTES;
		uint32_t n = min_u32(len, MEM_CHUNK_BYTES - at);
		uint64_t part = csum_copy(dst, *stream_slot(st, off / MEM_CHUNK_BYTES) + at, n);

		/*
		 * a piece that starts at an odd byte has its sum's bytes the wrong way
		 * round (RFC 1071)
		 */
		sum += odd ? __builtin_bswap16(csum_fold(part)) : csum_fold(part);
		odd ^= n & 1;
		off += n;
		dst += n;
		len -= n;
	}
	return sum;
}

_Static_assert((DMM_MAX_PARTS - 1) * MEM_CHUNK_BYTES >= UINT16_MAX,
	       "a packet begins anywhere in a chunk");

void stream_parts(const struct stream *st, uint64_t off, uint32_t len, struct dmm_payload *to)
{
	to->n = 0;
	to->bytes = len;
	while (len) {
		uint32_t at = off % MEM_CHUNK_BYTES;
		uint32_t n = min_u32(len, MEM_CHUNK_BYTES - at);
		const uint8_t *data = *stream_slot(st, off / MEM_CHUNK_BYTES) + at;
		struct dmm_part *last = &to->part[to->n ? to->n - 1 : 0];

		if (to->n && last->data + last->bytes == data)
			last->bytes += n;
		else
			to->part[to->n++] = (struct dmm_part){.data = data, .bytes = n};
		off += n;
		len -= n;
	}
}

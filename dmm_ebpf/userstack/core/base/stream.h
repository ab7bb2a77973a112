/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stream.h: the bytes of one direction of a connection, from their arrival on one leg until the
 * other leg's peer has acknowledged them.
 *
 * Offsets are 64 bits and count from the first byte of the direction. [head, tail) is held without
 * a hole; bytes beyond tail may be there too (received out of order, struct ranges says which):
 * they are put where they belong at once, so a byte is copied once in and once per transmission
 * out. Of a long packet that came in a block (mem.h) whole chunks are not copied in but stay where
 * they are.
 *
 * Invariants: head <= tail; a chunk exists for every byte put and not dropped; no chunk exists
 * below head's.
 */
#ifndef DMM_STREAM_H
#define DMM_STREAM_H

#include "../api.h"
#include "mem.h"

struct stream {
	uint8_t **ring; /* chunk of offset o: ring[(o / MEM_CHUNK_BYTES) & (ring_cap - 1)]; NULL
			   while empty */
	uint64_t head;
	uint64_t tail;
	uint32_t ring_cap; /* a power of two, or 0 */
	uint32_t n_chunks;
};

/*
 * Stores len bytes at off >= tail; returns how many of them, from the first on, found memory.
 * reserve: see mem_chunk_get()
 */
uint32_t stream_put(struct mem *m, struct stream *st, uint64_t off, const uint8_t *data,
		    uint32_t len, uint64_t reserve);

/* Frees what lies below upto (head <= upto <= tail) */
void stream_drop(struct mem *m, struct stream *st, uint64_t upto);

/* Frees every chunk that lies wholly at or beyond from (out-of-order data that is given up) */
void stream_cut(struct mem *m, struct stream *st, uint64_t from);

/* Frees everything, chunks and ring; head and tail stay */
void stream_release(struct mem *m, struct stream *st);

/* Copies [off, off + len), which must be held. The second form also returns the unfolded checksum
 * (csum.h).
 */
void stream_copy(const struct stream *st, uint64_t off, uint8_t *dst, uint32_t len);
uint64_t stream_copy_csum(const struct stream *st, uint64_t off, uint8_t *dst, uint32_t len);

/* Where [off, off + len), which must be held, lies; at most as much as a packet may have */
void stream_parts(const struct stream *st, uint64_t off, uint32_t len, struct dmm_payload *to);

static inline uint64_t stream_held(const struct stream *st)
{
	return st->tail - st->head;
}

#endif /* DMM_STREAM_H */

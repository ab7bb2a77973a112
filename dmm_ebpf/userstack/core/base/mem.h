/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mem.h: the core's memory.
 *
 * Owns every object of a core up to 64 KiB. Objects come from size classes (four per power of two)
 * cut out of slabs, so the packet path never calls malloc; larger arrays (they double when they
 * grow) come from malloc. A slab knows how many of its objects are in use; one with none serves any
 * class again, and what nobody needed for a second goes back to the system, but for a few: flows
 * that come and go would else have the kernel clear the same pages again and again. Payload chunks
 * are counted against a limit, nothing else is.
 *
 * Invariants: a slab lies at a multiple of its size, so an object's slab is its address rounded
 * down; a slab is on its class's list exactly while it has room and something in use, or was made
 * last.
 *
 * A packet may be read into a block, of which payload chunks are cut where they lie (mem_piece())
 * and put back like others: a long packet's bytes need not be copied. A block goes when who got it
 * has put it back and no chunk of it is left.
 *
 * Refuses: a chunk beyond the limit; the caller drops the segment and the sender's window does the
 * rest.
 */
#ifndef DMM_MEM_H
#define DMM_MEM_H

#include "util.h"

enum {
	MEM_CHUNK_BYTES = 4096, /* of payload */
	MEM_MIN_SHIFT = 6,	/* 64 bytes */
	MEM_MAX_SHIFT = 16,	/* 64 KiB */
	MEM_CLASSES = 4 * (MEM_MAX_SHIFT - MEM_MIN_SHIFT) + 1,
	MEM_SLAB_BYTES = 256 * 1024,
	MEM_SPARE_SLABS = 16,	  /* wait for the next load, however long that takes */
	MEM_BLOCK_BYTES = 65664,  /* a packet, and what its reader puts in front of it */
	MEM_BLOCKS = MEM_CLASSES, /* the class of blocks */
};

struct mem {
	struct list partial[MEM_CLASSES + 1]; /* slabs with room */
	struct list slabs;		      /* all of them */
	struct list spare; /* those with nothing in use, the last emptied one last */
	uint32_t n_slabs;
	uint32_t n_spare;
	uint32_t n_idle; /* the least that n_spare was since trim_ns was set */
	/* when what was idle till then is given back; 0: few enough are spare */
	uint64_t trim_ns;
	uint64_t chunk_bytes; /* handed out */
	uint64_t limit_bytes; /* of chunk_bytes */
	/* of all objects handed out, as large as their class is, large arrays too */
	uint64_t used_bytes;
	uint64_t large_bytes;	  /* of used_bytes: large arrays */
	struct mem_slab *waiting; /* those with chunks that wait for mem_unpin() */
	struct mem_block *waiting_blocks;
	uint32_t n_cut; /* blocks of which there are chunks */
	bool pinned;
	/* what is being taken in, if it lies in a block */
	const uint8_t *lent, *lent_end;
	uint8_t *next_block; /* for who reads the next packet, if this one's block is cut */
};

void mem_init(struct mem *m, uint64_t limit_bytes);
void mem_deinit(struct mem *m);

/* NULL: the system has no more. The content is undefined. */
void *mem_alloc(struct mem *m, size_t size);
/* size is the one given to mem_alloc() */
void mem_free(struct mem *m, void *p, size_t size);

/* Gives spare slabs back. Returns when to call again at the latest, or NEVER. */
uint64_t mem_trim(struct mem *m, uint64_t now_ns);

/* Bytes taken from the system */
static inline uint64_t mem_held_bytes(const struct mem *m)
{
	return (uint64_t)m->n_slabs * MEM_SLAB_BYTES + m->large_bytes;
}

/*
 * A payload chunk of MEM_CHUNK_BYTES. reserve: bytes of the limit this caller must leave for others
 * (out-of-order data may not take what in-order data needs to make progress). NULL: at the limit.
 */
void *mem_chunk_get(struct mem *m, uint64_t reserve);
void mem_chunk_put(struct mem *m, void *chunk);

/* A block of MEM_BLOCK_BYTES; NULL: the system has no more */
uint8_t *mem_block_get(struct mem *m);
/* Who got it does not need it any more. */
void mem_block_put(struct mem *m, uint8_t *block);
/* One that may be written to: the same, if there is no chunk of it */
uint8_t *mem_block_next(struct mem *m, uint8_t *block);

/*
 * Whether pieces of a long packet's len bytes at data shall be kept where they lie: not while so
 * many blocks are held that what is left of them, when most of their chunks are gone, would count.
 */
static inline bool mem_may_cut(const struct mem *m, const uint8_t *data, uint32_t len)
{
	return len >= MEM_BLOCK_BYTES / 2 && data >= m->lent && data + len <= m->lent_end &&
	       (uint64_t)m->n_cut * MEM_BLOCK_BYTES < m->limit_bytes / 4 && m->next_block;
}

/* The MEM_CHUNK_BYTES at data, which lie in a block, are a chunk from now on; false: at the limit.
 * Nobody may write to it. */
bool mem_piece(struct mem *m, const uint8_t *data, uint64_t reserve);

/* From now on chunks that are put back keep their content, until mem_unpin(). */
static inline void mem_pin(struct mem *m)
{
	m->pinned = true;
}

void mem_unpin(struct mem *m);

static inline uint64_t mem_chunks_left(const struct mem *m)
{
	return m->limit_bytes > m->chunk_bytes ? m->limit_bytes - m->chunk_bytes : 0;
}

#endif /* DMM_MEM_H */

/* SPDX-License-Identifier: Apache-2.0 */
/* mem.c: see mem.h. Free objects are poisoned under AddressSanitizer, so a use after free is found
 * in pools too. */
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE 1 /* MAP_ANONYMOUS */
#endif

#include "mem.h"

#include <stdlib.h>
#include <sys/mman.h>

#ifndef __has_feature
#define __has_feature(x) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

#define TRIM_NS NS_PER_S

struct mem_slab {
	struct list partial; /* of its class, or spare */
	struct list all;
	struct mem_free_obj *free;
	uint32_t fresh;		  /* offset of what was never handed out */
	uint16_t used;		  /* objects */
	bool blocks;		  /* they are blocks */
	struct mem_slab *waiting; /* the next one with such chunks */
	uint64_t waits;		  /* 1 << number of each chunk that is put back by mem_unpin() */
};

struct mem_free_obj {
	struct mem_free_obj *next;
};

/* Stands in front of a block's bytes */
struct mem_block {
	struct mem_block *waiting; /* the next one that waits for mem_unpin() */
	uint32_t pieces;	   /* chunks of it */
	bool held;		   /* by who got it */
};

enum { BLOCK_HEAD_BYTES = 64, BLOCK_SIZE = BLOCK_HEAD_BYTES + MEM_BLOCK_BYTES };

_Static_assert(sizeof(struct mem_block) <= BLOCK_HEAD_BYTES, "and the bytes begin at a cache line");
_Static_assert(MEM_SLAB_BYTES >> MEM_MIN_SHIFT <= UINT16_MAX, "mem_slab.used");
_Static_assert(sizeof(struct mem_slab) == 64, "one cache line, where the first object starts");
_Static_assert(MEM_SLAB_BYTES / MEM_CHUNK_BYTES <= 64, "a bit for each chunk");

void mem_init(struct mem *m, uint64_t limit_bytes)
{
	memset(m, 0, sizeof(*m));
	for (uint32_t i = 0; i <= MEM_BLOCKS; i++)
		list_init(&m->partial[i]);
	list_init(&m->slabs);
	list_init(&m->spare);
	m->limit_bytes = limit_bytes;
}

/* Straight from the system: malloc would keep what is given back */
static struct mem_slab *slab_map(void)
{
	size_t size = MEM_SLAB_BYTES, before;
	char *p = mmap(NULL, 2 * size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		return NULL;
	before = -(uintptr_t)p & (size - 1);
	if (before)
		munmap(p, before);
	munmap(p + before + size, size - before);
	return (struct mem_slab *)(p + before);
}

static void slab_unmap(struct mem *m, struct mem_slab *s)
{
	list_del(&s->partial);
	list_del(&s->all);
	m->n_slabs--;
	ASAN_UNPOISON_MEMORY_REGION(s, MEM_SLAB_BYTES);
	munmap(s, MEM_SLAB_BYTES);
}

void mem_deinit(struct mem *m)
{
	while (!list_empty(&m->slabs))
		slab_unmap(m, container_of(m->slabs.next, struct mem_slab, all));
}

/* The class of a size and what it is rounded up to */
static uint32_t mem_class(size_t size, size_t *rounded)
{
	uint32_t n, sub;

	if (size <= 1u << MEM_MIN_SHIFT) {
		*rounded = 1u << MEM_MIN_SHIFT;
		return 0;
	}
	n = 63 - (uint32_t)__builtin_clzll(size - 1); /* 2^n < size <= 2^(n + 1) */
	sub = (uint32_t)((size - 1 - ((size_t)1 << n)) >> (n - 2));
	*rounded = ((size_t)1 << n) + ((size_t)(sub + 1) << (n - 2));
	return 1 + 4 * (n - MEM_MIN_SHIFT) + sub;
}

static struct mem_slab *slab_of(const void *p)
{
	return (struct mem_slab *)((uintptr_t)p & ~(uintptr_t)(MEM_SLAB_BYTES - 1));
}

static bool slab_full(const struct mem_slab *s, size_t size)
{
	return !s->free && s->fresh + size > MEM_SLAB_BYTES;
}

/* A slab with nothing in it for class cls */
static bool mem_grow(struct mem *m, uint32_t cls)
{
	struct mem_slab *s;

	if (!list_empty(&m->spare)) {
		s = container_of(m->spare.prev, struct mem_slab, partial);
		list_del(&s->partial);
		m->n_spare--;
		m->n_idle = min_u32(m->n_idle, m->n_spare);
	} else {
		s = slab_map();
		if (!s)
			return false;
		list_init(&s->partial);
		list_add_tail(&m->slabs, &s->all);
		m->n_slabs++;
	}
	s->free = NULL;
	s->used = 0;
	s->waits = 0;
	s->blocks = cls == MEM_BLOCKS;
	s->fresh = sizeof(*s);
	ASAN_POISON_MEMORY_REGION(s + 1, MEM_SLAB_BYTES - sizeof(*s));
	list_add_tail(&m->partial[cls], &s->partial);
	return true;
}

static void slab_emptied(struct mem *m, struct mem_slab *s)
{
	list_del(&s->partial);
	list_add_tail(&m->spare, &s->partial);
	m->n_spare++;
}

uint64_t mem_trim(struct mem *m, uint64_t now_ns)
{
	if (likely(m->n_spare <= MEM_SPARE_SLABS)) {
		m->trim_ns = 0;
		return NEVER;
	}
	if (m->trim_ns && now_ns < m->trim_ns)
		return m->trim_ns;
	if (m->trim_ns) {
		uint32_t keep = m->n_spare - min_u32(m->n_idle, m->n_spare - MEM_SPARE_SLABS);

		for (; m->n_spare > keep; m->n_spare--)
			slab_unmap(m, container_of(m->spare.next, struct mem_slab, partial));
	}
	m->n_idle = m->n_spare;
	m->trim_ns = m->n_spare > MEM_SPARE_SLABS ? now_ns + TRIM_NS : 0;
	return m->trim_ns ? m->trim_ns : NEVER;
}

/* An object of class cls, each of which has size bytes */
static void *class_take(struct mem *m, uint32_t cls, size_t size)
{
	struct mem_slab *s;
	void *o;

	if (unlikely(list_empty(&m->partial[cls])) && !mem_grow(m, cls))
		return NULL;
	s = container_of(m->partial[cls].next, struct mem_slab, partial);
	if (likely(s->free)) {
		o = s->free;
		ASAN_UNPOISON_MEMORY_REGION(o, size);
		s->free = s->free->next;
	} else {
		o = (char *)s + s->fresh;
		ASAN_UNPOISON_MEMORY_REGION(o, size);
		s->fresh += (uint32_t)size;
	}
	s->used++;
	m->used_bytes += size;
	if (unlikely(slab_full(s, size)))
		list_del(&s->partial);
	return o;
}

static void class_give(struct mem *m, uint32_t cls, size_t size, void *p)
{
	struct mem_slab *s = slab_of(p);
	struct mem_free_obj *o = p;

	m->used_bytes -= size;
	if (unlikely(slab_full(s, size)))
		list_add_tail(&m->partial[cls], &s->partial);
	o->next = s->free;
	s->free = o;
	ASAN_POISON_MEMORY_REGION(o, size);
	/*
	 * a class keeps its last slab: one object that comes and goes shall cost no more
	 * than its links
	 */
	if (unlikely(!--s->used) && m->partial[cls].next != m->partial[cls].prev)
		slab_emptied(m, s);
}

void *mem_alloc(struct mem *m, size_t size)
{
	size_t rounded;
	uint32_t cls;
	void *o;

	if (unlikely(size > (size_t)1 << MEM_MAX_SHIFT)) {
		o = malloc(size);
		if (o) {
			m->used_bytes += size;
			m->large_bytes += size;
		}
		return o;
	}
	cls = mem_class(size, &rounded);
	return class_take(m, cls, rounded);
}

void mem_free(struct mem *m, void *p, size_t size)
{
	size_t rounded;
	uint32_t cls;

	if (!p)
		return;
	if (unlikely(size > (size_t)1 << MEM_MAX_SHIFT)) {
		m->used_bytes -= size;
		m->large_bytes -= size;
		free(p);
		return;
	}
	cls = mem_class(size, &rounded);
	class_give(m, cls, rounded, p);
}

/* ---- blocks ---- */

static struct mem_block *block_at(uint8_t *bytes)
{
	return (struct mem_block *)(bytes - BLOCK_HEAD_BYTES);
}

/* Of a byte in it */
static struct mem_block *block_of(struct mem_slab *s, const void *p)
{
	size_t at = (size_t)((const char *)p - (const char *)(s + 1));

	return (struct mem_block *)((char *)(s + 1) + at / BLOCK_SIZE * BLOCK_SIZE);
}

uint8_t *mem_block_get(struct mem *m)
{
	struct mem_block *b = class_take(m, MEM_BLOCKS, BLOCK_SIZE);

	if (!b)
		return NULL;
	b->pieces = 0;
	b->held = true;
	return (uint8_t *)b + BLOCK_HEAD_BYTES;
}

static void block_free(struct mem *m, struct mem_block *b)
{
	class_give(m, MEM_BLOCKS, BLOCK_SIZE, b);
}

void mem_block_put(struct mem *m, uint8_t *block)
{
	struct mem_block *b;

	if (!block)
		return;
	b = block_at(block);
	b->held = false;
	if (!b->pieces)
		block_free(m, b);
}

uint8_t *mem_block_next(struct mem *m, uint8_t *block)
{
	uint8_t *next = block;

	if (block_at(block)->pieces) {
		next = m->next_block;
		m->next_block = NULL;
		mem_block_put(m, block);
	}
	if (unlikely(!m->next_block))
		m->next_block = mem_block_get(m);
	return next;
}

/* There is room for a chunk beside reserve */
static bool chunk_fits(const struct mem *m, uint64_t reserve)
{
	return m->chunk_bytes + MEM_CHUNK_BYTES + reserve <= m->limit_bytes;
}

bool mem_piece(struct mem *m, const uint8_t *data, uint64_t reserve)
{
	if (!chunk_fits(m, reserve))
		return false;
	m->n_cut += !block_of(slab_of(data), data)->pieces++;
	m->chunk_bytes += MEM_CHUNK_BYTES;
	return true;
}

static void piece_put(struct mem *m, struct mem_block *b)
{
	if (--b->pieces)
		return;
	m->n_cut--;
	if (b->held)
		return;
	if (unlikely(m->pinned)) {
		b->waiting = m->waiting_blocks;
		m->waiting_blocks = b;
	} else {
		block_free(m, b);
	}
}

/* ---- chunks ---- */

void *mem_chunk_get(struct mem *m, uint64_t reserve)
{
	void *c;

	if (!chunk_fits(m, reserve))
		return NULL;
	c = mem_alloc(m, MEM_CHUNK_BYTES);
	if (c)
		m->chunk_bytes += MEM_CHUNK_BYTES;
	return c;
}

static void *chunk_at(struct mem_slab *s, uint32_t number)
{
	return (char *)(s + 1) + (size_t)number * MEM_CHUNK_BYTES;
}

static void chunk_wait(struct mem *m, const void *chunk)
{
	struct mem_slab *s = slab_of(chunk);

	if (!s->waits) {
		s->waiting = m->waiting;
		m->waiting = s;
	}
	s->waits |=
		1ull << ((size_t)((const char *)chunk - (const char *)(s + 1)) / MEM_CHUNK_BYTES);
}

void mem_chunk_put(struct mem *m, void *chunk)
{
	if (!chunk)
		return;
	m->chunk_bytes -= MEM_CHUNK_BYTES;
	if (slab_of(chunk)->blocks)
		piece_put(m, block_of(slab_of(chunk), chunk));
	else if (unlikely(m->pinned))
		chunk_wait(m, chunk);
	else
		mem_free(m, chunk, MEM_CHUNK_BYTES);
}

void mem_unpin(struct mem *m)
{
	m->pinned = false;
	while (m->waiting) {
		struct mem_slab *s = m->waiting;
		uint64_t waits = s->waits;

		m->waiting = s->waiting;
		s->waits = 0; /* before the last one of them empties it */
		for (; waits; waits &= waits - 1)
			mem_free(m, chunk_at(s, (uint32_t)__builtin_ctzll(waits)), MEM_CHUNK_BYTES);
	}
	while (m->waiting_blocks) {
		struct mem_block *b = m->waiting_blocks;

		m->waiting_blocks = b->waiting;
		block_free(m, b);
	}
}

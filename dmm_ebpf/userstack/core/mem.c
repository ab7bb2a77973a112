/* SPDX-License-Identifier: Apache-2.0 */
/* mem.c: see mem.h. Free objects are poisoned under AddressSanitizer, so a use after free is found in pools
 * too. */
#include "mem.h"

#include <stdlib.h>

#ifndef __has_feature
#define __has_feature(x) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

struct mem_slab {
	struct mem_slab *next;
	uint64_t pad[7]; /* objects start on a cache line */
};

struct mem_free_obj {
	struct mem_free_obj *next;
};

void mem_init(struct mem *m, uint64_t limit_bytes)
{
	memset(m, 0, sizeof(*m));
	m->limit_bytes = limit_bytes;
}

void mem_deinit(struct mem *m)
{
	while (m->slabs) {
		struct mem_slab *s = m->slabs;

		m->slabs = s->next;
		ASAN_UNPOISON_MEMORY_REGION(s, MEM_SLAB_BYTES);
		free(s);
	}
}

static uint32_t mem_shift(size_t size)
{
	if (size <= 1u << MEM_MIN_SHIFT)
		return MEM_MIN_SHIFT;
	return 64 - (uint32_t)__builtin_clzll(size - 1);
}

static bool mem_grow(struct mem *m, uint32_t shift)
{
	struct mem_slab *s = aligned_alloc(64, MEM_SLAB_BYTES);
	uint32_t cls = shift - MEM_MIN_SHIFT;
	size_t size = (size_t)1 << shift;

	if (!s)
		return false;
	s->next = m->slabs;
	m->slabs = s;
	m->slab_bytes += MEM_SLAB_BYTES;
	for (size_t off = sizeof(*s); off + size <= MEM_SLAB_BYTES; off += size) {
		struct mem_free_obj *o = (void *)((char *)s + off);

		o->next = m->free[cls];
		m->free[cls] = o;
		ASAN_POISON_MEMORY_REGION(o, size);
	}
	return true;
}

void *mem_alloc(struct mem *m, size_t size)
{
	uint32_t shift = mem_shift(size);
	struct mem_free_obj *o;

	if (unlikely(shift > MEM_MAX_SHIFT))
		return malloc(size);
	if (unlikely(!m->free[shift - MEM_MIN_SHIFT]) && !mem_grow(m, shift))
		return NULL;
	o = m->free[shift - MEM_MIN_SHIFT];
	ASAN_UNPOISON_MEMORY_REGION(o, (size_t)1 << shift);
	m->free[shift - MEM_MIN_SHIFT] = o->next;
	return o;
}

void mem_free(struct mem *m, void *p, size_t size)
{
	uint32_t shift = mem_shift(size);
	struct mem_free_obj *o = p;

	if (!p)
		return;
	if (unlikely(shift > MEM_MAX_SHIFT)) {
		free(p);
		return;
	}
	o->next = m->free[shift - MEM_MIN_SHIFT];
	m->free[shift - MEM_MIN_SHIFT] = o;
	ASAN_POISON_MEMORY_REGION(o, (size_t)1 << shift);
}

void *mem_chunk_get(struct mem *m, uint64_t reserve)
{
	void *c;

	if (m->chunk_bytes + MEM_CHUNK_BYTES + reserve > m->limit_bytes)
		return NULL;
	c = mem_alloc(m, MEM_CHUNK_BYTES);
	if (c)
		m->chunk_bytes += MEM_CHUNK_BYTES;
	return c;
}

void mem_chunk_put(struct mem *m, void *chunk)
{
	if (!chunk)
		return;
	m->chunk_bytes -= MEM_CHUNK_BYTES;
	mem_free(m, chunk, MEM_CHUNK_BYTES);
}

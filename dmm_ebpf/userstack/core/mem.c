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

static bool mem_grow(struct mem *m, uint32_t cls, size_t size)
{
	struct mem_slab *s = aligned_alloc(64, MEM_SLAB_BYTES);

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
	struct mem_free_obj *o;
	size_t rounded;
	uint32_t cls;

	if (unlikely(size > (size_t)1 << MEM_MAX_SHIFT))
		return malloc(size);
	cls = mem_class(size, &rounded);
	if (unlikely(!m->free[cls]) && !mem_grow(m, cls, rounded))
		return NULL;
	o = m->free[cls];
	ASAN_UNPOISON_MEMORY_REGION(o, rounded);
	m->free[cls] = o->next;
	return o;
}

void mem_free(struct mem *m, void *p, size_t size)
{
	struct mem_free_obj *o = p;
	size_t rounded;
	uint32_t cls;

	if (!p)
		return;
	if (unlikely(size > (size_t)1 << MEM_MAX_SHIFT)) {
		free(p);
		return;
	}
	cls = mem_class(size, &rounded);
	o->next = m->free[cls];
	m->free[cls] = o;
	ASAN_POISON_MEMORY_REGION(o, rounded);
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

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * heap.h: packets on their way, earliest first; those due at the same time in the order
 * they were pushed
 */
#ifndef SIM_HEAP_H
#define SIM_HEAP_H

#include "base/util.h"

#include <stdlib.h>

struct parcel {
	uint64_t at_ns, order;
	uint32_t to, len; /* host */
	uint32_t at;	  /* enum place of path.h */
	bool csum_ok;
	uint8_t *data;
};

static struct parcel *heap;
static uint32_t n_heap, cap_heap;
static uint64_t order;

static bool before(const struct parcel *a, const struct parcel *b)
{
	return a->at_ns < b->at_ns || (a->at_ns == b->at_ns && a->order < b->order);
}

static void heap_push(struct parcel p)
{
	uint32_t i = n_heap++;

	if (n_heap > cap_heap) {
		cap_heap = cap_heap ? cap_heap * 2 : 1024;
		heap = realloc(heap, cap_heap * sizeof(*heap));
	}
	p.order = order++;
	for (; i && before(&p, &heap[(i - 1) / 2]); i = (i - 1) / 2)
		heap[i] = heap[(i - 1) / 2];
	heap[i] = p;
}

static struct parcel heap_pop(void)
{
	struct parcel top = heap[0], last = heap[--n_heap];
	uint32_t i = 0, c;

	while ((c = 2 * i + 1) < n_heap) {
		if (c + 1 < n_heap && before(&heap[c + 1], &heap[c]))
			c++;
		if (!before(&heap[c], &last))
			break;
		heap[i] = heap[c];
		i = c;
	}
	heap[i] = last;
	return top;
}

#endif /* SIM_HEAP_H */

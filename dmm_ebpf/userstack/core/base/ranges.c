/* SPDX-License-Identifier: Apache-2.0 */
/* ranges.c: see ranges.h */
#include "ranges.h"

/* Index (from first) of the first range whose end is at or beyond seq; n if none */
static uint32_t ranges_at(const struct ranges *r, uint64_t seq)
{
	uint32_t lo = 0, hi = r->n;

	if (hi && r->v[r->first + hi - 1].end < seq) /* the usual case: new data lies beyond all */
		return hi;
	while (lo < hi) {
		uint32_t mid = lo + (hi - lo) / 2;

		if (r->v[r->first + mid].end < seq)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

static bool ranges_room(struct mem *m, struct ranges *r)
{
	struct range *v;
	uint32_t cap;

	if (r->first + r->n < r->cap)
		return true;
	if (r->first > r->cap / 2) {
		memmove(r->v, r->v + r->first, r->n * sizeof(*v));
		r->first = 0;
		return true;
	}
	cap = r->cap ? r->cap * 2 : 8;
	v = mem_alloc(m, cap * sizeof(*v));
	if (!v)
		return false;
	if (r->n)
		memcpy(v, r->v + r->first, r->n * sizeof(*v));
	mem_free(m, r->v, r->cap * sizeof(*v));
	r->v = v;
	r->first = 0;
	r->cap = cap;
	return true;
}

static bool ranges_insert(struct mem *m, struct ranges *r, uint32_t i, uint64_t start, uint64_t end)
{
	struct range *v;

	if (r->n >= RANGES_MAX || !ranges_room(m, r))
		return false;
	v = r->v + r->first;
	memmove(v + i + 1, v + i, (r->n - i) * sizeof(*v));
	v[i] = (struct range){start, end};
	r->n++;
	return true;
}

/* Removes k ranges from index i on */
static void ranges_remove(struct ranges *r, uint32_t i, uint32_t k)
{
	struct range *v = r->v + r->first;

	if (!k)
		return;
	if (i < r->n - i - k) {
		memmove(v + k, v, i * sizeof(*v));
		r->first += k;
	} else {
		memmove(v + i, v + i + k, (r->n - i - k) * sizeof(*v));
	}
	r->n -= k;
}

static void ranges_touch(struct ranges *r, uint64_t start, uint64_t end)
{
	uint64_t keep[RANGES_RECENT];
	uint32_t n = 0;

	keep[n++] = start;
	for (uint32_t i = 0; i < r->n_recent && n < RANGES_RECENT; i++) {
		if (r->recent[i] < start || r->recent[i] >= end)
			keep[n++] = r->recent[i];
	}
	memcpy(r->recent, keep, n * sizeof(*keep));
	r->n_recent = n;
}

uint64_t ranges_add(struct mem *m, struct ranges *r, uint64_t start, uint64_t end)
{
	uint32_t i = ranges_at(r, start);
	uint32_t k = 0;
	uint64_t dup = 0;
	struct range *at;

	while (i + k < r->n && r->v[r->first + i + k].start <= end) {
		const struct range *o = &r->v[r->first + i + k];
		uint64_t lo = max_u64(o->start, start), hi = min_u64(o->end, end);

		dup += hi > lo ? hi - lo : 0;
		k++;
	}
	if (!k) {
		if (!ranges_insert(m, r, i, start, end))
			return UINT64_MAX;
		ranges_touch(r, start, end);
		return 0;
	}
	at = &r->v[r->first + i];
	start = min_u64(at->start, start);
	end = max_u64(r->v[r->first + i + k - 1].end, end);
	at->start = start;
	at->end = end;
	ranges_remove(r, i + 1, k - 1);
	ranges_touch(r, start, end);
	return dup;
}

uint64_t ranges_take(struct ranges *r, uint64_t upto)
{
	while (r->n && r->v[r->first].start <= upto) {
		upto = max_u64(upto, r->v[r->first].end);
		r->first++;
		r->n--;
	}
	return upto;
}

const struct range *ranges_find(const struct ranges *r, uint64_t seq)
{
	uint32_t i = ranges_at(r, seq + 1);

	if (i < r->n && r->v[r->first + i].start <= seq)
		return &r->v[r->first + i];
	return NULL;
}

uint32_t ranges_report(struct ranges *r, struct range *out, uint32_t max)
{
	uint32_t n = 0, kept = 0;

	for (uint32_t i = 0; i < r->n_recent; i++) {
		const struct range *f = ranges_find(r, r->recent[i]);

		if (!f)
			continue; /* taken since */
		r->recent[kept++] = r->recent[i];
		if (n < max)
			out[n++] = *f;
	}
	r->n_recent = kept;
	/* room left: the lowest ranges not named yet, which may have been lost from earlier ACKs */
	for (uint32_t i = 0; i < r->n && n < max && i < RANGES_RECENT * 2; i++) {
		const struct range *f = &r->v[r->first + i];
		bool named = false;

		for (uint32_t j = 0; j < n; j++)
			named |= out[j].start == f->start;
		if (!named)
			out[n++] = *f;
	}
	return n;
}

void ranges_release(struct mem *m, struct ranges *r)
{
	mem_free(m, r->v, r->cap * sizeof(*r->v));
	memset(r, 0, sizeof(*r));
}

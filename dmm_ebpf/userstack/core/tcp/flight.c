/* SPDX-License-Identifier: Apache-2.0 */
/* flight.c: see flight.h */
#include "flight.h"

static void list_push(struct flight *fl, struct seg_list *l, uint32_t idx)
{
	struct seg *s = flight_seg(fl, idx);

	s->prev = l->tail;
	s->next = FLIGHT_NIL;
	if (l->tail != FLIGHT_NIL)
		flight_seg(fl, l->tail)->next = idx;
	else
		l->head = idx;
	l->tail = idx;
}

/* after: FLIGHT_NIL: to the front */
static void list_insert(struct flight *fl, struct seg_list *l, uint32_t after, uint32_t idx)
{
	struct seg *s = flight_seg(fl, idx);
	uint32_t *link = after == FLIGHT_NIL ? &l->head : &flight_seg(fl, after)->next;

	s->next = *link;
	s->prev = after;
	*link = idx;
	if (s->next != FLIGHT_NIL)
		flight_seg(fl, s->next)->prev = idx;
	else
		l->tail = idx;
}

static void list_unlink(struct flight *fl, struct seg_list *l, struct seg *s)
{
	if (s->prev != FLIGHT_NIL)
		flight_seg(fl, s->prev)->next = s->next;
	else
		l->head = s->next;
	if (s->next != FLIGHT_NIL)
		flight_seg(fl, s->next)->prev = s->prev;
	else
		l->tail = s->prev;
}

/* Its copies are no more to be counted than itself */
static void uncopy(struct flight *fl, struct seg *s)
{
	if (likely(!(s->flags & SEG_COPIES)))
		return;
	fl->copy_bytes -= (uint64_t)s->len * ((s->flags & SEG_COPIES) / SEG_COPIES_ONE);
	s->flags &= (uint16_t)~SEG_COPIES;
}

/* Off whichever list it is on */
static void flight_unlink(struct flight *fl, struct seg *s)
{
	if (s->flags & SEG_SACKED)
		return;
	if (s->flags & SEG_LOST) {
		if (fl->again != FLIGHT_NIL && flight_seg(fl, fl->again) == s)
			fl->again = s->prev;
		list_unlink(fl, &fl->lost, s);
		fl->lost_bytes -= s->len;
	} else {
		list_unlink(fl, &fl->tx, s);
		fl->inflight_bytes -= s->len;
		uncopy(fl, s);
	}
}

struct flight *flight_create(struct mem *m)
{
	struct flight *fl = mem_alloc(m, sizeof(*fl));

	if (!fl)
		return NULL;
	memset(fl, 0, sizeof(*fl));
	fl->cap = 4;
	fl->ring = mem_alloc(m, fl->cap * sizeof(*fl->ring));
	if (!fl->ring) {
		mem_free(m, fl, sizeof(*fl));
		return NULL;
	}
	fl->tx = fl->lost = (struct seg_list){FLIGHT_NIL, FLIGHT_NIL};
	fl->again = FLIGHT_NIL;
	fl->rto_ns = NEVER;
	return fl;
}

void flight_destroy(struct mem *m, struct flight *fl)
{
	if (!fl)
		return;
	mem_free(m, fl->ring, fl->cap * sizeof(*fl->ring));
	mem_free(m, fl, sizeof(*fl));
}

static bool flight_grow(struct mem *m, struct flight *fl)
{
	uint32_t cap = fl->cap * 2;
	struct seg *ring;

	if (cap > FLIGHT_IDX_MASK / 2)
		return false;
	ring = mem_alloc(m, cap * sizeof(*ring));
	if (!ring)
		return false;
	for (uint32_t i = 0; i < fl->count; i++) {
		uint32_t idx = flight_idx(fl, i);

		ring[idx & (cap - 1)] = *flight_seg(fl, idx);
	}
	mem_free(m, fl->ring, fl->cap * sizeof(*ring));
	fl->ring = ring;
	fl->cap = cap;
	return true;
}

struct seg *flight_push(struct mem *m, struct flight *fl, uint64_t seq, uint32_t len)
{
	struct seg *s;
	uint32_t idx;

	if (fl->count == fl->cap && !flight_grow(m, fl))
		return NULL;
	idx = flight_idx(fl, fl->count++);
	s = flight_seg(fl, idx);
	memset(s, 0, sizeof(*s));
	s->seq = seq;
	s->len = len;
	list_push(fl, &fl->tx, idx);
	fl->inflight_bytes += len;
	return s;
}

void flight_pop(struct flight *fl)
{
	struct seg *s = flight_seg(fl, fl->head);

	if (s->flags & SEG_SACKED)
		fl->n_sacked--;
	flight_unlink(fl, s);
	fl->head = (fl->head + 1) & FLIGHT_IDX_MASK;
	fl->count--;
}

void flight_trim_head(struct flight *fl, uint64_t seq)
{
	struct seg *s = flight_seg(fl, fl->head);
	uint32_t cut = (uint32_t)(seq - s->seq);

	if (!(s->flags & (SEG_SACKED | SEG_LOST)))
		uncopy(fl, s);
	s->seq += cut;
	s->len -= cut;
	if (s->flags & SEG_SACKED)
		return;
	if (s->flags & SEG_LOST)
		fl->lost_bytes -= cut;
	else
		fl->inflight_bytes -= cut;
}

uint32_t flight_lower_bound(const struct flight *fl, uint64_t seq)
{
	uint32_t lo = 0, hi = fl->count;

	while (lo < hi) {
		uint32_t mid = lo + (hi - lo) / 2;

		if (flight_seg(fl, flight_idx(fl, mid))->seq < seq)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

uint32_t flight_next_unsacked(struct flight *fl, uint32_t nth)
{
	uint32_t at = nth;

	while (at < fl->count) {
		struct seg *s = flight_seg(fl, flight_idx(fl, at));

		if (!(s->flags & SEG_SACKED))
			break;
		at = flight_nth(fl, s->skip);
	}
	/* shorten the path for the next walk */
	while (nth < at && nth < fl->count) {
		struct seg *s = flight_seg(fl, flight_idx(fl, nth));
		uint32_t next = flight_nth(fl, s->skip);

		s->skip = flight_idx(fl, at);
		nth = next;
	}
	return at;
}

void flight_mark_sacked(struct flight *fl, uint32_t idx)
{
	struct seg *s = flight_seg(fl, idx);

	flight_unlink(fl, s);
	s->flags = (uint16_t)((s->flags & ~SEG_LOST) | SEG_SACKED);
	s->skip = (idx + 1) & FLIGHT_IDX_MASK;
	fl->n_sacked++;
}

void flight_mark_lost(struct flight *fl, uint32_t idx, bool front)
{
	struct seg *s = flight_seg(fl, idx);

	flight_unlink(fl, s);
	s->flags |= SEG_LOST;
	fl->lost_bytes += s->len;
	if (!front) {
		list_push(fl, &fl->lost, idx);
		return;
	}
	list_insert(fl, &fl->lost, fl->again, idx);
	fl->again = idx;
}

void flight_resend(struct flight *fl, uint32_t idx)
{
	struct seg *s = flight_seg(fl, idx);

	flight_unlink(fl, s);
	s->flags = (uint16_t)((s->flags & ~SEG_LOST) | SEG_RETRANS);
	list_push(fl, &fl->tx, idx);
	fl->inflight_bytes += s->len;
}

void flight_sent(struct flight *fl, struct seg *s, uint64_t now_ns)
{
	const struct seg *before = s->prev != FLIGHT_NIL ? flight_seg(fl, s->prev) : NULL;

	s->xmit_ns = now_ns;
	s->order = before && before->xmit_ns == now_ns ? before->order + 1 : 1;
}

void flight_renege(struct flight *fl)
{
	for (uint32_t i = 0; i < fl->count; i++) {
		uint32_t idx = flight_idx(fl, i);
		struct seg *s = flight_seg(fl, idx);

		if (!(s->flags & SEG_SACKED))
			continue;
		s->flags = (uint16_t)((s->flags & ~SEG_SACKED) | SEG_LOST);
		fl->lost_bytes += s->len;
		list_push(fl, &fl->lost, idx);
	}
	fl->n_sacked = 0;
}

void flight_unlose(struct flight *fl, uint64_t end)
{
	for (uint32_t i = fl->count; i--;) {
		uint32_t idx = flight_idx(fl, i);
		struct seg *s = flight_seg(fl, idx);

		if (seg_end(s) > end || (s->flags & (SEG_LOST | SEG_RETRANS)) != SEG_LOST)
			continue;
		flight_unlink(fl, s);
		s->flags &= (uint16_t)~SEG_LOST;
		list_insert(fl, &fl->tx, FLIGHT_NIL, idx);
		fl->inflight_bytes += s->len;
	}
}

static uint32_t pieces(const struct seg *s, uint32_t max)
{
	return (s->len + max - 1) / max;
}

/* Copies from's pieces to the end of fl; only the ring, not the lists */
static void cut_one(struct flight *fl, const struct seg *from, uint32_t max)
{
	for (uint32_t off = 0; off < from->len; off += max) {
		uint32_t idx = flight_idx(fl, fl->count++);
		struct seg *s = flight_seg(fl, idx);

		*s = *from;
		s->seq = from->seq + off;
		s->len = min_u32(max, from->len - off);
		s->skip = (idx + 1) & FLIGHT_IDX_MASK;
		s->flags &= (uint16_t)~SEG_COPIES;
		if (off + s->len < from->len)
			s->flags &= (uint16_t)~SEG_FIN;
		if (from->len > max) {
			s->flags &= (uint16_t)~SEG_PROBE;
			s->flags |= s->flags & SEG_SACKED ? 0 : SEG_LOST;
		}
		fl->n_sacked += !!(s->flags & SEG_SACKED);
	}
}

/* Puts the pieces of the segments on an old list, in its order, on the lists they belong to now */
static void relist(struct flight *fl, const struct flight *old, uint32_t at)
{
	for (; at != FLIGHT_NIL; at = flight_seg(old, at)->next) {
		const struct seg *from = flight_seg(old, at);
		uint32_t nth = flight_lower_bound(fl, from->seq);

		for (; nth < fl->count; nth++) {
			uint32_t idx = flight_idx(fl, nth);
			struct seg *s = flight_seg(fl, idx);

			if (s->seq >= seg_end(from))
				break;
			list_push(fl, s->flags & SEG_LOST ? &fl->lost : &fl->tx, idx);
			if (s->flags & SEG_LOST)
				fl->lost_bytes += s->len;
			else
				fl->inflight_bytes += s->len;
		}
	}
}

bool flight_resegment(struct mem *m, struct flight *fl, uint32_t max)
{
	struct flight old = *fl;
	uint64_t need = 0;
	struct seg *ring;

	for (uint32_t i = 0; i < fl->count; i++)
		need += pieces(flight_seg(fl, flight_idx(fl, i)), max);
	if (need > FLIGHT_IDX_MASK / 4)
		return false;
	fl->cap = pow2_ceil((uint32_t)max_u64(need, 4));
	ring = mem_alloc(m, fl->cap * sizeof(*ring));
	if (!ring) {
		fl->cap = old.cap;
		return false;
	}
	fl->ring = ring;
	fl->count = fl->n_sacked = 0;
	fl->inflight_bytes = fl->copy_bytes = fl->lost_bytes = 0;
	fl->tx = fl->lost = (struct seg_list){FLIGHT_NIL, FLIGHT_NIL};
	fl->again = FLIGHT_NIL;
	for (uint32_t i = 0; i < old.count; i++)
		cut_one(fl, flight_seg(&old, flight_idx(&old, i)), max);
	relist(fl, &old, old.lost.head);
	relist(fl, &old, old.tx.head);
	mem_free(m, old.ring, old.cap * sizeof(*ring));
	return true;
}

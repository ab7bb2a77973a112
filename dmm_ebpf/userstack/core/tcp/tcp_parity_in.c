/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_parity_in.c: parity that a peer sends (tcp_parity_out.c), and what of its stream is repaired
 * by it.
 *
 * Theory of operation. The last RING_SYMBOLS times S bytes of the stream are kept by their places
 * as they come, for the app's kernel has taken what came in order. Headers say where symbols begin
 * and end in it. A repair symbol over a window in which something is missing goes to the decoder
 * (fec.h), as does each symbol that arrives late. When all that is missing in a window is solved,
 * the check value of the window is computed. Only if it is right the solved bytes are taken as if a
 * segment had brought them, and acknowledged; ACKs then say how many symbols were repaired, so that
 * the sender sees the loss (RFC 9265 section 2).
 *
 * A check value that is wrong, or repair symbols that contradict each other, end the connection:
 * both ends are reset, and nothing that was solved is believed.
 *
 * Refuses: parity that is not wholly old data by its sequence number; a header that is none; a
 * window that is not kept any more, reaches beyond what we have allowed to be sent, or says of a
 * symbol that it is elsewhere than another has said; a symbol size larger than the one before; when
 * too much memory is used for this. Refused parity changes nothing, and is not answered.
 *
 * Owns: struct parity_in, taken when the first parity comes (a connection that gets none costs
 * nothing), until the connection ends or is put away; all of them have no more than a share of the
 * memory limit. Invariants: a byte in the ring is the stream's if its symbol is_there(); each row
 * of the decoder has a column for every symbol of its window that is not there.
 */
#include "tcp_parity.h"

#include "tcp_int.h"

#include <errno.h>

enum {
	RING_SYMBOLS = 256,
	KEPT = 64,	  /* windows that are not whole yet */
	MEMORY_SHARE = 4, /* of the memory limit, all connections together: 1 / MEMORY_SHARE */
	TELLS = 32,	  /* ACKs that say how much was repaired, after each repair */
};

/* Where a symbol is in the stream */
struct symbol {
	uint64_t index;
	uint64_t place;
	uint32_t bytes; /* 0: it is not known */
};

/* A window that had something missing */
struct kept {
	uint64_t first;
	uint32_t n; /* 0: this place is free */
	uint32_t check;
};

struct parity_in {
	struct fec_decoder d;
	struct symbol symbol[RING_SYMBOLS]; /* by number */
	uint64_t newest;		    /* behind the highest number that is known */
	struct kept kept[KEPT];		    /* a ring */
	uint32_t next;
	uint32_t symbol_bytes; /* S */
	uint64_t from;	       /* bytes of the stream before this one were not kept, */
	uint64_t end;	       /* nor any from this one on came */
	uint8_t *ring;	       /* the stream's bytes, by their places */
	uint8_t one[FEC_SYMBOL];
	size_t size; /* of all that was allocated together with this */
	bool busy;   /* what is repaired is being taken in */
};

static struct parity_in *in_of(const struct tcb *t)
{
	return tcb_outer(t)->parity_in;
}

bool parity_is_said(const struct tcb *t, const struct pkt *pkt)
{
	return pkt->n_agree == 1 && pkt->agree.role == WIRE_AGREE_PARITY &&
	       pkt->agree.version == WIRE_AGREE_VERSION && wire_parity_bears(&pkt->agree) &&
	       parity_agreed(t);
}

void parity_in_release(struct env *env, struct outer *o)
{
	struct parity_in *p = o->parity_in;

	if (!p)
		return;
	env->parity_bytes -= p->size;
	mem_free(&env->mem, p, p->size);
	o->parity_in = NULL;
}

static uint64_t ring_bytes(const struct parity_in *p)
{
	return (uint64_t)RING_SYMBOLS * p->symbol_bytes;
}

/* The first byte of the stream that is still kept */
static uint64_t ring_low(const struct parity_in *p)
{
	return max_u64(p->from, p->end - min_u64(p->end, ring_bytes(p)));
}

/* NULL: it is not known where that is */
static const struct symbol *symbol_find(const struct parity_in *p, uint64_t index)
{
	const struct symbol *s = &p->symbol[index % RING_SYMBOLS];

	return s->bytes && s->index == index ? s : NULL;
}

/* Its bytes out of the ring, and zeros behind them, until the next call */
static const uint8_t *symbol_get(struct parity_in *p, const struct symbol *s)
{
	uint64_t size = ring_bytes(p), at = s->place % size;
	uint32_t n = (uint32_t)min_u64(s->bytes, size - at);

	memcpy(p->one, p->ring + at, n);
	memcpy(p->one + n, p->ring, s->bytes - n);
	memset(p->one + s->bytes, 0, p->symbol_bytes - s->bytes);
	return p->one;
}

/* Bytes of the stream from place at on; what is older than the ring is left out */
static void ring_put(struct parity_in *p, uint64_t at, const uint8_t *data, uint64_t len)
{
	uint64_t size = ring_bytes(p), low;

	p->end = max_u64(p->end, at + len);
	low = ring_low(p);
	if (at + len <= low)
		return;
	if (at < low) {
		data += low - at;
		len -= low - at;
		at = low;
	}
	while (len) {
		uint64_t n = min_u64(len, size - at % size);

		memcpy(p->ring + at % size, data, n);
		at += n;
		data += n;
		len -= n;
	}
}

/* What came out of order before the ring was there */
static void ring_begin(const struct tcb *t, struct parity_in *p)
{
	uint8_t some[1024];

	p->from = p->end = t->rcv_nxt - 1;
	for (uint32_t i = 0; t->ooo && i < t->ooo->n; i++) {
		const struct range *r = &t->ooo->v[t->ooo->first + i];

		for (uint64_t at = r->start; at < r->end;) {
			uint32_t n = (uint32_t)min_u64(r->end - at, sizeof(some));

			stream_copy(&tcb_peer(t)->snd, at - 1, some, n);
			ring_put(p, at - 1, some, n);
			at += n;
		}
	}
}

static struct parity_in *begin(struct env *env, struct tcb *t, uint32_t symbol_bytes)
{
	struct outer *o = tcb_outer(t);
	struct parity_in *p = o->parity_in;
	size_t decoder = fec_decoder_bytes(symbol_bytes),
	       size = sizeof(*p) + decoder + (size_t)RING_SYMBOLS * symbol_bytes;

	if (p && p->symbol_bytes == symbol_bytes)
		return p;
	if (p && p->symbol_bytes < symbol_bytes)
		return NULL;
	parity_in_release(env, o);
	if (env->parity_bytes + size > env->mem.limit_bytes / MEMORY_SHARE)
		return NULL;
	p = mem_alloc(&env->mem, size);
	if (!p)
		return NULL;
	env->parity_bytes += size;
	memset(p, 0, sizeof(*p));
	p->size = size;
	p->symbol_bytes = symbol_bytes;
	p->ring = (uint8_t *)(p + 1) + decoder;
	fec_decoder_init(&p->d, (uint8_t *)(p + 1), symbol_bytes);
	ring_begin(t, p);
	o->parity_in = p;
	return p;
}

/* All its bytes have come, and are kept */
static bool is_there(const struct tcb *t, const struct parity_in *p, const struct symbol *s)
{
	uint64_t start = s->place + 1, end = start + s->bytes;
	const struct range *r;

	if (s->place < ring_low(p))
		return false;
	if (end <= t->rcv_nxt)
		return true;
	if (start < t->rcv_nxt || !t->ooo)
		return false;
	r = ranges_find(t->ooo, start);
	return r && r->end >= end;
}

struct looking {
	const struct tcb *t;
	struct parity_in *p;
};

static const uint8_t *source(void *arg, uint64_t index)
{
	const struct looking *l = arg;
	const struct symbol *s = symbol_find(l->p, index);

	return s && is_there(l->t, l->p, s) ? symbol_get(l->p, s) : NULL;
}

/* Both ends end, and nothing that was solved is believed */
static void wrong(struct env *env, struct tcb *t, const struct pkt *pkt, uint64_t now_ns)
{
	env->counters[DMM_CORE_REPAIRED_WRONG]++;
	ctl_reset_unknown(env, t->leg, tcb_ends(t)->link, pkt);
	env->up->reset(env, &t->end, EBADMSG, now_ns);
}

static bool is_whole(const struct tcb *t, const struct parity_in *p, const struct kept *k)
{
	for (uint64_t i = k->first; i < k->first + k->n; i++) {
		const struct symbol *s = symbol_find(p, i);

		if (!(s && is_there(t, p, s)) && !fec_solved_at(&p->d, i))
			return false;
	}
	return true;
}

/* The check value of a window of which everything is there or solved */
static uint32_t sum_of(const struct tcb *t, struct parity_in *p, const struct kept *k)
{
	struct looking l = {.t = t, .p = p};
	uint64_t sum = 0;

	for (uint64_t i = k->first; i < k->first + k->n; i++) {
		const uint8_t *symbol = fec_solved_at(&p->d, i);

		sum += fec_hash(i, symbol ? symbol : source(&l, i), p->symbol_bytes);
	}
	return fec_check(sum);
}

static bool has(const struct kept *k, uint64_t index)
{
	return index >= k->first && index - k->first < k->n;
}

/* The numbers of symbols that are sought and not solved; returns how many */
static uint32_t unsolved(const struct parity_in *p, uint64_t index[FEC_UNKNOWN])
{
	uint32_t n = 0;

	for (uint32_t c = 0; c < FEC_UNKNOWN; c++) {
		if (p->d.column_used[c] && !fec_solved_at(&p->d, p->d.index[c]))
			index[n++] = p->d.index[c];
	}
	return n;
}

/*
 * The newest window that is whole with what is solved, and that a solved symbol is in. Asked with
 * every packet while one is solved: a window that lacks something, as a peer may have all of them,
 * must not cost a look at its bytes, nor, mostly, at its symbols.
 */
static struct kept *whole_window(const struct tcb *t, struct parity_in *p, uint64_t index)
{
	uint64_t lacking[FEC_UNKNOWN];
	uint32_t n = unsolved(p, lacking);

	for (uint32_t i = 1; i <= KEPT; i++) {
		struct kept *k = &p->kept[(p->next - i) % KEPT];
		uint32_t l = 0;

		if (!k->n || !has(k, index))
			continue;
		while (l < n && !has(k, lacking[l]))
			l++;
		if (l == n && is_whole(t, p, k))
			return k;
	}
	return NULL;
}

/* One solved symbol, which has been checked. false: the connection is over */
static bool take(struct env *env, struct tcb *t, struct parity_in *p, const struct pkt *pkt,
		 const struct symbol *known, const uint8_t *solved, uint64_t now_ns)
{
	struct outer *o = tcb_outer(t);
	struct symbol s = *known;
	uint64_t start = s.place + 1, seq = max_u64(start, t->rcv_nxt);
	uint8_t bytes[FEC_SYMBOL];

	memcpy(bytes, solved, p->symbol_bytes);
	ring_put(p, s.place, bytes, s.bytes);
	if (fec_arrived(&p->d, s.index, bytes) == FEC_CONTRADICTS) {
		wrong(env, t, pkt, now_ns);
		return false;
	}
	o->repaired++;
	o->parity_tells = TELLS;
	env->counters[DMM_CORE_REPAIRED]++;
	if (seq < start + s.bytes)
		tcp_take_repaired(env, t, pkt, seq, bytes + (seq - start),
				  (uint32_t)(start + s.bytes - seq), now_ns);
	return o->parity_in == p;
}

/* Takes in what is solved and proves right. false: the connection is over */
static bool settle(struct env *env, struct tcb *t, struct parity_in *p, const struct pkt *pkt,
		   uint64_t now_ns)
{
	uint64_t index;

	while (fec_solved(&p->d, &index)) {
		struct kept *k = whole_window(t, p, index), window;
		bool goes_on = true;

		if (!k)
			return true;
		window = *k;
		k->n = 0;
		if (sum_of(t, p, &window) != window.check) {
			wrong(env, t, pkt, now_ns);
			return false;
		}
		p->busy = true;
		for (uint64_t i = window.first; goes_on && i < window.first + window.n; i++) {
			const struct symbol *known = symbol_find(p, i);
			const uint8_t *solved = fec_solved_at(&p->d, i);

			if (known && solved)
				goes_on = take(env, t, p, pkt, known, solved, now_ns);
		}
		if (!goes_on)
			return false;
		p->busy = false;
	}
	return true;
}

/*
 * Where the symbols of a window are; false: it may not be, or says otherwise than another before.
 * *first: the number of the first one, in 64 bits
 */
static bool window_learn(const struct tcb *t, struct parity_in *p, const struct fec_header *h,
			 uint64_t *first)
{
	uint64_t place = fec_unwrap(h->place, t->rcv_nxt - 1);
	uint32_t n = fec_header_symbols(h);

	if (place > UINT64_MAX / 2 || place < ring_low(p) ||
	    place + fec_header_bytes(h) >= t->rcv_adv)
		return false;
	*first = p->newest ? fec_unwrap(h->first, p->newest) : h->first;
	if (*first > UINT64_MAX / 2 || *first + RING_SYMBOLS < p->newest)
		return false;
	for (uint32_t i = 0; i < n; i++) {
		struct symbol *s = &p->symbol[(*first + i) % RING_SYMBOLS], is;

		is.index = *first + i;
		is.place = place + fec_header_at(h, i, &is.bytes);
		if (s->bytes && s->index == is.index &&
		    (s->place != is.place || s->bytes != is.bytes))
			return false;
		if (!s->bytes || s->index < is.index)
			*s = is;
	}
	p->newest = max_u64(p->newest, *first + n);
	fec_forget(&p->d, p->newest - min_u64(p->newest, RING_SYMBOLS));
	return true;
}

/* true: it was kept, or nothing of its window is missing */
static bool repair(struct env *env, struct tcb *t, struct parity_in *p, const struct pkt *pkt,
		   const struct fec_header *h, uint64_t now_ns)
{
	struct looking l = {.t = t, .p = p};
	struct fec_window w = {.n = fec_header_symbols(h), .seed = h->seed};
	uint64_t end = fec_unwrap(h->place, t->rcv_nxt - 1) + fec_header_bytes(h);

	if (end < t->rcv_nxt)
		return true; /* all of it is there */
	if (!window_learn(t, p, h, &w.first))
		return false;
	switch (fec_repair(&p->d, &w, pkt->payload + FEC_HEADER, source, &l)) {
	case FEC_USELESS:
		return true;
	case FEC_REFUSED:
		return false;
	case FEC_CONTRADICTS:
		wrong(env, t, pkt, now_ns);
		return true;
	case FEC_KEPT:
		break;
	}
	p->kept[p->next++ % KEPT] = (struct kept){.first = w.first, .n = w.n, .check = h->check};
	settle(env, t, p, pkt, now_ns);
	return true;
}

void parity_input(struct env *env, struct tcb *t, const struct pkt *pkt, int64_t seq,
		  uint64_t now_ns)
{
	struct parity_in *p;
	struct fec_header h;

	env->counters[DMM_CORE_PARITY_IN]++;
	if (seq + pkt->payload_len <= (int64_t)t->rcv_nxt &&
	    fec_header_get(&h, pkt->payload, pkt->payload_len)) {
		p = begin(env, t, h.symbol_bytes);
		if (p && repair(env, t, p, pkt, &h, now_ns))
			return;
	}
	env->counters[DMM_CORE_PARITY_REFUSED]++;
}

bool parity_taken(struct env *env, struct tcb *t, const struct pkt *pkt, const uint8_t *data,
		  uint64_t start, uint64_t end, uint64_t now_ns)
{
	struct parity_in *p = in_of(t);

	if (p->busy)
		return true;
	ring_put(p, start - 1, data, end - start);
	for (uint32_t c = 0; p->d.n_rows && c < FEC_UNKNOWN; c++) {
		const struct symbol *s = NULL;

		if (p->d.column_used[c])
			s = symbol_find(p, p->d.index[c]);
		if (!s || s->place + 1 >= end || s->place + 1 + s->bytes <= start ||
		    !is_there(t, p, s))
			continue;
		if (fec_arrived(&p->d, s->index, symbol_get(p, s)) == FEC_CONTRADICTS) {
			wrong(env, t, pkt, now_ns);
			return false;
		}
	}
	return !p->d.n_rows || settle(env, t, p, pkt, now_ns);
}

void parity_say(struct tcb *t, struct wire_seg *seg)
{
	struct outer *o = tcb_outer(t);

	if (!parity_agreed(t) || seg->opt_len + WIRE_AGREE_LEN > WIRE_TCP_OPT_MAX)
		return;
	o->parity_tells--;
	wire_opt_parity(seg, false, o->repaired & PARITY_COUNT_MASK);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_parity_out.c: parity of what was sent last, for a peer that has agreed on it (tcp_agree.c),
 * where the path loses at random.
 *
 * Theory of operation. What the app writes and then pauses is a run of symbols, pieces of the
 * stream of S bytes, the last of them shorter; a repair symbol is a sum over a window of them
 * (fec.h, repair.h), and goes as an old segment of the same connection: its sequence number is that
 * of bytes which the peer has acknowledged, so nothing that becomes of it on the way can make data
 * of it. docs/develop/forward-error-correction.md says why it is so.
 *
 * Which streams: those that send PARITY_THIN symbols or more in PARITY_TARGET_MS (a thin one has
 * copies, tcp_copies.c, which cost it less), and that pause (parity goes when the app has nothing
 * more to send; one that always has is bulk: a retransmission costs it nothing). Never while loss
 * may be congestion (loss_is_random()).
 *
 * How much: as many repair symbols for those sent in PARITY_TARGET_MS as leave no more than
 * cfg.redundancy_residual_ppm of such windows unrepaired, by the measured loss (tcp_loss.c) of both
 * kinds of symbols; where losses come in bursts, as if so many bursts were lost as whole symbols.
 * No more than cfg.parity_most_ppm of what is sent; where the path's rate is known, no more than
 * the budget of copies besides. It is counted anew each PARITY_TARGET_MS; what is owed is spread
 * over PARITY_SPREAD_MS, so that a burst of losses does not take all of it.
 *
 * The window: all that the peer has not acknowledged, of it the newest FEC_RUNS runs and
 * PARITY_WINDOW symbols. A symbol does not grow once it was in a window, for then it would be two
 * unknowns to who solves it: a run ends when nothing was sent for PARITY_SETTLE_MS, and before that
 * only whole symbols are in a window. Segments of new data end where a symbol ends (parity_cut()),
 * so that one that is lost is one symbol missing. S stays the same unless the path's MTU falls:
 * then it begins anew with a smaller one.
 *
 * Congestion is still seen (RFC 9265 section 2): the peer says how many symbols it has repaired
 * (parity_told()), and the congestion control hears of them as of what a copy repaired. Parity
 * counts in the congestion window: it is never acknowledged, so it is thought to be in flight for
 * one round trip after that in which it went.
 *
 * Owns: struct parity_out, which exists from the first look until the connection ends or is put
 * away. Invariants: runs touch, in the stream and in the numbers of their symbols; parity_wake_ns
 * is no later than what is due next.
 */
#include "tcp_parity.h"

#include "tcp_int.h"

enum {
	PARITY_TARGET_MS = 60, /* within which a lost symbol is to be repaired */
	PARITY_SPREAD_MS = 4,
	PARITY_THIN = 6,     /* fewer symbols in PARITY_TARGET_MS are thin */
	PARITY_WINDOW = 240, /* the peer keeps FEC_WINDOW, and data overtakes parity */
	PARITY_OWED = 48,    /* what is owed at most: a bulk flow that pauses owes no more */
	PARITY_SETTLE_MS = 2,
	PARITY_LATE_MS = 10, /* without parity, of a stream that does not pause for so long */
	RUNS = 16,	     /* that are known; a window has FEC_RUNS of them at most */
	HASHES = 256,
	PARITY_APART = 1 << 20, /* between the numbers of symbols of two sizes */
	MTU_SHRINKS = 8,	/* symbol sizes that one connection may have */
	PATIENCE_MS = 20,
	PARITY_HEADERS = 60, /* of IPv6 and TCP */
};

#define PPM 1000000ull

/* Symbols that touch */
struct run {
	uint64_t first; /* the number of its first one, ... */
	uint64_t place; /* ... and where that begins, bytes of the stream */
};

struct parity_out {
	struct run run[RUNS];	 /* a ring: each ends where the next one begins */
	uint64_t n_runs;	 /* that there were; the last one goes on */
	uint64_t seen;		 /* bytes of the stream below are counted in owed_ppm */
	uint64_t period_ns;	 /* when the running period began, ... */
	uint64_t period_place;	 /* ... and what was sent in it begins here */
	uint64_t next_ns;	 /* no parity goes before */
	uint64_t burst_ns;	 /* since when the app has not paused, ... */
	uint64_t grew_ns;	 /* ... and when it was seen last to have sent more */
	uint64_t round_end;	 /* the running round trip is over when this is acknowledged */
	uint64_t owed_ppm;	 /* millionths of a repair symbol */
	uint32_t flying[2];	 /* bytes sent in the running round trip and in the one before */
	uint32_t share_ppm;	 /* repair symbols for a million symbols; 0: none */
	uint32_t seed;		 /* of the last repair symbol */
	uint32_t symbol_bytes;	 /* S */
	uint32_t sizes;		 /* how many sizes there were */
	uint16_t told;		 /* the peer's counter of repaired symbols */
	uint64_t hash[HASHES];	 /* by symbol number */
	uint64_t hashed[HASHES]; /* which symbol's that is, plus 1 */
	uint8_t symbol[FEC_SYMBOL];
	uint8_t payload[FEC_HEADER + FEC_SYMBOL];
};

static struct parity_out *out_of(const struct tcb *t)
{
	return tcb_outer(t)->parity_out;
}

bool parity_agreed(const struct tcb *t)
{
	return tcb_is_outer(t) && agree_features(t) & DMM_FEATURE_FEC;
}

/* The end of a stream has copies: no parity comes after it */
bool parity_is_worth(const struct tcb *t)
{
	return out_of(t)->share_ppm && !(t->flags & TF_FIN);
}

void parity_out_release(struct env *env, struct outer *o)
{
	if (o->parity_out)
		mem_free(&env->mem, o->parity_out, sizeof(*o->parity_out));
	o->parity_out = NULL;
	o->parity_wake_ns = NEVER;
}

/* Bytes of the stream that were sent */
static uint64_t sent_bytes(const struct tcb *t)
{
	return min_u64(t->snd_nxt - 1, t->snd.tail);
}

static struct run *run_nth(struct parity_out *p, uint64_t nth)
{
	return &p->run[nth % RUNS];
}

/* The one that goes on */
static struct run *run_last(struct parity_out *p)
{
	return run_nth(p, p->n_runs - 1);
}

/* A run begins behind all that was sent */
static void run_begin(const struct tcb *t, struct parity_out *p, uint64_t first)
{
	*run_nth(p, p->n_runs++) = (struct run){.first = first, .place = sent_bytes(t)};
}

/* The one that goes on is over */
static void run_end(const struct tcb *t, struct parity_out *p)
{
	const struct run *last = run_last(p);
	uint64_t bytes = sent_bytes(t) - last->place;

	if (bytes)
		run_begin(t, p, last->first + (bytes + p->symbol_bytes - 1) / p->symbol_bytes);
}

uint32_t parity_room(const struct tcb *t)
{
	struct parity_out *p = out_of(t);

	return p->symbol_bytes - (uint32_t)((sent_bytes(t) - run_last(p)->place) % p->symbol_bytes);
}

uint64_t parity_flying(const struct tcb *t)
{
	return out_of(t)->flying[0] + out_of(t)->flying[1];
}

uint64_t parity_patience_ns(const struct tcb *t)
{
	return parity_goes(t) ? min_u64(PATIENCE_MS * NS_PER_MS, tcp_min_rtt_ns(t)) : 0;
}

/* Symbols begin with what is sent next */
static bool size_set(struct tcb *t, struct parity_out *p)
{
	uint32_t mss = t->mss + agree_confirm_len(t); /* that is over soon */
	uint32_t bytes = mss > PARITY_EXTRA ? mss - PARITY_EXTRA : 0;
	uint64_t first;

	bytes = min_u32(bytes, FEC_SYMBOL);
	if (p->symbol_bytes && p->symbol_bytes <= bytes)
		return true;
	p->share_ppm = 0;
	if (bytes < FEC_SYMBOL_MIN || p->sizes >= MTU_SHRINKS)
		return false;
	first = p->n_runs ? run_last(p)->first + PARITY_APART : 0;
	p->n_runs = 0;
	p->sizes++;
	p->symbol_bytes = bytes;
	run_begin(t, p, first);
	p->seen = p->period_place = sent_bytes(t);
	p->period_ns = 0;
	p->owed_ppm = 0;
	memset(p->hashed, 0, sizeof(p->hashed));
	return true;
}

static struct parity_out *begin(struct env *env, struct tcb *t)
{
	struct outer *o = tcb_outer(t);

	if (!o->parity_out) {
		o->parity_out = mem_alloc(&env->mem, sizeof(*o->parity_out));
		if (!o->parity_out)
			return NULL;
		memset(o->parity_out, 0, sizeof(*o->parity_out));
		o->parity_out->told = o->parity_told;
	}
	return size_set(t, o->parity_out) ? o->parity_out : NULL;
}

/* The chance that more than `spare` of n are lost */
static double tail(uint32_t n, double p, uint32_t spare)
{
	double one = 1, sum = 0;

	for (uint32_t i = 0; i < n; i++)
		one *= 1 - p;
	for (uint32_t lost = 0; lost <= spare; lost++) {
		sum += one;
		one *= (double)(n - lost) / (lost + 1) * p / (1 - p);
	}
	return 1 - sum;
}

/* Repair symbols for a million symbols, of n in the time in which they help: as many as are needed,
 * or may be */
static uint32_t share_needed(const struct env *env, const struct tcb *t, uint32_t n)
{
	uint32_t ppm = loss_ppm(t), most_ppm = env->cfg.parity_most_ppm, m = 1;
	double loss = ppm / 1e6, residual = env->cfg.redundancy_residual_ppm / 1e6;
	/* how many are lost at a time */
	double row = max_u64(1000000 - ppm, 1) /
		     (double)max_u64(1000000 - min_u64(loss_soon_ppm(t), 900000), 1);

	if (row < 1 || !loss_is_bursty(t))
		row = 1;
	while (m * PPM < (uint64_t)n * most_ppm &&
	       tail((uint32_t)((n + m) / row) + 1, loss, (uint32_t)(m / row)) > residual)
		m++;
	return (uint32_t)min_u64(m * PPM / n, most_ppm);
}

/* What was sent in the period that is over says how much parity the next one has */
static void period_end(const struct env *env, const struct tcb *t, struct parity_out *p,
		       uint64_t now_ns)
{
	uint64_t took_ns = now_ns - p->period_ns, n;
	bool measured = p->period_ns, went = p->share_ppm;

	if (measured && took_ns < PARITY_TARGET_MS * NS_PER_MS)
		return;
	n = mul_div(sent_bytes(t) - p->period_place, PARITY_TARGET_MS * NS_PER_MS,
		    max_u64(took_ns, 1)) /
	    p->symbol_bytes;
	n = min_u64(n, FEC_WINDOW);
	p->period_ns = now_ns;
	p->period_place = sent_bytes(t);
	p->share_ppm = 0;
	if (!measured || n < PARITY_THIN || loss_ppm(t) <= env->cfg.redundancy_residual_ppm)
		return;
	p->share_ppm = share_needed(env, t, (uint32_t)n);
	if (!went) /* what was sent without is no run */
		run_end(t, p);
}

/* A window, as its header has it, and where it is */
struct encoding {
	const struct tcb *t;
	struct parity_out *p;
	struct fec_header h;
	uint64_t first;
	uint64_t place;
	uint64_t sum; /* of hashes */
};

/* Of a run the symbols that are whole, or all if it has ended, and not acknowledged, as so many
 * runs of the header as its bytes take. false: there is no room for all of it. */
static bool window_add(struct encoding *e, const struct run *run, uint64_t end, uint64_t acked)
{
	uint32_t size = e->p->symbol_bytes, most = UINT16_MAX / size * size, n;
	uint64_t begin = run->place, bytes;

	if (acked > begin)
		begin += (acked - begin + size - 1) / size * size;
	while (end > begin) {
		/* the last piece of it stands in front of what is there */
		bytes = (end - begin - 1) % most + 1;
		n = (uint32_t)((bytes + size - 1) / size);
		if (e->h.run[FEC_RUNS - 1] || fec_header_symbols(&e->h) + n > PARITY_WINDOW)
			return false;
		memmove(e->h.run + 1, e->h.run, sizeof(e->h.run) - sizeof(e->h.run[0]));
		e->h.run[0] = (uint16_t)bytes;
		end -= bytes;
		e->place = end;
		e->first = run->first + (end - run->place) / size;
	}
	return begin == run->place;
}

/* false: there is nothing */
static bool window_of(const struct tcb *t, struct parity_out *p, struct encoding *e)
{
	uint64_t end = sent_bytes(t), acked = t->snd_una - 1, nth = p->n_runs;

	*e = (struct encoding){.t = t, .p = p, .h.symbol_bytes = (uint16_t)p->symbol_bytes};
	end -= (end - run_last(p)->place) % p->symbol_bytes;
	while (nth-- && nth + RUNS > p->n_runs && end > acked) {
		const struct run *run = run_nth(p, nth);

		if (!window_add(e, run, end, acked))
			break;
		end = run->place;
	}
	return e->h.run[0];
}

static const uint8_t *source(void *arg, uint64_t index)
{
	struct encoding *e = arg;
	struct parity_out *p = e->p;
	uint32_t at = (uint32_t)(index % HASHES), bytes,
		 off = fec_header_at(&e->h, (uint32_t)(index - e->first), &bytes);

	stream_copy(&e->t->snd, e->place + off, p->symbol, bytes);
	memset(p->symbol + bytes, 0, p->symbol_bytes - bytes);
	if (p->hashed[at] != index + 1) {
		p->hash[at] = fec_hash(index, p->symbol, p->symbol_bytes);
		p->hashed[at] = index + 1;
	}
	e->sum += p->hash[at];
	return p->symbol;
}

static void encode(struct parity_out *p, struct encoding *e)
{
	struct fec_window w = {
		.first = e->first, .n = fec_header_symbols(&e->h), .seed = ++p->seed};

	fec_encode(p->payload + FEC_HEADER, p->symbol_bytes, &w, source, e);
	e->h.first = (uint32_t)e->first;
	e->h.place = (uint32_t)e->place;
	e->h.seed = w.seed;
	e->h.check = fec_check(e->sum);
	fec_header_put(p->payload, &e->h);
}

static void round_over(const struct tcb *t, struct parity_out *p)
{
	if (t->snd_una < p->round_end)
		return;
	p->flying[1] = t->snd_una == t->snd_nxt ? 0 : p->flying[0];
	p->flying[0] = 0;
	p->round_end = t->snd_nxt;
}

static bool room_for(struct env *env, struct tcb *t, struct parity_out *p, uint64_t now_ns)
{
	const struct outer *o = tcb_outer(t);
	uint64_t len = FEC_HEADER + p->symbol_bytes;

	round_over(t, p);
	/* what the app writes next must find room */
	if (tcp_inflight(t) + (t->fl ? t->fl->copy_bytes : 0) + parity_inflight(t) + 2 * len >
	    o->cc.cwnd_bytes)
		return false;
	return !budget_is_known(env, t, now_ns) ||
	       budget_allows(env, t, (uint32_t)len + PARITY_HEADERS, 1, now_ns);
}

static void sent(struct env *env, struct tcb *t, struct parity_out *p, uint64_t now_ns)
{
	struct outer *o = tcb_outer(t);
	uint32_t len = FEC_HEADER + p->symbol_bytes;
	uint64_t owed = p->owed_ppm / PPM;

	p->owed_ppm -= PPM;
	p->flying[0] += len;
	p->next_ns = now_ns + PARITY_SPREAD_MS * NS_PER_MS / max_u64(owed, 1);
	if (budget_is_known(env, t, now_ns))
		budget_spend(env, t, len + PARITY_HEADERS, now_ns);
	o->parity_sent++;
	env->counters[DMM_CORE_PARITY]++;
}

/* Something is owed by now */
static bool is_owed(struct env *env, struct tcb *t, struct parity_out *p, uint64_t now_ns)
{
	uint64_t end = sent_bytes(t);

	if (end > p->seen) {
		period_end(env, t, p, now_ns);
		p->owed_ppm += mul_div(end - p->seen, p->share_ppm, p->symbol_bytes);
		p->owed_ppm = min_u64(p->owed_ppm, PARITY_OWED * PPM);
		p->seen = end;
		if (now_ns - p->grew_ns >= PARITY_SETTLE_MS * NS_PER_MS)
			p->burst_ns = now_ns;
		p->grew_ns = now_ns;
	}
	return p->owed_ppm >= PPM;
}

/* The app pauses, so that its run ends; or it has not paused for long. Else *next_ns: when */
static bool has_settled(const struct tcb *t, struct parity_out *p, uint64_t now_ns,
			uint64_t *next_ns)
{
	uint64_t bytes = sent_bytes(t) - run_last(p)->place,
		 settled_ns = tcb_outer(t)->last_data_ns + PARITY_SETTLE_MS * NS_PER_MS;

	*next_ns =
		max_u64(p->next_ns, min_u64(settled_ns, p->burst_ns + PARITY_LATE_MS * NS_PER_MS));
	if (now_ns < *next_ns)
		return false;
	if (now_ns < settled_ns)
		return true;
	if (bytes % p->symbol_bytes)
		run_end(t, p);
	return true;
}

uint32_t parity_output(struct env *env, struct tcb *t, uint8_t *buf, struct dmm_tx_meta *meta,
		       uint64_t now_ns)
{
	struct outer *o = tcb_outer(t);
	struct parity_out *p;
	struct encoding e;
	uint64_t len, next_ns;

	if (!parity_agreed(t) || !o->copying || !t->fl || !env->cfg.parity_most_ppm)
		return 0;
	p = begin(env, t);
	if (!p || !is_owed(env, t, p, now_ns))
		return 0;
	if (!has_settled(t, p, now_ns, &next_ns)) {
		tcp_set_deadline(env, t, &o->parity_wake_ns, next_ns);
		return 0;
	}
	len = FEC_HEADER + p->symbol_bytes;
	if (!loss_is_random(t, now_ns) || t->snd_una < len + 1 || !window_of(t, p, &e)) {
		p->owed_ppm = 0;
		return 0;
	}
	if (!room_for(env, t, p, now_ns)) {
		env->counters[DMM_CORE_PARITY_HELD] += p->owed_ppm / PPM;
		p->owed_ppm = 0;
		return 0;
	}
	encode(p, &e);
	sent(env, t, p, now_ns);
	return tcp_out_apart(env, t, buf, meta, t->snd_una - len, p->payload, (uint32_t)len,
			     now_ns);
}

/* An ACK that was overtaken tells of fewer than a later one: no news */
uint64_t parity_heard(struct env *env, struct tcb *t, const struct pkt *pkt)
{
	struct parity_out *p = out_of(t);
	uint32_t more;

	if (pkt->n_agree != 1 || pkt->agree.role != WIRE_AGREE_PARITY || !parity_agreed(t))
		return 0;
	more = (wire_parity_count(&pkt->agree) - p->told) & PARITY_COUNT_MASK;
	if (!more || more > PARITY_COUNT_MASK / 2)
		return 0;
	p->told = (uint16_t)wire_parity_count(&pkt->agree);
	tcb_outer(t)->parity_told = p->told;
	tcb_outer(t)->peer_repaired += more;
	env->counters[DMM_CORE_PEER_REPAIRED] += more;
	loss_was_repaired(t, more);
	return (uint64_t)more * p->symbol_bytes;
}

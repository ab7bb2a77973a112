/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hystart.h: HyStart++ (RFC 9406): the initial slow start ends when the queue begins to grow,
 * before it overflows.
 *
 * Shared by the window-limited controls (cubic, reno). A round is a round trip: it ends when
 * something sent after its start was delivered. L, the limit of growth per ACK, is infinite:
 * receivers that merge segments acknowledge dozens at once, and a limit of 8 segments would make
 * their growth linear; Linux has none either.
 *
 * Invariants: no state outside struct hystart; once finished it stays so (section 4.3: only the
 * initial slow start).
 */
#ifndef DMM_HYSTART_H
#define DMM_HYSTART_H

#include "cc.h"
#include "../base/util.h"

enum {
	HYSTART_MIN_THRESH_NS = 4000000,
	HYSTART_MAX_THRESH_NS = 16000000,
	HYSTART_RTT_DIVISOR = 8,
	HYSTART_SAMPLES = 8,
	HYSTART_CSS_DIVISOR = 4,
	HYSTART_CSS_ROUNDS = 5,
};

struct hystart {
	uint64_t round_end_bytes; /* delivered_bytes that ends the round */
	uint64_t last_min_ns;	  /* of the round before; NEVER: none */
	uint64_t min_ns;	  /* of this round */
	uint64_t baseline_ns;	  /* in conservative slow start: what it was entered with */
	uint32_t samples;
	uint16_t css_rounds; /* left; 0: not in conservative slow start */
	uint16_t finished;
};

static inline void hystart_init(struct hystart *h)
{
	*h = (struct hystart){.last_min_ns = NEVER, .min_ns = NEVER, .baseline_ns = NEVER};
}

static inline void hystart_finish(struct hystart *h)
{
	h->finished = 1;
	h->css_rounds = 0;
}

/* Section 4.2; true: conservative slow start has lasted long enough, slow start is over */
static inline bool hystart_round(struct hystart *h, const struct cc_sample *s)
{
	if (s->prior_delivered_bytes < h->round_end_bytes)
		return false;
	h->round_end_bytes = s->delivered_bytes;
	h->last_min_ns = h->min_ns;
	h->min_ns = NEVER;
	h->samples = 0;
	return h->css_rounds && !--h->css_rounds;
}

static inline void hystart_judge(struct hystart *h)
{
	uint64_t thresh_ns;

	if (h->samples < HYSTART_SAMPLES || h->min_ns == NEVER)
		return;
	if (h->css_rounds) {
		if (h->min_ns < h->baseline_ns) /* it was noise */
			h->css_rounds = 0;
		return;
	}
	if (h->last_min_ns == NEVER)
		return;
	thresh_ns = max_u64(h->last_min_ns / HYSTART_RTT_DIVISOR, HYSTART_MIN_THRESH_NS);
	thresh_ns = min_u64(thresh_ns, HYSTART_MAX_THRESH_NS);
	if (h->min_ns >= h->last_min_ns + thresh_ns) {
		h->baseline_ns = h->min_ns;
		h->css_rounds = HYSTART_CSS_ROUNDS;
	}
}

/*
 * An ACK in slow start. Returns by how many bytes the window grows; *done: slow start ends with the
 * window as it is after that.
 */
static inline uint64_t hystart_on_ack(struct hystart *h, const struct cc_sample *s, bool *done)
{
	*done = false;
	if (h->finished)
		return s->acked_bytes;
	if (hystart_round(h, s)) {
		hystart_finish(h);
		*done = true;
		return 0;
	}
	if (s->rtt_ns) {
		h->min_ns = min_u64(h->min_ns, s->rtt_ns);
		h->samples++;
	}
	hystart_judge(h);
	return h->css_rounds ? s->acked_bytes / HYSTART_CSS_DIVISOR : s->acked_bytes;
}

#endif /* DMM_HYSTART_H */

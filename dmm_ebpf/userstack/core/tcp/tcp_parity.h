/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_parity.h: forward error correction of the outer leg, where both ends have agreed on it: what
 * the other files of the TCP layer call of tcp_parity_out.c and tcp_parity_in.c, which say how it
 * works.
 */
#ifndef DMM_TCP_PARITY_H
#define DMM_TCP_PARITY_H

#include "../fec/repair.h"
#include "tcp.h"

enum {
	/* bytes that a segment of parity bears and one of data does not: the option, the header */
	PARITY_EXTRA = WIRE_AGREE_LEN + FEC_HEADER,
	/* how many repaired symbols a receiver can tell apart from fewer: the counter has 11 bits
	 */
	PARITY_COUNT_MASK = 0x7ff,
};

/* Both ends have agreed on it; what is below is for such an end alone */
bool parity_agreed(const struct tcb *t);

/* tcp_parity_out.c */
/*
 * Nothing is there to be sent that was not sent: a segment of parity, if one is due; returns its
 * length, 0: none is, and it is looked again in time
 */
uint32_t parity_output(struct env *env, struct tcb *t, uint8_t *buf, struct dmm_tx_meta *meta,
		       uint64_t now_ns);
bool parity_is_worth(const struct tcb *t);
uint32_t parity_room(const struct tcb *t);
uint64_t parity_flying(const struct tcb *t);
/* How long a segment that was overtaken is waited for at least: parity may bring it */
uint64_t parity_patience_ns(const struct tcb *t);
uint64_t parity_heard(struct env *env, struct tcb *t, const struct pkt *pkt);
void parity_out_release(struct env *env, struct outer *o);

/* Most connections never have any of it, and pay for a look at a pointer alone */
static inline bool parity_has_stream(const struct tcb *t)
{
	return tcb_is_outer(t) && unlikely(tcb_outer(t)->parity_out);
}

/* The stream has parity now, and so no copies */
static inline bool parity_goes(const struct tcb *t)
{
	return parity_has_stream(t) && parity_is_worth(t);
}

/* The most that a segment of new data may have now; UINT32_MAX: as much as any */
static inline uint32_t parity_cut(const struct tcb *t)
{
	return parity_goes(t) ? parity_room(t) : UINT32_MAX;
}

/* What it has in flight, as far as it can be told */
static inline uint64_t parity_inflight(const struct tcb *t)
{
	return parity_has_stream(t) ? parity_flying(t) : 0;
}

/* An ACK came: bytes that it tells to have been repaired since the last one */
static inline uint64_t parity_told(struct env *env, struct tcb *t, const struct pkt *pkt)
{
	return parity_has_stream(t) && pkt->n_agree ? parity_heard(env, t, pkt) : 0;
}

/* tcp_parity_in.c */
bool parity_is_said(const struct tcb *t, const struct pkt *pkt);
/* Such a segment came, with acceptable numbers */
void parity_input(struct env *env, struct tcb *t, const struct pkt *pkt, int64_t seq,
		  uint64_t now_ns);
bool parity_taken(struct env *env, struct tcb *t, const struct pkt *pkt, const uint8_t *data,
		  uint64_t start, uint64_t end, uint64_t now_ns);
void parity_say(struct tcb *t, struct wire_seg *seg);
void parity_in_release(struct env *env, struct outer *o);

/* It says that its payload is parity, whatever its sequence number is */
static inline bool parity_is(const struct tcb *t, const struct pkt *pkt)
{
	return unlikely(pkt->n_agree) && parity_is_said(t, pkt);
}

/*
 * [start, end) of the peer's stream came as data to an outer end and was taken in. false: a wrong
 * repair has ended the connection
 */
static inline bool parity_data(struct env *env, struct tcb *t, const struct pkt *pkt,
			       const uint8_t *data, uint64_t start, uint64_t end, uint64_t now_ns)
{
	return likely(!tcb_outer(t)->parity_in) ||
	       parity_taken(env, t, pkt, data, start, end, now_ns);
}

/*
 * An outer end's pure ACK goes out, and has the options in front of SACK: how much was repaired, if
 * that is news
 */
static inline void parity_tell(struct tcb *t, struct wire_seg *seg)
{
	if (unlikely(tcb_outer(t)->parity_tells))
		parity_say(t, seg);
}

static inline void parity_release(struct env *env, struct outer *o)
{
	parity_out_release(env, o);
	parity_in_release(env, o);
}

/* tcp_in.c: bytes of the peer's stream as if a segment had brought them, that begins at seq; pkt is
 * what made them known */
void tcp_take_repaired(struct env *env, struct tcb *t, const struct pkt *pkt, uint64_t seq,
		       const uint8_t *data, uint32_t len, uint64_t now_ns);

/* tcp_emit.c: one segment with bytes that are not the stream's; its sequence number is seq */
uint32_t tcp_out_apart(struct env *env, struct tcb *t, uint8_t *buf, struct dmm_tx_meta *meta,
		       uint64_t seq, const uint8_t *payload, uint32_t len, uint64_t now_ns);

#endif /* DMM_TCP_PARITY_H */

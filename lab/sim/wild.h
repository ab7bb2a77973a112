/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wild.h: what makes a kern a peer that no one would write on purpose, and that exists all the
 * same.
 *
 * Whatever it does, two things stay true, so that the verdict (verdict.h) holds: it acknowledges
 * cumulatively only what it has, and bytes that its own peer has not acknowledged are the right
 * ones. The probabilities are of each packet:
 *
 * wild_sack    1: it keeps what comes out of order, and says so by SACK (a plain kern goes back N)
 * wild_renege  it throws away what it has SACKed
 * wild_lie     SACK blocks of what it does not have: beyond what was sent, below, upside down
 * wild_shut    it offers a window of 0 for up to 2 s, and may drop what comes all the same
 * wild_shrink  it takes back some of the window that it offered
 * wild_acks    ACKs of what was never sent, old ones, the same one several times
 * wild_data    its stream in odd pieces: tiny, overlapping, again; other bytes under numbers long
 * acknowledged wild_flags   SYN, SYN-ACK, RST that is not exact, no flags wild_ts      segments
 * without the timestamp, or with one of long ago
 */
#ifndef SIM_WILD_H
#define SIM_WILD_H

#include "kern.h"

struct wild {
	uint64_t rng;
	uint64_t noise_ns; /* how far noise has used up its allowance */
	double renege, lie, shut, shrink, acks, data, flags, ts;
	bool sack;
};

/* From the words of params.h */
void wild_init(struct wild *w);
/* Bends the header of a segment that is about to go, options but SACK already written. true: send
 * no timestamp */
bool wild_omits_ts(struct wild *w, uint32_t *tsval);
void wild_window(struct wild *w, struct ksock *s, struct wire_seg *seg, uint64_t now_ns);
void wild_sack(struct wild *w, struct ksock *s, struct wire_seg *seg);
/* A segment came out of order, its bytes are right: [start, end) of the stream */
void wild_keep(struct wild *w, struct ksock *s, uint64_t start, uint64_t end);
/* Where the stream is whole to, now that it is whole to `got` */
uint64_t wild_merge(struct ksock *s, uint64_t got);
/* Whether a segment's payload is ignored */
bool wild_drops(struct wild *w, const struct ksock *s, uint64_t now_ns);
/* How much of a piece of the stream goes into one segment */
uint64_t wild_piece(struct wild *w, uint64_t len);
/* A packet came in on an open connection: what is sent that nobody asked for. Some hundred times at
 * once, then 20 times a second: the core may answer each packet, and one that brings forth several
 * would never end.
 */
void wild_noise(struct wild *w, struct kern *k, struct ksock *s, uint64_t now_ns);

#endif /* SIM_WILD_H */

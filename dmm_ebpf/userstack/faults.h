/* SPDX-License-Identifier: Apache-2.0 */
/*
 * faults.h: which packets of a stream are to be lost, doubled, changed or late, and those that are
 * kept for later.
 *
 * A stream is one direction of one leg; each has a plan (struct dmm_fault_plan of engine.h) and
 * decides for itself, so that the same seed and the same packets give the same faults. Nothing here
 * does I/O: engine_faults.c puts packets in and sends what is due.
 *
 * Memory is taken when the first plan is set, never by a packet; what finds no room is lost, and
 * counted apart. Pages of it are the kernel's until a packet is kept there.
 */
#ifndef DMM_FAULTS_H
#define DMM_FAULTS_H

#include <stdbool.h>
#include <stdint.h>

#include "core/api.h"
#include "engine.h"

enum {
	FAULT_STREAMS = 4,
	FAULT_SLOTS = 2048, /* packets that may be kept at once */
	FAULT_BEHIND_PKTS =
		3, /* what is reordered goes behind so many, as RFC 8985 says of dupacks */
};

#define FAULT_BEHIND_NS 10000000ull  /* and waits no longer for them */
#define FAULT_KEPT_BYTES (64u << 20) /* of all that is kept */

/* What a packet is kept for; each has a list, in which they are due in the order of their coming */
enum kept_for { KEPT_COPY, KEPT_BEHIND, KEPT_LATE, KEPT_FORS };

struct kept {
	struct kept *next;
	enum kept_for what;
	uint64_t due_ns;
	uint64_t behind;       /* or when its stream has seen so many */
	uint32_t nic;	       /* index of the engine's NIC */
	uint32_t bytes;	       /* of the IP packet */
	struct dmm_rx_meta rx; /* of one that has come, */
	struct dmm_tx_meta tx; /* or goes */
	uint8_t frame[DMM_TAP_HEADROOM + DMM_TAP_MAX_PKT + 1]; /* as dmm_tap_write() wants it */
};

struct kept_list {
	struct kept *first, **end;
};

struct fault_stream {
	struct dmm_fault_plan plan;
	struct dmm_fault_counts counts;
	uint64_t random;
	uint64_t left[DMM_FAULTS]; /* of plan.rule[].first */
	struct kept_list list[KEPT_FORS];
};

struct faults {
	uint32_t on;   /* bit faults_stream(): it has a plan */
	uint32_t kept; /* packets, of all streams */
	uint32_t kept_bytes;
	struct fault_stream *stream; /* FAULT_STREAMS; NULL: there never was a plan */
	struct kept *slots, *free;
};

static inline uint32_t faults_stream(enum dmm_leg leg, enum dmm_bound bound)
{
	return (uint32_t)leg * 2 + bound;
}

/* The one branch that streams without faults have */
static inline bool faults_wanted(const struct faults *f, enum dmm_leg leg, enum dmm_bound bound)
{
	return __builtin_expect(f->on & 1u << faults_stream(leg, bound), 0);
}

/* A plan without any rule ends the faults of the stream; what it keeps is due then. Counts begin
 * anew. Returns 0 or -ENOMEM. */
int faults_set(struct faults *f, uint32_t stream, const struct dmm_fault_plan *plan);
void faults_free(struct faults *f);

/* What happens to the next packet of the stream: bits 1 << enum dmm_fault. Counts it. */
uint32_t faults_next(struct fault_stream *s);
uint64_t faults_random(struct fault_stream *s);

/* A place for a packet of so many bytes; NULL: there is none, and it is lost. */
struct kept *faults_keep(struct faults *f, struct fault_stream *s, uint32_t bytes);
/* Puts it in line: it is due at once, behind the next ones, or after the plan's delay. */
void faults_line_up(struct fault_stream *s, struct kept *k, enum kept_for what, uint64_t now_ns);
/* The stream's next packet that is due; NULL: there is none. It stays in line until faults_gone().
 */
struct kept *faults_due(struct fault_stream *s, uint64_t now_ns);
void faults_gone(struct faults *f, struct fault_stream *s, struct kept *k);
/* When the next packet of any stream is due; UINT64_MAX: none is kept. */
uint64_t faults_due_ns(const struct faults *f);

#endif /* DMM_FAULTS_H */

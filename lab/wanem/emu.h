/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One direction of an emulated link, without I/O: frames and the time come in, frames and the time
 * of the next event go out.
 *
 *	arrival -> drop-tail queue -> transmitter (rate) -> fate (loss, corruption, duplication)
 *	        -> delay line (delay + jitter), late line (delay + jitter + reorder_ns)
 *	           or, where jitter may reorder, the jittered -> due
 *
 * Invariants:
 * - Loss strikes after the transmitter, so a lost frame has used its share of the rate.
 * - The fate of the n-th data frame that leaves the transmitter is a function of (seed, direction,
 * n) alone: every kind of fate draws from a stream of its own, and draws once per frame whether its
 * probability is 0 or not. Only where bursts are of time (bursts.step_ns) the state that it meets
 *is a function of (seed, direction, the slot of time since the first such frame).
 * - Link control (ARP, IPv6 neighbour discovery, MLD, anything that is not IP) belongs to the
 * segment and not to the path: it is queued and delayed, but has no fate and uses no draw.
 * - Each line is in order of time: only reordering that was asked for reorders, also after delay is
 * lowered. Without jitter_reorder a frame that would be due before the last one waits for it.
 *
 * Times are CLOCK_MONOTONIC, ns. Lengths are of the Ethernet frame without preamble, FCS and gap;
 * those are overhead_bytes, and count against the rate and against queue_bytes.
 */
#ifndef WANEM_EMU_H
#define WANEM_EMU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../chance.h"

#define EMU_NEVER UINT64_MAX
/* Preamble 8, FCS 4, inter-frame gap 12 (IEEE 802.3). */
#define EMU_ETHERNET_OVERHEAD_BYTES 24

struct pkt {
	struct pkt *next;
	struct pkt *right; /* among the jittered; next is then the left child */
	uint64_t at_ns;	   /* waiting: arrival; in service: end of transmission; in a line: due */
	uint32_t len;
	bool control;
	uint8_t *data;
};

/* Fixed store of frames; memory is touched only as far as it has ever been needed at one time. */
struct pool {
	struct pkt *pkts;
	uint8_t *data;
	size_t slot_bytes;
	size_t count;
	size_t fresh; /* first index never handed out */
	struct pkt *free_list;
};

int pool_init(struct pool *pool, size_t count, size_t slot_bytes);
void pool_deinit(struct pool *pool);
struct pkt *pool_get(struct pool *pool);
void pool_put(struct pool *pool, struct pkt *pkt);

struct emu_params {
	uint64_t rate_bps; /* 0: unlimited */
	uint64_t delay_ns;
	/*
	 * Limits of the frames that wait; the one being transmitted is not counted. 0:
	 * no such limit.
	 */
	uint64_t queue_pkts;
	uint64_t queue_bytes;
	uint64_t queue_ns; /* at the rate of the moment */
	uint64_t reorder_ns;
	uint32_t overhead_bytes;
	double loss; /* each frame for itself */
	struct gilbert bursts;
	/* Frames are lost only if longer than this, Ethernet header not counted. 0: all are. */
	uint64_t loss_above;
	uint64_t jitter_ns;
	bool jitter_exponential; /* see jitter_draw */
	bool jitter_reorder;
	double reorder;
	double duplicate;
	double corrupt;
};

enum emu_fate {
	EMU_FATE_LOSS,
	EMU_FATE_REORDER,
	EMU_FATE_DUPLICATE,
	EMU_FATE_CORRUPT,
	EMU_FATE_CORRUPT_WHERE,
	EMU_FATE_STATE, /* of the bursts */
	EMU_FATE_BURST,
	EMU_FATE_JITTER,
	EMU_FATE_COUNT,
};

struct emu_stats {
	uint64_t rx_pkts;
	uint64_t rx_bytes;
	uint64_t tx_pkts;
	uint64_t tx_bytes;
	uint64_t control_pkts;
	uint64_t queue_drops;
	uint64_t losses;
	uint64_t loss_bursts; /* rows of losses with nothing that passed between them */
	uint64_t reordered;
	uint64_t duplicated;
	uint64_t corrupted;
	uint64_t pool_drops;
	uint64_t queue_max_pkts;
	uint64_t queue_max_bytes;
	uint64_t queue_wait_max_ns;
	double queue_wait_sum_ns;
	uint64_t queue_wait_pkts;
	double queue_pkts_ns; /* integral over time of the queue's length */
	double queue_bytes_ns;
	uint64_t since_ns;
	uint64_t late_max_ns; /* sent after its due time */
	double late_sum_ns;
};

struct fifo {
	struct pkt *head;
	struct pkt **tail;
	uint64_t pkts;
	uint64_t last_ns;
};

struct emu {
	struct pool *pool;
	struct emu_params params;
	struct emu_stats stats;
	uint64_t seed;
	uint32_t direction;
	uint64_t draws; /* data frames that have left the transmitter since the seed was set */
	struct fifo waiting;
	uint64_t waiting_bytes;
	struct pkt *in_service;
	/* bit·s⁻¹·ns not yet paid: no rounding builds up over a busy period */
	uint64_t service_rest;
	struct fifo line;
	struct fifo late;
	struct pkt *jittered; /* a skew heap by at_ns */
	uint64_t jittered_pkts;
	bool bad; /* the state of the bursts */
	bool last_lost;
	uint64_t steps;	      /* of the bursts since the seed was set; 0: not begun */
	uint64_t step_end_ns; /* of the slot of time that bad is about */
	uint64_t clock_ns;
};

void emu_init(struct emu *emu, struct pool *pool, uint32_t direction, uint64_t seed,
	      uint64_t now_ns);
void emu_seed(struct emu *emu, uint64_t seed);
/* NULL, or why the parameters are refused. */
const char *emu_check(const struct emu_params *params);
void emu_set(struct emu *emu, const struct emu_params *params, uint64_t now_ns);
void emu_reset_stats(struct emu *emu, uint64_t now_ns);
/* A frame came in at at_ns; the emulator owns it from here. */
void emu_arrive(struct emu *emu, struct pkt *pkt, uint64_t at_ns);
/* Bring every event up to now_ns about. */
void emu_advance(struct emu *emu, uint64_t now_ns);
/* The next frame due by now_ns, which the caller then owns, or NULL. Call emu_advance first. */
struct pkt *emu_pop_due(struct emu *emu, uint64_t now_ns);
/* No frame will be due before this time; EMU_NEVER when nothing is held. */
uint64_t emu_next_ns(const struct emu *emu);
/* Whether a frame is link control; see above. */
bool emu_is_control(const uint8_t *frame, uint32_t len);

#endif

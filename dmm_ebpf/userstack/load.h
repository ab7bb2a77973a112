/* SPDX-License-Identifier: Apache-2.0 */
/*
 * load.h: whether one process of a stack is full, so that new flows are better served by the
 * fallback.
 *
 * Each reason comes at one level and goes at a lower one, so that a stack at its limit does not
 * change its mind with every packet. What the kernel side makes of it is in bpf/decide.h and
 * bpf/xdp.h.
 *
 * No I/O, no clock: the engine shows the signs and the time, and tells stack_load[] what comes out
 * (bpf/ingress.h).
 */
#ifndef DMM_LOAD_H
#define DMM_LOAD_H

#include <stdbool.h>
#include <stdint.h>

#include "../../bpf/abi.h"

struct load_signs {
	uint32_t in_use; /* connections */
	uint64_t memory_bytes;
	uint64_t memory_limit_bytes;
	uint64_t refused;   /* flows that had to be refused, since the beginning */
	uint64_t sent_pkts; /* that the NICs took, since the beginning */
	bool blocked;	    /* packets wait, and no frame is free to take them */
};

struct load {
	uint32_t full; /* enum dmm_full */
	uint32_t max_connections;
	uint64_t refused;	   /* of the signs that were seen last */
	uint64_t refused_until_ns; /* 0: none was lately */
	uint64_t sent_pkts;
	uint64_t stuck_from_ns; /* blocked, and nothing was sent since */
};

/* Returns load->full, as it is from now on. */
uint32_t load_update(struct load *load, const struct load_signs *signs, uint64_t now_ns);

/* When load_update() may say something else though no packet comes; UINT64_MAX: never. */
uint64_t load_again_ns(const struct load *load);

#endif /* DMM_LOAD_H */

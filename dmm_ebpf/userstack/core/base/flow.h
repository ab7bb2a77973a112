/* SPDX-License-Identifier: Apache-2.0 */
/*
 * flow.h: the row of the table of connections: which connection, where it stands in the table, and
 * how far it is. One cache line, the first of every connection, and all that is legible of one that
 * is parked (park.c).
 */
#ifndef DMM_FLOW_H
#define DMM_FLOW_H

#include "../api.h"
#include "util.h"

/* relay.c says what leads from one to the other */
enum conn_phase {
	CONN_OPENING, /* one leg is up or trying, the other not yet */
	CONN_OPEN,
	CONN_DEAD, /* to be freed before the API call returns */
	/* this row is there, what stands behind it is written down small, see park.c */
	CONN_PARKED,
};

struct flow {
	struct dmm_core_addr_pair pair; /* the key of the table */
	uint32_t handle;
	uint32_t hash_next; /* slot + 1 of the next in the bucket; 0: none */
	uint32_t live_pos;
	uint16_t mtu_dev; /* of the device that it goes by */
	/* what the kernel's route or a router on the path allows; 65535: anything */
	uint16_t mtu_most;
	uint16_t mtu; /* of the outer path */
	uint16_t error;
	uint8_t phase; /* enum conn_phase */
	uint8_t passive;
	uint8_t owned;	/* OWN was said, DISOWN is due */
	bool half_open; /* in core.half_open */
};

_Static_assert(sizeof(struct flow) == 64, "one cache line, whole words");

#endif /* DMM_FLOW_H */

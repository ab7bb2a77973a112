/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pull.h: packets pulled from a core with their payload in parts, as the engine pulls them: several
 * are taken, and only then is their payload read.
 */
#ifndef PULL_H
#define PULL_H

#include <stdbool.h>
#include <string.h>

#include "api.h"

enum { PULL_MOST = 8 };

struct pulled {
	uint32_t len; /* of the packet; its headers are in data */
	struct dmm_tx_meta meta;
	struct dmm_payload payload;
	uint8_t data[65536];
};

/* Up to PULL_MOST packets. Returns how many there were. */
static inline uint32_t pull_headers(struct dmm_core *core, uint32_t leg, uint32_t cap,
				    struct pulled *to, uint64_t now)
{
	uint32_t n = 0;

	while (n < PULL_MOST &&
	       (to[n].len = dmm_core_output_parts(core, leg, to[n].data, cap, &to[n].meta,
						  &to[n].payload, now)))
		n++;
	return n;
}

/* Puts the payload behind the headers; false: the parts are not as many bytes as were told. */
static inline bool pull_payload(struct pulled *to)
{
	uint8_t *at = to->data + to->len - to->payload.bytes;

	for (uint32_t i = 0; i < to->payload.n; i++) {
		memcpy(at, to->payload.part[i].data, to->payload.part[i].bytes);
		at += to->payload.part[i].bytes;
	}
	return at == to->data + to->len;
}

#endif /* PULL_H */

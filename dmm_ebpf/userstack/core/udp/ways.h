/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ways.h: by which exchanges the processes of a peer are told what came from it.
 *
 * Theory of operation. A packet turned round reaches the process that has its exchange, and which
 * one that is nothing but the peer knows. So each copy bears a tag of the process that sent it
 * (datagram.h), as does each report; of each tag the latest exchange is kept, and a report goes by
 * all of them: each process finds its own datagrams in it. As long as there is one process, every
 * datagram of the peer renews its way, for exchanges may be short. As soon as there are several, a
 * datagram without a tag proves nothing; a process that is not told of what it sends sends a copy
 * (peers.c), and so is known again.
 *
 * Pure, of a fixed size; the oldest gives way.
 */
#ifndef DMM_WAYS_H
#define DMM_WAYS_H

#include "../base/util.h"
#include "datagram.h"

enum {
	WAYS = 16,
	WAY_IP_MOST = 40,
	WAY_NO_TAG = 0,
};

#define WAY_NS (30 * NS_PER_S) /* after which one of several is not believed any more */

struct way {
	uint8_t headers[DMM_CORE_ETH_BYTES + WAY_IP_MOST + DATAGRAM_HEADER_BYTES];
	uint8_t ip_bytes; /* without options */
	uint16_t tag;
	uint32_t nic;
	uint64_t fresh_ns; /* 0: the place is free */
};

struct ways {
	struct way v[WAYS];
};

/* A packet came, in its frame; tag: WAY_NO_TAG: it has none. */
void ways_renew(struct ways *w, const struct datagram *d, uint32_t nic, uint16_t tag,
		uint64_t now_ns);
/* Forgets those of several that are too old. Returns how many are left. */
uint32_t ways_count(struct ways *w, uint64_t now_ns);
/* Headers for so many bytes of payload, and where that is; its checksum is for the caller to mark.
 */
void way_write(const struct way *way, uint8_t *frame, uint32_t bytes, struct datagram *d);

#endif /* DMM_WAYS_H */

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * capture.h: what a process takes and sends, as Enhanced Packet Blocks of pcapng
 * (draft-ietf-opsawg-pcapng, section 4.3), to whoever has asked for it.
 *
 * A wrapper around every port and every inner leg: it sees frames that no packet socket of the host
 * sees, as those of AF_XDP. Frames are copied to a buffer that was made when the capture began, and
 * the buffer is written when a turn of the loop ends. A reader that is too slow loses frames, which
 * are counted, and holds up nothing.
 */
#ifndef DMM_CAPTURE_H
#define DMM_CAPTURE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/api.h"

enum { CAPTURE_BUFFER_BYTES = 8 << 20 };

/* Values of epb_flags, bits 0 and 1 */
enum capture_way { CAPTURE_IN = 1, CAPTURE_OUT = 2 };

struct capture {
	int fd;	       /* a stream socket that does not block, the caller's; -1: nobody asks */
	uint32_t legs; /* bit 1 << enum dmm_leg: what is wanted */
	uint32_t snaplen_bytes;
	uint64_t epoch_ns; /* what to add to CLOCK_MONOTONIC for CLOCK_REALTIME */
	uint8_t *buffer;
	uint32_t begin, end; /* of what the buffer holds */
	uint64_t frames, dropped;
};

/*
 * Of the blocks' interfaces number 2 * nic is the NIC, 2 * nic + 1 its inner leg. Returns
 * 0 or -ENOMEM.
 */
int capture_begin(struct capture *c, int fd, uint32_t legs, uint32_t snaplen_bytes);
/* Harmless when none runs. What is in the buffer is lost. */
void capture_end(struct capture *c);

static inline bool capture_wants(const struct capture *c, enum dmm_leg leg)
{
	return c->fd >= 0 && c->legs & 1u << leg;
}

/* frame: bytes of it without payload's, which follow. */
void capture_frame(struct capture *c, uint32_t nic, enum dmm_leg leg, enum capture_way way,
		   const uint8_t *frame, uint32_t bytes, const struct dmm_payload *payload,
		   uint64_t now_ns);
/*
 * What the buffer has goes, as far as the reader takes it. A reader that has gone ends the capture.
 */
void capture_flush(struct capture *c);

#endif /* DMM_CAPTURE_H */

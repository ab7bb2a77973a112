/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tap.h: TAP devices of a stack process: made, closed to the kernel's own packets, taken up; and
 * read and written frame by frame with virtio_net headers, so that checksums and segmentation are
 * left out on the inner leg.
 *
 * Invariant: what the kernel itself would send through such a device (neighbour discovery, a local
 * program's packets) is dropped by a socket filter: all of it, or what does not bear the mark of
 * our tc programs, DMM_TCIN_MARK. So nobody can speak to the stack as if it were an app or the
 * network.
 *
 * Frames are read and written with DMM_TAP_HEADROOM bytes in front of the IP header, which keeps
 * the IP header aligned to 4 bytes and headers and packet in one system call. The device is not
 * persistent: it goes with the descriptor.
 */
#ifndef DMM_TAP_H
#define DMM_TAP_H

#include <stdint.h>
#include "halerr.h"
#include "../userstack/core/packet.h"

enum {
	DMM_TAP_HEADROOM = 24,	 /* struct virtio_net_hdr and the Ethernet header */
	DMM_TAP_MAX_PKT = 65535, /* longest IP packet */
	DMM_TAP_ETH_BYTES = 14,
};

/* Makes device name, still down, which gives what our tc programs mark, with virtio_net headers,
 * and returns its non-blocking descriptor; or -errno with err filled (EBUSY: it exists). */
int dmm_tap_open(const char *name, struct dmm_hal_error *err);

/* Sets MTU (bytes of IP packet) and queue length, and takes the device up, in the calling thread's
 * namespace. Returns the queue's length: txqueuelen, or the most that the kernel takes if that is
 * less; or -errno with err filled. */
int dmm_tap_up(const char *name, uint32_t mtu, uint32_t txqueuelen, struct dmm_hal_error *err);

/* Reads one frame with its IP packet at buf + DMM_TAP_HEADROOM; buf has room for DMM_TAP_HEADROOM +
 * DMM_TAP_MAX_PKT bytes. Returns the packet's length, 0 when there is none now, or -errno when the
 * device is gone. vnet counts from the IP header. */
int dmm_tap_read(int fd, uint8_t *buf, struct dmm_vnet *vnet);

/* Writes the packet of len bytes at buf + DMM_TAP_HEADROOM, in front of which stands its Ethernet
 * header; the last payload->bytes of it are in payload's parts instead (NULL: none). Returns 0,
 * -EAGAIN (keep it and try later), or another -errno: the kernel does not take this packet. */
int dmm_tap_write(int fd, uint8_t *buf, uint32_t len, const struct dmm_payload *payload,
		  const struct dmm_vnet *vnet);

/* The same of a frame of len bytes, from its Ethernet header on, wherever it lies. -EAGAIN: try
 * later, or drop it. */
int dmm_tap_frame_write(int fd, const uint8_t *frame, uint32_t len, const struct dmm_vnet *vnet);

#endif /* DMM_TAP_H */

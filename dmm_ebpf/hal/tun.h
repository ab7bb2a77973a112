/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tun.h: a TUN device with virtio_net headers, so that checksums and segmentation are left out on the inner
 * leg.
 *
 * Packets are read and written with DMM_TUN_HEADROOM bytes in front of the IP header, which keeps the IP
 * header aligned to 4 bytes and header and packet in one system call. The device is not persistent: it goes
 * with the descriptor.
 */
#ifndef DMM_TUN_H
#define DMM_TUN_H

#include <stdint.h>
#include "halerr.h"
#include "../userstack/core/api.h"

enum {
	DMM_TUN_HEADROOM = 12,	 /* 2 unused, 10 of struct virtio_net_hdr */
	DMM_TUN_MAX_PKT = 65535, /* longest IP packet */
};

/* Makes device name, still down, and returns its non-blocking descriptor; or -errno with err filled (EBUSY:
 * it exists). */
int dmm_tun_open(const char *name, struct dmm_hal_error *err);

/* Sets MTU (bytes of IP packet) and queue length, and takes the device up, in the calling thread's namespace.
 * Returns the queue's length: txqueuelen, or the most that the kernel takes if that is less; or -errno with
 * err filled. */
int dmm_tun_up(const char *name, uint32_t mtu, uint32_t txqueuelen, struct dmm_hal_error *err);

/* Reads one packet to buf + DMM_TUN_HEADROOM; buf has room for DMM_TUN_HEADROOM + DMM_TUN_MAX_PKT bytes.
 * Returns the packet's length, 0 when there is none now, or -errno when the device is gone. */
int dmm_tun_read(int fd, uint8_t *buf, struct dmm_rx_meta *meta);

/* Writes the packet of len bytes at buf + DMM_TUN_HEADROOM. Returns 0, -EAGAIN (keep it and try later), or
 * another -errno: the kernel does not take this packet. */
int dmm_tun_write(int fd, uint8_t *buf, uint32_t len, const struct dmm_tx_meta *meta);

#endif /* DMM_TUN_H */

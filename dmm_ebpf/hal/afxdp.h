/* SPDX-License-Identifier: Apache-2.0 */
/*
 * afxdp.h: one AF_XDP socket (XSK) on one receive queue of a NIC, with a UMEM of its own.
 *
 * Written on <linux/if_xdp.h>, without libxdp. The first half of the UMEM's frames belongs to the
 * receive side (they are in the fill ring, in the kernel, or in the rx ring), the second half to
 * the transmit side (free, in the tx ring, in the kernel, or in the completion ring); a frame never
 * changes sides. Frames carry Ethernet headers. One thread uses a socket at a time. Nothing is
 * allocated after open.
 *
 * With DMM_XSK_FRAGS a packet may take several frames: one that is longer than a page, or that
 * generic XDP gives as GRO, or the sender's own kernel, has put it together.
 *
 * Where the kernel has metadata of frames to be sent (registering memory with room for them was not
 * refused), a packet's checksum may be left open: to a driver whose zero-copy fills it in, and in
 * copy mode to the kernel, which leaves it to the device, or fills it in where that cannot. Should
 * a frame with metadata be refused all the same, checksums are filled in here from then on.
 */
#ifndef DMM_AFXDP_H
#define DMM_AFXDP_H

#include <stdbool.h>
#include <stdint.h>
#include "halerr.h"
#include "portcaps.h"
#include "../userstack/core/packet.h"

enum {
	DMM_XSK_MAX_MTU = 3822, /* 4096 - XDP_PACKET_HEADROOM - Ethernet and one VLAN tag */
	/* with DMM_XSK_FRAGS: the kernel takes 17 frames (MAX_SKB_FRAGS) */
	DMM_XSK_LONG_MTU = 65535
};

enum dmm_xsk_packets {
	DMM_XSK_PLAIN, /* in one frame each */
	/*
	 * in as many as they need: XDP_USE_SG, Linux 6.6; without zero-copy where the driver has
	 * none for several
	 */
	DMM_XSK_FRAGS,
};

struct dmm_xsk;

/* mtu: of the IP packets it must carry; the same for all sockets of an engine, which copies between
 * them. frames: power of two, both sides together; 0: 8192. Returns 0, or -errno with err filled.
 */
int dmm_xsk_open(uint32_t ifindex, uint32_t queue, uint32_t mtu, uint32_t frames,
		 enum dmm_xsk_packets packets, struct dmm_xsk **out, struct dmm_hal_error *err);
void dmm_xsk_close(struct dmm_xsk *xsk);
/* Does nothing: a socket belongs to the device that it was opened for. */
void dmm_xsk_move(struct dmm_xsk *xsk, uint32_t ifindex);

int dmm_xsk_fd(const struct dmm_xsk *xsk);
uint32_t dmm_xsk_is_zerocopy(const struct dmm_xsk *xsk);
/* Whether its device is gone: it is bound to none then, and of no use any more. */
bool dmm_xsk_is_lost(struct dmm_xsk *xsk);
/* Has checksums left open from now on (DMM_VNET_NEEDS_CSUM); false: the kernel has no metadata.
 * With zero-copy only for a driver that has that (NETDEV_XSK_FLAGS_TX_CHECKSUM): any other passes
 * over it. */
bool dmm_xsk_leave_sums(struct dmm_xsk *xsk);

/* Valid as long as the socket is; csum: whether checksums are left open. */
const struct dmm_port_caps *dmm_xsk_caps(const struct dmm_xsk *xsk);

/* Puts the socket into an XSKMAP under index. Returns 0, or -errno with err filled. */
int dmm_xsk_register(const struct dmm_xsk *xsk, int xsks_map_fd, uint32_t index,
		     struct dmm_hal_error *err);

/* How many received packets are at hand, at most max; dmm_xsk_rx_frame() reads number i of them,
 * best in order. What it returns may not outlive the next call; *len 0: longer than any packet.
 * Nothing is known of its checksum and segments: *vnet is all 0. buf is not used: packets lie in
 * the socket's own memory. */
uint32_t dmm_xsk_rx_peek(struct dmm_xsk *xsk, uint8_t *buf, uint32_t max);
const uint8_t *dmm_xsk_rx_frame(struct dmm_xsk *xsk, uint32_t i, uint32_t *len,
				struct dmm_vnet *vnet);
/* Gives the first n of them back to the kernel. */
void dmm_xsk_rx_release(struct dmm_xsk *xsk, uint32_t n);

/* A place to write a packet to, or NULL. The same until dmm_xsk_tx_commit(). */
uint8_t *dmm_xsk_tx_begin(struct dmm_xsk *xsk);
/* The packet's last payload->bytes are copied there from payload's parts; vnet counts from the IP
 * header, and has no segments. */
void dmm_xsk_tx_commit(struct dmm_xsk *xsk, uint32_t len, const struct dmm_payload *payload,
		       const struct dmm_vnet *vnet);
/* Has the kernel send what was committed. Returns 0 when it took everything, 1 when it must be
 * called again later, -ENETDOWN when the device is down or gone, or another -errno. */
int dmm_xsk_tx_kick(struct dmm_xsk *xsk);
/* Committed and not kicked. */
uint32_t dmm_xsk_tx_unkicked(const struct dmm_xsk *xsk);
/* Whether so much waits that it is worth a system call. */
bool dmm_xsk_tx_due(const struct dmm_xsk *xsk);

/* tx_refused: frames whose description the kernel did not understand. */
void dmm_xsk_stats(const struct dmm_xsk *xsk, struct dmm_port_stats *stats);

#endif /* DMM_AFXDP_H */

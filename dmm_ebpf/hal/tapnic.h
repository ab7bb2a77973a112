/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tapnic.h: a NIC without AF_XDP sockets of one's own: frames come by a TAP device that a program
 * at the NIC redirects to, and go by a packet socket on the NIC, which receives nothing.
 *
 * Any device that carries IP will do, whatever its driver, and any number of stacks. Frames go
 * through the NIC's qdisc and tc egress; what a qdisc drops is lost as on the path. Both ways they
 * have a virtio_net header: GRO's merged segments come as one frame, and up to 64 KiB may go as
 * one, which the NIC or the kernel cuts, with checksums left open.
 *
 * Invariant: only redirected frames can be read. What the kernel itself would send through the TAP
 * device is dropped by a socket filter, so that no local program can speak to the stack as if it
 * were the network: what does not bear DMM_TCIN_MARK.
 *
 * The NIC may be deleted and made anew, or leave the namespace and come back: dmm_tapnic_move().
 * While it is down or gone, frames to no link-layer address are written to the TAP device: a
 * program there may know another way.
 *
 * A device may have no link header (bare): its frames have one all the same, whose addresses are 0
 * on the way in (bpf/frame.h), and which is not sent on the way out.
 *
 * Frames carry Ethernet headers, and IP packets of at most DMM_TAP_MAX_PKT (tap.h); a struct
 * dmm_vnet counts from the IP header behind it. One thread uses it at a time. Nothing is allocated
 * after open.
 */
#ifndef DMM_TAPNIC_H
#define DMM_TAPNIC_H

#include <stdbool.h>
#include <stdint.h>
#include "halerr.h"
#include "portcaps.h"
#include "../userstack/core/packet.h"

struct dmm_tapnic;

/* DMM_TAP_MAX_PKT with both headers, and for the next one to be aligned */
enum { DMM_TAPNIC_FRAME_BYTES = 65600 };

/* Makes TAP device name, still down, and a sending socket on the device with nic_ifindex, in the
 * calling thread's namespace. Returns 0, or -errno with err filled. bare: the device has no link
 * header. */
int dmm_tapnic_open(const char *name, uint32_t nic_ifindex, bool bare, struct dmm_tapnic **out,
		    struct dmm_hal_error *err);
void dmm_tapnic_close(struct dmm_tapnic *tap);
/* The NIC is the device with nic_ifindex from now on, of the same kind as the one before. Needs no
 * right: a packet socket may name the device of each packet. */
void dmm_tapnic_move(struct dmm_tapnic *tap, uint32_t nic_ifindex);
/* Never: it goes on by whatever the NIC is. */
bool dmm_tapnic_is_lost(const struct dmm_tapnic *tap);

/* Valid as long as the port is; segments and open checksums: where the kernel cuts and sums as it
 * should. */
const struct dmm_port_caps *dmm_tapnic_caps(const struct dmm_tapnic *tap);

/* Readable when frames have come. */
int dmm_tapnic_fd(const struct dmm_tapnic *tap);

/* Reads the next frame into buf, which has room for DMM_TAPNIC_FRAME_BYTES and is to stay until the
 * frame is done with; returns how many that were: 1, or 0 when there is none now or max is 0.
 * dmm_tapnic_rx_frame(): it, whatever i is, from its Ethernet header on. */
uint32_t dmm_tapnic_rx_peek(struct dmm_tapnic *tap, uint8_t *buf, uint32_t max);
const uint8_t *dmm_tapnic_rx_frame(const struct dmm_tapnic *tap, uint32_t i, uint32_t *len,
				   struct dmm_vnet *vnet);
void dmm_tapnic_rx_release(struct dmm_tapnic *tap, uint32_t n);

/* A free frame to write a packet to, or NULL. The same frame until dmm_tapnic_tx_commit(). */
uint8_t *dmm_tapnic_tx_begin(struct dmm_tapnic *tap);
/* Of the frame's len bytes the last payload->bytes are in payload's parts, which must stay until
 * the next dmm_tapnic_tx_kick() is over; none, unless the port's caps have csum. */
void dmm_tapnic_tx_commit(struct dmm_tapnic *tap, uint32_t len, const struct dmm_payload *payload,
			  const struct dmm_vnet *vnet);
/* Sends what was committed. Returns 0 when the kernel took everything, 1 when it must be called
 * again later, or -ENETDOWN when the NIC is down or gone, and of what was committed is lost what
 * was to go to a link-layer address. */
int dmm_tapnic_tx_kick(struct dmm_tapnic *tap);
/* Committed and not sent. */
uint32_t dmm_tapnic_tx_unkicked(const struct dmm_tapnic *tap);
/* Whether so much waits that it should be sent before more is written. */
bool dmm_tapnic_tx_due(const struct dmm_tapnic *tap);

/* tx_refused: packets longer than the device's MTU, too. */
void dmm_tapnic_stats(const struct dmm_tapnic *tap, struct dmm_port_stats *stats);

#endif /* DMM_TAPNIC_H */

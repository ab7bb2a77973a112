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
#include "../userstack/core/api.h"

struct dmm_tapnic;

struct dmm_tapnic_stats {
	uint64_t sends;	      /* system calls */
	uint64_t sends_again; /* the socket's buffer or the driver's queue was full */
	/*
	 * packets that the kernel does not take: longer than the device's MTU; or that a
	 * qdisc has dropped
	 */
	uint64_t refused;
};

/* Makes TAP device name, still down, and a sending socket on the device with nic_ifindex, in the
 * calling thread's namespace. Returns 0, or -errno with err filled. bare: the device has no link
 * header. */
int dmm_tapnic_open(const char *name, uint32_t nic_ifindex, bool bare, struct dmm_tapnic **out,
		    struct dmm_hal_error *err);
void dmm_tapnic_close(struct dmm_tapnic *tap);

/* Readable when frames have come. */
int dmm_tapnic_fd(const struct dmm_tapnic *tap);

/* How many received frames are at hand, at most max; dmm_tapnic_rx_frame() reads number i of them.
 * dmm_tapnic_rx_more(): fewer were, because they are long, and more may wait in the device. */
uint32_t dmm_tapnic_rx_peek(struct dmm_tapnic *tap, uint32_t max);
bool dmm_tapnic_rx_more(const struct dmm_tapnic *tap);
const uint8_t *dmm_tapnic_rx_frame(const struct dmm_tapnic *tap, uint32_t i, uint32_t *len,
				   struct dmm_vnet *vnet);
/* Forgets the first n of them. */
void dmm_tapnic_rx_release(struct dmm_tapnic *tap, uint32_t n);

/* A free frame to write a packet to, or NULL. The same frame until dmm_tapnic_tx_commit(). */
uint8_t *dmm_tapnic_tx_begin(struct dmm_tapnic *tap);
/* Of the frame's len bytes the last payload->bytes are in payload's parts, which must stay until
 * the next dmm_tapnic_tx_kick() is over; none, unless dmm_tapnic_offloads(). */
void dmm_tapnic_tx_commit(struct dmm_tapnic *tap, uint32_t len, const struct dmm_payload *payload,
			  const struct dmm_vnet *vnet);
/* Whether checksums and segments may be left to who takes the frames. */
bool dmm_tapnic_offloads(const struct dmm_tapnic *tap);
/* Sends what was committed. Returns 0 when the kernel took everything, 1 when it must be called
 * again later, -ENETDOWN when the NIC is down and what was committed is lost, or -errno when it is
 * gone. */
int dmm_tapnic_tx_kick(struct dmm_tapnic *tap);
/* Committed and not sent. */
uint32_t dmm_tapnic_tx_unkicked(const struct dmm_tapnic *tap);
/* Whether so much waits that it should be sent before more is written. */
bool dmm_tapnic_tx_due(const struct dmm_tapnic *tap);

void dmm_tapnic_stats(const struct dmm_tapnic *tap, struct dmm_tapnic_stats *stats);

#endif /* DMM_TAPNIC_H */

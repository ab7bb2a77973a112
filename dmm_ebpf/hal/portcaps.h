/* SPDX-License-Identifier: Apache-2.0 */
/*
 * portcaps.h: the kinds of ports that a stack process can have, what a port can do, and what it
 * counts.
 *
 * A kind is a file of this folder, with the functions that userstack/port.h calls, and fills the
 * two structures here itself. Whatever the kind, frames are shown and taken with an Ethernet
 * header: where the device has none, its addresses are 0 on the way in and are not sent on the way
 * out.
 *
 * Text below is read by cffi, which strips lines that start with '#'.
 */
#ifndef DMM_PORTCAPS_H
#define DMM_PORTCAPS_H

#include <stdbool.h>
#include <stdint.h>

enum dmm_port_kind {
	DMM_PORT_XSK = 0, /* afxdp.h, functions dmm_xsk_ */
	DMM_PORT_TAP = 1, /* tapnic.h, functions dmm_tapnic_ */
	DMM_PORT_KINDS
};

enum { DMM_PORT_KICK_PKTS = 32 }; /* what one call sends at least, see af_xdp's budget */

/* Does not change while the port is open, but for csum, which may become false */
struct dmm_port_caps {
	uint32_t room_bytes; /* the longest IP packet that has room in a frame to be sent */
	/* the longest IP packet that goes as one and is cut into TCP segments by who takes it;
	   0: none */
	uint32_t segments_bytes;
	bool csum;	/* checksums may be left open to who takes the frames */
	bool tells;	/* what comes says itself what was left open of it (struct dmm_vnet) */
	bool by_kernel; /* what is sent passes the tc programs, hooks and qdisc of the NIC */
	/* frames are read one at a time, by a system call, into the buffer of who looks for them */
	bool reads;
};

/* Of one port, since it was opened; what a kind has not stays 0 */
struct dmm_port_stats {
	uint64_t rx_dropped; /* the kernel's figures: struct xdp_statistics */
	uint64_t rx_ring_full;
	uint64_t rx_fill_ring_empty;
	uint64_t tx_refused; /* packets that the kernel did not take, or that a qdisc has dropped */
	uint64_t kicks;	     /* system calls that send */
	uint64_t kicks_again; /* of them those after which something is still to be sent */
};

#endif /* DMM_PORTCAPS_H */

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * udp_copies.h: copies of datagrams between two stacks of ours, against loss.
 *
 * Theory of operation. A datagram goes as it came from the app, at once. Where the path to its peer
 * loses at random and a stack of ours is there (peers.h), copies of it follow, spaced, as many as
 * leave no more than the residual lost, within the budget. A copy is the same packet with a
 * checksum that marks it (datagram.h): it is no longer, costs no round trip to agree on, and is
 * nothing to a host without us, to a middlebox that checks, and to an app. The other stack gives
 * the app the first that arrives, with its checksum put right, and nothing twice (seen.h); and
 * tells what came (report.h). They come to the app in the order in which they arrive.
 *
 * No copies have: what is cut by the device (UDP_SEGMENT), what is longer than
 * DMM_CORE_DATAGRAM_MTU, what is alike to another of the last four seconds, and what goes to a peer
 * to which 600 a second go.
 *
 * Refused are copies of a peer in the first second after the first one, for until then its
 * datagrams were not noted; and whenever something was not noted.
 *
 * Pure, of a fixed size.
 */
#ifndef DMM_UDP_COPIES_H
#define DMM_UDP_COPIES_H

#include "../api.h"
#include "peers.h"
#include "seen.h"

enum { UDP_COPIES_SLOTS = 128 };

struct udp_copies;

/* What is asked of the sender's side: none of that, no copies */
struct udp_copies_wanted {
	uint64_t budget_Bps;   /* 0: none go */
	uint32_t residual_ppm; /* loss that they may leave */
};

/* A packet that passed datagram_pass(), behind an Ethernet header */
struct udp_copies_packet {
	const uint8_t *frame;
	uint32_t len; /* of the IP packet */
	uint32_t nic;
	const struct dmm_vnet *came;
};

/* NULL: no memory. counters: enum dmm_core_counter. */
struct udp_copies *udp_copies_create(uint64_t seed, uint64_t *counters);
void udp_copies_destroy(struct udp_copies *c);
/* A datagram goes to the outer leg */
void udp_copies_out(struct udp_copies *c, const struct udp_copies_packet *p,
		    const struct udp_copies_wanted *w, uint64_t now_ns);
/* One came from there. False: it is not for the app as it is. */
bool udp_copies_in(struct udp_copies *c, const struct udp_copies_packet *p, uint64_t now_ns);
/* The next frame that is due: bytes of its IP packet, or 0. frame: room for DMM_CORE_ETH_BYTES
 * and DMM_CORE_DATAGRAM_MTU. */
uint32_t udp_copies_next(struct udp_copies *c, uint8_t *frame, uint32_t *leg, uint32_t *nic,
			 uint64_t now_ns);
uint64_t udp_copies_due_ns(const struct udp_copies *c);

#endif /* DMM_UDP_COPIES_H */

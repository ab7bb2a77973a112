/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Network interfaces as the emulator sees them: a TPACKET_V2 ring to receive from (packet(7)), and
 * a socket that hears nothing to send by.
 *
 * V2 and not V3: a V3 block is handed over when it is full or its timer ends, which is milliseconds
 * of delay that was not asked for. No transmit ring: its slots come back only when the receiver has
 * read the bytes.
 *
 * Every frame that is lost here is counted: a measurement is valid only while these counters are
 * zero.
 */
#ifndef WANEM_PORT_H
#define WANEM_PORT_H

#include <net/if.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "emu.h"

#define TX_BATCH_PKTS 64

struct rx_port {
	int fd;
	uint8_t *ring;
	size_t ring_bytes;
	uint32_t slot_bytes;
	uint32_t slots;
	uint32_t next;
	uint32_t mtu;
	uint64_t ring_drops; /* the ring was full */
	/* longer than the MTU allows, or the checksum left to a NIC that is not there */
	uint64_t bad_pkts;
};

struct tx_port {
	int fd;
	uint64_t drops;	  /* refused by the interface */
	uint64_t retries; /* the receiving host had no room; sent later */
	size_t batch_pkts;
	struct pkt *batch[TX_BATCH_PKTS];
	struct mmsghdr msgs[TX_BATCH_PKTS];
	struct iovec iovs[TX_BATCH_PKTS];
};

/* MTU of an Ethernet interface of the present network namespace, or -errno. */
int port_mtu(const char *name);

/*
 * These say on stderr why they cannot, and return -errno; what was opened is closed by the _deinit.
 */
int rx_init(struct rx_port *rx, const char *name, uint32_t mtu, uint32_t slots);
int tx_init(struct tx_port *tx, const char *name);
void rx_deinit(struct rx_port *rx);
void tx_deinit(struct tx_port *tx);

/*
 * Copies the next received frame into *pkt, with its time of arrival (CLOCK_REALTIME); false: none.
 */
bool rx_receive(struct rx_port *rx, struct pkt *pkt, uint64_t *realtime_ns);
/* Adds what the kernel dropped since the last call to ring_drops. */
void rx_read_drops(struct rx_port *rx);

static inline bool tx_is_full(const struct tx_port *tx)
{
	return tx->batch_pkts == TX_BATCH_PKTS;
}
/* Queues a frame for the next flush; the batch must not be full. */
void tx_push(struct tx_port *tx, struct pkt *pkt);
/*
 * Sends the batch and gives its frames back to the pool. False when the receiving host has no room
 * just now: the rest stays in the batch, for a later flush.
 */
bool tx_flush(struct tx_port *tx, struct pool *pool);
/* Gives the batch up, and counts it in drops. */
void tx_abandon(struct tx_port *tx, struct pool *pool);

#endif

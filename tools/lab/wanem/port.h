/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One network interface as the emulator sees it: a TPACKET_V2 ring to receive from (packet(7)), and a second
 * socket, which hears nothing, to send by.
 *
 * V2 and not V3: a V3 block is handed over when it is full or its timer ends, which is milliseconds of delay
 * that was not asked for. No transmit ring: its slots come back only when the receiver has read the bytes.
 *
 * Every frame that is lost here is counted: a measurement is valid only while these counters are zero.
 */
#ifndef WANEM_PORT_H
#define WANEM_PORT_H

#include <net/if.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "emu.h"

#define PORT_BATCH_PKTS 64

struct port {
	char name[IF_NAMESIZE];
	int rx_fd;
	int tx_fd;
	uint8_t *ring;
	size_t ring_bytes;
	uint32_t slot_bytes;
	uint32_t slots;
	uint32_t next;
	uint32_t mtu;
	uint64_t ring_drops; /* the ring was full */
	uint64_t bad_pkts;   /* longer than the MTU allows, or the checksum left to a NIC that is not there */
	uint64_t tx_drops;   /* not taken by the interface */
	uint64_t tx_retries; /* taken at a later attempt */
	struct pkt *batch[PORT_BATCH_PKTS];
	size_t batch_pkts;
	struct mmsghdr msgs[PORT_BATCH_PKTS];
	struct iovec iovs[PORT_BATCH_PKTS];
};

/* MTU of the interface, or -errno. */
int port_mtu(const char *name);
/* Opens an interface of the present network namespace; says on stderr why it cannot; -errno. */
int port_init(struct port *port, const char *name, uint32_t slots);
void port_deinit(struct port *port);
/* Copies the next received frame into *pkt, with its time of arrival (CLOCK_REALTIME); false: none. */
bool port_receive(struct port *port, struct pkt *pkt, uint64_t *realtime_ns);
/* Queues a frame for the next flush, which gives it back to the pool. */
void port_send(struct port *port, struct pool *pool, struct pkt *pkt);
void port_flush(struct port *port, struct pool *pool);
/* Adds what the kernel dropped since the last call to ring_drops. */
void port_read_drops(struct port *port);

#endif

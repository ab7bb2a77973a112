/* SPDX-License-Identifier: Apache-2.0 */
/*
 * port.h: one way in and out of a NIC, of whatever kind: an AF_XDP socket on one of its queues, or
 * a TAP device and a packet socket (hal/tapnic.h).
 *
 * PORT_CALL is the only place that tells kinds apart. A further kind is an enumerator in
 * hal/portcaps.h, a file of hal with these functions, a pointer in struct port and a line of
 * PORT_CALL; nothing else in the engine asks for a kind but by what a policy wants to send by, and
 * what a port can do is in its caps. Two calls per packet go through here: a branch that always
 * goes the same way costs less than a table of functions.
 */
#ifndef DMM_PORT_H
#define DMM_PORT_H

#include <stdbool.h>
#include <stdint.h>

#include "../hal/afxdp.h"
#include "../hal/portcaps.h"
#include "../hal/tapnic.h"

struct port {
	enum dmm_port_kind kind;
	union {
		void *device;
		struct dmm_xsk *xsk;
		struct dmm_tapnic *tap;
	};
	const struct dmm_port_caps *caps;
	uint32_t nic; /* index of the engine's NIC */
	bool csum;    /* the core knows of caps->csum */
	bool again;   /* the kernel did not take everything */
	/* its device was, when it was last tried: what is sent is lost, as on the way */
	bool down;
	bool came;	 /* something, at the last look */
	bool readable;	 /* as poll(2) has said, and nobody looked since */
	uint32_t passed; /* turns without a look */
};

/* Returns what the function op of the port's kind does; the compiler misses a kind that has none */
#define PORT_CALL(port, op, ...)                                                                   \
	switch ((port)->kind) {                                                                    \
	case DMM_PORT_XSK:                                                                         \
		return dmm_xsk_##op((port)->xsk __VA_OPT__(, ) __VA_ARGS__);                       \
	case DMM_PORT_TAP:                                                                         \
		return dmm_tapnic_##op((port)->tap __VA_OPT__(, ) __VA_ARGS__);                    \
	case DMM_PORT_KINDS:                                                                       \
		break;                                                                             \
	}                                                                                          \
	__builtin_unreachable()

static inline void port_close(struct port *port)
{
	PORT_CALL(port, close);
}

/* Its NIC is another device now. An AF_XDP socket is of no use then: it belongs to one for good. */
static inline void port_move(struct port *port, uint32_t nic_ifindex)
{
	PORT_CALL(port, move, nic_ifindex);
}

/* Whether it is of no use any more, since its NIC was deleted. */
static inline bool port_is_lost(const struct port *port)
{
	PORT_CALL(port, is_lost);
}

static inline int port_fd(const struct port *port)
{
	PORT_CALL(port, fd);
}

static inline const struct dmm_port_caps *port_caps(const struct port *port)
{
	PORT_CALL(port, caps);
}

static inline void port_stats(const struct port *port, struct dmm_port_stats *stats)
{
	PORT_CALL(port, stats, stats);
}

/* How many received frames are at hand, at most max. Those that a port must read come one at a
 * time, into buf, of DMM_CORE_BUFFER_BYTES. */
static inline uint32_t port_rx_peek(struct port *port, uint8_t *buf, uint32_t max)
{
	PORT_CALL(port, rx_peek, buf, max);
}

static inline const uint8_t *port_rx_frame(const struct port *port, uint32_t i, uint32_t *len,
					   struct dmm_vnet *vnet)
{
	PORT_CALL(port, rx_frame, i, len, vnet);
}

static inline void port_rx_release(struct port *port, uint32_t n)
{
	PORT_CALL(port, rx_release, n);
}

static inline uint8_t *port_tx_begin(struct port *port)
{
	PORT_CALL(port, tx_begin);
}

/* Segments are for ports with segments_bytes; payload in parts for those with csum. */
static inline void port_tx_commit(struct port *port, uint32_t len,
				  const struct dmm_payload *payload, const struct dmm_vnet *vnet)
{
	PORT_CALL(port, tx_commit, len, payload, vnet);
}

static inline uint32_t port_tx_unkicked(const struct port *port)
{
	PORT_CALL(port, tx_unkicked);
}

/* Whether enough waits for a system call of its own. */
static inline bool port_tx_due(const struct port *port)
{
	PORT_CALL(port, tx_due);
}

static inline int port_tx_kick(struct port *port)
{
	PORT_CALL(port, tx_kick);
}

#endif /* DMM_PORT_H */

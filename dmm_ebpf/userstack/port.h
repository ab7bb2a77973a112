/* SPDX-License-Identifier: Apache-2.0 */
/*
 * port.h: one way in and out of a NIC: an AF_XDP socket on one of its queues, or a TAP device and a
 * packet socket (hal/tapnic.h).
 *
 * Exactly one of xsk and tap is set. Two calls per packet go through here; a branch that always
 * goes the same way costs less than a table of functions.
 */
#ifndef DMM_PORT_H
#define DMM_PORT_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "../hal/afxdp.h"
#include "../hal/tap.h"
#include "../hal/tapnic.h"

enum { PORT_KICK_PKTS = 32 }; /* what one call sends at least, see af_xdp's budget */

struct port {
	struct dmm_xsk *xsk;
	struct dmm_tapnic *tap;
	uint32_t nic; /* index of the engine's NIC */
	bool sums;    /* the core knows that it port_sums() */
	bool again;   /* the kernel did not take everything */
	/* its device was, when it was last tried: what is sent is lost, as on the way */
	bool down;
	bool came;	 /* something, at the last look */
	bool readable;	 /* as poll(2) has said, and nobody looked since */
	uint32_t passed; /* turns without a look */
};

static inline void port_close(struct port *port)
{
	dmm_xsk_close(port->xsk);
	dmm_tapnic_close(port->tap);
}

static inline int port_fd(const struct port *port)
{
	return port->xsk ? dmm_xsk_fd(port->xsk) : dmm_tapnic_fd(port->tap);
}

static inline uint32_t port_rx_peek(struct port *port, uint32_t max)
{
	return port->xsk ? dmm_xsk_rx_peek(port->xsk, max) : dmm_tapnic_rx_peek(port->tap, max);
}

static inline const uint8_t *port_rx_frame(const struct port *port, uint32_t i, uint32_t *len,
					   struct dmm_vnet *vnet)
{
	if (port->tap)
		return dmm_tapnic_rx_frame(port->tap, i, len, vnet);
	memset(vnet, 0, sizeof(*vnet));
	return dmm_xsk_rx_frame(port->xsk, i, len);
}

/* The longest IP packet that a frame has room for */
static inline uint32_t port_room(const struct port *port)
{
	return port->xsk ? dmm_xsk_room(port->xsk) : DMM_TAP_MAX_PKT;
}

static inline void port_rx_release(struct port *port, uint32_t n)
{
	if (port->xsk)
		dmm_xsk_rx_release(port->xsk, n);
	else
		dmm_tapnic_rx_release(port->tap, n);
}

/*
 * Whether more frames may be at hand than were last told of, though fewer than the most that
 * was asked for
 */
static inline bool port_rx_more(const struct port *port)
{
	return port->tap && dmm_tapnic_rx_more(port->tap);
}

static inline uint8_t *port_tx_begin(struct port *port)
{
	return port->xsk ? dmm_xsk_tx_begin(port->xsk) : dmm_tapnic_tx_begin(port->tap);
}

/*
 * Whether checksums and segments may be left to who takes the packets, and what comes says so, too
 */
static inline bool port_offloads(const struct port *port)
{
	return port->tap && dmm_tapnic_offloads(port->tap);
}

/* Whether checksums may be left open */
static inline bool port_sums(const struct port *port)
{
	return port->xsk ? dmm_xsk_sums(port->xsk) : dmm_tapnic_offloads(port->tap);
}

/* Segments are for ports that port_offloads(), and for those that port_sums() checksums and payload
 * in parts.
 */
static inline void port_tx_commit(struct port *port, uint32_t len,
				  const struct dmm_payload *payload, const struct dmm_vnet *vnet)
{
	if (port->xsk)
		dmm_xsk_tx_commit(port->xsk, len, payload, vnet);
	else
		dmm_tapnic_tx_commit(port->tap, len, payload, vnet);
}

static inline uint32_t port_tx_unkicked(const struct port *port)
{
	return port->xsk ? dmm_xsk_tx_unkicked(port->xsk) : dmm_tapnic_tx_unkicked(port->tap);
}

/* Whether enough waits for a system call of its own. */
static inline bool port_tx_due(const struct port *port)
{
	if (port->tap && dmm_tapnic_tx_due(port->tap))
		return true;
	return port_tx_unkicked(port) >= PORT_KICK_PKTS;
}

static inline int port_tx_kick(struct port *port)
{
	return port->xsk ? dmm_xsk_tx_kick(port->xsk) : dmm_tapnic_tx_kick(port->tap);
}

#endif /* DMM_PORT_H */

// SPDX-License-Identifier: Apache-2.0
/*
 * engine_datagram.c: UDP frames from leg to leg. Each goes at once, as it came, Ethernet header and
 * all: what the kernel meant for the wire names the NIC's address and the next hop's already, and
 * what came from the wire names this host's.
 *
 * To the wire they go by the port whose packets pass the kernel's programs and qdisc, whatever the
 * NIC is sent by else: AF_XDP cuts no datagrams. Where that one has no room a datagram is lost, as
 * in a full queue on the way; nothing is kept and nothing allocated.
 */
#include "engine_int.h"
#include "frame.h"

#include <string.h>
#include <sys/socket.h>

enum {
	/* what is longer goes by a call of its own, from where it was read */
	LONG_BYTES = 2048,
	HEAD_BYTES = 256,
};

static const struct dmm_payload whole;

bool engine_is_datagram(const uint8_t *frame, uint32_t len)
{
	const uint8_t *ip = frame + ETH_BYTES;

	return len >= IP4_MIN_BYTES && ip[ip[0] >> 4 == 4 ? 9 : 6] == PROTO_UDP;
}

static uint8_t *room_of(struct dmm_engine *e, struct port *port)
{
	uint8_t *to;

	if (port->down)
		engine_port_kick(e, port);
	to = port->down ? NULL : port_tx_begin(port);
	if (to || port->down)
		return to;
	engine_port_kick(e, port);
	return port->down ? NULL : port_tx_begin(port);
}

void engine_datagram_out(struct dmm_engine *e, uint32_t nic, const uint8_t *frame, uint32_t len,
			 const struct dmm_vnet *vnet, uint64_t now)
{
	struct dmm_vnet left = *vnet;
	uint32_t i = e->nic[nic].by_kernel, head = len + ETH_BYTES;
	struct port *port = i == MAX_PORTS ? NULL : &e->port[i];
	uint8_t *to = port ? room_of(e, port) : NULL;
	struct dmm_payload rest = whole;

	if (!to || len > port->caps->room_bytes) {
		e->stats.datagrams_dropped++;
		return;
	}
	if (len > LONG_BYTES && port->caps->csum) {
		head = HEAD_BYTES;
		rest.n = 1;
		rest.bytes = len + ETH_BYTES - head;
		rest.part[0] = (struct dmm_part){.data = frame + head, .bytes = rest.bytes};
	}
	memcpy(to, frame, head);
	if (capture_wants(&e->capture, DMM_LEG_OUTER))
		capture_frame(&e->capture, nic, DMM_LEG_OUTER, CAPTURE_OUT, to, head, &rest, now);
	if (left.flags && !port->caps->csum)
		dmm_core_datagram_csum(to + ETH_BYTES, len, &left);
	port_tx_commit(port, len + ETH_BYTES, &rest, &left);
	e->stats.nic_tx_pkts++;
	e->stats.nic_tx_bytes += len;
	if (rest.n || port_tx_due(port))
		engine_port_kick(e, port);
}

static void inner_send(struct dmm_engine *e, uint32_t nic, const uint8_t *frame, uint32_t len,
		       const struct dmm_vnet *vnet, uint64_t now)
{
	if (dmm_tap_frame_write(e->nic[nic].inner_fd, frame, len + ETH_BYTES, vnet)) {
		e->stats.datagrams_dropped++;
		return;
	}
	e->stats.inner_tx_pkts++;
	e->stats.inner_tx_bytes += len;
	if (capture_wants(&e->capture, DMM_LEG_INNER))
		capture_frame(&e->capture, nic, DMM_LEG_INNER, CAPTURE_OUT, frame, len + ETH_BYTES,
			      NULL, now);
}

static void send_by(struct dmm_engine *e, enum dmm_leg to, uint32_t nic, const uint8_t *frame,
		    uint32_t len, struct dmm_tx_meta *out, uint64_t now)
{
	out->family = frame[ETH_BYTES] >> 4 == 4 ? AF_INET : AF_INET6;
	if (faults_wanted(&e->faults, to, DMM_OUTBOUND) &&
	    engine_fault_out(e, to, nic, frame, len, &whole, out, now))
		return;
	if (to == DMM_LEG_OUTER)
		engine_datagram_out(e, nic, frame, len, &out->vnet, now);
	else
		inner_send(e, nic, frame, len, &out->vnet, now);
}

void engine_datagram(struct dmm_engine *e, enum dmm_leg from, uint32_t nic, const uint8_t *frame,
		     uint32_t len, const struct dmm_rx_meta *meta, uint64_t now)
{
	enum dmm_leg to = from == DMM_LEG_INNER ? DMM_LEG_OUTER : DMM_LEG_INNER;
	struct dmm_tx_meta out = {.link = meta->link};

	if (dmm_core_datagram(e->core, from, frame, len, nic, &meta->vnet, &out.vnet, now))
		send_by(e, to, nic, frame, len, &out, now);
}

void engine_datagrams_due(struct dmm_engine *e)
{
	uint8_t frame[ETH_BYTES + DMM_CORE_DATAGRAM_MTU];
	uint64_t now = engine_now_ns();
	uint32_t leg, nic, len;

	while ((len = dmm_core_datagram_next(e->core, frame, &leg, &nic, now))) {
		struct dmm_tx_meta out = {0};

		if (nic < e->n_nic)
			send_by(e, leg, nic, frame, len, &out, now);
	}
}

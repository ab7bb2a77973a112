// SPDX-License-Identifier: Apache-2.0
/*
 * engine_io.c: packets between the core and its devices: Ethernet headers, lengths, checksums left
 * open, budgets.
 *
 * Nothing here waits, and nothing is allocated.
 */
#include "engine_int.h"
#include "frame.h"

#include <endian.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

/* On the way of every packet, and of those that were kept as well */
#define ALWAYS_INLINE inline __attribute__((always_inline))

enum {
	INNER_RX_BUDGET = 16, /* packets of up to 64 KiB */
	INNER_TX_BUDGET = 32,
	NIC_RX_BUDGET = 64,
	NIC_TX_BUDGET = 128,
	/* turns that pass a quiet TAP device by, each look at which is a system call */
	PASSED_MAX = 16,
};

/*
 * A link, as struct dmm_rx_meta has it: a link-layer address, and above it the NIC's index plus 1.
 * A group address is nobody's.
 */
static uint64_t link_of(const uint8_t mac[MAC_BYTES], uint32_t nic)
{
	uint64_t address_be = 0;

	memcpy(&address_be, mac, MAC_BYTES);
	return mac[0] & 1 ? 0 : (nic + 1ull) << DMM_LINK_DEVICE_SHIFT | be64toh(address_be) >> 16;
}

static void link_mac(uint64_t link, uint8_t mac[MAC_BYTES])
{
	uint64_t address_be = htobe64(link << 16);

	memcpy(mac, &address_be, MAC_BYTES);
}

/* Index of the engine's NIC; MAX_NICS: it names none. */
static uint32_t link_nic(const struct dmm_engine *e, uint64_t link)
{
	uint64_t number = link >> 8 * MAC_BYTES;

	return number && number <= e->n_nic ? (uint32_t)number - 1 : MAX_NICS;
}

/* No packet is longer than the ports by which it may go have room for. */
static uint32_t mtu_of(const struct dmm_engine *e, uint32_t i)
{
	const struct nic *nic = &e->nic[i];
	uint32_t room = UINT32_MAX;

	if (nic->ports[nic->by].n)
		room = e->port[nic->ports[nic->by].at[0]].caps->room_bytes;
	return room < nic->mtu ? room : nic->mtu;
}

static void frame_type(uint8_t *frame, uint32_t family)
{
	frame[12] = family == AF_INET6 ? 0x86 : 0x08;
	frame[13] = family == AF_INET6 ? 0xdd : 0x00;
}

/*
 * What the program on our device sends back. eth: of a frame with len bytes behind
 * the Ethernet header.
 */
static bool is_refusal(const uint8_t *eth, uint32_t len, struct dmm_ask *ask)
{
	if (len != sizeof(*ask) - ETH_BYTES || eth[12] != DMM_ASK_TYPE >> 8 ||
	    eth[13] != (DMM_ASK_TYPE & 0xff))
		return false;
	memcpy(ask, eth, sizeof(*ask));
	return ask->op == DMM_ASK_REFUSED || ask->op == DMM_ASK_TAKEN;
}

/*
 * The MTU of the device by which the kernel meant the frame to leave, if that is none of
 * ours; else 0.
 */
static uint32_t away_mtu(const uint8_t *eth)
{
	return eth[MAC_BYTES] == DMM_AWAY_SOURCE ? (uint32_t)eth[10] << 8 | eth[11] : 0;
}

void engine_inner_deliver(struct dmm_engine *e, uint32_t nic, const uint8_t *frame, uint32_t len,
			  const struct dmm_rx_meta *meta, uint64_t now)
{
	if (capture_wants(&e->capture, DMM_LEG_INNER))
		capture_frame(&e->capture, nic, DMM_LEG_INNER, CAPTURE_IN, frame, len + ETH_BYTES,
			      NULL, now);
	if (engine_is_datagram(frame, len))
		engine_datagram(e, DMM_LEG_INNER, nic, frame, len, meta, now);
	else
		dmm_core_input(e->core, DMM_LEG_INNER, frame + ETH_BYTES, len, meta, now);
}

/*
 * A frame that the kernel meant for the wire: where it was to go is the link of its connection from
 * now on, and its source the NIC's own address, whatever becomes of route, neighbour and device.
 */
static void inner_frame(struct dmm_engine *e, uint32_t i, uint32_t len, const struct dmm_vnet *vnet,
			uint64_t now)
{
	const uint8_t *eth = e->rx + DMM_TAP_HEADROOM - ETH_BYTES;
	struct nic *nic = &e->nic[i];
	struct dmm_rx_meta meta = {
		.vnet = *vnet, .link = link_of(eth, i), .mtu = mtu_of(e, i), .lent = 1};
	struct dmm_ask refused;

	if (is_refusal(eth, len, &refused)) {
		engine_refused(e, &refused, now);
		return;
	}
	uint32_t away = away_mtu(eth);

	if (!away)
		memcpy(nic->mac, eth + MAC_BYTES, MAC_BYTES);
	else if (away < meta.mtu)
		meta.mtu = away;
	e->stats.inner_rx_pkts++;
	e->stats.inner_rx_bytes += len;
	if (faults_wanted(&e->faults, DMM_LEG_INNER, DMM_INBOUND) &&
	    engine_fault_in(e, DMM_LEG_INNER, i, eth, len, &meta, now))
		return;
	engine_inner_deliver(e, i, eth, len, &meta, now);
	e->rx = dmm_core_buffer_next(e->core, e->rx);
}

void engine_inner_in(struct dmm_engine *e)
{
	uint64_t now = engine_now_ns();
	struct dmm_vnet vnet;

	for (uint32_t i = 0; i < e->n_nic; i++) {
		uint32_t budget = INNER_RX_BUDGET;
		int len = 0;

		while (budget && (len = dmm_tap_read(e->nic[i].inner_fd, e->rx, &vnet)) > 0) {
			inner_frame(e, i, (uint32_t)len, &vnet, now);
			budget--;
		}
		if (len < 0)
			e->error = -ENODEV;
		e->more = e->more || !budget;
	}
}

/*
 * A look at a ring costs nothing. A TAP device beside AF_XDP sockets brings what XDP leaves to the
 * kernel, and is looked at when poll(2) says so, while it brings something, and now and then.
 */
static bool port_is_due(const struct dmm_engine *e, struct port *port)
{
	bool due = !port->caps->reads || e->nic[port->nic].by == port->kind || port->came ||
		   port->readable || port->passed == PASSED_MAX;

	port->passed = due ? 0 : port->passed + 1;
	return due;
}

static ALWAYS_INLINE void outer_deliver(struct dmm_engine *e, uint32_t nic, const uint8_t *frame,
					uint32_t frame_bytes, uint32_t len,
					const struct dmm_rx_meta *meta, uint64_t now)
{
	if (capture_wants(&e->capture, DMM_LEG_OUTER))
		capture_frame(&e->capture, nic, DMM_LEG_OUTER, CAPTURE_IN, frame, frame_bytes, NULL,
			      now);
	if (engine_is_datagram(frame, len))
		engine_datagram(e, DMM_LEG_OUTER, nic, frame, len, meta, now);
	else
		dmm_core_input(e->core, DMM_LEG_OUTER, frame + ETH_BYTES, len, meta, now);
}

void engine_outer_deliver(struct dmm_engine *e, uint32_t nic, const uint8_t *frame,
			  uint32_t frame_bytes, uint32_t len, const struct dmm_rx_meta *meta,
			  uint64_t now)
{
	outer_deliver(e, nic, frame, frame_bytes, len, meta, now);
}

static void ignore(struct dmm_engine *e, const uint8_t *frame, uint32_t bytes, uint32_t nic,
		   uint64_t now)
{
	if (capture_wants(&e->capture, DMM_LEG_OUTER))
		capture_frame(&e->capture, nic, DMM_LEG_OUTER, CAPTURE_IN, frame, bytes, NULL, now);
	e->stats.nic_rx_ignored++;
}

/* Takes what is at hand of a port, at most max frames. Returns how many there were. */
static uint32_t port_in(struct dmm_engine *e, struct port *port, uint32_t max)
{
	uint32_t count = port_rx_peek(port, e->rx, max);
	uint64_t now = engine_now_ns(); /* after the packets came */

	for (uint32_t k = 0; k < count; k++) {
		struct dmm_rx_meta meta = {.lent = port->caps->reads};
		uint32_t frame_len;
		const uint8_t *frame = port_rx_frame(port, k, &frame_len, &meta.vnet);
		bool v6;
		uint32_t len = ip_length(frame, frame_len, &v6);

		if (len == 0) {
			ignore(e, frame, frame_len, port->nic, now);
			continue;
		}
		if (!port->caps->tells && e->nic[port->nic].software)
			software_note(frame + ETH_BYTES, len, v6, e->nic[port->nic].mtu,
				      &meta.vnet);
		meta.link = link_of(frame + MAC_BYTES, port->nic);
		meta.mtu = mtu_of(e, port->nic);
		e->stats.nic_rx_bytes += len;
		if (faults_wanted(&e->faults, DMM_LEG_OUTER, DMM_INBOUND) &&
		    engine_fault_in(e, DMM_LEG_OUTER, port->nic, frame, len, &meta, now))
			continue;
		outer_deliver(e, port->nic, frame, frame_len, len, &meta, now);
		if (meta.lent)
			e->rx = dmm_core_buffer_next(e->core, e->rx);
	}
	e->stats.nic_rx_pkts += count;
	port_rx_release(port, count);
	return count;
}

void engine_port_in(struct dmm_engine *e, uint32_t i)
{
	uint32_t left = NIC_RX_BUDGET, count;

	if (!port_is_due(e, &e->port[i]))
		return;
	do {
		count = port_in(e, &e->port[i], left);
		left -= count;
	} while (count && left && e->port[i].caps->reads);
	e->port[i].came = left != NIC_RX_BUDGET;
	e->port[i].readable = false;
	if (!left) {
		e->more = true;
		e->unread = true;
	}
}

void engine_port_kick(struct dmm_engine *e, struct port *port)
{
	int ret = port_tx_kick(port);
	bool was_down = port->down;

	port->again = ret == 1;
	port->down = ret == -ENETDOWN;
	if (ret < 0 && !port->down)
		e->error = ret;
	if (port->down != was_down || (port->csum && !port->caps->csum))
		engine_ports_chosen(e);
}

/* Where the core may write the next packet: the first port's frame, once every port that is up has
 * one free.
 */
static ALWAYS_INLINE uint8_t *nic_room(struct dmm_engine *e)
{
	for (uint32_t i = 0; i < e->n_port; i++)
		if (i != e->first && !e->port[i].down && engine_may_send_by(e, i) &&
		    !port_tx_begin(&e->port[i]))
			return NULL;
	if (e->port[e->first].down)
		engine_port_kick(e, &e->port[e->first]);
	return port_tx_begin(&e->port[e->first]);
}

/*
 * The programs know where the flow is away (bpf/away.h), and give its frames no address of
 * a next hop.
 */
static bool link_is_away(uint64_t link)
{
	return !(link & ((1ull << 8 * MAC_BYTES) - 1));
}

/*
 * The same port for all packets of a connection, so that they stay in order; of one that is away,
 * the one whose packets pass the programs.
 */
static ALWAYS_INLINE uint32_t port_of(const struct nic *nic, const uint8_t *ip,
				      const struct dmm_tx_meta *meta)
{
	const uint8_t *ports = ip + ip_header_bytes(ip, meta->family == AF_INET6);
	uint32_t n = nic->ports[nic->by].n;

	if (link_is_away(meta->link) && nic->by_kernel != MAX_PORTS)
		return nic->by_kernel;
	return nic->ports[nic->by].at[n == 1 ? 0 : (uint32_t)(ports[1] ^ ports[3]) % n];
}

static void eth_write(const struct dmm_engine *e, uint8_t *frame, uint32_t nic,
		      const struct dmm_tx_meta *meta)
{
	link_mac(meta->link, frame);
	memcpy(frame + MAC_BYTES, e->nic[nic].mac, MAC_BYTES);
	frame_type(frame, meta->family);
}

/* Sends the IP packet behind the first port's Ethernet header, all but its payload's parts, by a
 * port of NIC number nic.
 */
static ALWAYS_INLINE void nic_put(struct dmm_engine *e, uint8_t *frame, uint32_t len,
				  const struct dmm_payload *payload, const struct dmm_tx_meta *meta,
				  uint32_t nic, uint64_t now)
{
	uint8_t *ip = frame + ETH_BYTES;
	uint32_t i = port_of(&e->nic[nic], ip, meta), first = e->first; /* a kick may change it */
	struct port *port = &e->port[i];

	if (len > port->caps->room_bytes) {
		e->stats.nic_tx_long++;
		return;
	}
	if (port->down)
		engine_port_kick(e, port);
	uint8_t *to = i == first ? frame : port_tx_begin(port);

	if (port->down || !to) {
		e->stats.nic_tx_no_link++;
		return;
	}
	if (to != frame)
		memcpy(to + ETH_BYTES, ip, len - payload->bytes);
	eth_write(e, to, nic, meta);
	if (capture_wants(&e->capture, DMM_LEG_OUTER))
		capture_frame(&e->capture, nic, DMM_LEG_OUTER, CAPTURE_OUT, to,
			      len + ETH_BYTES - payload->bytes, payload, now);
	port_tx_commit(port, len + ETH_BYTES, payload, &meta->vnet);
	e->stats.nic_tx_pkts++;
	e->stats.nic_tx_bytes += len;
	if (port_tx_due(port))
		engine_port_kick(e, port);
}

bool engine_outer_put(struct dmm_engine *e, const struct kept *k, uint64_t now)
{
	static const struct dmm_payload whole;
	const uint8_t *was = k->frame + DMM_TAP_HEADROOM - ETH_BYTES;
	uint8_t *frame;

	if (engine_is_datagram(was, k->bytes)) {
		engine_datagram_out(e, k->nic, was, k->bytes, &k->tx.vnet, now);
		return true;
	}
	if (e->first == MAX_PORTS || k->bytes > e->port[e->first].caps->room_bytes) {
		e->stats.nic_tx_no_link++;
		return true;
	}
	frame = nic_room(e);
	if (!frame)
		return false;
	memcpy(frame + ETH_BYTES, k->frame + DMM_TAP_HEADROOM, k->bytes);
	nic_put(e, frame, k->bytes, &whole, &k->tx, k->nic, now);
	return true;
}

/* What the core has written to the first port's frame goes, unless faults take it. */
static void nic_send(struct dmm_engine *e, uint8_t *frame, uint32_t len,
		     const struct dmm_payload *payload, const struct dmm_tx_meta *meta,
		     uint64_t now)
{
	uint32_t number = link_nic(e, meta->link);

	if (number == MAX_NICS || !e->nic[number].ports[e->nic[number].by].n) {
		e->stats.nic_tx_no_link++;
		return; /* as lost on the way */
	}
	if (faults_wanted(&e->faults, DMM_LEG_OUTER, DMM_OUTBOUND) &&
	    engine_fault_out(e, DMM_LEG_OUTER, number, frame, len, payload, meta, now))
		return;
	nic_put(e, frame, len, payload, meta, number, now);
}

void engine_nic_kick(struct dmm_engine *e, uint32_t nic)
{
	for (uint32_t i = 0; i < e->n_port; i++)
		if (e->port[i].nic == nic && engine_may_send_by(e, i) &&
		    (port_tx_unkicked(&e->port[i]) || e->port[i].again))
			engine_port_kick(e, &e->port[i]);
}

void engine_nic_out(struct dmm_engine *e)
{
	uint64_t now = engine_now_ns();
	struct dmm_payload payload;
	uint32_t sent = 0;

	e->nic_blocked = false;
	if (e->first == MAX_PORTS)
		return;
	for (; sent < NIC_TX_BUDGET; sent++) {
		struct dmm_tx_meta meta = {0};
		uint8_t *frame = nic_room(e);

		if (!frame) {
			e->nic_blocked = true;
			e->stats.nic_tx_blocked++;
			break;
		}
		uint32_t len = dmm_core_output_parts(e->core, DMM_LEG_OUTER, frame + ETH_BYTES,
						     e->port[e->first].caps->room_bytes, &meta,
						     &payload, now);

		if (len == 0)
			break;
		nic_send(e, frame, len, &payload, &meta, now);
	}
	for (uint32_t i = 0; i < e->n_nic; i++)
		engine_nic_kick(e, i);
	dmm_core_output_taken(e->core);
	if (sent == NIC_TX_BUDGET)
		e->more = true;
}

/* Puts together a packet that the kernel did not take: its payload's parts go now. */
static void inner_keep(struct dmm_engine *e, const struct dmm_payload *payload)
{
	uint8_t *to = e->inner_tx + DMM_TAP_HEADROOM + e->inner_tx_len - payload->bytes;

	for (uint32_t i = 0; i < payload->n; i++) {
		memcpy(to, payload->part[i].data, payload->part[i].bytes);
		to += payload->part[i].bytes;
	}
}

/*
 * Writes the packet at hand, with what of its payload is in parts; false: the kernel's
 * queue is full.
 */
static bool inner_flush(struct dmm_engine *e, const struct dmm_payload *payload)
{
	int fd = e->nic[e->inner_tx_nic].inner_fd;
	int ret = dmm_tap_write(fd, e->inner_tx, e->inner_tx_len, payload, &e->inner_tx_vnet);

	if (ret == -EAGAIN) {
		inner_keep(e, payload);
		e->stats.inner_tx_blocked++;
		return false;
	}
	if (ret == -EBADFD || ret == -EBADF)
		e->error = -ENODEV;
	if (ret) {
		e->stats.inner_tx_refused++;
	} else {
		e->stats.inner_tx_pkts++;
		e->stats.inner_tx_bytes += e->inner_tx_len;
		if (capture_wants(&e->capture, DMM_LEG_INNER))
			capture_frame(&e->capture, e->inner_tx_nic, DMM_LEG_INNER, CAPTURE_OUT,
				      e->inner_tx + DMM_TAP_HEADROOM - ETH_BYTES,
				      e->inner_tx_len + ETH_BYTES - payload->bytes, payload,
				      engine_now_ns());
	}
	e->inner_tx_len = 0;
	return true;
}

/*
 * As if the packet had come to the NIC from the other end of its link. What has none came by no NIC
 * of ours, which cannot be; the first will do.
 */
static void inner_address(struct dmm_engine *e, const struct dmm_tx_meta *meta)
{
	uint8_t *eth = e->inner_tx + DMM_TAP_HEADROOM - ETH_BYTES;
	uint32_t number = link_nic(e, meta->link);

	e->inner_tx_nic = number == MAX_NICS ? 0 : number;
	e->inner_tx_vnet = meta->vnet;
	memcpy(eth, e->nic[e->inner_tx_nic].mac, MAC_BYTES);
	link_mac(meta->link, eth + MAC_BYTES);
	if (e->nic[e->inner_tx_nic].generic && e->nic[e->inner_tx_nic].by == DMM_PORT_XSK)
		eth[MAC_BYTES] |= 1;
	frame_type(eth, meta->family);
}

/* What faults do to the packet at hand; true: it is theirs. */
static bool inner_fault(struct dmm_engine *e, const struct dmm_tx_meta *meta,
			const struct dmm_payload *payload, uint64_t now)
{
	const uint8_t *frame = e->inner_tx + DMM_TAP_HEADROOM - ETH_BYTES;

	if (!engine_fault_out(e, DMM_LEG_INNER, e->inner_tx_nic, frame, e->inner_tx_len, payload,
			      meta, now))
		return false;
	e->inner_tx_len = 0;
	return true;
}

void engine_inner_out(struct dmm_engine *e)
{
	static const struct dmm_payload whole;
	uint64_t now = engine_now_ns();
	struct dmm_payload payload;

	if (e->inner_tx_len && !inner_flush(e, &whole))
		return;
	for (uint32_t i = 0; i < INNER_TX_BUDGET && !e->error; i++) {
		struct dmm_tx_meta meta = {0};

		e->inner_tx_len = dmm_core_output_parts(e->core, DMM_LEG_INNER,
							e->inner_tx + DMM_TAP_HEADROOM,
							DMM_TAP_MAX_PKT, &meta, &payload, now);
		if (e->inner_tx_len == 0)
			return;
		inner_address(e, &meta);
		if (faults_wanted(&e->faults, DMM_LEG_INNER, DMM_OUTBOUND) &&
		    inner_fault(e, &meta, &payload, now)) {
			dmm_core_output_taken(e->core);
			continue;
		}
		bool taken = inner_flush(e, &payload);

		dmm_core_output_taken(e->core);
		if (!taken)
			return;
	}
	e->more = true;
}

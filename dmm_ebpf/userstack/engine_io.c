// SPDX-License-Identifier: Apache-2.0
/*
 * engine_io.c: packets between the core and its devices: Ethernet headers, lengths, checksums left
 * open, budgets.
 *
 * Nothing here waits, and nothing is allocated.
 */
#include "engine_int.h"

#include <errno.h>
#include <net/ethernet.h>
#include <string.h>
#include <sys/socket.h>

enum {
	INNER_RX_BUDGET = 16, /* packets of up to 64 KiB */
	INNER_TX_BUDGET = 32,
	NIC_RX_BUDGET = 64,
	NIC_TX_BUDGET = 128,
	ETH_BYTES = 14,
	IP4_MIN_BYTES = 20,
	IP6_BYTES = 40,
	/* turns that pass a quiet TAP device by, each look at which is a system call */
	PASSED_MAX = 16,
	PROTO_TCP = 6,
	TCP_CSUM_OFFSET = 16,
	TCP_OFFSET_BYTE = 12,
};

/*
 * A link, as struct dmm_rx_meta has it: a link-layer address, and above it the NIC's index plus 1.
 * A group address is nobody's.
 */
static uint64_t link_of(const uint8_t mac[MAC_BYTES], uint32_t nic)
{
	uint64_t link = nic + 1; /* DMM_LINK_DEVICE_SHIFT */

	for (uint32_t i = 0; i < MAC_BYTES; i++)
		link = link << 8 | mac[i];
	return mac[0] & 1 ? 0 : link;
}

static void link_mac(uint64_t link, uint8_t mac[MAC_BYTES])
{
	for (uint32_t i = 0; i < MAC_BYTES; i++)
		mac[i] = (uint8_t)(link >> 8 * (MAC_BYTES - 1 - i));
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

	if (!nic->by_tap)
		room = port_room(&e->port[nic->xsk[0]]);
	else if (nic->tap != MAX_PORTS)
		room = port_room(&e->port[nic->tap]);
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
	return ask->op == DMM_ASK_REFUSED;
}

/*
 * The MTU of the device by which the kernel meant the frame to leave, if that is none of
 * ours; else 0.
 */
static uint32_t away_mtu(const uint8_t *eth)
{
	return eth[MAC_BYTES] == DMM_AWAY_SOURCE ? (uint32_t)eth[10] << 8 | eth[11] : 0;
}

/*
 * A frame that the kernel meant for the wire: where it was to go is the link of its connection from
 * now on, and its source the NIC's own address, whatever becomes of route, neighbour and device.
 */
static void inner_frame(struct dmm_engine *e, uint32_t i, uint32_t len, const struct dmm_vnet *vnet,
			uint64_t now)
{
	const uint8_t *eth = e->inner_rx + DMM_TAP_HEADROOM - ETH_BYTES;
	struct nic *nic = &e->nic[i];
	struct dmm_rx_meta meta = {.vnet = *vnet, .link = link_of(eth, i), .mtu = mtu_of(e, i)};
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
	if (capture_wants(&e->capture, DMM_LEG_INNER))
		capture_frame(&e->capture, i, DMM_LEG_INNER, CAPTURE_IN, eth, len + ETH_BYTES, NULL,
			      now);
	e->stats.inner_rx_pkts++;
	e->stats.inner_rx_bytes += len;
	dmm_core_input(e->core, DMM_LEG_INNER, e->inner_rx + DMM_TAP_HEADROOM, len, &meta, now);
}

void engine_inner_in(struct dmm_engine *e)
{
	uint64_t now = engine_now_ns();
	struct dmm_vnet vnet;

	for (uint32_t i = 0; i < e->n_nic; i++) {
		uint32_t budget = INNER_RX_BUDGET;
		int len = 0;

		while (budget && (len = dmm_tap_read(e->nic[i].inner_fd, e->inner_rx, &vnet)) > 0) {
			inner_frame(e, i, (uint32_t)len, &vnet, now);
			budget--;
		}
		if (len < 0)
			e->error = -ENODEV;
		e->more = e->more || !budget;
	}
}

static uint32_t sum_add(uint32_t sum, const uint8_t *p, uint32_t bytes)
{
	for (uint32_t i = 0; i + 1 < bytes; i += 2)
		sum += (uint32_t)p[i] << 8 | p[i + 1];
	return sum;
}

/*
 * A veth, and generic XDP on any device, hand over what a kernel left CHECKSUM_PARTIAL: the field
 * holds the pseudo-header's sum (RFC 9293 section 3.1), not complemented. The packet never was on a
 * wire, or GRO has verified it. A correct checksum that happens to equal that sum says the same
 * thing.
 */
static bool csum_is_partial(const uint8_t *ip, uint32_t len, bool v6)
{
	uint32_t header = v6 ? IP6_BYTES : (ip[0] & 15u) * 4;

	if ((v6 ? ip[6] : ip[9]) != PROTO_TCP || len < header + TCP_CSUM_OFFSET + 2)
		return false;
	uint32_t sum = sum_add(PROTO_TCP + len - header, v6 ? ip + 8 : ip + 12, v6 ? 32 : 8);

	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	const uint8_t *field = ip + header + TCP_CSUM_OFFSET;

	return ((uint32_t)field[0] << 8 | field[1]) == sum;
}

/*
 * What is longer than any packet of the link was put together by GRO, or was not yet cut by who
 * sent it. How long its segments were it does not say: as long as they may be here.
 */
static void merged_note(const uint8_t *ip, uint32_t len, bool v6, uint32_t mtu,
			struct dmm_vnet *vnet)
{
	uint32_t headers = v6 ? IP6_BYTES : (ip[0] & 15u) * 4;

	if (len <= mtu || (v6 ? ip[6] : ip[9]) != PROTO_TCP || len <= headers + TCP_OFFSET_BYTE)
		return;
	headers += (ip[headers + TCP_OFFSET_BYTE] >> 4) * 4u;
	if (mtu <= headers)
		return;
	vnet->gso_type = v6 ? DMM_VNET_GSO_TCPV6 : DMM_VNET_GSO_TCPV4;
	vnet->gso_size = (uint16_t)(mtu - headers);
}

/* What AF_XDP does not say of a packet that no hardware has had in hand */
static void software_note(const uint8_t *ip, uint32_t len, bool v6, uint32_t mtu,
			  struct dmm_vnet *vnet)
{
	vnet->flags = csum_is_partial(ip, len, v6) ? DMM_VNET_NEEDS_CSUM : 0;
	merged_note(ip, len, v6, mtu, vnet);
}

/*
 * The IP packet's own length: a short Ethernet frame carries padding. 0: not an IP packet,
 * or cut short.
 */
static uint32_t ip_length(const uint8_t *frame, uint32_t len, bool *v6)
{
	const uint8_t *ip = frame + ETH_BYTES;
	uint32_t room = len - ETH_BYTES;
	uint32_t type, total;

	if (len < ETH_BYTES + IP4_MIN_BYTES)
		return 0;
	type = (uint32_t)frame[12] << 8 | frame[13];
	*v6 = type == ETHERTYPE_IPV6;
	if (type == ETHERTYPE_IP)
		total = (uint32_t)ip[2] << 8 | ip[3];
	else if (*v6 && room >= IP6_BYTES)
		total = ((uint32_t)ip[4] << 8 | ip[5]) + IP6_BYTES;
	else
		return 0;
	return total <= room && total >= (*v6 ? IP6_BYTES : IP4_MIN_BYTES) ? total : 0;
}

/*
 * A look at AF_XDP's rings costs nothing. A TAP device beside them brings what XDP leaves to the
 * kernel, and is looked at when poll(2) says so, while it brings something, and now and then.
 */
static bool port_is_due(const struct dmm_engine *e, struct port *port)
{
	bool due = port->xsk || e->nic[port->nic].by_tap || port->came || port->readable ||
		   port->passed == PASSED_MAX;

	port->passed = due ? 0 : port->passed + 1;
	return due;
}

/* Takes what is at hand of a port, at most max frames. Returns how many there were. */
static uint32_t port_in(struct dmm_engine *e, struct port *port, uint32_t max)
{
	uint32_t count = port_rx_peek(port, max);
	uint64_t now = engine_now_ns(); /* after the packets came */

	for (uint32_t k = 0; k < count; k++) {
		struct dmm_rx_meta meta = {0};
		uint32_t frame_len;
		const uint8_t *frame = port_rx_frame(port, k, &frame_len, &meta.vnet);
		bool v6;
		uint32_t len = ip_length(frame, frame_len, &v6);

		if (capture_wants(&e->capture, DMM_LEG_OUTER))
			capture_frame(&e->capture, port->nic, DMM_LEG_OUTER, CAPTURE_IN, frame,
				      frame_len, NULL, now);

		if (len == 0) {
			e->stats.nic_rx_ignored++;
			continue;
		}
		if (!port_offloads(port) && e->nic[port->nic].software)
			software_note(frame + ETH_BYTES, len, v6, e->nic[port->nic].mtu,
				      &meta.vnet);
		meta.link = link_of(frame + MAC_BYTES, port->nic);
		meta.mtu = mtu_of(e, port->nic);
		e->stats.nic_rx_bytes += len;
		dmm_core_input(e->core, DMM_LEG_OUTER, frame + ETH_BYTES, len, &meta, now);
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
	} while (count && left && port_rx_more(&e->port[i]));
	e->port[i].came = left != NIC_RX_BUDGET;
	e->port[i].readable = false;
	if (!left) {
		e->more = true;
		e->unread = true;
	}
}

static void port_kick(struct dmm_engine *e, struct port *port)
{
	int ret = port_tx_kick(port);
	bool was_down = port->down;

	port->again = ret == 1;
	port->down = ret == -ENETDOWN;
	if (ret < 0 && !port->down)
		e->error = ret;
	if (port->down != was_down || (port->sums && !port_sums(port)))
		engine_ports_chosen(e);
}

/* Where the core may write the next packet: the first port's frame, once every port that is up has
 * one free.
 */
static uint8_t *nic_room(struct dmm_engine *e)
{
	for (uint32_t i = 0; i < e->n_port; i++)
		if (i != e->first && !e->port[i].down && engine_may_send_by(e, i) &&
		    !port_tx_begin(&e->port[i]))
			return NULL;
	if (e->port[e->first].down)
		port_kick(e, &e->port[e->first]);
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
static uint32_t port_of(const struct nic *nic, const uint8_t *ip, const struct dmm_tx_meta *meta)
{
	const uint8_t *ports = ip + (meta->family == AF_INET6 ? IP6_BYTES : (ip[0] & 15u) * 4);

	if (nic->by_tap || (link_is_away(meta->link) && nic->tap != MAX_PORTS))
		return nic->tap;
	return nic->xsk[(uint32_t)(ports[1] ^ ports[3]) % nic->n_xsk];
}

/* Sends the IP packet that the core wrote behind the first port's Ethernet header, all but its
 * payload's parts.
 */
static void nic_send(struct dmm_engine *e, uint8_t *frame, uint32_t len,
		     const struct dmm_payload *payload, const struct dmm_tx_meta *meta,
		     uint64_t now)
{
	uint8_t *ip = frame + ETH_BYTES;
	/* a kick may choose another one */
	uint32_t number = link_nic(e, meta->link), first = e->first;
	const struct nic *nic = &e->nic[number];

	if (number == MAX_NICS || (nic->by_tap && nic->tap == MAX_PORTS)) {
		e->stats.nic_tx_no_link++;
		return; /* as lost on the way */
	}
	uint32_t i = port_of(nic, ip, meta);
	struct port *port = &e->port[i];

	if (len > port_room(port)) {
		e->stats.nic_tx_long++;
		return;
	}
	if (port->down)
		port_kick(e, port);
	uint8_t *to = i == first ? frame : port_tx_begin(port);

	if (port->down || !to) {
		e->stats.nic_tx_no_link++;
		return;
	}
	if (to != frame)
		memcpy(to + ETH_BYTES, ip, len - payload->bytes);
	frame = to;
	link_mac(meta->link, frame);
	memcpy(frame + MAC_BYTES, nic->mac, MAC_BYTES);
	frame_type(frame, meta->family);
	if (capture_wants(&e->capture, DMM_LEG_OUTER))
		capture_frame(&e->capture, number, DMM_LEG_OUTER, CAPTURE_OUT, frame,
			      len + ETH_BYTES - payload->bytes, payload, now);
	port_tx_commit(port, len + ETH_BYTES, payload, &meta->vnet);
	e->stats.nic_tx_pkts++;
	e->stats.nic_tx_bytes += len;
	if (port_tx_due(port))
		port_kick(e, port);
}

void engine_nic_kick(struct dmm_engine *e, uint32_t nic)
{
	for (uint32_t i = 0; i < e->n_port; i++)
		if (e->port[i].nic == nic && engine_may_send_by(e, i) &&
		    (port_tx_unkicked(&e->port[i]) || e->port[i].again))
			port_kick(e, &e->port[i]);
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
		uint32_t len =
			dmm_core_output_parts(e->core, DMM_LEG_OUTER, frame + ETH_BYTES,
					      port_room(&e->port[e->first]), &meta, &payload, now);

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
	if (e->nic[e->inner_tx_nic].generic && !e->nic[e->inner_tx_nic].by_tap)
		eth[MAC_BYTES] |= 1;
	frame_type(eth, meta->family);
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
		bool taken = inner_flush(e, &payload);

		dmm_core_output_taken(e->core);
		if (!taken)
			return;
	}
	e->more = true;
}

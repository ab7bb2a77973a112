// SPDX-License-Identifier: Apache-2.0
/*
 * engine_io.c: packets between the core and its devices: Ethernet headers, lengths, checksums left open,
 * budgets.
 *
 * Nothing here waits, and nothing is allocated.
 */
#include "engine_int.h"

#include <errno.h>
#include <net/ethernet.h>
#include <string.h>
#include <sys/socket.h>

enum {
	TUN_RX_BUDGET = 16, /* packets of up to 64 KiB */
	TUN_TX_BUDGET = 32,
	NIC_RX_BUDGET = 64,
	NIC_TX_BUDGET = 128,
	ETH_BYTES = 14,
	IP4_MIN_BYTES = 20,
	IP6_BYTES = 40,
	PROTO_TCP = 6,
	TCP_CSUM_OFFSET = 16,
};

/* What the program on our device sends back, which no packet of TCP can be taken for. */
static bool is_refusal(const uint8_t *packet, uint32_t len, struct dmm_ask *ask)
{
	if (len != sizeof(*ask) || packet[0] != 0x45 || packet[9] != DMM_ASK_PROTOCOL)
		return false;
	memcpy(ask, packet, sizeof(*ask));
	return ask->op == DMM_ASK_REFUSED;
}

void engine_tun_in(struct dmm_engine *e)
{
	uint64_t now = engine_now_ns();
	struct dmm_rx_meta meta;
	struct dmm_ask ask;

	for (uint32_t i = 0; i < TUN_RX_BUDGET; i++) {
		int len = dmm_tun_read(e->tun_fd, e->tun_rx, &meta);

		if (len == 0)
			return;
		if (len < 0) {
			e->error = -ENODEV;
			return;
		}
		if (is_refusal(e->tun_rx + DMM_TUN_HEADROOM, (uint32_t)len, &ask)) {
			engine_refused(e, &ask, now);
			continue;
		}
		e->stats.tun_rx_pkts++;
		e->stats.tun_rx_bytes += (uint32_t)len;
		dmm_core_input(e->core, DMM_LEG_INNER, e->tun_rx + DMM_TUN_HEADROOM, (uint32_t)len, &meta,
			       now);
	}
	e->more = true;
}

static uint32_t sum_add(uint32_t sum, const uint8_t *p, uint32_t bytes)
{
	for (uint32_t i = 0; i + 1 < bytes; i += 2)
		sum += (uint32_t)p[i] << 8 | p[i + 1];
	return sum;
}

/*
 * A veth hands over what the other end's kernel left CHECKSUM_PARTIAL: the field holds the pseudo-header's
 * sum (RFC 9293 section 3.1), not complemented. The packet never was on a wire. A correct checksum that
 * happens to equal that sum says the same thing.
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

/* The IP packet's own length: a short Ethernet frame carries padding. 0: not an IP packet, or cut short. */
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

/* Whom a frame came from, for dmm_rx_meta.back: its link-layer address, and above it the NIC's index plus 1
 */
static uint64_t back_of(const uint8_t *frame, uint32_t nic)
{
	const uint8_t *src = frame + MAC_BYTES;
	uint64_t back = nic + 1;

	for (uint32_t i = 0; i < MAC_BYTES; i++)
		back = back << 8 | src[i];
	return src[0] & 1 ? 0 : back; /* a group address is nobody's */
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

		if (len == 0) {
			e->stats.nic_rx_ignored++;
			continue;
		}
		if (!port_offloads(port) && e->nic[port->nic].software)
			meta.vnet.flags =
				csum_is_partial(frame + ETH_BYTES, len, v6) ? DMM_VNET_NEEDS_CSUM : 0;
		meta.back = back_of(frame, port->nic);
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

	do {
		count = port_in(e, &e->port[i], left);
		left -= count;
	} while (count && left && port_rx_more(&e->port[i]));
	if (!left) {
		e->more = true;
		e->unread = true;
	}
}

static void port_kick(struct dmm_engine *e, struct port *port)
{
	int ret = port_tx_kick(port);

	port->again = ret == 1;
	if (ret < 0)
		e->error = -ENETDOWN;
}

/* Where the core may write the next packet: the first port's frame, once every port has one free. */
static uint8_t *nic_room(struct dmm_engine *e)
{
	for (uint32_t i = e->n_port; i-- > 0;) {
		uint8_t *frame = port_tx_begin(&e->port[i]);

		if (!frame)
			return NULL;
		if (i == 0)
			return frame;
	}
	return NULL;
}

static void destination(const uint8_t *ip, uint32_t family, uint8_t addr[16])
{
	if (family == AF_INET6) {
		memcpy(addr, ip + 24, 16);
		return;
	}
	memset(addr, 0, 10);
	addr[10] = addr[11] = 0xff;
	memcpy(addr + 12, ip + 16, 4);
}

/* The same port for all packets of a connection, so that they stay in order. */
static uint32_t port_of(const struct nic *nic, const uint8_t *ip, uint32_t family)
{
	const uint8_t *ports = ip + (family == AF_INET6 ? IP6_BYTES : (ip[0] & 15u) * 4);

	return nic->port[(uint32_t)(ports[1] ^ ports[3]) % nic->n_port];
}

/* The NIC and the link-layer address that a packet leaves by; NULL: not known now. */
static const struct nic *next_hop(struct dmm_engine *e, const uint8_t *ip, const struct dmm_tx_meta *meta,
				  uint64_t now, uint8_t dst_mac[MAC_BYTES])
{
	uint8_t addr[16];

	if (meta->path == DMM_PATH_NONE && meta->back) {
		for (uint32_t i = 0; i < MAC_BYTES; i++)
			dst_mac[i] = (uint8_t)(meta->back >> 8 * (MAC_BYTES - 1 - i));
		return &e->nic[(meta->back >> 8 * MAC_BYTES) - 1];
	}
	destination(ip, meta->family, addr);
	struct path *path = path_find(&e->paths, addr, meta->path);

	if (!path)
		engine_path_ask(e, addr, 1, now);
	if (!path || path->state != PATH_READY)
		return NULL;
	path->used_ns = now;
	memcpy(dst_mac, path->dst_mac, MAC_BYTES);
	return &e->nic[path->nic];
}

/* Sends the IP packet that the core wrote behind the first port's Ethernet header. */
static void nic_send(struct dmm_engine *e, uint8_t *frame, uint32_t len, const struct dmm_tx_meta *meta,
		     uint64_t now)
{
	uint8_t *ip = frame + ETH_BYTES;
	uint8_t dst_mac[MAC_BYTES];
	const struct nic *nic = next_hop(e, ip, meta, now, dst_mac);

	if (!nic || nic->n_port == 0) {
		e->stats.nic_tx_no_path++;
		return; /* as lost on the way: retransmission finds the path known */
	}
	uint32_t i = e->n_port == 1 ? 0 : port_of(nic, ip, meta->family);
	struct port *port = &e->port[i];

	if (i != 0) {
		uint8_t *other = port_tx_begin(port);

		memcpy(other + ETH_BYTES, ip, len);
		frame = other;
	}
	memcpy(frame, dst_mac, MAC_BYTES);
	memcpy(frame + MAC_BYTES, nic->mac, MAC_BYTES);
	frame[12] = meta->family == AF_INET6 ? 0x86 : 0x08;
	frame[13] = meta->family == AF_INET6 ? 0xdd : 0x00;
	port_tx_commit(port, len + ETH_BYTES, &meta->vnet);
	e->stats.nic_tx_pkts++;
	e->stats.nic_tx_bytes += len;
	if (port_tx_due(port))
		port_kick(e, port);
}

void engine_nic_out(struct dmm_engine *e)
{
	uint64_t now = engine_now_ns();
	uint32_t sent = 0;

	e->nic_blocked = false;
	if (e->n_port == 0)
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
			dmm_core_output(e->core, DMM_LEG_OUTER, frame + ETH_BYTES, e->room, &meta, now);

		if (len == 0)
			break;
		nic_send(e, frame, len, &meta, now);
	}
	for (uint32_t i = 0; i < e->n_port; i++)
		if (port_tx_unkicked(&e->port[i]) || e->port[i].again)
			port_kick(e, &e->port[i]);
	if (sent == NIC_TX_BUDGET)
		e->more = true;
}

/* Writes the packet at hand; false: the kernel's queue is full. */
static bool tun_flush(struct dmm_engine *e)
{
	int ret = dmm_tun_write(e->tun_fd, e->tun_tx, e->tun_tx_len, &e->tun_tx_meta);

	if (ret == -EAGAIN) {
		e->stats.tun_tx_blocked++;
		return false;
	}
	if (ret == -EBADFD || ret == -EBADF)
		e->error = -ENODEV;
	if (ret) {
		e->stats.tun_tx_refused++;
	} else {
		e->stats.tun_tx_pkts++;
		e->stats.tun_tx_bytes += e->tun_tx_len;
	}
	e->tun_tx_len = 0;
	return true;
}

void engine_tun_out(struct dmm_engine *e)
{
	uint64_t now = engine_now_ns();

	if (e->tun_tx_len && !tun_flush(e))
		return;
	for (uint32_t i = 0; i < TUN_TX_BUDGET && !e->error; i++) {
		memset(&e->tun_tx_meta, 0, sizeof(e->tun_tx_meta));
		e->tun_tx_len = dmm_core_output(e->core, DMM_LEG_INNER, e->tun_tx + DMM_TUN_HEADROOM,
						DMM_TUN_MAX_PKT, &e->tun_tx_meta, now);
		if (e->tun_tx_len == 0 || !tun_flush(e))
			return;
	}
	e->more = true;
}

// SPDX-License-Identifier: Apache-2.0
/* AF_PACKET receive ring and batched send; see port.h. Refuses an interface that is not Ethernet or does not
 * exist. */
#define _GNU_SOURCE
#include "port.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if_arp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define VLAN_TAG_BYTES 4
#define BLOCK_BYTES (1U << 18)
/* An interface that takes nothing for this long is down; its frames are then dropped, and counted. */
#define TX_ATTEMPTS 64

static int fail(const char *name, const char *what)
{
	int err = errno;

	fprintf(stderr, "cannot %s on %s: %s\n", what, name, strerror(err));
	return -err;
}

static int interface_request(const char *name, unsigned long request, struct ifreq *ifr)
{
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	int err = 0;

	if (fd < 0)
		return -errno;
	memset(ifr, 0, sizeof(*ifr));
	snprintf(ifr->ifr_name, sizeof(ifr->ifr_name), "%s", name);
	if (ioctl(fd, request, ifr) < 0)
		err = -errno;
	close(fd);
	return err;
}

int port_mtu(const char *name)
{
	struct ifreq ifr;
	int err = interface_request(name, SIOCGIFHWADDR, &ifr);

	if (!err && ifr.ifr_hwaddr.sa_family != ARPHRD_ETHER)
		err = -EPROTONOSUPPORT;
	if (!err)
		err = interface_request(name, SIOCGIFMTU, &ifr);
	return err ? err : ifr.ifr_mtu;
}

static int packet_socket(const char *name, uint16_t protocol)
{
	struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_protocol = htons(protocol)};
	int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return fail(name, "open a packet socket");
	address.sll_ifindex = (int)if_nametoindex(name);
	if (!address.sll_ifindex || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
		int err = fail(name, "bind a packet socket");

		close(fd);
		return err;
	}
	return fd;
}

static int open_ring(struct port *port, uint32_t slots)
{
	uint32_t slot_bytes = TPACKET_ALIGN(TPACKET2_HDRLEN + 64 + ETH_HLEN + VLAN_TAG_BYTES + port->mtu);
	uint32_t per_block;
	struct tpacket_req req = {.tp_block_size = BLOCK_BYTES};
	int version = TPACKET_V2, one = 1;

	for (port->slot_bytes = 512; port->slot_bytes < slot_bytes; port->slot_bytes *= 2)
		;
	per_block = BLOCK_BYTES / port->slot_bytes;
	req.tp_frame_size = port->slot_bytes;
	req.tp_block_nr = (slots + per_block - 1) / per_block;
	req.tp_frame_nr = req.tp_block_nr * per_block;
	port->slots = req.tp_frame_nr;
	port->ring_bytes = (size_t)req.tp_block_nr * BLOCK_BYTES;
	if (setsockopt(port->rx_fd, SOL_PACKET, PACKET_VERSION, &version, sizeof(version)) < 0 ||
	    setsockopt(port->rx_fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &one, sizeof(one)) < 0 ||
	    setsockopt(port->rx_fd, SOL_PACKET, PACKET_RX_RING, &req, sizeof(req)) < 0)
		return fail(port->name, "make a receive ring");
	port->ring = mmap(NULL, port->ring_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
			  port->rx_fd, 0);
	if (port->ring == MAP_FAILED)
		return fail(port->name, "map the receive ring");
	return 0;
}

static int open_transmit(struct port *port)
{
	int one = 1, sndbuf = 32 << 20;

	/* Protocol 0: this socket hears nothing. */
	port->tx_fd = packet_socket(port->name, 0);
	if (port->tx_fd < 0)
		return port->tx_fd;
	if (setsockopt(port->tx_fd, SOL_PACKET, PACKET_QDISC_BYPASS, &one, sizeof(one)) < 0 ||
	    setsockopt(port->tx_fd, SOL_SOCKET, SO_SNDBUFFORCE, &sndbuf, sizeof(sndbuf)) < 0)
		return fail(port->name, "set up the sending socket");
	for (size_t i = 0; i < PORT_BATCH_PKTS; i++)
		port->msgs[i].msg_hdr = (struct msghdr){.msg_iov = &port->iovs[i], .msg_iovlen = 1};
	return 0;
}

int port_init(struct port *port, const char *name, uint32_t slots)
{
	int mtu = port_mtu(name);
	int err;

	*port = (struct port){.rx_fd = -1, .tx_fd = -1, .ring = MAP_FAILED};
	snprintf(port->name, sizeof(port->name), "%s", name);
	if (mtu < 0) {
		errno = -mtu;
		return fail(name, "use the interface as Ethernet");
	}
	port->mtu = (uint32_t)mtu;
	port->rx_fd = packet_socket(name, ETH_P_ALL);
	if (port->rx_fd < 0)
		return port->rx_fd;
	err = open_ring(port, slots);
	return err ? err : open_transmit(port);
}

void port_deinit(struct port *port)
{
	if (port->ring != MAP_FAILED)
		munmap(port->ring, port->ring_bytes);
	if (port->rx_fd >= 0)
		close(port->rx_fd);
	if (port->tx_fd >= 0)
		close(port->tx_fd);
}

/* The kernel takes the VLAN tag out of a frame before packet sockets see it; put it back. */
static void copy_with_tag(struct pkt *pkt, const uint8_t *frame, const struct tpacket2_hdr *hdr)
{
	uint16_t tag[2] = {htons(hdr->tp_vlan_tpid ? hdr->tp_vlan_tpid : ETHERTYPE_VLAN),
			   htons(hdr->tp_vlan_tci)};

	memcpy(pkt->data, frame, 2 * ETH_ALEN);
	memcpy(pkt->data + 2 * ETH_ALEN, tag, sizeof(tag));
	memcpy(pkt->data + 2 * ETH_ALEN + sizeof(tag), frame + 2 * ETH_ALEN, hdr->tp_snaplen - 2 * ETH_ALEN);
	pkt->len = hdr->tp_snaplen + sizeof(tag);
}

static bool copy_frame(struct port *port, struct pkt *pkt, const struct tpacket2_hdr *hdr)
{
	const uint8_t *frame = (const uint8_t *)hdr + hdr->tp_mac;
	bool tagged = hdr->tp_status & TP_STATUS_VLAN_VALID;

	if (hdr->tp_snaplen != hdr->tp_len || hdr->tp_len > port->mtu + ETH_HLEN + VLAN_TAG_BYTES ||
	    hdr->tp_len < ETH_HLEN || (hdr->tp_status & TP_STATUS_CSUMNOTREADY)) {
		port->bad_pkts++;
		return false;
	}
	if (tagged) {
		copy_with_tag(pkt, frame, hdr);
	} else {
		memcpy(pkt->data, frame, hdr->tp_snaplen);
		pkt->len = hdr->tp_snaplen;
	}
	return true;
}

bool port_receive(struct port *port, struct pkt *pkt, uint64_t *realtime_ns)
{
	for (;;) {
		struct tpacket2_hdr *hdr = (void *)(port->ring + (size_t)port->next * port->slot_bytes);
		bool good;

		if (!(__atomic_load_n(&hdr->tp_status, __ATOMIC_ACQUIRE) & TP_STATUS_USER))
			return false;
		good = copy_frame(port, pkt, hdr);
		*realtime_ns = (uint64_t)hdr->tp_sec * 1000000000ULL + hdr->tp_nsec;
		__atomic_store_n(&hdr->tp_status, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
		port->next = port->next + 1 == port->slots ? 0 : port->next + 1;
		if (good)
			return true;
	}
}

void port_flush(struct port *port, struct pool *pool)
{
	size_t sent = 0;
	unsigned int attempts = 0;

	while (sent < port->batch_pkts) {
		int n = sendmmsg(port->tx_fd, &port->msgs[sent], (unsigned int)(port->batch_pkts - sent), 0);

		if (n > 0) {
			sent += (size_t)n;
			port->tx_retries += attempts > 0;
			attempts = 0;
		} else if (errno == EINTR) {
			continue;
		} else if (errno == ENOBUFS && attempts < TX_ATTEMPTS) {
			/* The peer's receive queue is full; its softirq runs while this thread waits. */
			attempts++;
			poll(NULL, 0, attempts < TX_ATTEMPTS / 2 ? 0 : 1);
		} else {
			port->tx_drops++;
			sent++;
			attempts = 0;
		}
	}
	for (size_t i = 0; i < port->batch_pkts; i++)
		pool_put(pool, port->batch[i]);
	port->batch_pkts = 0;
}

void port_send(struct port *port, struct pool *pool, struct pkt *pkt)
{
	port->iovs[port->batch_pkts] = (struct iovec){.iov_base = pkt->data, .iov_len = pkt->len};
	port->batch[port->batch_pkts] = pkt;
	port->batch_pkts++;
	if (port->batch_pkts == PORT_BATCH_PKTS)
		port_flush(port, pool);
}

void port_read_drops(struct port *port)
{
	struct tpacket_stats stats;
	socklen_t len = sizeof(stats);

	/* Reading sets the kernel's counters back to zero. */
	if (!getsockopt(port->rx_fd, SOL_PACKET, PACKET_STATISTICS, &stats, &len))
		port->ring_drops += stats.tp_drops;
}

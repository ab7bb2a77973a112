// SPDX-License-Identifier: Apache-2.0
/* AF_PACKET receive ring and batched send; see port.h. Refuses an interface that is not Ethernet or
 * does not exist. */
#define _GNU_SOURCE
#include "port.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if_arp.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define VLAN_TAG_BYTES 4
#define BLOCK_BYTES (1U << 18)
#define SNDBUF_BYTES (32 << 20)

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

static int open_ring(struct rx_port *rx, const char *name, uint32_t slots)
{
	uint32_t slot_bytes =
		TPACKET_ALIGN(TPACKET2_HDRLEN + 64 + ETH_HLEN + VLAN_TAG_BYTES + rx->mtu);
	uint32_t per_block;
	struct tpacket_req req = {.tp_block_size = BLOCK_BYTES};
	int version = TPACKET_V2, one = 1;

	for (rx->slot_bytes = 512; rx->slot_bytes < slot_bytes; rx->slot_bytes *= 2)
		;
	per_block = BLOCK_BYTES / rx->slot_bytes;
	req.tp_frame_size = rx->slot_bytes;
	req.tp_block_nr = (slots + per_block - 1) / per_block;
	req.tp_frame_nr = req.tp_block_nr * per_block;
	rx->slots = req.tp_frame_nr;
	rx->ring_bytes = (size_t)req.tp_block_nr * BLOCK_BYTES;
	if (setsockopt(rx->fd, SOL_PACKET, PACKET_VERSION, &version, sizeof(version)) < 0 ||
	    setsockopt(rx->fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &one, sizeof(one)) < 0 ||
	    setsockopt(rx->fd, SOL_PACKET, PACKET_RX_RING, &req, sizeof(req)) < 0)
		return fail(name, "make a receive ring");
	rx->ring = mmap(NULL, rx->ring_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
			rx->fd, 0);
	if (rx->ring == MAP_FAILED) {
		rx->ring = NULL;
		return fail(name, "map the receive ring");
	}
	return 0;
}

int rx_init(struct rx_port *rx, const char *name, uint32_t mtu, uint32_t slots)
{
	*rx = (struct rx_port){.mtu = mtu};
	rx->fd = packet_socket(name, ETH_P_ALL);
	return rx->fd < 0 ? rx->fd : open_ring(rx, name, slots);
}

void rx_deinit(struct rx_port *rx)
{
	if (rx->ring)
		munmap(rx->ring, rx->ring_bytes);
	if (rx->fd >= 0)
		close(rx->fd);
}

int tx_init(struct tx_port *tx, const char *name)
{
	int one = 1, sndbuf_bytes = SNDBUF_BYTES;

	*tx = (struct tx_port){0};
	/* Protocol 0: this socket hears nothing. */
	tx->fd = packet_socket(name, 0);
	if (tx->fd < 0)
		return tx->fd;
	if (setsockopt(tx->fd, SOL_PACKET, PACKET_QDISC_BYPASS, &one, sizeof(one)) < 0 ||
	    setsockopt(tx->fd, SOL_SOCKET, SO_SNDBUFFORCE, &sndbuf_bytes, sizeof(sndbuf_bytes)) < 0)
		return fail(name, "set up the sending socket");
	for (size_t i = 0; i < TX_BATCH_PKTS; i++)
		tx->msgs[i].msg_hdr = (struct msghdr){.msg_iov = &tx->iovs[i], .msg_iovlen = 1};
	return 0;
}

void tx_deinit(struct tx_port *tx)
{
	if (tx->fd >= 0)
		close(tx->fd);
}

/* The kernel takes the VLAN tag out of a frame before packet sockets see it; put it back. */
static void copy_with_tag(struct pkt *pkt, const uint8_t *frame, const struct tpacket2_hdr *hdr)
{
	uint16_t tag[2] = {htons(hdr->tp_vlan_tpid ? hdr->tp_vlan_tpid : ETHERTYPE_VLAN),
			   htons(hdr->tp_vlan_tci)};

	memcpy(pkt->data, frame, 2 * ETH_ALEN);
	memcpy(pkt->data + 2 * ETH_ALEN, tag, sizeof(tag));
	memcpy(pkt->data + 2 * ETH_ALEN + sizeof(tag), frame + 2 * ETH_ALEN,
	       hdr->tp_snaplen - 2 * ETH_ALEN);
	pkt->len = hdr->tp_snaplen + sizeof(tag);
}

static bool copy_frame(struct rx_port *rx, struct pkt *pkt, const struct tpacket2_hdr *hdr)
{
	const uint8_t *frame = (const uint8_t *)hdr + hdr->tp_mac;
	bool tagged = hdr->tp_status & TP_STATUS_VLAN_VALID;

	if (hdr->tp_snaplen != hdr->tp_len || hdr->tp_len > rx->mtu + ETH_HLEN + VLAN_TAG_BYTES ||
	    hdr->tp_len < ETH_HLEN || (hdr->tp_status & TP_STATUS_CSUMNOTREADY)) {
		rx->bad_pkts++;
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

bool rx_receive(struct rx_port *rx, struct pkt *pkt, uint64_t *realtime_ns)
{
	for (;;) {
		struct tpacket2_hdr *hdr = (void *)(rx->ring + (size_t)rx->next * rx->slot_bytes);
		bool good;

		if (!(__atomic_load_n(&hdr->tp_status, __ATOMIC_ACQUIRE) & TP_STATUS_USER))
			return false;
		good = copy_frame(rx, pkt, hdr);
		*realtime_ns = (uint64_t)hdr->tp_sec * 1000000000ULL + hdr->tp_nsec;
		__atomic_store_n(&hdr->tp_status, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
		rx->next = rx->next + 1 == rx->slots ? 0 : rx->next + 1;
		if (good)
			return true;
	}
}

static void batch_advance(struct tx_port *tx, struct pool *pool, size_t sent)
{
	for (size_t i = 0; i < sent; i++)
		pool_put(pool, tx->batch[i]);
	tx->batch_pkts -= sent;
	memmove(tx->batch, tx->batch + sent, tx->batch_pkts * sizeof(tx->batch[0]));
	memmove(tx->iovs, tx->iovs + sent, tx->batch_pkts * sizeof(tx->iovs[0]));
}

bool tx_flush(struct tx_port *tx, struct pool *pool)
{
	while (tx->batch_pkts) {
		int n = sendmmsg(tx->fd, tx->msgs, (unsigned int)tx->batch_pkts, 0);

		if (n > 0) {
			batch_advance(tx, pool, (size_t)n);
		} else if (errno == ENOBUFS) {
			tx->retries++;
			return false;
		} else if (errno != EINTR) {
			tx->drops++;
			batch_advance(tx, pool, 1);
		}
	}
	return true;
}

void tx_abandon(struct tx_port *tx, struct pool *pool)
{
	tx->drops += tx->batch_pkts;
	batch_advance(tx, pool, tx->batch_pkts);
}

void tx_push(struct tx_port *tx, struct pkt *pkt)
{
	tx->iovs[tx->batch_pkts] = (struct iovec){.iov_base = pkt->data, .iov_len = pkt->len};
	tx->batch[tx->batch_pkts] = pkt;
	tx->batch_pkts++;
}

void rx_read_drops(struct rx_port *rx)
{
	struct tpacket_stats stats;
	socklen_t len = sizeof(stats);

	/* Reading sets the kernel's counters back to zero. */
	if (!getsockopt(rx->fd, SOL_PACKET, PACKET_STATISTICS, &stats, &len))
		rx->ring_drops += stats.tp_drops;
}

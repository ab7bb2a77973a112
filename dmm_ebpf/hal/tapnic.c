// SPDX-License-Identifier: Apache-2.0
/* tapnic.c: see tapnic.h. */
#include "tapnic.h"
#include "tap.h"
#include "halfail.h"

#include <errno.h>
#include <arpa/inet.h>
#include <fcntl.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/virtio_net.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
	ETH_BYTES = 14,
	TX_FRAMES = 64, /* a power of two */
	HDR_BYTES = sizeof(struct virtio_net_hdr),
	FRAME_BYTES = DMM_TAPNIC_FRAME_BYTES,
	FRAME_PARTS = 1 + DMM_MAX_PARTS,
	/* What waits to be sent: so much stays in a processor's own cache until it is */
	HOT_BYTES = 128 << 10,
	SNDBUF_BYTES = 8 << 20, /* about as many frames as an AF_XDP socket's transmit side has */
};

struct dmm_tapnic {
	int tap_fd, packet_fd;
	bool bare;
	uint32_t tx_head, tx_tail; /* grow; committed are head .. tail - 1 */
	uint32_t tx_bytes;	   /* of those committed since the last attempt to send */
	struct iovec *iov;	   /* FRAME_PARTS for each frame to be sent */
	struct mmsghdr msg[TX_FRAMES];
	/* say what a packet without link header is; to: of one with it, once the socket has lost
	 * the device that it was bound to
	 */
	struct sockaddr_ll to4, to6, to;
	struct dmm_port_caps caps;
	struct dmm_port_stats stats;
	const uint8_t *rx; /* the frame that was read */
	uint32_t rx_len;   /* without struct virtio_net_hdr */
	uint8_t *tx;	   /* frames */
};

/* Number i of tx, with what stands in front of its Ethernet header */
static uint8_t *frame_at(uint8_t *frames, uint32_t i)
{
	return frames + (size_t)i * FRAME_BYTES;
}

static int packet_make(struct dmm_tapnic *tap, uint32_t nic_ifindex, struct dmm_hal_error *err)
{
	struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_ifindex = (int)nic_ifindex};
	int on = 1, sndbuf = SNDBUF_BYTES;
	char nic[IF_NAMESIZE] = "a gone device";
	socklen_t length = sizeof(to);

	if_indextoname(nic_ifindex, nic);
	/* Protocol 0: no packet handler is registered, so nothing is received. */
	tap->packet_fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (tap->packet_fd < 0)
		return dmm_hal_fail(err, DMM_HAL_PACKET_SOCKET, errno, "open a packet socket on",
				    nic);
	if (bind(tap->packet_fd, (struct sockaddr *)&to, sizeof(to)))
		return dmm_hal_fail(err, DMM_HAL_OTHER, errno, "bind a packet socket to", nic);
	if (getsockname(tap->packet_fd, (struct sockaddr *)&to, &length))
		return dmm_hal_fail(err, DMM_HAL_OTHER, errno, "ask the kind of", nic);
	/* PPP counts a link header that it puts in front itself, so the kernel would cut segments
	 * elsewhere.
	 */
	tap->caps.csum = to.sll_hatype != ARPHRD_PPP;
	tap->caps.segments_bytes = tap->caps.csum ? DMM_TAP_MAX_PKT : 0;
	if (setsockopt(tap->packet_fd, SOL_PACKET, PACKET_VNET_HDR, &on, sizeof(on)))
		return dmm_hal_fail(err, DMM_HAL_OTHER, errno, "leave checksums and segments to",
				    nic);
	if (setsockopt(tap->packet_fd, SOL_SOCKET, SO_SNDBUFFORCE, &sndbuf, sizeof(sndbuf)))
		return dmm_hal_fail(err, DMM_HAL_OTHER, errno,
				    "set the send buffer of a packet socket on", nic);
	return 0;
}

static int frames_make(struct dmm_tapnic *tap)
{
	tap->iov = calloc((size_t)TX_FRAMES * FRAME_PARTS, sizeof(*tap->iov));
	tap->tx = malloc((size_t)TX_FRAMES * FRAME_BYTES);
	return tap->iov && tap->tx ? 0 : -ENOMEM;
}

/*
 * Of a bare frame the Ethernet header is left out, and struct virtio_net_hdr stands in its place.
 */
static void msgs_make(struct dmm_tapnic *tap, uint32_t nic_ifindex)
{
	uint32_t skip = tap->bare ? ETH_BYTES : 0;

	for (uint32_t i = 0; i < TX_FRAMES; i++) {
		struct iovec *iov = &tap->iov[(size_t)i * FRAME_PARTS];

		iov->iov_base = frame_at(tap->tx, i) + skip;
		tap->msg[i].msg_hdr.msg_iov = iov;
		tap->msg[i].msg_hdr.msg_iovlen = 1;
		tap->msg[i].msg_hdr.msg_namelen = skip ? sizeof(tap->to4) : 0;
	}
	tap->to4 = (struct sockaddr_ll){.sll_family = AF_PACKET,
					.sll_protocol = htons(ETH_P_IP),
					.sll_ifindex = (int)nic_ifindex};
	tap->to6 = (struct sockaddr_ll){.sll_family = AF_PACKET,
					.sll_protocol = htons(ETH_P_IPV6),
					.sll_ifindex = (int)nic_ifindex};
	tap->to = (struct sockaddr_ll){.sll_family = AF_PACKET, .sll_ifindex = (int)nic_ifindex};
}

/*
 * The kernel takes a device that goes from the sockets bound to it (packet_notifier()), and
 * bind(2) is forbidden by now: each packet names its device instead.
 */
static void msgs_name(struct dmm_tapnic *tap)
{
	if (tap->bare)
		return; /* always so */
	for (uint32_t i = 0; i < TX_FRAMES; i++) {
		tap->msg[i].msg_hdr.msg_name = &tap->to;
		tap->msg[i].msg_hdr.msg_namelen = sizeof(tap->to);
	}
}

int dmm_tapnic_open(const char *name, uint32_t nic_ifindex, bool bare, struct dmm_tapnic **out,
		    struct dmm_hal_error *err)
{
	struct dmm_tapnic *tap = calloc(1, sizeof(*tap));
	int ret;

	*out = NULL;
	if (!tap)
		return dmm_hal_fail(err, DMM_HAL_OTHER, ENOMEM, "make TAP device", name);
	tap->tap_fd = tap->packet_fd = -1;
	tap->caps = (struct dmm_port_caps){
		.room_bytes = DMM_TAP_MAX_PKT, .tells = true, .by_kernel = true, .reads = true};
	tap->bare = bare;
	ret = frames_make(tap);
	if (ret) {
		dmm_tapnic_close(tap);
		return dmm_hal_fail(err, DMM_HAL_OTHER, ENOMEM, "make TAP device", name);
	}
	msgs_make(tap, nic_ifindex);
	ret = packet_make(tap, nic_ifindex, err);
	if (!ret)
		ret = tap->tap_fd = dmm_tap_open(name, err);
	if (ret < 0) {
		dmm_tapnic_close(tap);
		return ret;
	}
	*out = tap;
	return 0;
}

void dmm_tapnic_close(struct dmm_tapnic *tap)
{
	if (!tap)
		return;
	if (tap->tap_fd >= 0)
		close(tap->tap_fd);
	if (tap->packet_fd >= 0)
		close(tap->packet_fd);
	free(tap->iov);
	free(tap->tx);
	free(tap);
}

void dmm_tapnic_move(struct dmm_tapnic *tap, uint32_t nic_ifindex)
{
	tap->to.sll_ifindex = tap->to4.sll_ifindex = tap->to6.sll_ifindex = (int)nic_ifindex;
	msgs_name(tap);
}

bool dmm_tapnic_is_lost(const struct dmm_tapnic *tap)
{
	(void)tap;
	return false;
}

const struct dmm_port_caps *dmm_tapnic_caps(const struct dmm_tapnic *tap)
{
	return &tap->caps;
}

int dmm_tapnic_fd(const struct dmm_tapnic *tap)
{
	return tap->tap_fd;
}

uint32_t dmm_tapnic_rx_peek(struct dmm_tapnic *tap, uint8_t *buf, uint32_t max)
{
	ssize_t n;

	if (!max)
		return 0;
	do
		n = read(tap->tap_fd, buf, FRAME_BYTES);
	while (n < 0 && errno == EINTR);
	if (n <= HDR_BYTES)
		return 0; /* nothing now; that the device is gone, poll(2) tells */
	tap->rx = buf;
	tap->rx_len = (uint32_t)n - HDR_BYTES;
	return 1;
}

const uint8_t *dmm_tapnic_rx_frame(const struct dmm_tapnic *tap, uint32_t i, uint32_t *len,
				   struct dmm_vnet *vnet)
{
	(void)i;
	*len = tap->rx_len;
	memcpy(vnet, tap->rx, HDR_BYTES);
	vnet->csum_start -= vnet->flags & DMM_VNET_NEEDS_CSUM ? ETH_BYTES : 0;
	vnet->hdr_len -= vnet->hdr_len > ETH_BYTES ? ETH_BYTES : 0;
	return tap->rx + HDR_BYTES;
}

void dmm_tapnic_rx_release(struct dmm_tapnic *tap, uint32_t n)
{
	(void)tap;
	(void)n;
}

uint8_t *dmm_tapnic_tx_begin(struct dmm_tapnic *tap)
{
	if (tap->tx_tail - tap->tx_head == TX_FRAMES)
		return NULL;
	if (tap->tx_head == tap->tx_tail)
		tap->tx_head = tap->tx_tail = 0; /* the frames that were used last */
	return frame_at(tap->tx, tap->tx_tail % TX_FRAMES) + HDR_BYTES;
}

static void bare_commit(struct dmm_tapnic *tap, uint32_t i, const struct dmm_vnet *vnet)
{
	const uint8_t *frame = frame_at(tap->tx, i) + HDR_BYTES;
	bool v6 = frame[ETH_BYTES - 2] == ETH_P_IPV6 >> 8;
	struct msghdr *msg = &tap->msg[i].msg_hdr;

	msg->msg_iov[0].iov_len -= ETH_BYTES;
	msg->msg_name = v6 ? &tap->to6 : &tap->to4;
	memcpy(msg->msg_iov[0].iov_base, vnet, HDR_BYTES);
}

void dmm_tapnic_tx_commit(struct dmm_tapnic *tap, uint32_t len, const struct dmm_payload *payload,
			  const struct dmm_vnet *vnet)
{
	uint32_t i = tap->tx_tail++ % TX_FRAMES;
	struct msghdr *msg = &tap->msg[i].msg_hdr;
	struct dmm_vnet framed = *vnet;

	msg->msg_iov[0].iov_len = len + HDR_BYTES - payload->bytes;
	msg->msg_iovlen = 1 + payload->n;
	memcpy(msg->msg_iov + 1, payload->part, payload->n * sizeof(struct iovec));
	tap->tx_bytes += len;
	if (tap->bare) {
		bare_commit(tap, i, vnet);
		return;
	}
	framed.csum_start += framed.flags & DMM_VNET_NEEDS_CSUM ? ETH_BYTES : 0;
	framed.hdr_len += framed.gso_type ? ETH_BYTES : 0;
	memcpy(frame_at(tap->tx, i), &framed, HDR_BYTES);
}

uint32_t dmm_tapnic_tx_unkicked(const struct dmm_tapnic *tap)
{
	return tap->tx_tail - tap->tx_head;
}

bool dmm_tapnic_tx_due(const struct dmm_tapnic *tap)
{
	return tap->tx_bytes >= HOT_BYTES || dmm_tapnic_tx_unkicked(tap) >= DMM_PORT_KICK_PKTS;
}

/* What the kernel has not taken is put together here: its parts go now. */
static void tx_keep(struct dmm_tapnic *tap)
{
	for (uint32_t i = tap->tx_head; i != tap->tx_tail; i++) {
		struct msghdr *msg = &tap->msg[i % TX_FRAMES].msg_hdr;
		struct iovec *whole = msg->msg_iov;

		for (size_t k = 1; k < msg->msg_iovlen; k++) {
			memcpy((uint8_t *)whole->iov_base + whole->iov_len, whole[k].iov_base,
			       whole[k].iov_len);
			whole->iov_len += whole[k].iov_len;
		}
		msg->msg_iovlen = 1;
	}
}

/* Number i of tx, whole again; the parts of its payload follow in part[]. */
static int frame_whole(struct dmm_tapnic *tap, uint32_t i, struct iovec part[FRAME_PARTS])
{
	const struct msghdr *msg = &tap->msg[i].msg_hdr;
	uint8_t *frame = frame_at(tap->tx, i);
	struct dmm_vnet vnet;

	memcpy(part, msg->msg_iov, msg->msg_iovlen * sizeof(*part));
	if (!tap->bare)
		return (int)msg->msg_iovlen;
	memcpy(&vnet, frame + ETH_BYTES, HDR_BYTES);
	vnet.csum_start += vnet.flags & DMM_VNET_NEEDS_CSUM ? ETH_BYTES : 0;
	vnet.hdr_len += vnet.gso_type ? ETH_BYTES : 0;
	memcpy(frame, &vnet, HDR_BYTES);
	memset(frame + HDR_BYTES, 0, ETH_BYTES);
	memcpy(frame + HDR_BYTES + ETH_BYTES - 2,
	       &((const struct sockaddr_ll *)msg->msg_name)->sll_protocol, 2);
	part->iov_base = frame;
	part->iov_len += ETH_BYTES;
	return (int)msg->msg_iovlen;
}

/*
 * Frames that the NIC does not send, without a link-layer address they are to go to: their flows
 * may have another way, which a program at the TAP device knows (bpf/away.h). Whether that is so of
 * all.
 */
static bool tx_around(struct dmm_tapnic *tap)
{
	static const uint8_t nobody[6];
	uint64_t refused = tap->stats.tx_refused;

	for (; tap->tx_head != tap->tx_tail; tap->tx_head++) {
		uint32_t i = tap->tx_head % TX_FRAMES;
		struct iovec part[FRAME_PARTS];
		int n = frame_whole(tap, i, part);

		if (memcmp((uint8_t *)part->iov_base + HDR_BYTES, nobody, sizeof(nobody)) != 0 ||
		    writev(tap->tap_fd, part, n) < 0)
			tap->stats.tx_refused++;
	}
	return tap->stats.tx_refused == refused;
}

int dmm_tapnic_tx_kick(struct dmm_tapnic *tap)
{
	tap->tx_bytes = 0;
	while (tap->tx_head != tap->tx_tail) {
		uint32_t at = tap->tx_head % TX_FRAMES;
		uint32_t n = tap->tx_tail - tap->tx_head;

		if (n > TX_FRAMES - at)
			n = TX_FRAMES - at;
		tap->stats.kicks++;
		int sent = sendmmsg(tap->packet_fd, &tap->msg[at], n, MSG_DONTWAIT);

		if (sent > 0) {
			tap->tx_head += (uint32_t)sent;
			continue;
		}
		if (errno == EINTR)
			continue;
		/* ENOBUFS: dropped by the qdisc, as on the path. */
		if (errno == EAGAIN || errno == ENOMEM) {
			tap->stats.kicks_again++;
			tx_keep(tap);
			return 1;
		}
		if (errno == ENXIO) /* gone; it may come back under the same number */
			msgs_name(tap);
		if (errno == ENETDOWN || errno == ENXIO)
			return tx_around(tap) ? 0 : -ENETDOWN;
		tap->tx_head++;
		tap->stats.tx_refused++;
	}
	return 0;
}

void dmm_tapnic_stats(const struct dmm_tapnic *tap, struct dmm_port_stats *stats)
{
	*stats = tap->stats;
}

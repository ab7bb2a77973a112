// SPDX-License-Identifier: Apache-2.0
/* tapnic.c: see tapnic.h. */
#include "tapnic.h"
#include "tap.h"
#include "bpfmap.h"

#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <linux/if_packet.h>
#include <linux/virtio_net.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
	ETH_BYTES = 14,
	FRAME_BYTES = 4096, /* DMM_XSK_MAX_MTU and its Ethernet header fit */
	RX_FRAMES = 64,
	TX_FRAMES = 256, /* a power of two */
	HDR_BYTES = sizeof(struct virtio_net_hdr),
	LONG_ROOM = 65535,   /* of an IP packet */
	LONG_BYTES = 65600,  /* with both headers, and for the next one to be aligned */
	LONG_TX_FRAMES = 64, /* a power of two */
	SEND_BATCH = 64,
	/* What is read, or waits to be sent, at once: so much stays in a processor's own cache until it is
	   used */
	HOT_BYTES = 128 << 10,
	SNDBUF_BYTES = 8 << 20, /* about as many frames as an AF_XDP socket's transmit side has */
};

struct dmm_tapnic {
	int tap_fd, packet_fd;
	enum dmm_tapnic_way way;
	uint32_t ifindex; /* of the TAP device */
	uint32_t frame_bytes, tx_frames;
	uint32_t head; /* bytes in front of the Ethernet header */
	uint32_t rx_first, rx_end;
	uint32_t rx_bytes;	   /* of what was last read at once */
	uint32_t tx_head, tx_tail; /* grow; committed are head .. tail - 1 */
	uint32_t tx_bytes;	   /* of those committed since the last attempt to send */
	uint32_t rx_len[RX_FRAMES];
	struct iovec iov[TX_FRAMES];
	struct mmsghdr msg[TX_FRAMES];
	struct dmm_tapnic_stats stats;
	uint8_t *rx, *tx; /* frames */
};

/* Number i of rx or tx, with what stands in front of its Ethernet header */
static uint8_t *frame_at(const struct dmm_tapnic *tap, uint8_t *frames, uint32_t i)
{
	return frames + (size_t)i * tap->frame_bytes;
}

static int fail(struct dmm_hal_error *err, enum dmm_hal_call call, int code, const char *what,
		const char *name)
{
	err->code = code;
	err->call = call;
	snprintf(err->what, sizeof(err->what), "%s %s", what, name);
	return -code;
}

static int tap_make(struct dmm_tapnic *tap, const char *name, struct dmm_hal_error *err)
{
	tap->tap_fd = dmm_tap_open(name, tap->way == DMM_TAPNIC_TC ? DMM_TAP_MARKED : DMM_TAP_NOTHING, err);
	if (tap->tap_fd < 0)
		return tap->tap_fd;
	tap->ifindex = if_nametoindex(name);
	return tap->ifindex ? 0 : fail(err, DMM_HAL_OTHER, errno, "find the index of TAP device", name);
}

static int packet_make(struct dmm_tapnic *tap, uint32_t nic_ifindex, struct dmm_hal_error *err)
{
	struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_ifindex = (int)nic_ifindex};
	int on = 1, sndbuf = SNDBUF_BYTES;
	char nic[IF_NAMESIZE] = "a gone device";

	if_indextoname(nic_ifindex, nic);
	/* Protocol 0: no packet handler is registered, so nothing is received. */
	tap->packet_fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (tap->packet_fd < 0)
		return fail(err, DMM_HAL_PACKET_SOCKET, errno, "open a packet socket on", nic);
	if (bind(tap->packet_fd, (struct sockaddr *)&to, sizeof(to)))
		return fail(err, DMM_HAL_OTHER, errno, "bind a packet socket to", nic);
	if (tap->way == DMM_TAPNIC_XDP &&
	    setsockopt(tap->packet_fd, SOL_PACKET, PACKET_QDISC_BYPASS, &on, sizeof(on)))
		return fail(err, DMM_HAL_OTHER, errno, "go around the qdisc of", nic);
	if (tap->way == DMM_TAPNIC_TC &&
	    setsockopt(tap->packet_fd, SOL_PACKET, PACKET_VNET_HDR, &on, sizeof(on)))
		return fail(err, DMM_HAL_OTHER, errno, "leave checksums and segments to", nic);
	if (setsockopt(tap->packet_fd, SOL_SOCKET, SO_SNDBUFFORCE, &sndbuf, sizeof(sndbuf)))
		return fail(err, DMM_HAL_OTHER, errno, "set the send buffer of a packet socket on", nic);
	return 0;
}

static int frames_make(struct dmm_tapnic *tap)
{
	bool by_tc = tap->way == DMM_TAPNIC_TC;

	tap->frame_bytes = by_tc ? LONG_BYTES : FRAME_BYTES;
	tap->tx_frames = by_tc ? LONG_TX_FRAMES : TX_FRAMES;
	tap->head = by_tc ? HDR_BYTES : 0;
	tap->rx = malloc((size_t)RX_FRAMES * tap->frame_bytes);
	tap->tx = malloc((size_t)tap->tx_frames * tap->frame_bytes);
	return tap->rx && tap->tx ? 0 : -ENOMEM;
}

int dmm_tapnic_open(const char *name, uint32_t nic_ifindex, enum dmm_tapnic_way way, struct dmm_tapnic **out,
		    struct dmm_hal_error *err)
{
	struct dmm_tapnic *tap = calloc(1, sizeof(*tap));
	int ret;

	*out = NULL;
	if (!tap)
		return fail(err, DMM_HAL_OTHER, ENOMEM, "make TAP device", name);
	tap->tap_fd = tap->packet_fd = -1;
	tap->way = way;
	ret = frames_make(tap);
	if (ret) {
		dmm_tapnic_close(tap);
		return fail(err, DMM_HAL_OTHER, ENOMEM, "make TAP device", name);
	}
	for (uint32_t i = 0; i < tap->tx_frames; i++) {
		tap->iov[i].iov_base = frame_at(tap, tap->tx, i);
		tap->msg[i].msg_hdr.msg_iov = &tap->iov[i];
		tap->msg[i].msg_hdr.msg_iovlen = 1;
	}
	ret = packet_make(tap, nic_ifindex, err);
	if (!ret)
		ret = tap_make(tap, name, err);
	if (ret) {
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
	free(tap->rx);
	free(tap->tx);
	free(tap);
}

int dmm_tapnic_fd(const struct dmm_tapnic *tap)
{
	return tap->tap_fd;
}

int dmm_tapnic_register(const struct dmm_tapnic *tap, int taps_map_fd, uint32_t index,
			struct dmm_hal_error *err)
{
	if (dmm_bpf_map(BPF_MAP_UPDATE_ELEM, taps_map_fd, &index, &tap->ifindex))
		return fail(err, DMM_HAL_OTHER, errno, "put into the map of devices", "a TAP device");
	return 0;
}

uint32_t dmm_tapnic_rx_peek(struct dmm_tapnic *tap, uint32_t max)
{
	tap->rx_bytes = 0;
	if (tap->rx_first == tap->rx_end)
		tap->rx_first = tap->rx_end = 0;
	while (tap->rx_end < RX_FRAMES && tap->rx_end - tap->rx_first < max && tap->rx_bytes < HOT_BYTES) {
		ssize_t n = read(tap->tap_fd, frame_at(tap, tap->rx, tap->rx_end), tap->frame_bytes);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= (ssize_t)tap->head)
			break; /* nothing now; that the device is gone, poll(2) tells */
		tap->rx_len[tap->rx_end++] = (uint32_t)n;
		tap->rx_bytes += (uint32_t)n;
	}
	uint32_t ready = tap->rx_end - tap->rx_first;

	return ready < max ? ready : max;
}

bool dmm_tapnic_rx_more(const struct dmm_tapnic *tap)
{
	return tap->rx_bytes >= HOT_BYTES;
}

const uint8_t *dmm_tapnic_rx_frame(const struct dmm_tapnic *tap, uint32_t i, uint32_t *len,
				   struct dmm_vnet *vnet)
{
	const uint8_t *frame = frame_at(tap, tap->rx, tap->rx_first + i);

	*len = tap->rx_len[tap->rx_first + i] - tap->head;
	memset(vnet, 0, sizeof(*vnet));
	if (tap->way == DMM_TAPNIC_TC) {
		memcpy(vnet, frame, HDR_BYTES);
		vnet->csum_start -= vnet->flags & DMM_VNET_NEEDS_CSUM ? ETH_BYTES : 0;
		vnet->hdr_len -= vnet->hdr_len > ETH_BYTES ? ETH_BYTES : 0;
	}
	return frame + tap->head;
}

void dmm_tapnic_rx_release(struct dmm_tapnic *tap, uint32_t n)
{
	tap->rx_first += n;
}

uint8_t *dmm_tapnic_tx_begin(struct dmm_tapnic *tap)
{
	if (tap->tx_tail - tap->tx_head == tap->tx_frames)
		return NULL;
	if (tap->tx_head == tap->tx_tail)
		tap->tx_head = tap->tx_tail = 0; /* the frames that were used last */
	return frame_at(tap, tap->tx, tap->tx_tail % tap->tx_frames) + tap->head;
}

void dmm_tapnic_tx_commit(struct dmm_tapnic *tap, uint32_t len, const struct dmm_vnet *vnet)
{
	uint32_t i = tap->tx_tail++ % tap->tx_frames;
	struct dmm_vnet framed = *vnet;

	tap->iov[i].iov_len = len + tap->head;
	tap->tx_bytes += len;
	if (tap->way == DMM_TAPNIC_XDP)
		return;
	framed.csum_start += framed.flags & DMM_VNET_NEEDS_CSUM ? ETH_BYTES : 0;
	framed.hdr_len += framed.gso_type ? ETH_BYTES : 0;
	memcpy(frame_at(tap, tap->tx, i), &framed, HDR_BYTES);
}

bool dmm_tapnic_offloads(const struct dmm_tapnic *tap)
{
	return tap->way == DMM_TAPNIC_TC;
}

uint32_t dmm_tapnic_room(const struct dmm_tapnic *tap)
{
	return tap->way == DMM_TAPNIC_TC ? LONG_ROOM : FRAME_BYTES - ETH_BYTES;
}

uint32_t dmm_tapnic_tx_unkicked(const struct dmm_tapnic *tap)
{
	return tap->tx_tail - tap->tx_head;
}

bool dmm_tapnic_tx_due(const struct dmm_tapnic *tap)
{
	return tap->tx_bytes >= HOT_BYTES;
}

int dmm_tapnic_tx_kick(struct dmm_tapnic *tap)
{
	tap->tx_bytes = 0;
	while (tap->tx_head != tap->tx_tail) {
		uint32_t at = tap->tx_head % tap->tx_frames;
		uint32_t n = tap->tx_tail - tap->tx_head;

		if (n > SEND_BATCH)
			n = SEND_BATCH;
		if (n > tap->tx_frames - at)
			n = tap->tx_frames - at;
		tap->stats.sends++;
		int sent = sendmmsg(tap->packet_fd, &tap->msg[at], n, MSG_DONTWAIT);

		if (sent > 0) {
			tap->tx_head += (uint32_t)sent;
			continue;
		}
		if (errno == EINTR)
			continue;
		/* By the qdisc: dropped there, as on the path. */
		bool is_lost = errno == ENOBUFS && tap->way == DMM_TAPNIC_TC;

		if (!is_lost && (errno == EAGAIN || errno == ENOBUFS || errno == ENOMEM)) {
			tap->stats.sends_again++;
			return 1;
		}
		if (errno == ENETDOWN || errno == ENXIO || errno == ENODEV)
			return -errno;
		tap->tx_head++;
		tap->stats.refused++;
	}
	return 0;
}

void dmm_tapnic_stats(const struct dmm_tapnic *tap, struct dmm_tapnic_stats *stats)
{
	*stats = tap->stats;
}

// SPDX-License-Identifier: Apache-2.0
/*
 * afxdp.c: see afxdp.h. Documentation/networking/af_xdp.rst is the source for rings, flags and
 * wake-ups.
 *
 * A ring has a producer and a consumer index that only grow; each side keeps its own in a local
 * copy, publishes it with a store-release after it is done with the entries, and reads the other's
 * with a load-acquire.
 *
 * A packet in several frames is an entry for each, all but the last with XDP_PKT_CONTD. Whoever is
 * above reads and writes packets in one piece, so such a packet is copied once, to or from a place
 * of its own.
 *
 * Metadata of a packet to be sent (Documentation/networking/xsk-tx-metadata.rst) stand in front of
 * it in its first frame, so with them every frame of the transmit side is used from META_BYTES on.
 *
 * Over 600 lines: a socket, its UMEM and its rings are made, used and ended under the same
 * invariants, and no half of them is of use to anybody.
 */
#include "afxdp.h"
#include "bpfmap.h"
#include "txmeta.h"

#include <errno.h>
#include <linux/if_xdp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#ifndef XDP_MAX_TX_SKB_BUDGET
#define XDP_MAX_TX_SKB_BUDGET                                                                      \
	9 /* Linux 6.18: packets that one call sends in copy mode, 32 without it */
#endif
#ifndef XDP_USE_SG
#define XDP_USE_SG (1 << 4) /* Linux 6.6 */
#define XDP_PKT_CONTD (1 << 0)
#endif

enum {
	DEFAULT_FRAMES = 8192,
	SMALL_FRAME_BYTES = 2048,
	LARGE_FRAME_BYTES = 4096,
	KERNEL_HEADROOM_BYTES = 256, /* XDP_PACKET_HEADROOM */
	L2_BYTES = 18,		     /* Ethernet and one VLAN tag */
	TX_BUDGET = 256,
	MAX_KICKS = 16,
	WHOLE_BYTES = DMM_XSK_LONG_MTU + L2_BYTES,
	ETH_BYTES = 14,
};

struct ring {
	uint32_t *producer;
	uint32_t *consumer;
	uint32_t *flags;
	void *entries;
	uint32_t mask;
	uint32_t local; /* our index: producer's of fill and tx, consumer's of rx and completion */
	void *map;
	size_t map_bytes;
};

struct dmm_xsk {
	int fd;
	uint32_t queue;
	uint32_t frame_bytes;
	uint32_t side_frames; /* of each side, and entries of each ring */
	uint32_t zerocopy;
	bool frags;
	struct dmm_port_caps caps;
	bool sums_proved; /* a frame with metadata was taken */
	bool lost;	  /* its device is gone */
	/* of a packet in its frames: META_BYTES, or 0 where the kernel has no metadata */
	uint32_t tx_offset;
	/* with frags: the packet that was read last, and its first entry */
	uint32_t rx_packet, rx_entry;
	uint32_t tx_need; /* frames that the longest packet takes */
	uint32_t tx_free; /* entries of tx_stack */
	uint32_t tx_unkicked;
	uint64_t *tx_stack; /* addresses of free frames */
	uint8_t *umem;
	uint8_t *rx_whole, *tx_whole; /* WHOLE_BYTES each, with frags */
	size_t umem_bytes;
	struct ring fill, completion, rx, tx;
	uint64_t kicks, kicks_again;
};

static int fail(struct dmm_hal_error *err, enum dmm_hal_call call, int code, const char *what,
		uint32_t queue)
{
	err->code = code;
	err->call = call;
	snprintf(err->what, sizeof(err->what), "%s (receive queue %u)", what, queue);
	return -code;
}

static uint32_t ring_size(const struct dmm_xsk *xsk)
{
	return xsk->side_frames;
}

static int ring_map(struct dmm_xsk *xsk, struct ring *ring, const struct xdp_ring_offset *off,
		    size_t entry_bytes, off_t page_offset)
{
	ring->map_bytes = off->desc + ring_size(xsk) * entry_bytes;
	ring->map = mmap(NULL, ring->map_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
			 xsk->fd, page_offset);
	if (ring->map == MAP_FAILED) {
		ring->map = NULL;
		return -errno;
	}
	uint8_t *base = ring->map;

	ring->producer = (uint32_t *)(base + off->producer);
	ring->consumer = (uint32_t *)(base + off->consumer);
	ring->flags = (uint32_t *)(base + off->flags);
	ring->entries = base + off->desc;
	ring->mask = ring_size(xsk) - 1;
	return 0;
}

static void ring_unmap(struct ring *ring)
{
	if (ring->map)
		munmap(ring->map, ring->map_bytes);
}

/* metadata: bytes of them, 0: none. Returns 0, or -1 with errno. */
static int umem_offer(struct dmm_xsk *xsk, uint32_t metadata)
{
	struct umem_reg reg = {
		.addr = (uintptr_t)xsk->umem,
		.len = xsk->umem_bytes,
		.chunk_size = xsk->frame_bytes,
		.flags = metadata ? XDP_UMEM_TX_METADATA_LEN : 0,
		.tx_metadata_len = metadata,
	};

	return setsockopt(xsk->fd, SOL_XDP, XDP_UMEM_REG, &reg, sizeof(reg));
}

static int umem_register(struct dmm_xsk *xsk, struct dmm_hal_error *err)
{
	xsk->umem_bytes = (size_t)xsk->side_frames * 2 * xsk->frame_bytes;
	xsk->umem = mmap(NULL, xsk->umem_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			 -1, 0);
	if (xsk->umem == MAP_FAILED) {
		xsk->umem = NULL;
		return fail(err, DMM_HAL_OTHER, errno, "map the UMEM of an AF_XDP socket",
			    xsk->queue);
	}
	if (umem_offer(xsk, META_BYTES) == 0) {
		xsk->tx_offset = META_BYTES;
		return 0;
	}
	/* EINVAL: a kernel without metadata. */
	if (errno != EINVAL || umem_offer(xsk, 0))
		return fail(err, DMM_HAL_XSK_UMEM, errno, "register the UMEM of an AF_XDP socket",
			    xsk->queue);
	return 0;
}

static int rings_make(struct dmm_xsk *xsk, struct dmm_hal_error *err)
{
	static const int options[] = {XDP_UMEM_FILL_RING, XDP_UMEM_COMPLETION_RING, XDP_RX_RING,
				      XDP_TX_RING};
	struct xdp_mmap_offsets off;
	socklen_t len = sizeof(off);
	uint32_t size = ring_size(xsk);

	for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++) {
		if (setsockopt(xsk->fd, SOL_XDP, options[i], &size, sizeof(size)))
			return fail(err, DMM_HAL_OTHER, errno, "make the rings of an AF_XDP socket",
				    xsk->queue);
	}
	if (getsockopt(xsk->fd, SOL_XDP, XDP_MMAP_OFFSETS, &off, &len))
		return fail(err, DMM_HAL_OTHER, errno, "read the ring offsets of an AF_XDP socket",
			    xsk->queue);
	int ret = ring_map(xsk, &xsk->fill, &off.fr, sizeof(uint64_t), XDP_UMEM_PGOFF_FILL_RING);

	if (!ret)
		ret = ring_map(xsk, &xsk->completion, &off.cr, sizeof(uint64_t),
			       XDP_UMEM_PGOFF_COMPLETION_RING);
	if (!ret)
		ret = ring_map(xsk, &xsk->rx, &off.rx, sizeof(struct xdp_desc), XDP_PGOFF_RX_RING);
	if (!ret)
		ret = ring_map(xsk, &xsk->tx, &off.tx, sizeof(struct xdp_desc), XDP_PGOFF_TX_RING);
	return ret ? fail(err, DMM_HAL_OTHER, -ret, "map the rings of an AF_XDP socket", xsk->queue)
		   : 0;
}

static void frames_deal(struct dmm_xsk *xsk)
{
	uint64_t *fill = xsk->fill.entries;

	for (uint32_t i = 0; i < xsk->side_frames; i++) {
		fill[i] = (uint64_t)i * xsk->frame_bytes;
		xsk->tx_stack[i] =
			(uint64_t)(xsk->side_frames + i) * xsk->frame_bytes + xsk->tx_offset;
	}
	xsk->tx_free = xsk->side_frames;
	xsk->fill.local = xsk->side_frames;
	__atomic_store_n(xsk->fill.producer, xsk->fill.local, __ATOMIC_RELEASE);
}

static int queue_bind(struct dmm_xsk *xsk, uint32_t ifindex, struct dmm_hal_error *err)
{
	/* Neither XDP_COPY nor XDP_ZEROCOPY: the kernel tries zero-copy and falls back. */
	struct sockaddr_xdp addr = {
		.sxdp_family = AF_XDP,
		.sxdp_ifindex = ifindex,
		.sxdp_queue_id = xsk->queue,
		.sxdp_flags = XDP_USE_NEED_WAKEUP | (xsk->frags ? XDP_USE_SG : 0),
	};
	struct xdp_options options = {0};
	socklen_t len = sizeof(options);
	int budget = TX_BUDGET;

	if (bind(xsk->fd, (struct sockaddr *)&addr, sizeof(addr)))
		return fail(err, DMM_HAL_XSK_BIND, errno, "bind an AF_XDP socket", xsk->queue);
	if (!getsockopt(xsk->fd, SOL_XDP, XDP_OPTIONS, &options, &len))
		xsk->zerocopy = options.flags & XDP_OPTIONS_ZEROCOPY;
	/*
	 * Older kernels do not know it, and then EAGAIN says that the rest waits for another call.
	 */
	(void)setsockopt(xsk->fd, SOL_XDP, XDP_MAX_TX_SKB_BUDGET, &budget, sizeof(budget));
	return 0;
}

/* Bytes of a packet in each frame of the transmit side */
static uint32_t tx_frame_room(const struct dmm_xsk *xsk)
{
	return xsk->frame_bytes - META_BYTES;
}

/* The longest IP packet that dmm_xsk_tx_begin() has room for */
static uint32_t room_bytes(const struct dmm_xsk *xsk)
{
	if (xsk->tx_need > 1)
		return DMM_XSK_LONG_MTU;
	return xsk->frame_bytes == SMALL_FRAME_BYTES ? tx_frame_room(xsk) - L2_BYTES
						     : DMM_XSK_MAX_MTU;
}

/* The memory of a socket; 0 or -ENOMEM. */
static int memory_make(struct dmm_xsk *xsk)
{
	xsk->tx_stack = calloc(xsk->side_frames, sizeof(*xsk->tx_stack));
	if (xsk->frags) {
		xsk->rx_whole = malloc(WHOLE_BYTES);
		xsk->tx_whole = malloc(WHOLE_BYTES);
	}
	return xsk->tx_stack && (!xsk->frags || (xsk->rx_whole && xsk->tx_whole)) ? 0 : -ENOMEM;
}

int dmm_xsk_open(uint32_t ifindex, uint32_t queue, uint32_t mtu, uint32_t frames,
		 enum dmm_xsk_packets packets, struct dmm_xsk **out, struct dmm_hal_error *err)
{
	bool frags = packets == DMM_XSK_FRAGS;

	*out = NULL;
	if (mtu > (frags ? DMM_XSK_LONG_MTU : DMM_XSK_MAX_MTU))
		return fail(err, DMM_HAL_MTU_CHECK, ERANGE, "open an AF_XDP socket", queue);
	frames = frames ? frames : DEFAULT_FRAMES;
	if (frames < 4 || (frames & (frames - 1)))
		return fail(err, DMM_HAL_OTHER, EINVAL, "open an AF_XDP socket", queue);
	struct dmm_xsk *xsk = calloc(1, sizeof(*xsk));

	if (!xsk)
		return fail(err, DMM_HAL_OTHER, ENOMEM, "open an AF_XDP socket", queue);
	xsk->queue = queue;
	xsk->side_frames = frames / 2;
	xsk->frags = frags;
	xsk->frame_bytes = !frags && mtu + L2_BYTES + KERNEL_HEADROOM_BYTES <= SMALL_FRAME_BYTES
				   ? SMALL_FRAME_BYTES
				   : LARGE_FRAME_BYTES;
	/* As if there were metadata: whether there are is known when the memory is registered. */
	xsk->tx_need = (mtu + L2_BYTES + tx_frame_room(xsk) - 1) / tx_frame_room(xsk);
	xsk->caps.room_bytes = room_bytes(xsk);
	xsk->fd = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0);
	int ret = 0;

	if (memory_make(xsk))
		ret = fail(err, DMM_HAL_OTHER, ENOMEM, "open an AF_XDP socket", queue);
	else if (xsk->fd < 0)
		ret = fail(err, DMM_HAL_XSK_SOCKET, errno, "open an AF_XDP socket", queue);
	if (!ret)
		ret = umem_register(xsk, err);
	if (!ret)
		ret = rings_make(xsk, err);
	if (!ret) {
		frames_deal(xsk);
		ret = queue_bind(xsk, ifindex, err);
	}
	if (ret) {
		dmm_xsk_close(xsk);
		return ret;
	}
	*out = xsk;
	return 0;
}

void dmm_xsk_close(struct dmm_xsk *xsk)
{
	if (!xsk)
		return;
	ring_unmap(&xsk->fill);
	ring_unmap(&xsk->completion);
	ring_unmap(&xsk->rx);
	ring_unmap(&xsk->tx);
	if (xsk->fd >= 0)
		close(xsk->fd);
	if (xsk->umem)
		munmap(xsk->umem, xsk->umem_bytes);
	free(xsk->rx_whole);
	free(xsk->tx_whole);
	free(xsk->tx_stack);
	free(xsk);
}

int dmm_xsk_fd(const struct dmm_xsk *xsk)
{
	return xsk->fd;
}

uint32_t dmm_xsk_is_zerocopy(const struct dmm_xsk *xsk)
{
	return xsk->zerocopy;
}

bool dmm_xsk_leave_sums(struct dmm_xsk *xsk)
{
	xsk->caps.csum = xsk->tx_offset;
	return xsk->caps.csum;
}

void dmm_xsk_move(struct dmm_xsk *xsk, uint32_t ifindex)
{
	(void)xsk;
	(void)ifindex;
}

/* xsk_notifier() leaves ENETDOWN to each socket of a device that goes. */
bool dmm_xsk_is_lost(struct dmm_xsk *xsk)
{
	int error = 0;
	socklen_t len = sizeof(error);

	if (!getsockopt(xsk->fd, SOL_SOCKET, SO_ERROR, &error, &len) && error == ENETDOWN)
		xsk->lost = true;
	return xsk->lost;
}

const struct dmm_port_caps *dmm_xsk_caps(const struct dmm_xsk *xsk)
{
	return &xsk->caps;
}

int dmm_xsk_register(const struct dmm_xsk *xsk, int xsks_map_fd, uint32_t index,
		     struct dmm_hal_error *err)
{
	uint32_t value = (uint32_t)xsk->fd;

	if (dmm_bpf_map(BPF_MAP_UPDATE_ELEM, xsks_map_fd, &index, &value))
		return fail(err, DMM_HAL_OTHER, errno,
			    "put an AF_XDP socket into the map of sockets", xsk->queue);
	return 0;
}

static const struct xdp_desc *rx_desc(const struct dmm_xsk *xsk, uint32_t entry)
{
	return (const struct xdp_desc *)xsk->rx.entries + ((xsk->rx.local + entry) & xsk->rx.mask);
}

/* Entries of the packet whose first is number entry of ready; 0: its last is not there yet. */
static uint32_t rx_entries(const struct dmm_xsk *xsk, uint32_t entry, uint32_t ready)
{
	for (uint32_t n = 1; entry + n <= ready; n++)
		if (!(rx_desc(xsk, entry + n - 1)->options & XDP_PKT_CONTD))
			return n;
	return 0;
}

uint32_t dmm_xsk_rx_peek(struct dmm_xsk *xsk, uint8_t *buf, uint32_t max)
{
	uint32_t ready = __atomic_load_n(xsk->rx.producer, __ATOMIC_ACQUIRE) - xsk->rx.local;
	uint32_t packets = 0, entry = 0, n;

	(void)buf;
	if (!xsk->frags)
		return ready < max ? ready : max;
	xsk->rx_packet = xsk->rx_entry = 0;
	for (; packets < max && (n = rx_entries(xsk, entry, ready)); packets++)
		entry += n;
	return packets;
}

static const uint8_t *rx_put_together(struct dmm_xsk *xsk, uint32_t *len)
{
	uint32_t entry = xsk->rx_entry, done = 0;
	const struct xdp_desc *desc;

	do {
		desc = rx_desc(xsk, entry++);
		if (done + desc->len > WHOLE_BYTES) {
			*len = 0;
			return xsk->rx_whole;
		}
		memcpy(xsk->rx_whole + done, xsk->umem + desc->addr, desc->len);
		done += desc->len;
	} while (desc->options & XDP_PKT_CONTD);
	*len = done;
	return xsk->rx_whole;
}

const uint8_t *dmm_xsk_rx_frame(struct dmm_xsk *xsk, uint32_t i, uint32_t *len,
				struct dmm_vnet *vnet)
{
	const struct xdp_desc *desc;

	memset(vnet, 0, sizeof(*vnet));
	if (!xsk->frags)
		xsk->rx_entry = i;
	else if (i < xsk->rx_packet)
		xsk->rx_packet = xsk->rx_entry = 0;
	for (; xsk->frags && xsk->rx_packet < i; xsk->rx_packet++)
		while (rx_desc(xsk, xsk->rx_entry++)->options & XDP_PKT_CONTD)
			;
	desc = rx_desc(xsk, xsk->rx_entry);
	if (desc->options & XDP_PKT_CONTD)
		return rx_put_together(xsk, len);
	*len = desc->len;
	return xsk->umem + desc->addr;
}

/* Entries of the first n packets */
static uint32_t rx_entries_of(const struct dmm_xsk *xsk, uint32_t n)
{
	uint32_t entry = 0;

	if (!xsk->frags)
		return n;
	while (n)
		n -= !(rx_desc(xsk, entry++)->options & XDP_PKT_CONTD);
	return entry;
}

void dmm_xsk_rx_release(struct dmm_xsk *xsk, uint32_t n)
{
	uint64_t *fill = xsk->fill.entries;

	if (n == 0)
		return;
	n = rx_entries_of(xsk, n);
	/* The fill ring has an entry for every frame of this side, so there is always room. */
	for (uint32_t i = 0; i < n; i++)
		fill[(xsk->fill.local + i) & xsk->fill.mask] =
			rx_desc(xsk, i)->addr & ~(uint64_t)(xsk->frame_bytes - 1);
	xsk->rx.local += n;
	xsk->fill.local += n;
	xsk->rx_packet = xsk->rx_entry = 0;
	__atomic_store_n(xsk->rx.consumer, xsk->rx.local, __ATOMIC_RELEASE);
	__atomic_store_n(xsk->fill.producer, xsk->fill.local, __ATOMIC_RELEASE);
	if (__atomic_load_n(xsk->fill.flags, __ATOMIC_RELAXED) & XDP_RING_NEED_WAKEUP)
		(void)recvfrom(xsk->fd, NULL, 0, MSG_DONTWAIT, NULL, NULL);
}

static void tx_reap(struct dmm_xsk *xsk)
{
	const uint64_t *done = xsk->completion.entries;
	uint32_t ready =
		__atomic_load_n(xsk->completion.producer, __ATOMIC_ACQUIRE) - xsk->completion.local;

	if (ready == 0)
		return;
	for (uint32_t i = 0; i < ready; i++) {
		uint64_t addr = done[(xsk->completion.local + i) & xsk->completion.mask];

		xsk->tx_stack[xsk->tx_free++] =
			(addr & ~(uint64_t)(xsk->frame_bytes - 1)) + xsk->tx_offset;
	}
	xsk->completion.local += ready;
	__atomic_store_n(xsk->completion.consumer, xsk->completion.local, __ATOMIC_RELEASE);
}

uint8_t *dmm_xsk_tx_begin(struct dmm_xsk *xsk)
{
	if (xsk->tx_free < xsk->tx_need)
		tx_reap(xsk);
	if (xsk->tx_free < xsk->tx_need)
		return NULL;
	return xsk->tx_need > 1 ? xsk->tx_whole : xsk->umem + xsk->tx_stack[xsk->tx_free - 1];
}

/* There are as many entries as frames on this side, so a frame at hand means room in the ring. */
static uint8_t *tx_put(struct dmm_xsk *xsk, uint32_t len, uint32_t options)
{
	struct xdp_desc *desc = (struct xdp_desc *)xsk->tx.entries + (xsk->tx.local & xsk->tx.mask);

	desc->addr = xsk->tx_stack[--xsk->tx_free];
	desc->len = len;
	desc->options = options;
	xsk->tx.local++;
	return xsk->umem + desc->addr;
}

static void parts_copy(uint8_t *to, const struct dmm_payload *payload)
{
	for (uint32_t i = 0; i < payload->n; i++) {
		memcpy(to, payload->part[i].data, payload->part[i].bytes);
		to += payload->part[i].bytes;
	}
}

/* Has who takes the packet fill in its checksum; returns the options of its first entry. */
static uint32_t sum_leave(const struct dmm_xsk *xsk, const struct dmm_vnet *vnet)
{
	struct metadata *meta =
		(struct metadata *)(xsk->umem + xsk->tx_stack[xsk->tx_free - 1] - META_BYTES);

	meta->flags = XDP_TXMD_FLAGS_CHECKSUM;
	meta->csum_start = (uint16_t)(vnet->csum_start + ETH_BYTES);
	meta->csum_offset = vnet->csum_offset;
	return XDP_TX_METADATA;
}

void dmm_xsk_tx_commit(struct dmm_xsk *xsk, uint32_t len, const struct dmm_payload *payload,
		       const struct dmm_vnet *vnet)
{
	uint8_t *packet =
		xsk->tx_need > 1 ? xsk->tx_whole : xsk->umem + xsk->tx_stack[xsk->tx_free - 1];
	uint32_t options = 0;

	if (payload->n)
		parts_copy(packet + len - payload->bytes, payload);
	if (vnet->flags & DMM_VNET_NEEDS_CSUM) {
		if (xsk->caps.csum)
			options = sum_leave(xsk, vnet);
		else
			sum_fill(packet, len, vnet->csum_start + ETH_BYTES, vnet->csum_offset);
	}
	if (xsk->tx_need == 1)
		tx_put(xsk, len, options);
	for (uint32_t done = 0, part; xsk->tx_need > 1 && done < len; done += part) {
		bool last = len - done <= tx_frame_room(xsk);

		part = last ? len - done : tx_frame_room(xsk);
		memcpy(tx_put(xsk, part, options | (last ? 0 : XDP_PKT_CONTD)), packet + done,
		       part);
		options = 0;
	}
	xsk->tx_unkicked++;
}

static struct xdp_desc *tx_desc(const struct dmm_xsk *xsk, uint32_t entry)
{
	return (struct xdp_desc *)xsk->tx.entries + (entry & xsk->tx.mask);
}

/*
 * One of a packet that is whole in the frame is filled in; else it is lost on the way,
 * and sent again.
 */
static void sum_take_back(const struct dmm_xsk *xsk, struct xdp_desc *desc)
{
	uint8_t *packet = xsk->umem + desc->addr;
	const struct metadata *meta = (const struct metadata *)(packet - META_BYTES);

	desc->options &= ~(uint32_t)XDP_TX_METADATA;
	if (!(desc->options & XDP_PKT_CONTD))
		sum_fill(packet, desc->len, meta->csum_start, meta->csum_offset);
}

/*
 * The kernel takes no frame with metadata, though it took the memory for them: what it has not
 * taken is filled in here, and so are all others from now on. In copy mode nothing is taken but
 * within sendto(2).
 */
static void sums_give_up(struct dmm_xsk *xsk)
{
	uint32_t from = __atomic_load_n(xsk->tx.consumer, __ATOMIC_ACQUIRE);

	xsk->caps.csum = false;
	for (; from != xsk->tx.local; from++)
		if (tx_desc(xsk, from)->options & XDP_TX_METADATA)
			sum_take_back(xsk, tx_desc(xsk, from));
}

/* After the first frames with metadata: whether the kernel threw them away. */
static void sums_prove(struct dmm_xsk *xsk)
{
	struct dmm_port_stats stats;

	dmm_xsk_stats(xsk, &stats);
	if (stats.tx_refused)
		sums_give_up(xsk);
	xsk->sums_proved = true;
}

uint32_t dmm_xsk_tx_unkicked(const struct dmm_xsk *xsk)
{
	return xsk->tx_unkicked;
}

bool dmm_xsk_tx_due(const struct dmm_xsk *xsk)
{
	return xsk->tx_unkicked >= DMM_PORT_KICK_PKTS;
}

int dmm_xsk_tx_kick(struct dmm_xsk *xsk)
{
	__atomic_store_n(xsk->tx.producer, xsk->tx.local, __ATOMIC_RELEASE);
	xsk->tx_unkicked = 0;
	for (int i = 0; i < MAX_KICKS; i++) {
		uint32_t taken = __atomic_load_n(xsk->tx.consumer, __ATOMIC_ACQUIRE);

		if (taken == xsk->tx.local ||
		    !(__atomic_load_n(xsk->tx.flags, __ATOMIC_RELAXED) & XDP_RING_NEED_WAKEUP))
			return 0;
		xsk->kicks++;
		if (sendto(xsk->fd, NULL, 0, MSG_DONTWAIT, NULL, 0) >= 0) {
			if (xsk->caps.csum && !xsk->sums_proved)
				sums_prove(xsk);
			continue;
		}
		if (errno == EINVAL && xsk->caps.csum) {
			sums_give_up(xsk);
			continue;
		}
		if (errno == ENXIO) {
			xsk->lost = true;
			return -ENETDOWN;
		}
		if (errno != EAGAIN && errno != EBUSY && errno != ENOBUFS && errno != ENOMEM)
			return errno == EINTR ? 1 : -errno;
		xsk->kicks_again++;
		tx_reap(xsk);
		if (__atomic_load_n(xsk->tx.consumer, __ATOMIC_ACQUIRE) == taken)
			/* no progress: the socket's send buffer or the driver's ring is full */
			return 1;
	}
	return __atomic_load_n(xsk->tx.consumer, __ATOMIC_ACQUIRE) != xsk->tx.local;
}

void dmm_xsk_stats(const struct dmm_xsk *xsk, struct dmm_port_stats *stats)
{
	struct xdp_statistics kernel = {0};
	socklen_t len = sizeof(kernel);

	(void)getsockopt(xsk->fd, SOL_XDP, XDP_STATISTICS, &kernel, &len);
	stats->rx_dropped = kernel.rx_dropped;
	stats->rx_ring_full = kernel.rx_ring_full;
	stats->rx_fill_ring_empty = kernel.rx_fill_ring_empty_descs;
	stats->tx_refused = kernel.tx_invalid_descs;
	stats->kicks = xsk->kicks;
	stats->kicks_again = xsk->kicks_again;
}

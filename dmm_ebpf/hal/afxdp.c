// SPDX-License-Identifier: Apache-2.0
/*
 * afxdp.c: see afxdp.h. Documentation/networking/af_xdp.rst is the source for rings, flags and wake-ups.
 *
 * A ring has a producer and a consumer index that only grow; each side keeps its own in a local copy,
 * publishes it with a store-release after it is done with the entries, and reads the other's with a
 * load-acquire.
 */
#include "afxdp.h"
#include "bpfmap.h"

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
#define XDP_MAX_TX_SKB_BUDGET 9 /* Linux 6.18: packets that one call sends in copy mode, 32 without it */
#endif

enum {
	DEFAULT_FRAMES = 8192,
	SMALL_FRAME_BYTES = 2048,
	LARGE_FRAME_BYTES = 4096,
	KERNEL_HEADROOM_BYTES = 256, /* XDP_PACKET_HEADROOM */
	L2_BYTES = 18,		     /* Ethernet and one VLAN tag */
	TX_BUDGET = 256,
	MAX_KICKS = 16,
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
	uint32_t tx_free; /* entries of tx_stack */
	uint32_t tx_unkicked;
	uint64_t *tx_stack; /* addresses of free frames */
	uint8_t *umem;
	size_t umem_bytes;
	struct ring fill, completion, rx, tx;
	uint64_t kicks, kicks_again;
};

static int fail(struct dmm_hal_error *err, enum dmm_hal_call call, int code, const char *what, uint32_t queue)
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
	ring->map = mmap(NULL, ring->map_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, xsk->fd,
			 page_offset);
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

static int umem_register(struct dmm_xsk *xsk, struct dmm_hal_error *err)
{
	xsk->umem_bytes = (size_t)xsk->side_frames * 2 * xsk->frame_bytes;
	xsk->umem = mmap(NULL, xsk->umem_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (xsk->umem == MAP_FAILED) {
		xsk->umem = NULL;
		return fail(err, DMM_HAL_OTHER, errno, "map the UMEM of an AF_XDP socket", xsk->queue);
	}
	struct xdp_umem_reg reg = {
		.addr = (uintptr_t)xsk->umem,
		.len = xsk->umem_bytes,
		.chunk_size = xsk->frame_bytes,
	};

	if (setsockopt(xsk->fd, SOL_XDP, XDP_UMEM_REG, &reg, sizeof(reg)))
		return fail(err, DMM_HAL_XSK_UMEM, errno, "register the UMEM of an AF_XDP socket",
			    xsk->queue);
	return 0;
}

static int rings_make(struct dmm_xsk *xsk, struct dmm_hal_error *err)
{
	static const int options[] = {XDP_UMEM_FILL_RING, XDP_UMEM_COMPLETION_RING, XDP_RX_RING, XDP_TX_RING};
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
	return ret ? fail(err, DMM_HAL_OTHER, -ret, "map the rings of an AF_XDP socket", xsk->queue) : 0;
}

static void frames_deal(struct dmm_xsk *xsk)
{
	uint64_t *fill = xsk->fill.entries;

	for (uint32_t i = 0; i < xsk->side_frames; i++) {
		fill[i] = (uint64_t)i * xsk->frame_bytes;
		xsk->tx_stack[i] = (uint64_t)(xsk->side_frames + i) * xsk->frame_bytes;
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
		.sxdp_flags = XDP_USE_NEED_WAKEUP,
	};
	struct xdp_options options = {0};
	socklen_t len = sizeof(options);
	int budget = TX_BUDGET;

	if (bind(xsk->fd, (struct sockaddr *)&addr, sizeof(addr)))
		return fail(err, DMM_HAL_XSK_BIND, errno, "bind an AF_XDP socket", xsk->queue);
	if (!getsockopt(xsk->fd, SOL_XDP, XDP_OPTIONS, &options, &len))
		xsk->zerocopy = options.flags & XDP_OPTIONS_ZEROCOPY;
	/* Older kernels do not know it, and then EAGAIN says that the rest waits for another call. */
	(void)setsockopt(xsk->fd, SOL_XDP, XDP_MAX_TX_SKB_BUDGET, &budget, sizeof(budget));
	return 0;
}

int dmm_xsk_open(uint32_t ifindex, uint32_t queue, uint32_t mtu, uint32_t frames, struct dmm_xsk **out,
		 struct dmm_hal_error *err)
{
	*out = NULL;
	if (mtu > DMM_XSK_MAX_MTU)
		return fail(err, DMM_HAL_MTU_CHECK, ERANGE, "open an AF_XDP socket", queue);
	frames = frames ? frames : DEFAULT_FRAMES;
	if (frames < 4 || (frames & (frames - 1)))
		return fail(err, DMM_HAL_OTHER, EINVAL, "open an AF_XDP socket", queue);
	struct dmm_xsk *xsk = calloc(1, sizeof(*xsk));

	if (!xsk)
		return fail(err, DMM_HAL_OTHER, ENOMEM, "open an AF_XDP socket", queue);
	xsk->queue = queue;
	xsk->side_frames = frames / 2;
	xsk->frame_bytes = mtu + L2_BYTES + KERNEL_HEADROOM_BYTES <= SMALL_FRAME_BYTES ? SMALL_FRAME_BYTES
										       : LARGE_FRAME_BYTES;
	xsk->tx_stack = calloc(xsk->side_frames, sizeof(*xsk->tx_stack));
	xsk->fd = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0);
	int ret = 0;

	if (!xsk->tx_stack)
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

int dmm_xsk_register(const struct dmm_xsk *xsk, int xsks_map_fd, uint32_t index, struct dmm_hal_error *err)
{
	uint32_t value = (uint32_t)xsk->fd;

	if (dmm_bpf_map(BPF_MAP_UPDATE_ELEM, xsks_map_fd, &index, &value))
		return fail(err, DMM_HAL_OTHER, errno, "put an AF_XDP socket into the map of sockets",
			    xsk->queue);
	return 0;
}

uint32_t dmm_xsk_rx_peek(struct dmm_xsk *xsk, uint32_t max)
{
	uint32_t ready = __atomic_load_n(xsk->rx.producer, __ATOMIC_ACQUIRE) - xsk->rx.local;

	return ready < max ? ready : max;
}

const uint8_t *dmm_xsk_rx_frame(const struct dmm_xsk *xsk, uint32_t i, uint32_t *len)
{
	const struct xdp_desc *desc =
		(const struct xdp_desc *)xsk->rx.entries + ((xsk->rx.local + i) & xsk->rx.mask);

	*len = desc->len;
	return xsk->umem + desc->addr;
}

void dmm_xsk_rx_release(struct dmm_xsk *xsk, uint32_t n)
{
	const struct xdp_desc *descs = xsk->rx.entries;
	uint64_t *fill = xsk->fill.entries;

	if (n == 0)
		return;
	/* The fill ring has an entry for every frame of this side, so there is always room. */
	for (uint32_t i = 0; i < n; i++) {
		uint64_t addr = descs[(xsk->rx.local + i) & xsk->rx.mask].addr;

		fill[(xsk->fill.local + i) & xsk->fill.mask] = addr & ~(uint64_t)(xsk->frame_bytes - 1);
	}
	xsk->rx.local += n;
	xsk->fill.local += n;
	__atomic_store_n(xsk->rx.consumer, xsk->rx.local, __ATOMIC_RELEASE);
	__atomic_store_n(xsk->fill.producer, xsk->fill.local, __ATOMIC_RELEASE);
	if (__atomic_load_n(xsk->fill.flags, __ATOMIC_RELAXED) & XDP_RING_NEED_WAKEUP)
		(void)recvfrom(xsk->fd, NULL, 0, MSG_DONTWAIT, NULL, NULL);
}

static void tx_reap(struct dmm_xsk *xsk)
{
	const uint64_t *done = xsk->completion.entries;
	uint32_t ready = __atomic_load_n(xsk->completion.producer, __ATOMIC_ACQUIRE) - xsk->completion.local;

	if (ready == 0)
		return;
	for (uint32_t i = 0; i < ready; i++) {
		uint64_t addr = done[(xsk->completion.local + i) & xsk->completion.mask];

		xsk->tx_stack[xsk->tx_free++] = addr & ~(uint64_t)(xsk->frame_bytes - 1);
	}
	xsk->completion.local += ready;
	__atomic_store_n(xsk->completion.consumer, xsk->completion.local, __ATOMIC_RELEASE);
}

uint8_t *dmm_xsk_tx_begin(struct dmm_xsk *xsk)
{
	if (xsk->tx_free == 0)
		tx_reap(xsk);
	return xsk->tx_free ? xsk->umem + xsk->tx_stack[xsk->tx_free - 1] : NULL;
}

void dmm_xsk_tx_commit(struct dmm_xsk *xsk, uint32_t len)
{
	/* There are as many entries as frames on this side, so a frame at hand means room in the ring. */
	struct xdp_desc *desc = (struct xdp_desc *)xsk->tx.entries + (xsk->tx.local & xsk->tx.mask);

	desc->addr = xsk->tx_stack[--xsk->tx_free];
	desc->len = len;
	desc->options = 0;
	xsk->tx.local++;
	xsk->tx_unkicked++;
}

uint32_t dmm_xsk_tx_unkicked(const struct dmm_xsk *xsk)
{
	return xsk->tx_unkicked;
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
		if (sendto(xsk->fd, NULL, 0, MSG_DONTWAIT, NULL, 0) >= 0)
			continue;
		if (errno != EAGAIN && errno != EBUSY && errno != ENOBUFS && errno != ENOMEM)
			return errno == EINTR ? 1 : -errno;
		xsk->kicks_again++;
		tx_reap(xsk);
		if (__atomic_load_n(xsk->tx.consumer, __ATOMIC_ACQUIRE) == taken)
			return 1; /* no progress: the socket's send buffer or the driver's ring is full */
	}
	return __atomic_load_n(xsk->tx.consumer, __ATOMIC_ACQUIRE) != xsk->tx.local;
}

void dmm_xsk_stats(const struct dmm_xsk *xsk, struct dmm_xsk_stats *stats)
{
	struct xdp_statistics kernel = {0};
	socklen_t len = sizeof(kernel);

	(void)getsockopt(xsk->fd, SOL_XDP, XDP_STATISTICS, &kernel, &len);
	stats->rx_dropped = kernel.rx_dropped;
	stats->rx_ring_full = kernel.rx_ring_full;
	stats->rx_fill_ring_empty = kernel.rx_fill_ring_empty_descs;
	stats->tx_invalid_descs = kernel.tx_invalid_descs;
	stats->kicks = xsk->kicks;
	stats->kicks_again = xsk->kicks_again;
}

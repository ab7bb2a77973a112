// SPDX-License-Identifier: Apache-2.0
/* tap.c: see tap.h. Header fields: virtio specification 1.2, section 5.1.6; flags:
 * Documentation/networking/tuntap.rst. */
#include "tap.h"
#include "halfail.h"
#include "../../bpf/abi.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

/* Of Linux 6.2, which Debian 12's headers do not know */
#ifndef TUN_F_USO4
#define TUN_F_USO4 0x20
#define TUN_F_USO6 0x40
#endif
#ifndef VIRTIO_NET_HDR_GSO_UDP_L4
#define VIRTIO_NET_HDR_GSO_UDP_L4 5
#endif

enum {
	HDR_BYTES = sizeof(struct virtio_net_hdr),
	HEAD_BYTES = HDR_BYTES + DMM_TAP_ETH_BYTES,
};

_Static_assert((int)HEAD_BYTES == DMM_TAP_HEADROOM, "both headers and nothing else");

/* The core's record is the kernel's header, so that neither way anything is translated. */
_Static_assert(HDR_BYTES == 10 && sizeof(struct dmm_vnet) == HDR_BYTES,
	       "virtio_net_hdr without num_buffers");
_Static_assert(offsetof(struct dmm_vnet, gso_type) == offsetof(struct virtio_net_hdr, gso_type),
	       "gso_type");
_Static_assert(offsetof(struct dmm_vnet, hdr_len) == offsetof(struct virtio_net_hdr, hdr_len),
	       "hdr_len");
_Static_assert(offsetof(struct dmm_vnet, gso_size) == offsetof(struct virtio_net_hdr, gso_size),
	       "gso_size");
_Static_assert(offsetof(struct dmm_vnet, csum_start) == offsetof(struct virtio_net_hdr, csum_start),
	       "csum_start");
_Static_assert((int)DMM_VNET_NEEDS_CSUM == VIRTIO_NET_HDR_F_NEEDS_CSUM &&
		       (int)DMM_VNET_DATA_VALID == VIRTIO_NET_HDR_F_DATA_VALID,
	       "flags");
_Static_assert((int)DMM_VNET_GSO_TCPV4 == VIRTIO_NET_HDR_GSO_TCPV4 &&
		       (int)DMM_VNET_GSO_TCPV6 == VIRTIO_NET_HDR_GSO_TCPV6 &&
		       (int)DMM_VNET_GSO_UDP == VIRTIO_NET_HDR_GSO_UDP_L4 &&
		       (int)DMM_VNET_GSO_ECN == VIRTIO_NET_HDR_GSO_ECN,
	       "kinds of segmentation");

_Static_assert(sizeof(struct iovec) == sizeof(struct dmm_part) &&
		       offsetof(struct iovec, iov_base) == offsetof(struct dmm_part, data) &&
		       offsetof(struct iovec, iov_len) == offsetof(struct dmm_part, bytes),
	       "parts are handed to the kernel as they are");

static int filter_set(int fd)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)(SKF_AD_OFF + SKF_AD_MARK)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, DMM_TCIN_MARK, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, UINT32_MAX),
		BPF_STMT(BPF_RET | BPF_K, 0),
	};
	struct sock_fprog filter = {.len = sizeof(code) / sizeof(code[0]), .filter = code};

	return ioctl(fd, TUNATTACHFILTER, &filter);
}

/* Datagrams that go as one stay so where the kernel can (Linux 6.2); else it cuts them before. */
static int offload_set(int fd)
{
	unsigned long tcp = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;

	return ioctl(fd, TUNSETOFFLOAD, tcp | TUN_F_USO4 | TUN_F_USO6) &&
	       ioctl(fd, TUNSETOFFLOAD, tcp);
}

/* In the order in which a device comes to life; 0, or -errno with err filled. */
static int tap_set_up(int fd, const char *name, struct dmm_hal_error *err)
{
	struct ifreq ifr = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_TUN_EXCL | IFF_VNET_HDR};
	int hdr_bytes = HDR_BYTES;

	memcpy(ifr.ifr_name, name, strlen(name));
	if (ioctl(fd, TUNSETIFF, &ifr))
		return dmm_hal_fail(err, DMM_HAL_TUN_MAKE, errno, "make TAP device", name);
	if (ioctl(fd, TUNSETVNETHDRSZ, &hdr_bytes) || offload_set(fd))
		return dmm_hal_fail(err, DMM_HAL_TUN_OFFLOAD, errno,
				    "set the offloads of TAP device", name);
	if (filter_set(fd))
		return dmm_hal_fail(err, DMM_HAL_OTHER, errno, "close to the kernel TAP device",
				    name);
	return 0;
}

int dmm_tap_open(const char *name, struct dmm_hal_error *err)
{
	int fd, ret;

	if (strlen(name) >= IFNAMSIZ)
		return dmm_hal_fail(err, DMM_HAL_OTHER, ENAMETOOLONG, "make TAP device", name);
	fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return dmm_hal_fail(err, DMM_HAL_TUN_OPEN, errno, "open /dev/net/tun for device",
				    name);
	ret = tap_set_up(fd, name, err);
	if (ret) {
		close(fd);
		return ret;
	}
	return fd;
}

/*
 * The longest queue up to packets that the kernel takes: how long that may be, and with what errno
 * it refuses more, differs from kernel to kernel. Returns its length, or -errno of the last refusal
 * when it takes none. A refusal leaves the queue as it is.
 */
static int queue_length_set(int sock, struct ifreq *ifr, uint32_t packets)
{
	uint32_t taken = 0, refused = packets + 1, next = packets;
	int code = EINVAL;

	while (next > taken) {
		ifr->ifr_qlen = (int)next;
		if (ioctl(sock, SIOCSIFTXQLEN, ifr)) {
			code = errno;
			refused = next;
		} else {
			taken = next;
		}
		next = taken + (refused - taken) / 2;
	}
	return taken ? (int)taken : -code;
}

int dmm_tap_up(const char *name, uint32_t mtu, uint32_t txqueuelen, struct dmm_hal_error *err)
{
	struct ifreq ifr = {0};
	int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	int ret = 0, length = 0;

	if (sock < 0)
		return dmm_hal_fail(err, DMM_HAL_OTHER, errno, "open a socket to configure", name);
	memcpy(ifr.ifr_name, name, strnlen(name, sizeof(ifr.ifr_name) - 1));
	ifr.ifr_mtu = (int)mtu;
	if (ioctl(sock, SIOCSIFMTU, &ifr))
		ret = dmm_hal_fail(err, DMM_HAL_MTU_SET, errno, "set the MTU of", name);
	if (!ret) {
		length = queue_length_set(sock, &ifr, txqueuelen);
		if (length < 0)
			ret = dmm_hal_fail(err, DMM_HAL_OTHER, -length, "set the queue length of",
					   name);
	}
	ifr.ifr_flags = IFF_UP | IFF_RUNNING | IFF_NOARP;
	if (!ret && ioctl(sock, SIOCSIFFLAGS, &ifr))
		ret = dmm_hal_fail(err, DMM_HAL_OTHER, errno, "take up", name);
	close(sock);
	return ret ? ret : length;
}

int dmm_tap_read(int fd, uint8_t *buf, struct dmm_vnet *vnet)
{
	for (;;) {
		ssize_t n = read(fd, buf, HEAD_BYTES + DMM_TAP_MAX_PKT);

		if (n < 0) {
			if (errno == EINTR)
				continue;
			return errno == EAGAIN ? 0 : -errno;
		}
		if (n <= HEAD_BYTES)
			continue;
		memcpy(vnet, buf, HDR_BYTES);
		vnet->csum_start -= vnet->flags & DMM_VNET_NEEDS_CSUM ? DMM_TAP_ETH_BYTES : 0;
		vnet->hdr_len -= vnet->hdr_len > DMM_TAP_ETH_BYTES ? DMM_TAP_ETH_BYTES : 0;
		return (int)(n - HEAD_BYTES);
	}
}

/* As of a frame whose IP packet is so */
static struct dmm_vnet with_ethernet(const struct dmm_vnet *vnet)
{
	struct dmm_vnet framed = *vnet;

	framed.csum_start += framed.flags & DMM_VNET_NEEDS_CSUM ? DMM_TAP_ETH_BYTES : 0;
	framed.hdr_len += framed.gso_type ? DMM_TAP_ETH_BYTES : 0;
	return framed;
}

static int all_written(int fd, const struct iovec *iov, int parts)
{
	for (;;) {
		if (writev(fd, iov, parts) >= 0)
			return 0;
		if (errno == EINTR)
			continue;
		/* ENOBUFS and ENOMEM pass, as a full queue does. */
		return errno == ENOBUFS || errno == ENOMEM ? -EAGAIN : -errno;
	}
}

int dmm_tap_write(int fd, uint8_t *buf, uint32_t len, const struct dmm_payload *payload,
		  const struct dmm_vnet *vnet)
{
	struct iovec iov[1 + DMM_MAX_PARTS] = {{.iov_base = buf, .iov_len = HEAD_BYTES + len}};
	uint32_t parts = payload ? payload->n : 0;
	struct dmm_vnet framed = with_ethernet(vnet);

	memcpy(buf, &framed, HDR_BYTES);
	if (parts) {
		memcpy(iov + 1, payload->part, parts * sizeof(*iov));
		iov[0].iov_len -= payload->bytes;
	}
	return all_written(fd, iov, (int)(1 + parts));
}

int dmm_tap_frame_write(int fd, const uint8_t *frame, uint32_t len, const struct dmm_vnet *vnet)
{
	struct dmm_vnet framed = with_ethernet(vnet);
	struct iovec iov[] = {{.iov_base = &framed, .iov_len = HDR_BYTES},
			      {.iov_base = (void *)(uintptr_t)frame, .iov_len = len}};

	return all_written(fd, iov, 2);
}

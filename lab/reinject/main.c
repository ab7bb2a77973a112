// SPDX-License-Identifier: Apache-2.0
/*
 * reinject: a way round that takes a while, for frames between a host's kernel and a TAP device of
 * somebody else's.
 *
 * reinject DEVICE MARK DELAY_US TO_STACK TO_KERNEL makes two TAP devices of those last names in its
 * network namespace, and says "ready". What is sent out of TO_STACK leaves, DELAY_US later, through
 * DEVICE with that mark, for the process behind it; what is sent out of TO_KERNEL comes in from
 * TO_KERNEL again, DELAY_US later. Whoever steers packets here (innerleg.bpf.c) makes them
 * overtaken or doubled. Packets keep their offloads: up to 64 KiB, the checksum left to the device.
 *
 * It ends when its standard input does, and then prints one line of JSON: how many packets it put
 * back each way, and how many it lost because it held too many, or the device had no room.
 *
 * What leaves through DEVICE passes neither its qdisc nor a tc program, so nothing comes here
 * twice.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
	TO_STACK = 0,
	TO_KERNEL = 1,
	WAYS = 2,
	FDS = WAYS + 1,
	HELD_PKTS = 1024,
	HEAD_BYTES = sizeof(struct virtio_net_hdr) + ETH_HLEN,
	PKT_BYTES = HEAD_BYTES + 65535,
	TXQUEUELEN = 1000,
	SENDER_ROOM_BYTES = 16 << 20, /* packets that DEVICE has not been rid of yet count */
};

struct held {
	uint64_t due_ns;
	size_t len;
	uint8_t data[PKT_BYTES];
};

/* One way: packets in order of time, since all wait equally long. */
struct way {
	int tap_fd;
	uint32_t first;
	uint32_t count;
	uint64_t put_back;
	uint64_t lost;
	struct held *held;
};

static void fail(const char *what)
{
	fprintf(stderr, "reinject: cannot %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static int open_tap(const char *name)
{
	struct ifreq ifr = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_TUN_EXCL};
	int hdr_bytes = sizeof(struct virtio_net_hdr);
	int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
	int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || sock < 0)
		fail("open /dev/net/tun");
	strncpy(ifr.ifr_name, name, sizeof(ifr.ifr_name) - 1);
	if (ioctl(fd, TUNSETIFF, &ifr) || ioctl(fd, TUNSETVNETHDRSZ, &hdr_bytes) ||
	    ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN))
		fail("make a TAP device");
	ifr.ifr_qlen = TXQUEUELEN;
	if (ioctl(sock, SIOCSIFTXQLEN, &ifr))
		fail("set the queue length of a TAP device");
	ifr.ifr_flags = IFF_UP | IFF_RUNNING | IFF_NOARP;
	if (ioctl(sock, SIOCSIFFLAGS, &ifr))
		fail("take a TAP device up");
	close(sock);
	return fd;
}

static int open_sender(const char *device, uint32_t mark, struct sockaddr_ll *to)
{
	int one = 1;
	int room_bytes = SENDER_ROOM_BYTES;
	/* Protocol 0: it sends, and hears nothing. */
	int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0 || setsockopt(fd, SOL_PACKET, PACKET_VNET_HDR, &one, sizeof(one)) ||
	    setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &one, sizeof(one)) ||
	    setsockopt(fd, SOL_SOCKET, SO_MARK, &mark, sizeof(mark)) ||
	    setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &room_bytes, sizeof(room_bytes)))
		fail("open a packet socket");
	*to = (struct sockaddr_ll){.sll_family = AF_PACKET,
				   .sll_ifindex = (int)if_nametoindex(device)};
	if (!to->sll_ifindex)
		fail("find the device");
	return fd;
}

static void take(struct way *way, uint64_t delay_ns)
{
	while (way->count < HELD_PKTS) {
		struct held *slot = &way->held[(way->first + way->count) % HELD_PKTS];
		ssize_t n = read(way->tap_fd, slot->data, PKT_BYTES);

		if (n < 0) {
			if (errno == EAGAIN)
				return;
			fail("read from a TAP device");
		}
		if (n < HEAD_BYTES)
			continue;
		slot->len = (size_t)n;
		slot->due_ns = now_ns() + delay_ns;
		way->count++;
	}
}

static void give(struct way ways[WAYS], int which, int sender_fd, struct sockaddr_ll *to)
{
	struct way *way = &ways[which];
	uint64_t now = now_ns();

	for (; way->count && way->held[way->first].due_ns <= now; way->count--) {
		const struct held *packet = &way->held[way->first];
		ssize_t n;

		if (which == TO_STACK) {
			memcpy(&to->sll_protocol,
			       packet->data + HEAD_BYTES - sizeof(to->sll_protocol),
			       sizeof(to->sll_protocol));
			n = sendto(sender_fd, packet->data, packet->len, 0,
				   (const struct sockaddr *)to, sizeof(*to));
		} else {
			n = write(way->tap_fd, packet->data, packet->len);
		}
		if (n < 0)
			way->lost++;
		else
			way->put_back++;
		way->first = (way->first + 1) % HELD_PKTS;
	}
}

static void wait_for_next(const struct way ways[WAYS], struct pollfd fds[FDS])
{
	uint64_t next_ns = UINT64_MAX;
	uint64_t now = now_ns();
	struct timespec left = {0};

	for (int i = 0; i < WAYS; i++)
		if (ways[i].count && ways[i].held[ways[i].first].due_ns < next_ns)
			next_ns = ways[i].held[ways[i].first].due_ns;
	if (next_ns > now && next_ns != UINT64_MAX) {
		left.tv_sec = (time_t)((next_ns - now) / 1000000000u);
		left.tv_nsec = (long)((next_ns - now) % 1000000000u);
	}
	if (ppoll(fds, FDS, next_ns == UINT64_MAX ? NULL : &left, NULL) < 0 && errno != EINTR)
		fail("wait for packets");
}

int main(int argc, char **argv)
{
	struct way ways[WAYS] = {0};
	struct pollfd fds[FDS] = {{.fd = STDIN_FILENO, .events = POLLIN}};
	struct sockaddr_ll to;
	uint64_t delay_ns;
	int sender_fd;

	if (argc != 6) {
		fprintf(stderr, "usage: reinject DEVICE MARK DELAY_US TO_STACK TO_KERNEL\n");
		return 2;
	}
	sender_fd = open_sender(argv[1], (uint32_t)strtoul(argv[2], NULL, 0), &to);
	delay_ns = strtoull(argv[3], NULL, 10) * 1000;
	for (int i = 0; i < WAYS; i++) {
		ways[i].tap_fd = open_tap(argv[4 + i]);
		ways[i].held = calloc(HELD_PKTS, sizeof(*ways[i].held));
		if (!ways[i].held)
			fail("get memory");
		fds[1 + i] = (struct pollfd){.fd = ways[i].tap_fd, .events = POLLIN};
	}
	puts("ready");
	fflush(stdout);
	while (!fds[0].revents) {
		wait_for_next(ways, fds);
		for (int i = 0; i < WAYS; i++) {
			take(&ways[i], delay_ns);
			give(ways, i, sender_fd, &to);
		}
	}
	printf("{\"to_stack\": %llu, \"to_kernel\": %llu, \"lost\": %llu}\n",
	       (unsigned long long)ways[TO_STACK].put_back,
	       (unsigned long long)ways[TO_KERNEL].put_back,
	       (unsigned long long)(ways[TO_STACK].lost + ways[TO_KERNEL].lost));
	return 0;
}

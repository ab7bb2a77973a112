// SPDX-License-Identifier: Apache-2.0
/*
 * relay: copies frames between two TAP devices, as a user stack does that has no TCP in it.
 *
 * relay NAME_IN NAME_OUT makes both devices in its network namespace, prints "ready" and copies
 * until it is killed, or its stdin ends. Frames have virtio-net headers, which go over as they are:
 * up to 64 KiB at once, with checksums and segments left open. What the other device does not take
 * is lost, as on a wire.
 *
 * Driven by lab/relay.py, whose programs (lab/relay.bpf.c) lead a NIC's TCP through it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { FRAME_BYTES = 70000, BUDGET = 64, IN = 0, OUT = 1, STDIN = 2 };

static char frame[FRAME_BYTES];

static void fail(const char *what)
{
	fprintf(stderr, "relay: cannot %s: %s\n", what, strerror(errno));
	exit(1);
}

static int tap_open(const char *name)
{
	struct ifreq ifr = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
	int header = sizeof(struct virtio_net_hdr);
	int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);

	snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "%s", name);
	if (fd < 0 || ioctl(fd, TUNSETIFF, &ifr))
		fail("make a TAP device");
	if (ioctl(fd, TUNSETVNETHDRSZ, &header) ||
	    ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6))
		fail("set the offloads of a TAP device");
	return fd;
}

/* Up to BUDGET frames, so that the other way does not wait long */
static void copy(int from, int to)
{
	for (int i = 0; i < BUDGET; i++) {
		ssize_t n = read(from, frame, sizeof(frame));

		if (n <= 0 || (write(to, frame, (size_t)n) < 0 && errno == EBADFD))
			return;
	}
}

int main(int argc, char **argv)
{
	if (argc != 3) {
		fprintf(stderr, "usage: relay NAME_IN NAME_OUT\n");
		return 2;
	}
	struct pollfd fds[3] = {
		{.fd = tap_open(argv[1]), .events = POLLIN},
		{.fd = tap_open(argv[2]), .events = POLLIN},
		{.fd = 0, .events = 0},
	};

	puts("ready");
	fflush(stdout);
	while (!fds[STDIN].revents) {
		if (poll(fds, 3, -1) < 0 && errno != EINTR)
			fail("wait");
		if (fds[IN].revents)
			copy(fds[IN].fd, fds[OUT].fd);
		if (fds[OUT].revents)
			copy(fds[OUT].fd, fds[IN].fd);
	}
	return 0;
}

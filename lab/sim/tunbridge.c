/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tunbridge.c: a core between two real kernels, to test it against both: the inner leg is a TUN
 * device with offloads in one network namespace, the outer leg a plain TUN device in another, whose
 * kernel plays the remote host.
 *
 * usage: tunbridge NETNS_INNER DEV_INNER NETNS_OUTER DEV_OUTER loss seed congestion [marks]
 * loss and marks (ECN) are probabilities, on the outer leg.
 * Ends when stdin is closed; prints the core's counters then. The namespaces are paths; the devices
 * must not exist.
 */
#define _GNU_SOURCE
#include "api.h"
#include "counters.h"
#include "mark.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 64, MTU = 1500 };

static double loss, marks;
static uint64_t rng;

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static int open_tun(const char *netns, const char *dev, int vnet)
{
	int ns = open(netns, O_RDONLY), fd, hdr = 10;
	struct ifreq ifr;

	if (ns < 0 || setns(ns, CLONE_NEWNET))
		die("setns");
	close(ns);
	fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
	memset(&ifr, 0, sizeof(ifr));
	strncpy(ifr.ifr_name, dev, IFNAMSIZ - 1);
	ifr.ifr_flags = IFF_TUN | IFF_NO_PI | (vnet ? IFF_VNET_HDR : 0);
	if (fd < 0 || ioctl(fd, TUNSETIFF, &ifr))
		die("TUNSETIFF");
	if (vnet && (ioctl(fd, TUNSETVNETHDRSZ, &hdr) ||
		     ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6)))
		die("TUNSETOFFLOAD");
	return fd;
}

static int happens(double probability)
{
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return (double)(rng >> 11) / 9007199254740992.0 < probability;
}

static int read_leg(struct dmm_core *core, int fd, uint32_t leg)
{
	static uint8_t buf[65536 + 10];
	struct dmm_rx_meta meta = {.link = 1, .mtu = MTU};
	int n_pkts = 0;

	for (; n_pkts < BATCH; n_pkts++) {
		ssize_t n = read(fd, buf, sizeof(buf));
		uint32_t skip = leg == DMM_LEG_INNER ? 10 : 0;

		if (n <= (ssize_t)skip)
			break;
		/* checksum left to us, or made by this host's kernel */
		meta.vnet.flags = leg == DMM_LEG_INNER ? DMM_VNET_DATA_VALID : 0;
		if (leg == DMM_LEG_OUTER && happens(loss))
			continue;
		if (leg == DMM_LEG_OUTER && happens(marks))
			mark_ce(buf);
		dmm_core_input(core, leg, buf + skip, (uint32_t)n - skip, &meta, now_ns());
	}
	return n_pkts;
}

static void write_leg(struct dmm_core *core, int fd, uint32_t leg)
{
	static uint8_t buf[65536 + 10];
	struct dmm_tx_meta m;
	uint32_t n;

	if (leg == DMM_LEG_OUTER) {
		while ((n = dmm_core_output(core, leg, buf, MTU, &m, now_ns()))) {
			if (happens(marks))
				mark_ce(buf);
			if (!happens(loss) && write(fd, buf, n) < 0 && errno != EAGAIN)
				die("write outer");
		}
		return;
	}
	while ((n = dmm_core_output(core, leg, buf + 10, 65535, &m, now_ns()))) {
		memcpy(buf, &m.vnet, sizeof(m.vnet));
		if (write(fd, buf, n + 10) < 0 && errno != EAGAIN)
			die("write inner");
	}
}

static void actions(struct dmm_core *core)
{
	struct dmm_action a;

	while (dmm_core_action(core, &a)) {
		if (a.type == DMM_ACTION_OWN && a.pair.raddr[15] == 66)
			dmm_core_unreachable(core, a.conn, EHOSTUNREACH, now_ns());
	}
}

static void report(struct dmm_core *core)
{
	for (uint32_t i = 0; i < DMM_CORE_MAX; i++)
		printf("%s=%llu\n", counter_names[i],
		       (unsigned long long)dmm_core_counter(core, i));
	printf("connections=%u\n", dmm_core_connections(core));
	for (uint32_t i = 0; i < dmm_core_connections(core); i++) {
		struct dmm_conn_info c;

		dmm_core_conn_info(core, i, &c);
		printf("conn%u=inner:%u,outer:%u,sent:%llu,received:%llu\n", i, c.inner_state,
		       c.outer_state, (unsigned long long)c.bytes_sent,
		       (unsigned long long)c.bytes_received);
	}
}

int main(int argc, char **argv)
{
	struct dmm_core_config cfg = {.inner_gso_max = 65535, .time_wait_ns = 500000000};
	struct dmm_core *core;
	struct pollfd fds[3];

	if (argc < 8)
		return 2;
	loss = strtod(argv[5], NULL);
	marks = argc > 8 ? strtod(argv[8], NULL) : 0;
	cfg.seed = strtoull(argv[6], NULL, 0);
	rng = cfg.seed * 0x9e3779b97f4a7c15ull | 1;
	strncpy(cfg.congestion, argv[7], sizeof(cfg.congestion) - 1);
	core = dmm_core_create(&cfg);
	if (!core)
		return 1;
	fds[0] = (struct pollfd){open_tun(argv[1], argv[2], 1), POLLIN, 0};
	fds[1] = (struct pollfd){open_tun(argv[3], argv[4], 0), POLLIN, 0};
	fds[2] = (struct pollfd){0, POLLIN, 0};
	printf("ready\n");
	fflush(stdout);
	for (;;) {
		uint64_t now, next;
		struct timespec ts;
		int busy = read_leg(core, fds[0].fd, DMM_LEG_INNER) +
			   read_leg(core, fds[1].fd, DMM_LEG_OUTER);

		actions(core);
		write_leg(core, fds[1].fd, DMM_LEG_OUTER);
		write_leg(core, fds[0].fd, DMM_LEG_INNER);
		now = now_ns();
		next = dmm_core_poll(core, now);
		actions(core);
		if (busy || next <= now)
			continue;
		next = next - now < 1000000000 ? next - now : 1000000000;
		ts = (struct timespec){0, (long)next};
		if (next == 1000000000)
			ts = (struct timespec){1, 0};
		if (ppoll(fds, 3, &ts, NULL) < 0 && errno != EINTR)
			die("ppoll");
		if (fds[2].revents)
			break;
	}
	report(core);
	dmm_core_destroy(core);
	return 0;
}

// SPDX-License-Identifier: Apache-2.0
/*
 * inner_bench: forwards packets between two devices, as a stack process does on its inner leg, and nothing
 * else.
 *
 *   inner_bench tun NETNS_FILE_A NAME_A NETNS_FILE_B NAME_B MTU   two TUN devices with vnet headers, packets
 * of up to 64 KiB inner_bench xdp IFNAME_A MAC_A IFNAME_B MAC_B MTU             two veths with AF_XDP
 * sockets, frames of one MTU; MAC is of the veth's other end
 *
 * Prints "ready" when it forwards; ends by SIGTERM. Driven by tools/bench_inner.py.
 *
 * What comes over a veth may have a checksum that was never filled in (CHECKSUM_PARTIAL), which AF_XDP cannot
 * hand on, so the xdp mode computes it; the tun mode hands the vnet header on as it is.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/if_link.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "hal/afxdp.h"
#include "hal/tun.h"

enum { BUDGET = 64, TXQUEUELEN = 10000, ETH_BYTES = 14, RAW_HDR_BYTES = 10 };

static volatile sig_atomic_t ended;

static void on_signal(int number)
{
	(void)number;
	ended = 1;
}

static int die(const char *what, int code)
{
	fprintf(stderr, "inner_bench: cannot %s: %s\n", what, strerror(code));
	exit(1);
}

/* ---- tun ---- */

static int tun_in_netns(const char *netns, const char *name, uint32_t mtu)
{
	struct dmm_hal_error err = {0};
	int ns = open(netns, O_RDONLY | O_CLOEXEC);

	if (ns < 0 || setns(ns, CLONE_NEWNET))
		die("enter the network namespace", errno);
	close(ns);
	int fd = dmm_tun_open(name, &err);

	if (fd < 0 || dmm_tun_up(name, mtu, TXQUEUELEN, &err) < 0)
		die(err.what, err.code);
	return fd;
}

/* One direction; a packet that the other side does not take now is lost, as a full device loses it. */
static void tun_move(int from, int to)
{
	static uint8_t buf[RAW_HDR_BYTES + DMM_TUN_MAX_PKT];

	for (int i = 0; i < BUDGET; i++) {
		ssize_t len = read(from, buf, sizeof(buf));

		if (len <= 0)
			return;
		if (write(to, buf, (size_t)len) < 0 && errno != EAGAIN && errno != EINVAL)
			return;
	}
}

static int run_tun(char **argv)
{
	uint32_t mtu = (uint32_t)atoi(argv[4]);
	struct pollfd fds[2] = {{.events = POLLIN}, {.events = POLLIN}};

	fds[0].fd = tun_in_netns(argv[0], argv[1], mtu);
	fds[1].fd = tun_in_netns(argv[2], argv[3], mtu);
	printf("ready\n");
	fflush(stdout);
	while (!ended) {
		if (poll(fds, 2, 100) <= 0)
			continue;
		tun_move(fds[0].fd, fds[1].fd);
		tun_move(fds[1].fd, fds[0].fd);
	}
	return 0;
}

/* ---- xdp ---- */

static int bpf(int command, union bpf_attr *attr)
{
	return (int)syscall(SYS_bpf, command, attr, sizeof(*attr));
}

/* Everything to the socket of its queue. */
static int redirect_all(int xsks)
{
	struct bpf_insn insns[] = {
		{.code = BPF_LDX | BPF_MEM | BPF_W,
		 .dst_reg = 2,
		 .src_reg = 1,
		 .off = 16}, /* rx_queue_index */
		{.code = BPF_LD | BPF_DW | BPF_IMM, .dst_reg = 1, .src_reg = BPF_PSEUDO_MAP_FD, .imm = xsks},
		{0},
		{.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 3, .imm = 2 /* XDP_PASS */},
		{.code = BPF_JMP | BPF_CALL, .imm = BPF_FUNC_redirect_map},
		{.code = BPF_JMP | BPF_EXIT},
	};
	union bpf_attr attr;

	memset(&attr, 0, sizeof(attr));
	attr.prog_type = BPF_PROG_TYPE_XDP;
	attr.insns = (uintptr_t)insns;
	attr.insn_cnt = sizeof(insns) / sizeof(insns[0]);
	attr.license = (uintptr_t) "Apache-2.0";
	return bpf(BPF_PROG_LOAD, &attr);
}

struct port {
	struct dmm_xsk *xsk;
	uint8_t mac[6]; /* of the other end */
};

static void port_open(struct port *port, const char *device, const char *mac, uint32_t mtu)
{
	struct dmm_hal_error err = {0};
	uint32_t ifindex = if_nametoindex(device);
	union bpf_attr attr;
	unsigned int m[6];

	if (!ifindex || sscanf(mac, "%x:%x:%x:%x:%x:%x", m, m + 1, m + 2, m + 3, m + 4, m + 5) != 6)
		die("use the device", ENODEV);
	for (int i = 0; i < 6; i++)
		port->mac[i] = (uint8_t)m[i];
	memset(&attr, 0, sizeof(attr));
	attr.map_type = BPF_MAP_TYPE_XSKMAP;
	attr.key_size = attr.value_size = 4;
	attr.max_entries = 1;
	int xsks = bpf(BPF_MAP_CREATE, &attr);
	int prog = xsks < 0 ? -1 : redirect_all(xsks);

	if (prog < 0)
		die("load the XDP program", errno);
	memset(&attr, 0, sizeof(attr));
	attr.link_create.prog_fd = (uint32_t)prog;
	attr.link_create.target_ifindex = ifindex;
	attr.link_create.attach_type = BPF_XDP;
	attr.link_create.flags = XDP_FLAGS_DRV_MODE;
	if (bpf(BPF_LINK_CREATE, &attr) < 0)
		die("attach the XDP program", errno);
	if (dmm_xsk_open(ifindex, 0, mtu, 0, &port->xsk, &err) || dmm_xsk_register(port->xsk, xsks, 0, &err))
		die(err.what, err.code);
}

static uint32_t sum16(const uint8_t *p, uint32_t bytes)
{
	uint64_t sum = 0;

	for (; bytes >= 4; p += 4, bytes -= 4) {
		uint32_t word;

		memcpy(&word, p, 4);
		sum += word;
	}
	for (; bytes >= 2; p += 2, bytes -= 2) {
		uint16_t half;

		memcpy(&half, p, 2);
		sum += half;
	}
	if (bytes)
		sum += *p; /* little endian: the pad byte is the high one */
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint32_t)sum;
}

/* IPv4 TCP, complete (RFC 9293 section 3.1) */
static void checksum_fill(uint8_t *ip)
{
	uint32_t header = (ip[0] & 15u) * 4;
	uint32_t len = ((uint32_t)ip[2] << 8 | ip[3]) - header;
	uint8_t pseudo[12] = {[9] = 6, [10] = (uint8_t)(len >> 8), [11] = (uint8_t)len};
	uint8_t *tcp = ip + header;

	memcpy(pseudo, ip + 12, 8);
	memset(tcp + 16, 0, 2);
	uint32_t sum = sum16(pseudo, sizeof(pseudo)) + sum16(tcp, len);

	sum = (sum & 0xffff) + (sum >> 16);
	uint16_t field = (uint16_t) ~((sum & 0xffff) + (sum >> 16));

	memcpy(tcp + 16, &field, 2);
}

static uint32_t xdp_move(struct port *from, struct port *to)
{
	uint32_t count = dmm_xsk_rx_peek(from->xsk, BUDGET);
	uint32_t done = 0;

	for (; done < count; done++) {
		uint32_t len;
		const uint8_t *in = dmm_xsk_rx_frame(from->xsk, done, &len);
		uint8_t *out = dmm_xsk_tx_begin(to->xsk);

		if (!out)
			break;
		memcpy(out, in, len);
		memcpy(out, to->mac, 6);
		if (len > ETH_BYTES + 40 && out[12] == 0x08 && out[13] == 0x00 && out[ETH_BYTES + 9] == 6)
			checksum_fill(out + ETH_BYTES);
		dmm_xsk_tx_commit(to->xsk, len);
		if (dmm_xsk_tx_unkicked(to->xsk) >= 32)
			dmm_xsk_tx_kick(to->xsk);
	}
	dmm_xsk_rx_release(from->xsk, done);
	dmm_xsk_tx_kick(to->xsk);
	return done;
}

static int run_xdp(char **argv)
{
	uint32_t mtu = (uint32_t)atoi(argv[4]);
	struct port a, b;
	struct pollfd fds[2] = {{.events = POLLIN}, {.events = POLLIN}};

	port_open(&a, argv[0], argv[1], mtu);
	port_open(&b, argv[2], argv[3], mtu);
	fds[0].fd = dmm_xsk_fd(a.xsk);
	fds[1].fd = dmm_xsk_fd(b.xsk);
	printf("ready\n");
	fflush(stdout);
	while (!ended) {
		if (xdp_move(&a, &b) + xdp_move(&b, &a) == 0)
			poll(fds, 2, 1);
	}
	dmm_xsk_close(a.xsk);
	dmm_xsk_close(b.xsk);
	return 0;
}

int main(int argc, char **argv)
{
	signal(SIGTERM, on_signal);
	signal(SIGINT, on_signal);
	if (argc == 7 && !strcmp(argv[1], "tun"))
		return run_tun(argv + 2);
	if (argc == 7 && !strcmp(argv[1], "xdp"))
		return run_xdp(argv + 2);
	fprintf(stderr, "usage: inner_bench tun|xdp A1 A2 B1 B2 MTU\n");
	return 2;
}

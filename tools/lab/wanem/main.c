// SPDX-License-Identifier: Apache-2.0
/*
 * wanem: joins two Ethernet interfaces of its network namespace by an emulated wide-area link, one thread for
 *both directions.
 *
 *	wanem --control SOCKET [--watch-stdin] [--ring PKTS] [--pool PKTS] [--tick-us N] A B [KEY=VALUE...]
 *
 * KEY=VALUE as in control.h, for both directions; "ab." or "ba." before the key is for one. When frames flow
 *it prints one line, "ready", on stdout. With --watch-stdin it ends when stdin does, so that it cannot
 *outlive who started it.
 *
 * Time: frames carry the kernel's time of arrival, so how late the ring is read changes nothing as long as it
 *is read before the frame is due. While frames are in flight the thread wakes for what is due, at most once a
 *tick; with nothing in flight it sleeps until a frame comes.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "control.h"
#include "emu.h"
#include "port.h"

#define NS_PER_S 1000000000ULL
#define DRAIN_PKTS 512
#define RING_PKTS 8192
#define POOL_PKTS (1U << 18)
#define TICK_NS 40000
/* Room in a pool slot beyond the MTU: Ethernet header and two VLAN tags. */
#define SLOT_EXTRA_BYTES 32
#define SLOT_ALIGN_BYTES 64
/* The ring is read at least this often while frames are in flight. */
#define READ_EVERY_NS 1000000ULL

enum poll_slot {
	POLL_SIGNAL,
	POLL_STDIN,
	POLL_PORT_A,
	POLL_PORT_B,
	POLL_CONTROL,
	POLL_COUNT = POLL_CONTROL + CONTROL_POLL_FDS,
};

struct options {
	const char *control_path;
	const char *interfaces[2];
	bool watch_stdin;
	uint32_t ring_pkts;
	uint32_t pool_pkts;
	uint64_t tick_ns;
};

struct loop {
	struct wanem wanem;
	struct control control;
	struct options options;
	int signal_fd;
	uint64_t now_ns;
	uint64_t real_minus_mono_ns;
	bool more[2]; /* the ring was not read to its end */
};

static uint64_t clock_ns(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

static void read_clock(struct loop *loop)
{
	loop->now_ns = clock_ns(CLOCK_MONOTONIC);
	loop->real_minus_mono_ns = clock_ns(CLOCK_REALTIME) - loop->now_ns;
}

/* Moves what port i has received into its direction. */
static void drain(struct loop *loop, unsigned int i)
{
	struct wanem *wanem = &loop->wanem;
	struct emu *emu = &wanem->emus[i];

	loop->more[i] = true;
	for (unsigned int n = 0; n < DRAIN_PKTS; n++) {
		struct pkt *pkt = pool_get(&wanem->pool);
		uint64_t at_ns;

		if (!pkt) {
			/* Frames stay in the ring; when that is full the kernel drops and counts them. */
			loop->more[i] = false;
			return;
		}
		if (!port_receive(&wanem->ports[i], pkt, &at_ns)) {
			pool_put(&wanem->pool, pkt);
			loop->more[i] = false;
			return;
		}
		at_ns -= loop->real_minus_mono_ns;
		/* A step of the wall clock must not make a frame older than the last, or not yet arrived. */
		if (at_ns > loop->now_ns)
			at_ns = loop->now_ns;
		if (at_ns < emu->clock_ns)
			at_ns = emu->clock_ns;
		emu_arrive(emu, pkt, at_ns);
	}
}

static void send_due(struct loop *loop, unsigned int i)
{
	struct wanem *wanem = &loop->wanem;
	struct emu *emu = &wanem->emus[i];
	struct emu_stats *stats = &emu->stats;
	struct port *to = &wanem->ports[!i];
	struct pkt *pkt;

	emu_advance(emu, loop->now_ns);
	while ((pkt = emu_pop_due(emu, loop->now_ns))) {
		uint64_t late_ns = loop->now_ns - pkt->at_ns;

		stats->tx_pkts++;
		stats->tx_bytes += pkt->len;
		stats->late_sum_ns += (double)late_ns;
		if (late_ns > stats->late_max_ns)
			stats->late_max_ns = late_ns;
		port_send(to, &wanem->pool, pkt);
	}
	port_flush(to, &wanem->pool);
}

static bool any_more(const struct loop *loop)
{
	return loop->more[0] || loop->more[1];
}

/* How long to sleep, and whether an arriving frame should end the sleep. */
static uint64_t plan_sleep(const struct loop *loop, bool *hear_ports)
{
	const struct emu *emus = loop->wanem.emus;
	uint64_t next_ns = EMU_NEVER, shortest_ns = EMU_NEVER, wake_ns;

	for (unsigned int i = 0; i < 2; i++) {
		uint64_t due_ns = emu_next_ns(&emus[i]);

		next_ns = due_ns < next_ns ? due_ns : next_ns;
		shortest_ns = emus[i].params.delay_ns < shortest_ns ? emus[i].params.delay_ns : shortest_ns;
	}
	*hear_ports = true;
	if (next_ns == EMU_NEVER)
		return EMU_NEVER;
	/* With a delay worth a few ticks the ring is read in time without being told of every frame. */
	if (shortest_ns >= 4 * loop->options.tick_ns) {
		uint64_t read_ns = shortest_ns / 2 < READ_EVERY_NS ? shortest_ns / 2 : READ_EVERY_NS;

		*hear_ports = false;
		next_ns = next_ns < loop->now_ns + read_ns ? next_ns : loop->now_ns + read_ns;
	}
	wake_ns = loop->now_ns + loop->options.tick_ns;
	return next_ns > wake_ns ? next_ns : wake_ns;
}

static void wait_for_event(struct loop *loop, struct pollfd *fds)
{
	bool hear_ports;
	uint64_t wake_ns = plan_sleep(loop, &hear_ports), now_ns = clock_ns(CLOCK_MONOTONIC);
	struct timespec timeout = {0};

	if (wake_ns != EMU_NEVER && wake_ns > now_ns && !any_more(loop)) {
		timeout.tv_sec = (time_t)((wake_ns - now_ns) / NS_PER_S);
		timeout.tv_nsec = (long)((wake_ns - now_ns) % NS_PER_S);
	}
	fds[POLL_SIGNAL] = (struct pollfd){.fd = loop->signal_fd, .events = POLLIN};
	fds[POLL_STDIN] =
		(struct pollfd){.fd = loop->options.watch_stdin ? STDIN_FILENO : -1, .events = POLLIN};
	for (unsigned int i = 0; i < 2; i++)
		fds[POLL_PORT_A + i] =
			(struct pollfd){.fd = hear_ports ? loop->wanem.ports[i].rx_fd : -1, .events = POLLIN};
	control_poll_fds(&loop->control, &fds[POLL_CONTROL]);
	if (ppoll(fds, POLL_COUNT, wake_ns == EMU_NEVER && !any_more(loop) ? NULL : &timeout, NULL) < 0)
		for (unsigned int i = 0; i < POLL_COUNT; i++)
			fds[i].revents = 0;
}

static bool stdin_ended(void)
{
	char scrap[64];
	ssize_t n = read(STDIN_FILENO, scrap, sizeof(scrap));

	return n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR);
}

static void run(struct loop *loop)
{
	struct pollfd fds[POLL_COUNT];

	while (!loop->wanem.quit) {
		wait_for_event(loop, fds);
		read_clock(loop);
		for (unsigned int i = 0; i < 2; i++)
			drain(loop, i);
		for (unsigned int i = 0; i < 2; i++)
			send_due(loop, i);
		control_serve(&loop->control, &fds[POLL_CONTROL], &loop->wanem, loop->now_ns);
		if (fds[POLL_SIGNAL].revents || (fds[POLL_STDIN].revents && stdin_ended()))
			loop->wanem.quit = true;
	}
}

static int usage(void)
{
	fprintf(stderr,
		"usage: wanem --control SOCKET [--watch-stdin] [--ring PKTS] [--pool PKTS] [--tick-us N] "
		"A B [[ab.|ba.]KEY=VALUE...]\n");
	return 2;
}

static bool parse_count(const char *text, uint64_t least, uint64_t most, uint64_t *value)
{
	char *end;

	errno = 0;
	*value = strtoull(text, &end, 10);
	return !errno && end != text && !*end && *value >= least && *value <= most;
}

static bool parse_options(int argc, char **argv, struct options *options)
{
	static const struct option known[] = {
		{"control", required_argument, NULL, 'c'}, {"watch-stdin", no_argument, NULL, 'w'},
		{"ring", required_argument, NULL, 'r'},	   {"pool", required_argument, NULL, 'p'},
		{"tick-us", required_argument, NULL, 't'}, {0},
	};
	uint64_t value = 0;
	int c;

	*options = (struct options){.ring_pkts = RING_PKTS, .pool_pkts = POOL_PKTS, .tick_ns = TICK_NS};
	while ((c = getopt_long(argc, argv, "", known, NULL)) != -1) {
		bool good = true;

		if (c == 'c')
			options->control_path = optarg;
		else if (c == 'w')
			options->watch_stdin = true;
		else if (c == 'r')
			good = parse_count(optarg, 64, 1U << 20, &value),
			options->ring_pkts = (uint32_t)value;
		else if (c == 'p')
			good = parse_count(optarg, 64, 1U << 24, &value),
			options->pool_pkts = (uint32_t)value;
		else if (c == 't')
			good = parse_count(optarg, 1, 1000000, &value), options->tick_ns = value * 1000;
		else
			good = false;
		if (!good)
			return false;
	}
	if (argc - optind < 2 || !options->control_path)
		return false;
	options->interfaces[0] = argv[optind++];
	options->interfaces[1] = argv[optind++];
	return true;
}

static bool set_parameters(struct wanem *wanem, int argc, char **argv, uint64_t now_ns)
{
	for (int i = optind; i < argc; i++) {
		char *word = argv[i];
		unsigned int mask = !strncmp(word, "ab.", 3) ? 1 : !strncmp(word, "ba.", 3) ? 2 : 3;
		const char *why = control_set(wanem, mask, word + (mask == 3 ? 0 : 3), now_ns);

		if (why) {
			fprintf(stderr, "cannot set %s: %s\n", argv[i], why);
			return false;
		}
	}
	return true;
}

static int catch_signals(void)
{
	sigset_t signals;

	sigemptyset(&signals);
	sigaddset(&signals, SIGINT);
	sigaddset(&signals, SIGTERM);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	return signalfd(-1, &signals, SFD_CLOEXEC);
}

static int open_all(struct loop *loop)
{
	struct wanem *wanem = &loop->wanem;
	size_t slot_bytes = 0;
	int err;

	for (unsigned int i = 0; i < 2; i++) {
		err = port_init(&wanem->ports[i], loop->options.interfaces[i], loop->options.ring_pkts);
		if (err)
			return err;
		if (wanem->ports[i].mtu + SLOT_EXTRA_BYTES > slot_bytes)
			slot_bytes = wanem->ports[i].mtu + SLOT_EXTRA_BYTES;
	}
	slot_bytes = (slot_bytes + SLOT_ALIGN_BYTES - 1) / SLOT_ALIGN_BYTES * SLOT_ALIGN_BYTES;
	err = pool_init(&wanem->pool, loop->options.pool_pkts, slot_bytes);
	if (err) {
		fprintf(stderr, "cannot reserve %u frames: %s\n", loop->options.pool_pkts, strerror(-err));
		return err;
	}
	return control_init(&loop->control, loop->options.control_path);
}

int main(int argc, char **argv)
{
	static struct loop loop;
	struct wanem *wanem = &loop.wanem;

	if (!parse_options(argc, argv, &loop.options))
		return usage();
	loop.signal_fd = catch_signals();
	/* Sleeps end on time, and a busy host does not keep the emulator from its frames. */
	prctl(PR_SET_TIMERSLACK, 1UL);
	if (setpriority(PRIO_PROCESS, 0, -15) < 0)
		fprintf(stderr, "wanem: cannot raise the priority: %s; frames may be late\n",
			strerror(errno));
	read_clock(&loop);
	wanem->started_ns = loop.now_ns;
	for (unsigned int i = 0; i < 2; i++)
		emu_init(&wanem->emus[i], &wanem->pool, i, 1, loop.now_ns);
	if (!set_parameters(wanem, argc, argv, loop.now_ns))
		return 2;
	if (open_all(&loop))
		return 1;
	if (puts("ready") < 0 || fflush(stdout))
		return 1;
	run(&loop);
	control_deinit(&loop.control);
	for (unsigned int i = 0; i < 2; i++)
		port_deinit(&wanem->ports[i]);
	pool_deinit(&wanem->pool);
	return 0;
}

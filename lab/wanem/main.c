// SPDX-License-Identifier: Apache-2.0
/*
 * wanem: joins two Ethernet interfaces of its network namespace by an emulated wide-area link.
 *
 *	wanem --control SOCKET [--watch-stdin] [--ring PKTS] [--pool PKTS] [--tick-us N] A B
 *[KEY=VALUE...]
 *
 * KEY=VALUE as in control.h, for both directions; "ab." or "ba." before the key is for one. When
 * frames flow it prints one line, "ready", on stdout. With --watch-stdin it ends when stdin does,
 * so that it cannot outlive who started it. This thread serves the control socket; frames are
 * carried by a thread for each direction.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "control.h"
#include "direction.h"
#include "emu.h"

#define RING_PKTS 16384
#define POOL_PKTS (1U << 18)
#define TICK_NS 50000

enum poll_slot {
	POLL_SIGNAL,
	POLL_STDIN,
	POLL_CONTROL,
	POLL_COUNT = POLL_CONTROL + CONTROL_POLL_FDS,
};

struct options {
	const char *control_path;
	const char *interfaces[2];
	bool watch_stdin;
	uint64_t ring_pkts;
	uint64_t pool_pkts;
	uint64_t tick_us;
	struct control_target targets[2];
};

static bool stdin_ended(void)
{
	char scrap[64];
	ssize_t n = read(STDIN_FILENO, scrap, sizeof(scrap));

	return n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR);
}

static void serve(struct wanem *wanem, struct control *control, int signal_fd, bool watch_stdin)
{
	struct pollfd fds[POLL_COUNT];

	while (!wanem->quit) {
		fds[POLL_SIGNAL] = (struct pollfd){.fd = signal_fd, .events = POLLIN};
		fds[POLL_STDIN] =
			(struct pollfd){.fd = watch_stdin ? STDIN_FILENO : -1, .events = POLLIN};
		control_poll_fds(control, &fds[POLL_CONTROL]);
		if (poll(fds, POLL_COUNT, -1) < 0)
			continue;
		control_serve(control, &fds[POLL_CONTROL], wanem);
		if (fds[POLL_SIGNAL].revents || (fds[POLL_STDIN].revents && stdin_ended()))
			wanem->quit = true;
	}
}

static int usage(void)
{
	fprintf(stderr, "usage: wanem --control SOCKET [--watch-stdin] [--ring PKTS] [--pool PKTS] "
			"[--tick-us N] "
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
	bool good = true;
	int c;

	while (good && (c = getopt_long(argc, argv, "", known, NULL)) != -1) {
		if (c == 'c')
			options->control_path = optarg;
		else if (c == 'w')
			options->watch_stdin = true;
		else if (c == 'r')
			good = parse_count(optarg, 64, 1U << 20, &options->ring_pkts);
		else if (c == 'p')
			good = parse_count(optarg, 64, 1U << 24, &options->pool_pkts);
		else if (c == 't')
			good = parse_count(optarg, 1, 1000000, &options->tick_us);
		else
			good = false;
	}
	if (!good || argc - optind < 2 || !options->control_path)
		return false;
	options->interfaces[0] = argv[optind++];
	options->interfaces[1] = argv[optind++];
	return true;
}

static bool parse_parameters(int argc, char **argv, struct options *options)
{
	for (int i = optind; i < argc; i++) {
		char *word = argv[i];
		unsigned int mask = !strncmp(word, "ab.", 3) ? 1 : !strncmp(word, "ba.", 3) ? 2 : 3;
		const char *why =
			control_assign(options->targets, mask, word + (mask == 3 ? 0 : 3));

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

static int start_directions(struct wanem *wanem, const struct options *options)
{
	int err = 0;

	for (uint32_t i = 0; i < 2 && !err; i++) {
		const struct direction_config config = {
			.from = options->interfaces[i],
			.to = options->interfaces[!i],
			.index = i,
			.ring_pkts = (uint32_t)options->ring_pkts,
			.pool_pkts = (uint32_t)options->pool_pkts,
			.tick_ns = options->tick_us * 1000,
			.params = options->targets[i].params,
			.seed = options->targets[i].seed,
		};

		err = direction_init(&wanem->directions[i], &config);
	}
	for (uint32_t i = 0; i < 2 && !err; i++)
		err = direction_start(&wanem->directions[i]);
	return err;
}

int main(int argc, char **argv)
{
	static struct wanem wanem;
	static struct control control;
	struct options options = {
		.ring_pkts = RING_PKTS, .pool_pkts = POOL_PKTS, .tick_us = TICK_NS / 1000};
	int signal_fd = catch_signals();

	for (unsigned int i = 0; i < 2; i++) {
		options.targets[i].params.overhead_bytes = EMU_ETHERNET_OVERHEAD_BYTES;
		options.targets[i].seed = 1;
	}
	if (!parse_options(argc, argv, &options))
		return usage();
	if (!parse_parameters(argc, argv, &options))
		return 2;
	wanem.started_ns = clock_now_ns();
	/* A failure ends the process, and the kernel takes back what was opened. */
	if (signal_fd < 0 || control_init(&control, options.control_path))
		return 1;
	if (start_directions(&wanem, &options) || puts("ready") < 0 || fflush(stdout)) {
		control_deinit(&control);
		return 1;
	}
	serve(&wanem, &control, signal_fd, options.watch_stdin);
	control_deinit(&control);
	for (unsigned int i = 0; i < 2; i++)
		direction_deinit(&wanem.directions[i]);
	return 0;
}

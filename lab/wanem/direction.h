/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One direction of the link: it receives from one interface, and sends to the other what its
 * emulator gives it, on a thread of its own.
 *
 * A thread each, because the kernel does the receiving host's protocol work inside the call that
 * hands a frame over: TCP with a large scoreboard then holds the caller for up to 0.2 s (seen: 1
 * Gb/s, 100 ms, 9,000 queue drops). That may make this host's frames late, as a slow host does to
 * itself, but must not hold the other direction up.
 *
 * Time: frames carry the kernel's time of arrival, so how late the ring is read changes nothing, as
 * long as it is read before the frame is due and before the ring is full. While frames are under
 * way the thread wakes for what is due, at most once a tick; with nothing under way it sleeps until
 * a frame comes.
 */
#ifndef WANEM_DIRECTION_H
#define WANEM_DIRECTION_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "emu.h"
#include "port.h"

struct direction {
	/* held by the thread while it works, by the control while it reads or sets */
	pthread_mutex_t lock;
	pthread_t thread;
	bool running;
	bool lock_wanted;
	int wake_fd; /* eventfd: the parameters have changed, or it is time to end */
	bool quit;
	uint32_t index; /* 0: from A to B */
	/* The thread's alone, planned under the lock and slept by without it. */
	uint64_t wake_ns;
	bool hear_port;
	bool more;	   /* the ring was not read to its end */
	bool blocked;	   /* the receiving host has no room just now */
	uint64_t moved_ns; /* when it last had */
	uint64_t tick_ns;
	uint64_t now_ns;
	uint64_t real_minus_mono_ns;
	struct rx_port rx;
	struct tx_port tx;
	struct pool pool;
	struct emu emu;
};

struct direction_config {
	const char *from;
	const char *to;
	uint32_t index; /* 0: from A to B */
	uint32_t ring_pkts;
	uint32_t pool_pkts;
	uint64_t tick_ns;
	struct emu_params params;
	uint64_t seed;
};

uint64_t clock_now_ns(void);
/* Says on stderr why it cannot; -errno. direction_deinit is right after a failure as well. */
int direction_init(struct direction *direction, const struct direction_config *config);
int direction_start(struct direction *direction);
/* For every other thread: what is under the lock stands still until it is given back. */
void direction_lock(struct direction *direction);
void direction_unlock(struct direction *direction);
/* Wakes the thread, so that it sees new parameters. */
void direction_wake(struct direction *direction);
/* Ends the thread, if it runs, and frees everything. */
void direction_deinit(struct direction *direction);

#endif

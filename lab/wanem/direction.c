// SPDX-License-Identifier: Apache-2.0
/* The loop of one direction; see direction.h. Refuses nothing: what it cannot deliver in time it
 * delivers late. */
#define _GNU_SOURCE
#include "direction.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "../../dmm_ebpf/userstack/core/units.h"

/* Frames taken from the ring before what is due gets its turn. */
#define DRAIN_PKTS 512
/* Room in a pool slot beyond the MTU: Ethernet header and two VLAN tags. */
#define SLOT_EXTRA_BYTES 32
#define SLOT_ALIGN_BYTES 64
/* The ring is read at least this often while frames are under way. */
#define READ_EVERY_NS 1000000ULL
/* An interface that takes nothing for this long is down: its frames are then lost, and counted. */
#define GIVE_UP_NS NS_PER_S
#define NICE (-15)
/*
 * Longer than it takes to read a clock twice; shorter than what a frame's delivery may be wrong by.
 */
#define CLOCKS_APART_NS 20000ULL

static uint64_t clock_ns(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

uint64_t clock_now_ns(void)
{
	return clock_ns(CLOCK_MONOTONIC);
}

/*
 * A thread that loses the processor between two clocks takes the pause for their difference, and
 * would deliver what it reads early by that much.
 */
static void read_clock(struct direction *direction)
{
	uint64_t before_ns, real_ns, now_ns;

	do {
		before_ns = clock_now_ns();
		real_ns = clock_ns(CLOCK_REALTIME);
		now_ns = clock_now_ns();
	} while (now_ns - before_ns > CLOCKS_APART_NS);
	direction->now_ns = now_ns;
	direction->real_minus_mono_ns = real_ns - now_ns;
}

/* Moves what has been received into the emulator. */
static void drain(struct direction *direction)
{
	struct emu *emu = &direction->emu;

	direction->more = false;
	for (unsigned int n = 0; n < DRAIN_PKTS; n++) {
		struct pkt *pkt = pool_get(&direction->pool);
		uint64_t at_ns;

		/* Without room here frames stay in the ring; when that is full the kernel drops and
		 * counts them. */
		if (!pkt)
			return;
		if (!rx_receive(&direction->rx, pkt, &at_ns)) {
			pool_put(&direction->pool, pkt);
			return;
		}
		at_ns -= direction->real_minus_mono_ns;
		/*
		 * A step of the wall clock must not make a frame older than the last, or
		 * not yet arrived.
		 */
		if (at_ns > direction->now_ns)
			at_ns = direction->now_ns;
		if (at_ns < emu->clock_ns)
			at_ns = emu->clock_ns;
		emu_arrive(emu, pkt, at_ns);
	}
	direction->more = true;
}

static void send_due(struct direction *direction)
{
	struct emu *emu = &direction->emu;
	struct emu_stats *stats = &emu->stats;
	struct tx_port *tx = &direction->tx;
	struct pkt *pkt;
	bool full;

	/* Only up to the last frame that was read: a later one may have arrived before now. */
	emu_advance(emu, direction->more ? emu->clock_ns : direction->now_ns);
	do {
		while (!tx_is_full(tx) && (pkt = emu_pop_due(emu, direction->now_ns))) {
			uint64_t late_ns = direction->now_ns - pkt->at_ns;

			stats->tx_pkts++;
			stats->tx_bytes += pkt->len;
			stats->late_sum_ns += (double)late_ns;
			if (late_ns > stats->late_max_ns)
				stats->late_max_ns = late_ns;
			tx_push(tx, pkt);
		}
		full = tx_is_full(tx);
		direction->blocked = !tx_flush(tx, &direction->pool);
	} while (full && !direction->blocked);
	if (!direction->blocked) {
		direction->moved_ns = direction->now_ns;
	} else if (direction->now_ns > direction->moved_ns + GIVE_UP_NS) {
		tx_abandon(tx, &direction->pool);
		direction->blocked = false;
	}
}

/* When to wake, and whether an arriving frame should do so sooner. */
static void plan_sleep(struct direction *direction)
{
	uint64_t next_ns = emu_next_ns(&direction->emu);
	uint64_t delay_ns = direction->emu.params.delay_ns;
	uint64_t tick_end_ns = direction->now_ns + direction->tick_ns;
	uint64_t read_ns;

	direction->hear_port = true;
	direction->wake_ns = EMU_NEVER;
	if (direction->more) {
		direction->wake_ns = direction->now_ns;
	} else if (direction->blocked) {
		direction->wake_ns = tick_end_ns;
	} else if (next_ns != EMU_NEVER) {
		/* With a delay worth a few ticks the ring is read in time without being told of
		 * every frame.
		 */
		if (delay_ns >= 4 * direction->tick_ns) {
			read_ns = delay_ns < 2 * READ_EVERY_NS ? delay_ns / 2 : READ_EVERY_NS;
			read_ns += direction->now_ns;
			direction->hear_port = false;
			next_ns = next_ns < read_ns ? next_ns : read_ns;
		}
		direction->wake_ns = next_ns > tick_end_ns ? next_ns : tick_end_ns;
	}
}

static void wait_for_event(struct direction *direction)
{
	uint64_t wake_ns = direction->wake_ns, now_ns = clock_now_ns();
	uint64_t left_ns = wake_ns > now_ns ? wake_ns - now_ns : 0;
	struct timespec timeout;
	struct pollfd fds[2] = {
		{.fd = direction->wake_fd, .events = POLLIN},
		{.fd = direction->hear_port ? direction->rx.fd : -1, .events = POLLIN},
	};
	eventfd_t scrap;
	int error;
	socklen_t error_bytes = sizeof(error);

	/* A mutex is not fair: without a pause a busy thread would take it again and again. */
	if (!left_ns && __atomic_load_n(&direction->lock_wanted, __ATOMIC_ACQUIRE))
		left_ns = direction->tick_ns;
	if (!left_ns)
		return;
	timeout.tv_sec = (time_t)(left_ns / NS_PER_S);
	timeout.tv_nsec = (long)(left_ns % NS_PER_S);
	if (ppoll(fds, 2, wake_ns == EMU_NEVER ? NULL : &timeout, NULL) <= 0)
		return;
	if (fds[0].revents)
		eventfd_read(direction->wake_fd, &scrap);
	/* An interface that was taken down reports it until it is read, and would keep this thread
	 * spinning.
	 */
	if (fds[1].revents & POLLERR)
		getsockopt(direction->rx.fd, SOL_SOCKET, SO_ERROR, &error, &error_bytes);
}

/*
 * Frames sent into a veth wait in a queue of the sending processor. A thread that moved to another
 * would send later frames past those that wait: reordering that nobody asked for. Each direction
 * stays where it starts.
 */
static void stay_on_one_processor(uint32_t index)
{
	cpu_set_t allowed, one;
	uint32_t nth;

	if (sched_getaffinity(0, sizeof(allowed), &allowed) < 0) {
		fprintf(stderr, "cannot read the allowed processors: %s; frames may be reordered\n",
			strerror(errno));
		return;
	}
	nth = index % (uint32_t)CPU_COUNT(&allowed);
	CPU_ZERO(&one);
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		if (!CPU_ISSET(cpu, &allowed) || nth--)
			continue;
		CPU_SET(cpu, &one);
		break;
	}
	if (sched_setaffinity(0, sizeof(one), &one) < 0)
		fprintf(stderr, "cannot stay on one processor: %s; frames may be reordered\n",
			strerror(errno));
}

static void *run(void *argument)
{
	struct direction *direction = argument;

	/* Sleeps end on time, and a busy host does not keep the emulator from its frames; both are
	 * the thread's. */
	prctl(PR_SET_TIMERSLACK, 1UL);
	if (setpriority(PRIO_PROCESS, 0, NICE) < 0)
		fprintf(stderr, "cannot raise the emulator's priority: %s; frames may be late\n",
			strerror(errno));
	stay_on_one_processor(direction->index);
	while (!__atomic_load_n(&direction->quit, __ATOMIC_ACQUIRE)) {
		wait_for_event(direction);
		pthread_mutex_lock(&direction->lock);
		read_clock(direction);
		drain(direction);
		send_due(direction);
		plan_sleep(direction);
		pthread_mutex_unlock(&direction->lock);
	}
	return NULL;
}

static int open_ports(struct direction *direction, const struct direction_config *config)
{
	int from_mtu = port_mtu(config->from), to_mtu = port_mtu(config->to);
	size_t slot_bytes;
	int err;

	if (from_mtu < 0 || to_mtu < 0) {
		err = from_mtu < 0 ? from_mtu : to_mtu;
		fprintf(stderr, "cannot use %s as Ethernet: %s\n",
			from_mtu < 0 ? config->from : config->to, strerror(-err));
		return err;
	}
	slot_bytes = (size_t)from_mtu + SLOT_EXTRA_BYTES;
	slot_bytes = (slot_bytes + SLOT_ALIGN_BYTES - 1) / SLOT_ALIGN_BYTES * SLOT_ALIGN_BYTES;
	err = pool_init(&direction->pool, config->pool_pkts, slot_bytes);
	if (err) {
		fprintf(stderr, "cannot reserve %u frames: %s\n", config->pool_pkts,
			strerror(-err));
		return err;
	}
	err = rx_init(&direction->rx, config->from, (uint32_t)from_mtu, config->ring_pkts);
	return err ? err : tx_init(&direction->tx, config->to);
}

int direction_init(struct direction *direction, const struct direction_config *config)
{
	*direction = (struct direction){
		.index = config->index,
		.tick_ns = config->tick_ns,
		.wake_fd = -1,
		.rx.fd = -1,
		.tx.fd = -1,
	};
	pthread_mutex_init(&direction->lock, NULL);
	direction->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (direction->wake_fd < 0) {
		int err = errno;

		fprintf(stderr, "cannot make an eventfd: %s\n", strerror(err));
		return -err;
	}
	read_clock(direction);
	emu_init(&direction->emu, &direction->pool, config->index, config->seed, direction->now_ns);
	emu_set(&direction->emu, &config->params, direction->now_ns);
	return open_ports(direction, config);
}

int direction_start(struct direction *direction)
{
	int err = pthread_create(&direction->thread, NULL, run, direction);

	if (err)
		fprintf(stderr, "cannot start a thread: %s\n", strerror(err));
	direction->running = !err;
	return -err;
}

void direction_lock(struct direction *direction)
{
	__atomic_store_n(&direction->lock_wanted, true, __ATOMIC_RELEASE);
	pthread_mutex_lock(&direction->lock);
	__atomic_store_n(&direction->lock_wanted, false, __ATOMIC_RELEASE);
}

void direction_unlock(struct direction *direction)
{
	pthread_mutex_unlock(&direction->lock);
}

void direction_wake(struct direction *direction)
{
	eventfd_write(direction->wake_fd, 1);
}

void direction_deinit(struct direction *direction)
{
	if (direction->running) {
		__atomic_store_n(&direction->quit, true, __ATOMIC_RELEASE);
		direction_wake(direction);
		pthread_join(direction->thread, NULL);
	}
	rx_deinit(&direction->rx);
	tx_deinit(&direction->tx);
	pool_deinit(&direction->pool);
	if (direction->wake_fd >= 0)
		close(direction->wake_fd);
	pthread_mutex_destroy(&direction->lock);
}

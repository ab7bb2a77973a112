// SPDX-License-Identifier: Apache-2.0
/*
 * engine.c: see engine.h.
 *
 * One turn of the loop: read what the inner legs have, read what the NICs have, carry out what the
 * core asks, run timers, send to the NICs, write to the inner legs. Each step has a budget, so that
 * neither leg waits long for the other; when a step used its budget up, the next turn starts
 * without waiting.
 *
 * Order matters in two places. Actions come before output, so that a flow is in xdp_flows before
 * its SYN leaves, cookie_state is told of a SYN cookie before that leaves, and stack_load that the
 * stack is full before the app learns that its connection is open; all by frames to the program on
 * the TAP device of an inner leg. A packet is pulled from the core only when there is a place for
 * it: the core keeps what cannot be sent, and that is what makes the window of the other leg close.
 *
 * Locks: `gate` is taken before `lock` and released as soon as `lock` is held, by everybody. A
 * thread that waits for `lock` holds the gate, so the loop, which wants both again after each turn,
 * cannot starve it.
 */
#include "engine.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "core/units.h"
#include "engine_int.h"

#define ABORT_NS (4 * NS_PER_S) /* the longest that resets of all connections may take */
#define BEAT_NS (NS_PER_S / 4)
#define TX_RETRY_NS 50000ull /* a full NIC: completions come without an event to wait for */
#define DOWN_RETRY_NS (NS_PER_S / 100)
#define PAUSE_NS 1000000ull /* a turn takes less, unless the scheduler took the processor away */
#define MAX_TURNS_WITHOUT_TIMERS 64u

uint64_t engine_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

static void wake(struct dmm_engine *e)
{
	uint64_t one = 1;

	while (write(e->wake_fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

/* ---- the core's actions ---- */

/*
 * A frame to the program at the ingress of a TAP device of our own (bpf/ingress.h), which runs
 * within write(2). False: it was not sent.
 */
static bool ask(struct dmm_engine *e, struct dmm_ask *what)
{
	static const struct dmm_vnet plain;
	uint8_t buf[DMM_TAP_HEADROOM - DMM_TAP_ETH_BYTES + sizeof(*what)];

	what->eth[DMM_TAP_ETH_BYTES - 2] = DMM_ASK_TYPE >> 8;
	what->eth[DMM_TAP_ETH_BYTES - 1] = DMM_ASK_TYPE & 0xff;
	memcpy(buf + DMM_TAP_HEADROOM - DMM_TAP_ETH_BYTES, what, sizeof(*what));
	return e->n_nic && dmm_tap_write(e->nic[0].inner_fd, buf, sizeof(*what) - DMM_TAP_ETH_BYTES,
					 NULL, &plain) == 0;
}

static void own(struct dmm_engine *e, const struct dmm_action *action, uint64_t now)
{
	struct dmm_ask claim = {.op = DMM_ASK_CLAIM, .conn = action->conn};

	memcpy(&claim.pair, &action->pair, sizeof(claim.pair));
	e->stats.flows_owned++;
	if (!ask(e, &claim))
		engine_refused(e, &claim, now);
}

/*
 * Its packets would go to the kernel, or to who has it: a full map, or somebody else's connection.
 */
void engine_refused(struct dmm_engine *e, const struct dmm_ask *claim, uint64_t now)
{
	e->stats.flows_owned--;
	/* That somebody else has a connection says nothing of whether we have room. */
	if (claim->op != DMM_ASK_TAKEN)
		e->stats.flow_errors++;
	dmm_core_unreachable(e->core, claim->conn, EHOSTUNREACH, now);
}

static void disown(struct dmm_engine *e, const struct dmm_action *action)
{
	struct dmm_ask end = {.op = DMM_ASK_DISOWN};

	memcpy(&end.pair, &action->pair, sizeof(end.pair));
	if (!ask(e, &end))
		e->stats.flow_errors++;
}

/*
 * That we live, whether we are full, and until when XDP may give us ACKs of no flow, since they may
 * carry our cookies. Returns when to tell it again at the latest.
 */
static uint64_t tell_state(struct dmm_engine *e, uint64_t now)
{
	uint64_t cookies_ns = dmm_core_cookies_until_ns(e->core);
	struct dmm_ask state = {
		.op = DMM_ASK_STATE, .full = e->load.full, .cookies_until_ns = cookies_ns};

	if (state.full == e->load_told && cookies_ns == e->cookies_told_ns && now < e->beat_ns)
		return e->beat_ns;
	e->load_told = state.full;
	e->cookies_told_ns = cookies_ns;
	e->beat_ns = now + BEAT_NS;
	if (!ask(e, &state))
		e->beat_ns = now; /* the next turn tries again */
	return now + BEAT_NS;
}

/* Returns when to look again at the latest. */
static uint64_t look_at_load(struct dmm_engine *e, uint64_t now)
{
	struct dmm_core_memory memory;
	uint64_t again_ns, beat_ns;

	dmm_core_memory(e->core, &memory);
	load_update(&e->load,
		    &(struct load_signs){
			    .in_use = dmm_core_in_use(e->core),
			    .memory_bytes = memory.payload_bytes,
			    .memory_limit_bytes = memory.payload_limit_bytes,
			    .refused = dmm_core_counter(e->core, DMM_CORE_REFUSED_LIMIT) +
				       e->stats.flow_errors,
			    .sent_pkts = e->stats.nic_tx_pkts,
			    .blocked = e->nic_blocked,
		    },
		    now);
	beat_ns = tell_state(e, now);
	again_ns = load_again_ns(&e->load);
	return again_ns < beat_ns ? again_ns : beat_ns;
}

static void run_actions(struct dmm_engine *e)
{
	uint64_t now = engine_now_ns();
	struct dmm_action action;

	tell_state(e, now);
	while (dmm_core_action(e->core, &action)) {
		if (action.type == DMM_ACTION_OWN)
			own(e, &action, now);
		else if (action.type == DMM_ACTION_DISOWN)
			disown(e, &action);
	}
}

/* ---- the loop ---- */

/*
 * An ACK that waits to be read after a pause of ours is not late: a timer that ran before it would
 * hold its segment for lost. A flood of packets must not stop the timers, though.
 */
static bool timers_may_run(struct dmm_engine *e, uint64_t now)
{
	bool unread = e->unread || now - e->read_ns > PAUSE_NS;

	if (unread && ++e->turns_without_timers < MAX_TURNS_WITHOUT_TIMERS)
		return false;
	e->turns_without_timers = 0;
	return true;
}

/* When to look again at the latest, given that packets are kept for later */
static uint64_t kept_due(const struct dmm_engine *e, uint64_t now, uint64_t due)
{
	uint64_t kept_ns = e->faults_blocked ? now + TX_RETRY_NS : faults_due_ns(&e->faults);

	return kept_ns < due ? kept_ns : due;
}

/*
 * One turn. Returns when the next is due at the latest. Every step reads the clock itself: a turn
 * may be interrupted for milliseconds, and an ACK stamped with the time of its beginning would make
 * the path look shorter than it is.
 */
static uint64_t turn(struct dmm_engine *e)
{
	e->more = false;
	e->unread = false;
	e->read_ns = engine_now_ns();
	if (e->faults.kept)
		engine_faults_release(e);
	engine_inner_in(e);
	run_actions(e);
	engine_nic_out(e);
	for (uint32_t i = 0; i < e->n_port; i++)
		engine_port_in(e, i);
	engine_datagrams_due(e);
	run_actions(e);
	look_at_load(e, engine_now_ns());

	uint64_t now = engine_now_ns();

	if (timers_may_run(e, now))
		dmm_core_poll(e->core, now);
	run_actions(e);
	engine_inner_out(e);
	engine_nic_out(e);
	run_actions(e);

	now = engine_now_ns();
	if (e->more || !timers_may_run(e, now))
		return now;
	for (uint32_t i = 0; i < e->n_port; i++)
		e->nic_blocked = e->nic_blocked || (e->port[i].again && engine_may_send_by(e, i));
	/*
	 * Last, because what was just sent has armed timers. Output that found no room makes
	 * it say "now".
	 */
	uint64_t due = dmm_core_poll(e->core, now);
	uint64_t look_ns = look_at_load(e, now);

	due = look_ns < due ? look_ns : due;
	if (e->faults.kept)
		due = kept_due(e, now, due);
	if (e->inner_tx_len || (e->nic_blocked && !e->port[e->first].down))
		return now + TX_RETRY_NS;
	return e->nic_blocked && now + DOWN_RETRY_NS < due ? now + DOWN_RETRY_NS : due;
}

static nfds_t poll_set(const struct dmm_engine *e, struct pollfd *fds)
{
	nfds_t n = 0;

	fds[n++] = (struct pollfd){.fd = e->wake_fd, .events = POLLIN};
	for (uint32_t i = 0; i < e->n_nic; i++)
		fds[n++] = (struct pollfd){
			.fd = e->nic[i].inner_fd,
			.events = (short)(POLLIN |
					  (e->inner_tx_len && e->inner_tx_nic == i ? POLLOUT : 0))};
	for (uint32_t i = 0; i < e->n_port; i++)
		fds[n++] = (struct pollfd){.fd = port_fd(&e->port[i]), .events = POLLIN};
	return n;
}

static void wait_until(struct dmm_engine *e, uint64_t due)
{
	struct pollfd fds[MAX_PORTS + MAX_NICS + 1];
	nfds_t n = poll_set(e, fds);
	uint64_t now = engine_now_ns();
	uint64_t left = due > now ? due - now : 0;
	struct timespec ts = {.tv_sec = (time_t)(left / NS_PER_S),
			      .tv_nsec = (long)(left % NS_PER_S)};
	uint64_t drained;

	engine_unlock(e);
	int ready = ppoll(fds, n, due == UINT64_MAX ? NULL : &ts, NULL);

	engine_lock(e);
	e->stats.waits++;
	if (ready <= 0)
		return;
	if (fds[0].revents)
		while (read(e->wake_fd, &drained, sizeof(drained)) < 0 && errno == EINTR)
			;
	for (nfds_t i = 1; i < n; i++)
		if (fds[i].revents & (POLLERR | POLLHUP | POLLNVAL))
			e->error = -ENODEV;
	for (uint32_t i = 0; i < e->n_port; i++)
		e->port[i].readable = fds[1 + e->n_nic + i].revents & POLLIN;
}

static void abort_all(struct dmm_engine *e)
{
	uint64_t until_ns = engine_now_ns() + ABORT_NS;

	dmm_core_abort_all(e->core, engine_now_ns());
	while (!e->error && engine_now_ns() < until_ns) {
		uint64_t before =
			e->stats.nic_tx_pkts + e->stats.inner_tx_pkts + e->stats.nic_tx_no_link;

		turn(e);
		if (!e->more && !e->nic_blocked && !e->inner_tx_len &&
		    before ==
			    e->stats.nic_tx_pkts + e->stats.inner_tx_pkts + e->stats.nic_tx_no_link)
			return;
		if (e->nic_blocked || e->inner_tx_len)
			wait_until(e, engine_now_ns() + NS_PER_S / 1000);
	}
}

/* Whether packets came so recently that the next is looked for rather than waited for */
static bool busy(struct dmm_engine *e, uint64_t received_before)
{
	uint64_t now;

	if (!e->busy_poll_ns)
		return false;
	now = engine_now_ns();
	if (e->stats.inner_rx_pkts + e->stats.nic_rx_pkts != received_before)
		e->busy_from_ns = now;
	return now - e->busy_from_ns < e->busy_poll_ns;
}

int dmm_engine_run(struct dmm_engine *e)
{
	/* Timers of a paced sender are finer than the default slack of 50 us. */
	prctl(PR_SET_TIMERSLACK, 1000ul, 0, 0, 0);
	engine_lock(e);
	for (;;) {
		uint64_t received = e->stats.inner_rx_pkts + e->stats.nic_rx_pkts;
		uint64_t due = turn(e);

		capture_flush(&e->capture);
		uint32_t stop = __atomic_load_n(&e->stop, __ATOMIC_ACQUIRE);

		if (stop == 2)
			abort_all(e);
		if (stop || e->error)
			break;
		if (!busy(e, received) && due > engine_now_ns()) {
			wait_until(e, due);
		} else {
			engine_unlock(e);
			engine_lock(e);
		}
	}
	engine_unlock(e);
	return e->error;
}

void dmm_engine_stop(struct dmm_engine *e, uint32_t abort)
{
	__atomic_store_n(&e->stop, abort ? 2u : 1u, __ATOMIC_RELEASE);
	wake(e);
}

/* ---- life ---- */

struct dmm_engine *dmm_engine_create(const struct dmm_engine_config *config)
{
	struct dmm_engine *e = calloc(1, sizeof(*e));

	if (!e)
		return NULL;
	e->load.max_connections = config->max_connections ? config->max_connections : UINT32_MAX;
	e->load_told = UINT32_MAX; /* whatever a process before this one said */
	e->busy_poll_ns = config->busy_poll_us * 1000ull;
	e->first = MAX_PORTS;
	e->capture.fd = -1;
	e->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	e->inner_tx = malloc(DMM_TAP_HEADROOM + DMM_TAP_MAX_PKT + 1);
	e->core = dmm_core_create(&config->core);
	e->rx = e->core ? dmm_core_buffer(e->core) : NULL;
	pthread_mutex_init(&e->gate, NULL);
	pthread_mutex_init(&e->lock, NULL);
	if (e->wake_fd < 0 || !e->rx || !e->inner_tx) {
		dmm_engine_destroy(e);
		return NULL;
	}
	return e;
}

void dmm_engine_destroy(struct dmm_engine *e)
{
	if (!e)
		return;
	for (uint32_t i = 0; i < e->n_port; i++)
		port_close(&e->port[i]);
	if (e->core)
		dmm_core_destroy(e->core);
	for (uint32_t i = 0; i < e->n_nic; i++)
		close(e->nic[i].inner_fd);
	capture_end(&e->capture);
	faults_free(&e->faults);
	free(e->inner_tx);
	if (e->wake_fd >= 0)
		close(e->wake_fd);
	pthread_mutex_destroy(&e->gate);
	pthread_mutex_destroy(&e->lock);
	free(e);
}

int dmm_engine_nic_add(struct dmm_engine *e, const struct dmm_engine_nic *config)
{
	if (e->n_nic == MAX_NICS)
		return -ENOSPC;
	struct nic *nic = &e->nic[e->n_nic];

	nic->inner_fd = config->inner_fd;
	nic->mtu = config->mtu;
	nic->software = config->software;
	nic->generic = config->generic;
	nic->by = DMM_PORT_TAP;
	nic->by_kernel = MAX_PORTS;
	memcpy(nic->mac, config->mac, MAC_BYTES);
	return (int)e->n_nic++;
}

bool engine_may_send_by(const struct dmm_engine *e, uint32_t i)
{
	const struct port *port = &e->port[i];

	return port->kind == e->nic[port->nic].by || port->caps->by_kernel;
}

/* The same, but for flows that are away */
static bool sends_by(const struct dmm_engine *e, uint32_t i)
{
	return e->port[i].kind == e->nic[e->port[i].nic].by;
}

/* What may be left to a NIC: to all of its ports that it is sent by. */
static void offload_chosen(struct dmm_engine *e, uint32_t number)
{
	uint32_t segments_bytes = UINT32_MAX;
	bool csum = true, any = false;

	for (uint32_t i = 0; i < e->n_port; i++) {
		struct port *port = &e->port[i];

		if (port->nic != number || !sends_by(e, i))
			continue;
		any = true;
		port->csum = port->caps->csum;
		csum = csum && port->csum;
		if (port->caps->segments_bytes < segments_bytes)
			segments_bytes = port->caps->segments_bytes;
	}
	if (!csum || faults_wanted(&e->faults, DMM_LEG_OUTER, DMM_OUTBOUND))
		segments_bytes = 0;
	if (any)
		dmm_core_set_outer_offload(e->core, number + 1, segments_bytes, csum);
}

/*
 * Whether the core had better write to a than to b: one that is up, then one with longer packets.
 */
static bool port_is_better(const struct port *a, const struct port *b)
{
	return a->down != b->down ? b->down : a->caps->room_bytes > b->caps->room_bytes;
}

void engine_ports_chosen(struct dmm_engine *e)
{
	e->first = MAX_PORTS;
	for (uint32_t i = 0; i < e->n_port; i++)
		if (sends_by(e, i) &&
		    (e->first == MAX_PORTS || port_is_better(&e->port[i], &e->port[e->first])))
			e->first = i;
	for (uint32_t i = 0; i < e->n_nic; i++)
		offload_chosen(e, i);
}

int dmm_engine_port_add(struct dmm_engine *e, uint32_t nic, enum dmm_port_kind kind, void *device)
{
	struct port *port = &e->port[e->n_port];
	struct nic *to = &e->nic[nic];

	if (nic >= e->n_nic || e->n_port == MAX_PORTS || to->ports[kind].n == MAX_NIC_PORTS)
		return -ENOSPC;
	*port = (struct port){.kind = kind, .device = device, .nic = nic};
	port->caps = port_caps(port);
	to->ports[kind].at[to->ports[kind].n++] = e->n_port;
	if (port->caps->by_kernel)
		to->by_kernel = e->n_port;
	else
		to->by = kind;
	e->n_port++;
	engine_ports_chosen(e);
	return 0;
}

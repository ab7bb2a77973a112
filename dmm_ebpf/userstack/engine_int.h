/* SPDX-License-Identifier: Apache-2.0 */
/*
 * engine_int.h: the engine's own state, shared by engine.c (loop, actions), engine_io.c (packets in
 * and out) and engine_calls.c (other threads). Everything is under the engine's lock but stop and
 * wake_fd.
 */
#ifndef DMM_ENGINE_INT_H
#define DMM_ENGINE_INT_H

#include <pthread.h>
#include <stdbool.h>

#include "capture.h"
#include "engine.h"
#include "load.h"
#include "port.h"

enum { MAX_NICS = 16, MAX_PORTS = 144, MAC_BYTES = 6 };

_Static_assert((int)MAX_NICS < (int)DMM_CORE_DEVICES, "each NIC has offloads of its own");

struct nic {
	int inner_fd; /* TAP device of the inner leg */
	uint8_t mac[MAC_BYTES];
	uint32_t mtu;
	uint32_t software, generic;
	uint32_t n_xsk;
	uint32_t xsk[64]; /* indices of the engine's ports that are AF_XDP sockets, */
	uint32_t tap;	  /* and of the one that is a TAP device; MAX_PORTS: there is none */
	bool by_tap;	  /* it is sent by that one */
};

struct dmm_engine {
	struct dmm_core *core;
	int wake_fd;
	uint64_t busy_poll_ns; /* after the last packet the loop does not sleep for so long */
	uint64_t busy_from_ns; /* when that packet came */
	uint64_t cookies_told_ns;
	struct load load;
	uint32_t load_told;
	uint64_t beat_ns; /* when the programs are told again that this process lives */
	uint32_t n_nic, n_port;
	/* of the ports that are sent by the one with the most room; MAX_PORTS: there is none */
	uint32_t first;
	struct nic nic[MAX_NICS];
	struct port port[MAX_PORTS];
	struct dmm_engine_stats stats;
	struct capture capture;
	uint8_t *inner_rx;
	uint8_t *inner_tx; /* holds a packet the kernel did not take when inner_tx_len != 0 */
	uint32_t inner_tx_len;
	uint32_t inner_tx_nic;
	struct dmm_vnet inner_tx_vnet;
	bool more;	  /* a budget was used up */
	bool unread;	  /* one for input: there may be packets that the core has not seen */
	uint64_t read_ns; /* when the last look for input began */
	uint32_t turns_without_timers;
	bool nic_blocked;
	int error;
	uint32_t stop; /* atomic; 1: now, 2: abort first */
	pthread_mutex_t gate, lock;
};

/* See engine.c, "Locks". */
static inline void engine_lock(struct dmm_engine *e)
{
	pthread_mutex_lock(&e->gate);
	pthread_mutex_lock(&e->lock);
	pthread_mutex_unlock(&e->gate);
}

static inline void engine_unlock(struct dmm_engine *e)
{
	pthread_mutex_unlock(&e->lock);
}

/* CLOCK_MONOTONIC */
uint64_t engine_now_ns(void);

/*
 * Whether packets to its NIC may go by port number i: with AF_XDP those of flows that are away
 * go by tap
 */
bool engine_may_send_by(const struct dmm_engine *e, uint32_t i);

/* What follows from the ports that are sent by, and from what may be left to them */
void engine_ports_chosen(struct dmm_engine *e);

/* What dmm_ingress answers to a claim that it does not grant. */
void engine_refused(struct dmm_engine *e, const struct dmm_ask *ask, uint64_t now);

/* Reads what the inner legs, or port number i, have, up to a budget; sets more when the budget was
 * used up.
 */
void engine_inner_in(struct dmm_engine *e);
void engine_port_in(struct dmm_engine *e, uint32_t i);
/*
 * Sends what the core has, as long as there is room; sets nic_blocked or inner_tx_len when
 * there is none.
 */
void engine_nic_out(struct dmm_engine *e);
/* What a NIC's ports hold goes, as far as the kernel takes it. */
void engine_nic_kick(struct dmm_engine *e, uint32_t nic);
void engine_inner_out(struct dmm_engine *e);

#endif /* DMM_ENGINE_INT_H */

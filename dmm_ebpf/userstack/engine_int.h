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
#include "faults.h"
#include "load.h"
#include "port.h"

enum { MAX_NICS = 16, MAX_PORTS = 144, MAX_NIC_PORTS = 64, MAC_BYTES = 6 };

_Static_assert((int)DMM_CORE_AGREE_EXID == (int)DMM_AGREE_EXID, "the programs know our option");
_Static_assert((int)MAX_NICS < (int)DMM_CORE_DEVICES, "each NIC has offloads of its own");

struct nic {
	int inner_fd; /* TAP device of the inner leg */
	uint8_t mac[MAC_BYTES];
	uint32_t mtu;
	uint32_t software, generic;
	enum dmm_port_kind by; /* the kind of port that it is sent by */
	struct {
		uint32_t n;
		uint32_t at[MAX_NIC_PORTS]; /* indices of the engine's ports */
	} ports[DMM_PORT_KINDS];
	/* of its ports the one whose packets pass the kernel's programs; MAX_PORTS: there is none
	 */
	uint32_t by_kernel;
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
	struct faults faults;
	bool faults_blocked; /* what was kept found no room to go */
	uint8_t *rx;	     /* for the next packet that is read, see dmm_core_buffer() */
	uint8_t *inner_tx;   /* holds a packet the kernel did not take when inner_tx_len != 0 */
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
 * Whether packets to its NIC may go by port number i: those of flows that are away go by the
 * kernel
 */
bool engine_may_send_by(const struct dmm_engine *e, uint32_t i);

/*
 * A packet that has come to NIC number nic, but for what faults have done to it, goes to the core:
 * len bytes of IP, in a frame of frame_bytes.
 */
void engine_outer_deliver(struct dmm_engine *e, uint32_t nic, const uint8_t *frame,
			  uint32_t frame_bytes, uint32_t len, const struct dmm_rx_meta *meta,
			  uint64_t now);
void engine_inner_deliver(struct dmm_engine *e, uint32_t nic, const uint8_t *frame, uint32_t len,
			  const struct dmm_rx_meta *meta, uint64_t now);
/* A kept packet goes to a NIC's port; false: that has no frame free. */
bool engine_outer_put(struct dmm_engine *e, const struct kept *k, uint64_t now);

/*
 * engine_faults.c. What a stream's faults do to one packet; true: it does not go on, now or ever.
 * frame: with Ethernet header and len bytes of IP, the last payload->bytes of them in payload's
 * parts.
 */
bool engine_fault_in(struct dmm_engine *e, enum dmm_leg leg, uint32_t nic, const uint8_t *frame,
		     uint32_t len, const struct dmm_rx_meta *meta, uint64_t now);
bool engine_fault_out(struct dmm_engine *e, enum dmm_leg leg, uint32_t nic, const uint8_t *frame,
		      uint32_t len, const struct dmm_payload *payload,
		      const struct dmm_tx_meta *meta, uint64_t now);
/* What was kept and is due goes. */
void engine_faults_release(struct dmm_engine *e);

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
/* engine_datagram.c. Whether a frame, with len bytes of IP, is one of UDP; it goes on by the other
 * leg. */
bool engine_is_datagram(const uint8_t *frame, uint32_t len);
void engine_datagram(struct dmm_engine *e, enum dmm_leg from, uint32_t nic, const uint8_t *frame,
		     uint32_t len, const struct dmm_rx_meta *meta, uint64_t now);
/* One that was kept goes to the wire. */
/* Copies of them, and what came by copies of the peer's */
void engine_datagrams_due(struct dmm_engine *e);
void engine_datagram_out(struct dmm_engine *e, uint32_t nic, const uint8_t *frame, uint32_t len,
			 const struct dmm_vnet *vnet, uint64_t now);
/* What the port holds goes, as far as the kernel takes it. */
void engine_port_kick(struct dmm_engine *e, struct port *port);
/* What a NIC's ports hold goes, as far as the kernel takes it. */
void engine_nic_kick(struct dmm_engine *e, uint32_t nic);
void engine_inner_out(struct dmm_engine *e);

#endif /* DMM_ENGINE_INT_H */

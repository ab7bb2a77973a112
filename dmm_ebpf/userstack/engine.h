/* SPDX-License-Identifier: Apache-2.0 */
/*
 * engine.h: the loop that joins a core (sans I/O) to its inner legs and its ports on NICs.
 *
 * The inner leg of a NIC is a TAP device: what the kernel would have sent to the wire of the NIC,
 * for a flow of ours, comes by it with its Ethernet header (bpf/tcout.h), and what is written to it
 * comes to the kernel as if from the NIC (bpf/ingress.h). So each packet of an app tells device,
 * source and next hop as the kernel has just chosen them, and nothing else has to be known of
 * routes and neighbours.
 *
 * dmm_engine_run() is for one thread and returns when the engine is stopped or has lost a device.
 * Every other function may be called from any thread at any time: the loop holds the engine's lock
 * only while it works, and hands it over to whoever waits for it.
 *
 * Text below is read by cffi, which strips lines that start with '#'.
 */
#ifndef DMM_ENGINE_H
#define DMM_ENGINE_H

#include <stdint.h>
#include "core/api.h"
#include "../hal/afxdp.h"
#include "../hal/halerr.h"
#include "../hal/tapnic.h"
#include "../hal/tap.h"

struct dmm_engine;

struct dmm_engine_config {
	struct dmm_core_config core;
	/*
	 * in use; with so many the stack is full; 0: however many. Leave the core room for more:
	 * some are on their way when that is told
	 */
	uint32_t max_connections;
	/* how long the loop looks for packets before it sleeps; 0: not at all */
	uint32_t busy_poll_us;
};

/* A NIC that packets leave by */
struct dmm_engine_nic {
	int inner_fd; /* its inner leg: a TAP device (hal/tap.h); the engine takes it over */
	uint32_t mtu; /* bytes of IP packet */
	/* 1: what comes by AF_XDP may carry a checksum that was never filled in */
	uint32_t software;
	/* 1: XDP there is generic, and sees what goes to the app as well, see bpf/xdp.h */
	uint32_t generic;
	uint8_t mac[6]; /* until a frame of the inner leg tells another */
	uint8_t pad[2];
};

struct dmm_engine_stats {
	uint64_t inner_rx_pkts;
	uint64_t inner_rx_bytes;
	uint64_t inner_tx_pkts;
	uint64_t inner_tx_bytes;
	uint64_t inner_tx_refused; /* packets the kernel did not take */
	uint64_t inner_tx_blocked; /* times its queue was full */
	uint64_t nic_rx_pkts;
	uint64_t nic_rx_bytes;
	uint64_t nic_rx_ignored; /* neither IPv4 nor IPv6, or cut short */
	uint64_t nic_tx_pkts;
	uint64_t nic_tx_bytes;
	uint64_t nic_tx_blocked; /* times no frame was free */
	/* packets dropped because no NIC of ours leads to their peer, or it is down */
	uint64_t nic_tx_no_link;
	/* packets dropped because the NIC's port has just become one of shorter frames */
	uint64_t nic_tx_long;
	uint64_t datagrams_dropped; /* UDP, of either leg, for which the next device had no room */
	uint64_t nic_rx_dropped;    /* the kernel's figures, all queues */
	uint64_t nic_rx_ring_full;
	uint64_t nic_rx_fill_ring_empty;
	uint64_t kicks;
	uint64_t kicks_again;
	uint64_t waits; /* times the loop had nothing to do */
	uint64_t flows_owned;
	uint64_t flow_errors; /* a claim was refused, or could not be made */
	uint64_t connections; /* now */
	uint64_t in_use;      /* of them, see dmm_core_in_use() */
	uint64_t max_connections;
	uint64_t memory_bytes; /* of payload, now */
	uint64_t memory_limit_bytes;
	uint64_t full;		  /* enum dmm_full (bpf/abi.h) */
	uint64_t faulty;	  /* ways of legs on which faults are injected */
	uint64_t capturing;	  /* 1: a capture runs */
	uint64_t captured;	  /* frames of the capture that runs, or ran last */
	uint64_t capture_dropped; /* of them lost, since the reader was too slow */
};

struct dmm_engine *dmm_engine_create(const struct dmm_engine_config *config);
/* Closes the AF_XDP sockets and all TAP devices too. */
void dmm_engine_destroy(struct dmm_engine *engine);

/* Returns the NIC's index, or -ENOSPC. */
int dmm_engine_nic_add(struct dmm_engine *engine, const struct dmm_engine_nic *nic);
/* Takes an open port over: device is what its kind has, as a struct dmm_xsk. Before
 * dmm_engine_run(). Returns 0 or -ENOSPC. */
int dmm_engine_port_add(struct dmm_engine *engine, uint32_t nic, enum dmm_port_kind kind,
			void *device);

/* Returns 0 after dmm_engine_stop(), -ENODEV when a TAP device is gone. While a NIC is down or
 * gone, what is sent is lost. */
int dmm_engine_run(struct dmm_engine *engine);
/* Ends dmm_engine_run(); abort: reset every connection and send what that takes first. Safe in a
 * signal handler's thread, and before dmm_engine_run(). */
void dmm_engine_stop(struct dmm_engine *engine, uint32_t abort);

/* The congestion control of connections that open from now on. Returns 1, or 0: no such name,
 * nothing changed. */
uint32_t dmm_engine_set_congestion(struct dmm_engine *engine, const char *name);
/* See dmm_core_set_congestion_ops(). */
void dmm_engine_set_congestion_ops(struct dmm_engine *engine, const struct cc_ops *ops);
/* See dmm_core_set_transport(). */
uint32_t dmm_engine_set_transport(struct dmm_engine *engine, const char *name);
/* See dmm_core_set_transport_ops(). */
uint32_t dmm_engine_set_transport_ops(struct dmm_engine *engine, const struct end_ops *ops);
/* See dmm_core_set_latency(). */
void dmm_engine_set_latency(struct dmm_engine *engine, uint32_t latency,
			    uint32_t redundancy_budget_ppm, uint32_t redundancy_residual_ppm,
			    uint32_t parity_most_ppm);
/* See dmm_core_set_syn_cookies(). */
void dmm_engine_set_syn_cookies(struct dmm_engine *engine, uint32_t mode);
/* See dmm_core_set_negotiate(). */
void dmm_engine_set_negotiate(struct dmm_engine *engine, uint32_t mode);
/* What a NIC is sent by from now on, also for open connections; at first by AF_XDP sockets if it
 * has any. Frames are taken from whatever brings them. Returns 1, or 0: the NIC has no such port,
 * nothing changed. */
uint32_t dmm_engine_nic_set_port(struct dmm_engine *engine, uint32_t nic, enum dmm_port_kind kind);
/* The NIC is another device from now on, deleted and made anew: open connections go on by it, by
 * the packet socket. mac: its link-layer address, until a frame of the inner leg tells another;
 * this alone may have changed. */
void dmm_engine_nic_set_device(struct dmm_engine *engine, uint32_t nic, uint32_t ifindex,
			       const uint8_t *mac);
/* Whether AF_XDP sockets of the NIC have lost their device, and with it all their use. */
uint32_t dmm_engine_nic_lost_sockets(struct dmm_engine *engine, uint32_t nic);
/* A NIC's MTU changed: connections follow it with the next packet of their inner leg. */
void dmm_engine_nic_set_mtu(struct dmm_engine *engine, uint32_t nic, uint32_t mtu);

/*
 * From now on the frames of legs (bit 1 << enum dmm_leg) are written to fd, a stream socket of the
 * caller's that does not block, as pcapng's Enhanced Packet Blocks with at most snaplen_bytes of
 * each (capture.h says which interface is which). Takes the place of a capture that runs. Returns 0
 * or -ENOMEM.
 */
int dmm_engine_capture(struct dmm_engine *engine, int fd, uint32_t legs, uint32_t snaplen_bytes);
/*
 * No more frames are taken for fd; returns how many bytes of those that were still have
 * to be written.
 */
uint32_t dmm_engine_capture_drain(struct dmm_engine *engine, int fd);
/* The capture to fd ends, if that is the one which runs; fd is not used any more. */
void dmm_engine_capture_end(struct dmm_engine *engine, int fd);

/* Of a leg: towards the core, or away from it */
enum dmm_bound { DMM_INBOUND = 0, DMM_OUTBOUND = 1, DMM_BOUNDS };

/* What a stack process may be told to do to packets, as if the path did it */
enum dmm_fault {
	DMM_FAULT_DROP,
	DMM_FAULT_CORRUPT, /* one bit behind the IP header turns over; its checksum tells */
	DMM_FAULT_DUPLICATE,
	DMM_FAULT_REORDER, /* goes behind the next three, or 10 ms later */
	DMM_FAULT_DELAY,   /* by delay_ns */
	DMM_FAULTS
};

/* Which packets have a fault: by the first of the three that is not 0; all 0: none */
struct dmm_fault_rule {
	uint64_t first; /* the next so many */
	uint64_t every; /* each so-manyth */
	uint64_t share; /* at random, so many of 2 to the 32nd */
};

struct dmm_fault_plan {
	struct dmm_fault_rule rule[DMM_FAULTS];
	uint64_t delay_ns;
	uint64_t seed;
};

/* Packets, since the plan was set; a packet of a port may be longer than a segment */
struct dmm_fault_counts {
	uint64_t seen;
	uint64_t done[DMM_FAULTS];
	uint64_t no_room; /* lost, since too many were kept for later */
};

/*
 * The faults of one way of one leg, from now on. A plan without rules ends them, and what is kept
 * goes. While the outer leg has some on its way out, nothing is left to be cut into segments: each
 * is a packet. Returns 0 or -ENOMEM.
 */
int dmm_engine_set_faults(struct dmm_engine *engine, enum dmm_leg leg, enum dmm_bound bound,
			  const struct dmm_fault_plan *plan);
/* What is set, and was done. Returns 1, or 0: nothing is set. */
uint32_t dmm_engine_faults(struct dmm_engine *engine, enum dmm_leg leg, enum dmm_bound bound,
			   struct dmm_fault_plan *plan, struct dmm_fault_counts *counts);

void dmm_engine_stats(struct dmm_engine *engine, struct dmm_engine_stats *stats);
/* See dmm_core_memory(). */
void dmm_engine_memory(struct dmm_engine *engine, struct dmm_core_memory *memory);
uint64_t dmm_engine_core_counter(struct dmm_engine *engine, uint32_t counter);
/* Connections number first to first + max - 1; returns how many there were. */
uint32_t dmm_engine_connections(struct dmm_engine *engine, uint32_t first, uint32_t max,
				struct dmm_conn_info *info);

#endif /* DMM_ENGINE_H */

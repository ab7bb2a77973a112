/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ccsim_run.h: what the simulator of congestion controls is asked, and what it answers.
 *
 * Random loss strikes after the bottleneck, so rate * (1 - loss) * 1448 / 1538 is the limit of the
 * goodput. Queueing delay is what packets of the flow met at the bottleneck, dropped ones excluded.
 *
 * Text below is read by cffi, which strips lines that start with '#'.
 */
#ifndef CCSIM_RUN_H
#define CCSIM_RUN_H

#include "../../userstack/core/cc/cc.h"

enum { CCSIM_FLOWS = 16 }; /* most flows in one run */

/*
 * Rates are of bits on the wire, Ethernet's preamble and gap included, in bytes a second; loss from
 * 0 to 1
 */
struct ccsim_path {
	double rate_Bps, loss, ack_loss;
	double rate2_Bps, loss2; /* from rate2_ns on */
	uint64_t rate2_ns;	 /* 0: never */
	uint64_t rtt_ns;
	uint64_t buffer_bytes;
	uint64_t end_ns, warm_ns; /* figures are of the time between warm_ns and end_ns */
	uint64_t ack_every;	  /* packets */
	uint64_t burst_ns;	  /* how late a paced packet may be */
	/* by how much at most a packet is delayed behind the bottleneck */
	uint64_t jitter_ns;
	uint64_t trace_ns; /* between two points; 0: none */
	uint64_t seed;
	uint32_t reordering; /* 1: RACK waits its full window */
	uint32_t flows_n;
};

struct ccsim_flow {
	const struct cc_ops *ops;
	uint64_t start_ns;
	uint64_t stop_ns;    /* 0: never */
	uint64_t size_bytes; /* 0: unbounded */
	uint64_t rtt_ns;     /* 0: the path's */
	uint64_t app_on_ns;  /* 0: always has data */
	uint64_t app_off_ns;
};

struct ccsim_figures {
	double goodput_Bps;
	double qdelay_ms;   /* mean */
	double queue_loss;  /* share of what was sent */
	double random_loss; /* likewise */
	double inflight_bdp;
	double done_s; /* when the last byte of size_bytes arrived; 0: not yet */
	uint64_t sent_packets;
	uint64_t lost_packets;	   /* held for lost, and sent again */
	uint64_t spurious_packets; /* of these, sent again though they had arrived */
	uint64_t rtos;
};

/* A flow at a moment */
struct ccsim_point {
	uint64_t at_ns;
	uint64_t cwnd_bytes;
	uint64_t pacing_Bps;
	uint64_t inflight_bytes;
	uint64_t delivered_bytes; /* so far, as the sender knows */
	uint64_t lost_bytes;
	uint64_t min_rtt_ns;
	uint64_t queue_ns; /* of the bottleneck: how long a packet that comes now waits */
	uint32_t flow;
	uint32_t pad;
};

/* Runs it: flows and figures have path->flows_n places, points room for points_max. Returns the
 * number of points. One thread at a time. */
uint64_t ccsim_run(const struct ccsim_path *path, const struct ccsim_flow *flows,
		   struct ccsim_figures *figures, struct ccsim_point *points, uint64_t points_max);

#endif /* CCSIM_RUN_H */

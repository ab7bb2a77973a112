/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ccsim.h: what the parts of the congestion control simulator share.
 *
 * ccsim.c owns the clock, the bottleneck and the receiver; ccsim_sender.c the idealised SACK/RACK
 * sender, which makes rate samples exactly as cc.h describes them. Virtual time only, one seeded
 * generator for everything random: the same path and flows give the same figures.
 */
#ifndef CCSIM_H
#define CCSIM_H

#include "ccsim_run.h"

#define CCSIM_MSS 1448u	      /* payload of a segment: 1500 - IPv4 20 - TCP 20 - timestamps 12 */
#define CCSIM_WIRE 1538u      /* the same segment on Ethernet with preamble and gap */
#define CCSIM_MS 1000000ull   /* ns */
#define CCSIM_S 1000000000ull /* ns */

enum tx_state { TX_FLYING, TX_ACKED, TX_LOST };

/*
 * One transmission of one segment. In an array ordered by transmit time, so RACK is a walk
 * from its head.
 */
struct tx {
	uint64_t sent_ns;
	uint64_t first_tx_ns; /* send time of the packet that starts its rate sample */
	uint64_t delivered;   /* flow totals when it was sent, bytes */
	uint64_t delivered_ns;
	uint64_t lost;
	uint64_t inflight;
	uint32_t seg;
	uint8_t state;
	uint8_t app_limited;
};

struct flow {
	struct cc cc;
	uint32_t index;
	struct ccsim_flow asked; /* rtt_ns: without queue */
	uint64_t size_segs;	 /* 0: unbounded */
	/* sender */
	struct tx *tx;
	uint32_t tx_n, tx_cap, tx_head;
	uint32_t *rtx; /* segments to send again, a queue */
	uint32_t rtx_n, rtx_head, rtx_cap;
	uint8_t *seg_acked, *seg_rcvd;
	uint32_t seg_cap, seg_next, una, recovery_point;
	uint64_t delivered, delivered_ns, first_tx_ns, lost;
	uint64_t next_send_ns, pace_timer_ns, app_timer_ns;
	uint64_t rack_rtt_ns, reo_timer_ns;
	uint32_t rack_tx; /* newest transmission that was acknowledged */
	uint64_t rttvar_ns, rto_deadline_ns, rto_timer_ns, last_send_ns;
	uint32_t rto_shift;
	uint64_t app_limited_until; /* delivered total that ends the app-limited bubble; 0: none */
	struct {
		uint64_t ns, rtt;
	} minrtt[2]; /* two halves of a 10 s window */
	/* receiver: transmissions that arrived and are not yet told of */
	uint32_t *pend;
	uint64_t pend_n, pend_told, pend_cap, rcv_unique;
	uint32_t rcv_unacked, rcv_next_tx;
	uint64_t delack_ns;
	/* figures, after the warm-up */
	uint64_t rcvd_segs, sent_pkts, lost_pkts, spurious_pkts, drop_queue, drop_random, rtos;
	uint64_t done_ns, qdelay_ns, qdelay_n;
	uint64_t inflight_sum, inflight_n;
};

struct sim {
	uint64_t now_ns;
	struct ccsim_path path;
	uint64_t busy_until_ns; /* the bottleneck sends what it holds until then */
	uint64_t rng;
	struct ccsim_point *points;
	uint64_t points_n, points_max;
	struct flow flows[CCSIM_FLOWS];
};

enum ev_type { EV_START, EV_PACE, EV_ARRIVE, EV_ACK, EV_REO, EV_RTO, EV_DELACK, EV_WAKE, EV_TRACE };

/* ccsim.c */
void sim_at(uint64_t at_ns, enum ev_type type, uint32_t flow, uint32_t arg);
double sim_random(struct sim *sim);
void sim_transmit(struct sim *sim, struct flow *f, uint32_t tx);
void *sim_grow(void *array, uint64_t need, uint32_t *cap, uint64_t size);

/* ccsim_sender.c */
void sender_start(struct sim *sim, struct flow *f);
void sender_send(struct sim *sim, struct flow *f);
void sender_ack(struct sim *sim, struct flow *f, uint64_t from, uint64_t to);
void sender_reo(struct sim *sim, struct flow *f);
void sender_rto(struct sim *sim, struct flow *f);

#endif /* CCSIM_H */

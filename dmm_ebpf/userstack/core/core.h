/* SPDX-License-Identifier: Apache-2.0 */
/*
 * core.h: the core's own view of itself: struct dmm_core, struct conn, and what the files of the core call of
 * each other. Nothing outside core/ includes it, except tests that look inside.
 *
 * A conn has two legs. leg[DMM_LEG_INNER] faces the host's kernel, leg[DMM_LEG_OUTER] the path. Both are
 * struct tcb and run the same engine (tcp_*.c); relay.c says what an event on one leg means for the other.
 */
#ifndef DMM_CORE_H
#define DMM_CORE_H

#include <errno.h>

#include "api.h"
#include "cc.h"
#include "fragment.h"
#include "mem.h"
#include "tcp.h"
#include "util.h"
#include "wheel.h"
#include "wire.h"

enum conn_phase {
	CONN_OPENING, /* one leg is up or trying, the other not yet */
	CONN_OPEN,
	CONN_DEAD,   /* to be freed before the API call returns */
	CONN_PARKED, /* only what stands before isn_floor is there, see park.c */
};

struct conn {
	struct dmm_core_addr_pair pair; /* the key of the table */
	uint32_t handle;
	uint32_t hash_next; /* slot + 1 of the next in the bucket; 0: none */
	uint32_t live_pos;
	uint16_t mtu_dev;  /* of the device that it goes by */
	uint16_t mtu_most; /* what the kernel's route or a router on the path allows; 65535: anything */
	uint16_t mtu;	   /* of the outer path */
	uint16_t error;
	uint8_t phase; /* enum conn_phase */
	uint8_t passive;
	uint8_t owned;	/* OWN was said, DISOWN is due */
	bool half_open; /* in core.half_open */
	/* so far what the table reads: one cache line, all there is of a parked connection */
	uint32_t isn_floor; /* of the outer leg: behind the sequence numbers of a connection in TIME_WAIT ...
			     */
	bool has_isn_floor; /* ... that this one replaces */
	uint8_t tos;	    /* DSCP of the app's packets, carried to the outer leg */
	uint8_t ttl;	    /* of the app's packets, likewise; also the hop limit */
	uint8_t peer_ttl;   /* the least of the peer's packets, carried to the inner leg (RFC 5082) */
	uint8_t peer_tos;   /* DSCP of the peer's packets, carried to the inner leg */
	bool time_wait;	    /* in core.time_wait */
	uint16_t mss_most;  /* what the app takes in a segment, if no MTU allows so little; 0: more */
	uint16_t app_segment; /* the longest that the app's kernel was seen to cut its data to; 0: none yet */
	uint32_t flow_label;  /* of the app's packets, IPv6 */
	uint32_t peer_label;  /* of the peer's */
	uint64_t link;	      /* the way of its packets on the outer leg; 0: none */
	struct hold hold;
	struct list queued; /* reap, time_wait or half_open list */
	struct tcb leg[2];
	struct outer outer;
};

enum {
	CTL_SLOTS = 512,
	CTL_BYTES = 160,
	HANDLE_SLOT_BITS = 24,
};

/* Packets with no connection behind them, or that must not wait: RST, ICMP, one ACK per out-of-order segment
 */
struct ctl_queue {
	uint32_t head;
	uint32_t count;
	struct {
		uint64_t link;
		uint16_t len;
		uint8_t family;
		uint8_t data[CTL_BYTES];
	} slot[CTL_SLOTS];
};

struct action_queue {
	struct dmm_action *v;
	uint32_t cap; /* power of two */
	uint32_t head;
	uint32_t count;
};

/* What a device of the outer leg does with packets, see dmm_core_set_outer_offload() */
struct offload {
	uint32_t gso_max;
	uint32_t csum_partial;
};

struct dmm_core {
	struct dmm_core_config cfg;
	struct offload offload[DMM_CORE_DEVICES];
	struct mem mem;
	struct fragments *fragments;
	struct wheel wheel;
	struct wheel park_wheel; /* of parked connections */
	uint64_t park_next_ns;	 /* no later than the first deadline in it */
	uint32_t n_parked;
	uint64_t secret[2];
	uint64_t isn_secret[2];
	uint64_t rng;
	const struct cc_ops *cc_ops;
	struct conn **slots; /* by handle */
	uint32_t *free_slots;
	uint8_t *slot_gen; /* makes a handle of a reused slot differ */
	uint32_t *live;	   /* slots in use, dense */
	uint32_t n_live;
	uint32_t *buckets; /* slot + 1; 0: empty */
	uint32_t bucket_mask;
	struct list ready[2]; /* tcbs that may have something to send */
	struct list reap;
	struct list time_wait; /* oldest first */
	uint32_t n_time_wait;
	uint16_t listener_mss[2]; /* in the latest SYN-ACK of this host's kernel: IPv4, IPv6; 0: none yet */
	struct list half_open;	  /* oldest first */
	uint32_t n_half_open;
	uint64_t cookie_secret[2];
	uint64_t cookies_until_ns; /* when the last cookie that was sent expires */
	struct ctl_queue ctl[2];
	struct action_queue actions;
	uint64_t counters[DMM_CORE_MAX];
	struct dmm_payload *parts; /* where the packet that is made tells its payload; NULL: it is copied */
	uint16_t ip_id;
};

/* conn.c: the table of connections */
bool conn_table_init(struct dmm_core *core);
void conn_table_deinit(struct dmm_core *core);
/* Wakes it if it is parked; without memory for that it comes back parked */
struct conn *conn_find(struct dmm_core *core, const struct dmm_core_addr_pair *pair);
struct conn *conn_by_handle(struct dmm_core *core, uint32_t handle);
/* By pkt, which says the way and its MTU. NULL: limit reached; counted */
struct conn *conn_create(struct dmm_core *core, const struct dmm_core_addr_pair *pair, const struct pkt *pkt);
/* A packet of its came from the inner leg: the kernel may have another way for it now */
void conn_follow(struct dmm_core *core, struct conn *c, const struct pkt *pkt);
/* One came from the outer leg: the way back, as long as the kernel has said none */
void conn_turn_back(struct conn *c, const struct pkt *pkt);
/* What the IP header of an app's packet says, for those to the peer */
void conn_learn_app(struct conn *c, const struct pkt *pkt);
/* What that of a peer's packet says, for those to the app; its TTL apart (tcp_in.c) */
void conn_learn_peer(struct conn *c, const struct pkt *pkt);
/* Marks it for freeing at the end of the API call; error goes into the CLOSED action */
void conn_kill(struct dmm_core *core, struct conn *c, uint32_t error);
void conn_reap(struct dmm_core *core);
/* Frees all without a word to anyone: the core is going to be destroyed */
void conn_forget_all(struct dmm_core *core);
/* c takes over the place in the table of the object that had its handle */
void conn_replace(struct dmm_core *core, struct conn *c);
void core_action(struct dmm_core *core, uint32_t type, const struct conn *c, uint32_t error);
/* Of the device that a link leads by */
const struct offload *core_offload(const struct dmm_core *core, uint64_t link);
uint32_t conn_isn(struct dmm_core *core, const struct conn *c, uint32_t leg, uint64_t now_ns);
/* What a leg's timestamp clock is ahead of the core's */
uint32_t conn_ts_offset(const struct dmm_core *core, const struct dmm_core_addr_pair *pair, uint32_t leg);

/* park.c: true: c was quiet and is parked, the pointer is void */
bool conn_park(struct dmm_core *core, struct conn *c, uint64_t now_ns);
/* The connection, awake; NULL: no memory, it stays as it is */
struct conn *conn_wake(struct dmm_core *core, struct conn *parked);
/* What conn_wake() would make, for looking at only */
void conn_unpark_copy(struct conn *to, const struct conn *parked);
/* Frees the object; the table still refers to it */
void conn_free_parked(struct dmm_core *core, struct conn *parked);
/* Wakes those with a deadline that is due */
void park_poll(struct dmm_core *core, uint64_t now_ns);

static inline struct conn *tcb_conn(const struct tcb *t)
{
	return container_of(t - t->leg, struct conn, leg);
}

static inline struct tcb *tcb_peer(const struct tcb *t)
{
	return &tcb_conn(t)->leg[t->leg ^ 1];
}

static inline bool tcb_is_outer(const struct tcb *t)
{
	return t->leg == DMM_LEG_OUTER;
}

/* halfopen.c: connections whose peer has not ended its handshake */
bool halfopen_full(const struct dmm_core *core);
/* Makes room by dropping the oldest */
void halfopen_enter(struct dmm_core *core, struct conn *c);
/* Nothing if it is not in there */
void halfopen_leave(struct dmm_core *core, struct conn *c);

/* cookie.c: handshakes without a connection */
bool cookie_wanted(const struct dmm_core *core);
void cookie_answer(struct dmm_core *core, const struct dmm_core_addr_pair *pair, const struct pkt *syn,
		   uint64_t now_ns);
/* A segment of no connection. true: its cookie was good, and it is dealt with */
bool cookie_accept(struct dmm_core *core, const struct dmm_core_addr_pair *pair, const struct pkt *pkt,
		   uint64_t now_ns);

/* ctl.c: packets without a connection */
void ctl_dir(const struct dmm_core_addr_pair *pair, uint32_t leg, struct wire_dir *dir);
void ctl_push_tcp(struct dmm_core *core, uint32_t leg, uint64_t link, const struct wire_dir *dir,
		  const struct wire_seg *seg);
/* An ICMP error that quotes the segment (dir, seg) and goes to dir's source, out of leg */
void ctl_push_icmp(struct dmm_core *core, uint32_t leg, uint64_t link, const struct wire_dir *dir,
		   const struct wire_seg *seg, uint8_t type, uint8_t code);
/* RFC 9293 section 3.10.7.1: the answer to a segment that belongs to no connection */
void ctl_reset_unknown(struct dmm_core *core, uint32_t leg, uint64_t link, const struct pkt *pkt);
uint32_t ctl_pull(struct dmm_core *core, uint32_t leg, uint8_t *buf, uint32_t cap, struct dmm_tx_meta *meta);

/* relay.c: what one leg's events mean for the other. leg: where it happened. */
void relay_inner_syn(struct dmm_core *core, struct conn *old, const struct dmm_core_addr_pair *pair,
		     const struct pkt *pkt, uint64_t now_ns);
void relay_outer_syn(struct dmm_core *core, struct conn *old, const struct dmm_core_addr_pair *pair,
		     const struct pkt *pkt, uint64_t now_ns);
/* Opens the leg whose peer has not asked */
void relay_open(struct dmm_core *core, struct conn *c, uint64_t now_ns);
void relay_unreachable(struct dmm_core *core, struct conn *c, uint32_t error, uint64_t now_ns);
void relay_established(struct dmm_core *core, struct tcb *t, uint64_t now_ns);
void relay_refused(struct dmm_core *core, struct tcb *t, uint64_t now_ns);
void relay_reset(struct dmm_core *core, struct tcb *t, uint32_t error);
void relay_gave_up(struct dmm_core *core, struct tcb *t, uint64_t now_ns);
void relay_closed(struct dmm_core *core, struct tcb *t);
void relay_icmp(struct dmm_core *core, uint32_t leg, const struct pkt *pkt, uint64_t now_ns);
void relay_abort(struct dmm_core *core, struct conn *c, uint32_t error);

#endif /* DMM_CORE_H */

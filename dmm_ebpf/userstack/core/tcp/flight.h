/* SPDX-License-Identifier: Apache-2.0 */
/*
 * flight.h: the segments of one leg that are sent and not yet acknowledged: the SACK scoreboard.
 *
 * A ring in sequence order (binary search), and through it two doubly linked lists: tx, the
 * segments thought to be in the network, ordered by the time of their last transmission (what RACK
 * walks, O(1) per segment that leaves), and lost, those waiting for retransmission. A SACKed
 * segment is on neither and knows where the run of SACKed segments that it belongs to goes on, so
 * no segment is looked at twice however large the runs are.
 *
 * Invariants: segments touch and cover [snd_una, snd_nxt); inflight_bytes is the sum over tx,
 * lost_bytes over lost. The whole object exists only while something is in flight.
 */
#ifndef DMM_FLIGHT_H
#define DMM_FLIGHT_H

#include "../base/mem.h"

enum {
	FLIGHT_NIL = 0xffffffff,
	FLIGHT_IDX_MASK = 0x7fffffff, /* indices count on and wrap here */
};

enum seg_flag {
	SEG_SACKED = 1,
	SEG_LOST = 2,	      /* on the lost list */
	SEG_RETRANS = 4,      /* sent more than once */
	SEG_FIN = 8,	      /* its last sequence number is the FIN */
	SEG_PROBE = 32,	      /* longer than the MTU: tcp_pmtu.c */
	SEG_APP_LIMITED = 16, /* sent while the sender had nothing more */
	SEG_COPIED = 64,      /* a copy is on the way besides: tcp_spare.c, tcp_copies.c */
	/* how many of tcp_copies.c are, since its last transmission; counted in copy_bytes */
	SEG_COPIES_ONE = 1 << 8,
	SEG_COPIES = 15 << 8,
	/* which of its transmissions has arrived cannot be told (Karn) */
	SEG_AMBIGUOUS = SEG_RETRANS | SEG_COPIED,
};

struct seg {
	uint64_t seq;	  /* 64 bits, 0 is the SYN */
	uint64_t xmit_ns; /* of the last transmission */
	/* of the connection when it was sent last: what the delivery rate sample needs */
	uint64_t first_tx_ns;
	uint64_t delivered_ns;
	uint64_t delivered_bytes;
	uint64_t lost_total_bytes;
	uint32_t tx_inflight_bytes;
	uint32_t len;  /* in sequence numbers */
	uint32_t prev; /* neighbours on the tx or lost list */
	uint32_t next;
	uint32_t skip; /* SACKed: an index behind this one up to which all is SACKed */
	uint16_t flags;
	uint16_t order; /* of those sent in that nanosecond; from 1 */
};

struct seg_list {
	uint32_t head;
	uint32_t tail;
};

/* tcp_prr.c, in the words of RFC 9937 */
struct prr {
	uint64_t ssthresh_bytes; /* 0: no episode */
	uint64_t recover_fs_bytes;
	uint64_t delivered_bytes;
	uint64_t out_bytes;
	uint64_t snd_cnt_bytes; /* may be sent before the next ACK */
};

struct flight {
	struct seg *ring;
	uint32_t cap;  /* power of two */
	uint32_t head; /* index of the oldest */
	uint32_t count;
	struct seg_list tx;
	struct seg_list lost;
	uint32_t again; /* lost: the last of those at its front that were sent again already */
	uint32_t n_sacked;
	uint64_t inflight_bytes;
	uint64_t copy_bytes; /* copies of what is on tx, as often as each was sent */
	uint64_t lost_bytes;
	uint64_t fack; /* highest sequence number known to have arrived */
	/* RACK: the most recently sent segment that has arrived */
	uint64_t rack_xmit_ns;
	uint32_t rack_order; /* 0: none has */
	uint64_t rack_rtt_ns;
	/* the last segment that arrived and was sent only once */
	uint64_t sure_rtt_ns;
	uint64_t sure_ns;      /* when that was */
	uint64_t recovery_end; /* RFC 6675's RecoveryPoint */
	uint64_t tlp_end;      /* 0: no probe outstanding */
	uint64_t rto_ns;       /* deadline of the retransmission timeout */
	uint32_t reno_dups;    /* duplicate ACKs of a peer without SACK */
	uint32_t tlp_is_retrans;
	uint64_t loss_window_bytes; /* tcp_inner.c; 0: no limit */
	struct prr prr;
};

struct flight *flight_create(struct mem *m);
void flight_destroy(struct mem *m, struct flight *fl);

static inline struct seg *flight_seg(const struct flight *fl, uint32_t idx)
{
	return &fl->ring[idx & (fl->cap - 1)];
}

static inline uint32_t flight_idx(const struct flight *fl, uint32_t nth)
{
	return (fl->head + nth) & FLIGHT_IDX_MASK;
}

static inline uint32_t flight_nth(const struct flight *fl, uint32_t idx)
{
	return (idx - fl->head) & FLIGHT_IDX_MASK;
}

static inline uint64_t seg_end(const struct seg *s)
{
	return s->seq + s->len;
}

/* Appends a segment at the end and to tx; NULL: no memory */
struct seg *flight_push(struct mem *m, struct flight *fl, uint64_t seq, uint32_t len);

/* Takes the oldest out, whatever its state */
void flight_pop(struct flight *fl);

/* The oldest was acknowledged up to seq, which lies inside it */
void flight_trim_head(struct flight *fl, uint64_t seq);

/* Position of the first segment that begins at or after seq; count if none */
uint32_t flight_lower_bound(const struct flight *fl, uint64_t seq);

/* The first position >= nth that is not SACKed; count if none. Amortised O(1). */
uint32_t flight_next_unsacked(struct flight *fl, uint32_t nth);

void flight_mark_sacked(struct flight *fl, uint32_t idx);
/* front: before all that was sent only once, and after what went to the front before; the receiver
 * waits for it the longest */
void flight_mark_lost(struct flight *fl, uint32_t idx, bool front);
/* To be sent again now: to the end of tx */
void flight_resend(struct flight *fl, uint32_t idx);
/* The last of tx is sent now. Which was sent first is all that RACK judges by; retransmissions do
 * not go in sequence order, so that the order within a batch must be kept, too. */
void flight_sent(struct flight *fl, struct seg *s, uint64_t now_ns);

/* A copy of a segment on tx was sent */
static inline void flight_copied(struct flight *fl, struct seg *s)
{
	s->flags = (uint16_t)((s->flags | SEG_COPIED) + SEG_COPIES_ONE);
	fl->copy_bytes += s->len;
}

/* Forgets all SACK marks: the receiver has reneged (RFC 2018 section 8) */
void flight_renege(struct flight *fl);

/* Segments below end that are marked lost and were sent once are thought to be in the network
 * again; all that is on tx was sent after them */
void flight_unlose(struct flight *fl, uint64_t end);

/* Cuts every segment into pieces of at most max sequence numbers (the path MTU fell). false: no
 * memory, unchanged. */
bool flight_resegment(struct mem *m, struct flight *fl, uint32_t max);

#endif /* DMM_FLIGHT_H */

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * peers.h: what is known of the hosts with which datagrams are exchanged: whether a stack of ours
 * is there, how much of what is sent to it the path loses, and so how many copies a datagram has.
 *
 * Theory of operation. To a peer of which nothing is known the first few datagrams have one copy,
 * an offer. Without a stack of ours there it is dropped; with one a report comes back, and from
 * then on that host is `heard`. Who does not answer is spared, for longer each time. Who has
 * answered, and then tells nothing of some datagrams, has a copy now and then: it may have lost
 * the way to this process (ways.h). Who tells nothing of many is not heard any more.
 *
 * Each datagram to a peer that is heard is noted, and what reports tell of it; a second later it
 * is counted. What no report told of was lost with all its copies if reports came after it, and
 * none of them was missed; else nothing is known of it. Where loss may be congestion (loss_cause.h;
 * for a queue the round trips of the last two reports speak) there are no copies. Where more is
 * lost whole than chance would have it, losses come in bursts, and the copies of a datagram go
 * farther apart.
 *
 * Pure, of a fixed size; the oldest of PEER_WAYS places gives way.
 */
#ifndef DMM_PEERS_H
#define DMM_PEERS_H

#include "../base/loss_cause.h"
#include "report.h"
#include "ways.h"

enum {
	PEERS = 256,
	PEER_WAYS = 4,
	PEER_SENT = 1024,  /* datagrams that are noted until they are counted */
	PEER_TELLERS = 16, /* processes of a peer that tell */
	PEER_COPIES = 5,   /* of a datagram, at most */
	PEER_PENDING = REPORT_ITEMS,
};

/* A datagram that went to it */
struct peer_sent {
	uint64_t at_ns;
	uint32_t id;
	uint8_t sent; /* it and its copies; 0: the place is free */
	uint8_t came; /* of them, as it tells */
	uint8_t pad[2];
};

/* More than so many are not noted: who sends so much has no use for copies */
struct peer_rate {
	uint64_t from_ns;
	uint32_t n;
	uint32_t busy;
};

/* What is told of in some reports, one after another, for each may be lost */
struct peer_pending {
	uint32_t row;	/* of seen.h */
	uint16_t first; /* number of the report that told of it first */
	uint8_t told;	/* times */
	uint8_t pad;
};

struct peer_teller {
	uint64_t told_ns; /* 0: the place is free */
	uint32_t who;
	uint16_t number; /* of its latest report */
	uint8_t pad[2];
};

struct peer {
	uint8_t addr[16]; /* IPv4 as ::ffff:a.b.c.d */
	uint64_t used_ns; /* 0: the place is free */

	/* towards it */
	uint64_t heard_ns; /* of its stack; 0: not */
	uint64_t spared_until_ns;
	struct loss_off off;
	uint64_t gap_ns;   /* when it showed that a report was missed */
	uint64_t known_ns; /* when a copy was to make this process known again */
	uint64_t rtt_from_ns;
	uint64_t least_rtt_ns[2]; /* of these and of the five seconds before */
	uint64_t paid_ns;	  /* up to when the budget was given out */
	uint32_t unheard;	  /* datagrams since the last report */
	uint32_t budget_bytes;
	struct loss_pair loss;
	uint32_t gone_ppm; /* of a datagram, summed up: that chance takes it with its copies */
	uint16_t gone;	   /* so many were */
	uint16_t groups;   /* of so many */
	uint8_t offers;
	uint8_t spared_shift;
	uint8_t gap_shift;  /* how often the gap between copies was doubled */
	uint8_t slow;	    /* reports in a row that took longer than the shortest */
	uint16_t sent_head; /* of the ring */
	struct peer_rate out;
	struct peer_teller teller[PEER_TELLERS];
	struct peer_sent sent[PEER_SENT];

	/* from it */
	uint64_t noted_from_ns;	 /* what comes is noted; 0: not */
	uint64_t blind_until_ns; /* not all that came lately was noted */
	uint64_t report_ns;	 /* when the next report is due; NEVER: none is */
	struct peer_rate in;
	uint32_t credit_bytes; /* reports are no more than what came */
	uint16_t number;       /* of the next report */
	uint8_t overrun;
	uint8_t n_pending;
	uint8_t n_untold; /* of these */
	uint16_t dropped; /* the latest of which something is not told any more */
	struct peer_pending pending[PEER_PENDING];
	struct ways ways;
};

struct peers {
	uint64_t secret[2];
	struct peer v[PEERS];
};

/* NULL: it is not known. */
struct peer *peers_find(struct peers *p, const uint8_t addr[16], uint64_t now_ns);
/* Never NULL */
struct peer *peers_get(struct peers *p, const uint8_t addr[16], uint64_t now_ns);

/* How many copies the next datagram to it has; the counter is of those that are held back. */
uint32_t peer_copies(struct peer *p, uint32_t residual_ppm, uint64_t *held, uint64_t now_ns);
/* Between a datagram and its first copy, and from copy to copy */
uint64_t peer_gap_ns(const struct peer *p);
/* A copy of so many bytes may go, of a budget of so many a second */
bool peer_pays(struct peer *p, uint32_t bytes, uint64_t budget_Bps, uint64_t now_ns);
/* A datagram went, n times in all */
void peer_note(struct peer *p, uint32_t id, uint32_t n, uint64_t now_ns);
/* A stack of ours has sent a copy: an offer is worth it. */
void peer_is_there(struct peer *p);
/* True: it was not heard before. A report that comes twice tells once. */
bool peer_told(struct peer *p, const struct report *r, uint64_t now_ns);
/* One more by that rate. True: they are too many to be noted. */
bool peer_is_busy(struct peer_rate *r, uint64_t now_ns);

#endif /* DMM_PEERS_H */

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * end.h: the seam between an end of a connection, which a transport makes (tcp/ is one), and who
 * owns connections (relay/), and between the two ends of a connection.
 *
 * A connection is a struct ends and, behind it, the states of its two ends. Each begins with a
 * struct end, all that anybody but its transport knows of it. What one end takes in, in order, it
 * puts into the other's stream (snd), and calls end_ready() for it; what its peer has acknowledged
 * it drops from its own. So the room left in a stream is the window of the end that fills it.
 * Positions in a stream are 64 bits: 0 is what opens it, byte n is n + 1, its end comes behind the
 * last byte.
 *
 * Who is told an event (struct end_events) may call abort() and go() for both ends meanwhile, and
 * mark the connection dead (CONN_DEAD), so an end looks at what is left of it when the call
 * returns. Memory stays until the core's turn is over, but for quiet().
 *
 * The inner end is always TCP: this host's kernel is its peer. So of the two only the outer end's
 * transport is chosen, for each connection when it is made.
 */
#ifndef DMM_END_H
#define DMM_END_H

#include "base/env.h"
#include "base/flow.h"
#include "base/ranges.h"
#include "base/stream.h"
#include "wire/wire.h"

/* What listings call a state: the kernel's numbers (include/net/tcp_states.h) */
enum tcp_state {
	TCP_ESTABLISHED = 1,
	TCP_SYN_SENT,
	TCP_SYN_RECV,
	TCP_FIN_WAIT1,
	TCP_FIN_WAIT2,
	TCP_TIME_WAIT,
	TCP_CLOSE,
	TCP_CLOSE_WAIT,
	TCP_LAST_ACK,
	TCP_LISTEN,
	TCP_CLOSING,
};

/* How far an end is */
enum end_phase {
	END_CLOSED,    /* over, or not begun: nothing leaves it */
	END_LEAVING,   /* over but for a last word, which is due */
	END_ASKING,    /* it opens, and its peer has not answered */
	END_ASKED,     /* its peer has asked, and gets no answer before go() */
	END_ANSWERING, /* its peer may be answered, or was, and has not confirmed that */
	END_OPEN,      /* until both streams have ended, and arrived */
	END_WAITING,   /* likewise over: it answers only what comes late (TIME-WAIT) */
};

/*
 * What a struct end consists of. A transport's own state begins with them as members, too, as by
 * the kernel's struct_group(): see struct tcb.
 */
#define END_MEMBERS                                                                                \
	struct list ready; /* in env->ready: it may have something to send */                      \
	struct wheel_node timer;                                                                   \
	struct ranges *ooo; /* what came out of order; NULL: nothing */                            \
	struct stream snd;  /* what the other end has taken in, for this one's peer */             \
	uint64_t snd_una;   /* what is below has arrived; 0: it is not open yet */                 \
	uint64_t snd_nxt;   /* what is below was sent */                                           \
	uint64_t snd_up;    /* behind the urgent data; not above snd_una: there is none */         \
	uint64_t last_rx_ns;                                                                       \
	uint16_t at;	   /* bytes from struct ends to here, */                                   \
	int16_t to_peer;   /* and from here to the other end */                                    \
	uint16_t peer_mss; /* what its peer takes in a segment; 0: not known */                    \
	uint8_t leg;                                                                               \
	uint8_t phase;	   /* enum end_phase */                                                    \
	uint8_t burst;	   /* packets since it was put at the end of the ready list */             \
	bool owed;	   /* to be told by heard() when something comes from the other's peer */  \
	uint8_t transport; /* its place in env->ops */

struct end {
	END_MEMBERS
};

/* Both ends of a connection: what they know in common, and tell each other in passing */
struct ends {
	struct flow f;
	uint16_t at[2]; /* bytes from here to each end */
	/* what the app takes in a segment, if no MTU allows so little; 0: more */
	uint16_t mss_most;
	/* the longest that the app's kernel was seen to cut its data to; 0: none yet */
	uint16_t app_segment;
	uint32_t syn_seq; /* of the SYN that made the connection */
	/* of the outer leg: behind the sequence numbers of a connection in TIME_WAIT ... */
	uint32_t isn_floor;
	bool has_isn_floor; /* ... that this one replaces */
	bool has_ts_offset;
	bool may_cut; /* the app's packets have no DF, and so have not those to its peer: IPv4 */
	uint8_t tos;  /* DSCP of the app's packets, carried to the outer leg */
	uint8_t ttl;  /* of the app's packets, likewise; also the hop limit */
	/* the least of the peer's packets, carried to the inner leg (RFC 5082) */
	uint8_t peer_ttl;
	uint8_t peer_tos;    /* DSCP of the peer's packets, carried to the inner leg */
	uint16_t app_path;   /* path MTU towards the app, if one was told; 0: the device's */
	uint32_t ts_offset;  /* what the app's kernel's timestamp clock is ahead of the core's */
	uint32_t flow_label; /* of the app's packets, IPv6 */
	uint32_t peer_label; /* of the peer's */
	uint64_t link;	     /* the way of its packets on the outer leg; 0: none */
};

/* What kind of peer the ends of one leg speak to, in numbers */
struct end_profile {
	uint64_t max_rto_ns;
	uint64_t time_wait_ns;
	uint64_t keepalive_ns;	 /* of silence, before it is asked whether it is there */
	uint64_t half_closed_ns; /* likewise, once its stream has ended */
	/* the most that is received of it and not yet acknowledged on the other leg */
	uint64_t rcv_limit_bytes;
	uint32_t syn_retries; /* of a SYN; those of a SYN-ACK are the same for all */
	uint32_t retries;
	uint32_t orphan_retries; /* once the other end is closed or in TIME-WAIT */
};

/* What an end tells the owner of its connection */
struct end_events {
	/*
	 * The handshake of this end is done. true: it may go on; false: it is held until go()
	 */
	bool (*established)(struct env *env, struct end *e);
	/* Its peer has ended it: error is an errno, 0: none that an app would see */
	void (*reset)(struct env *env, struct end *e, uint32_t error, uint64_t now_ns);
	/* A timer has run out of retries, and the end waits for abort(). unanswered: there is a SYN
	 * that one of both ends was never allowed to answer. */
	void (*gave_up)(struct env *env, struct end *e, bool unanswered, uint64_t now_ns);
	/* It is END_WAITING or END_CLOSED */
	void (*closed)(struct env *env, struct end *e);
	/* Nothing has come for park_ns. true: both ends were put away, e is void */
	bool (*quiet)(struct env *env, struct end *e, uint64_t now_ns);
	/* Its transport can serve no end any more: all connections that have it end */
	void (*fallen)(struct env *env, struct end *e, uint64_t now_ns);
};

/* How an end is ended */
enum end_abort {
	END_ABORT_FREE,	 /* its memory goes: nothing more is said */
	END_ABORT_PEER,	 /* its peer has ended it: nothing more is said but a RST that is due */
	END_ABORT_NOW,	 /* by a RST, if its peer can know of it */
	END_ABORT_FLUSH, /* by a RST behind what is due to its peer */
	/* likewise; but while its peer has bytes that are not acknowledged, by silence */
	END_ABORT_MUTE,
	/*
	 * by a RST that waits for no pull, for the end is freed; in TIME-WAIT by the ACK
	 * that is due
	 */
	END_ABORT_APART,
};

/* What an end that is asked after its peer knows */
enum end_care {
	END_ASKS,    /* it does not know: the peer was asked, or what is on the way asks it */
	END_STANDS,  /* the peer owes answers, and has been silent for longer than it should */
	END_GETS_ON, /* the peer owes answers, and there is still time */
};

/* What is new about the way of a connection's packets */
enum end_path {
	END_PATH_MTU,	  /* f.mtu_dev or f.mtu_most */
	END_PATH_SEGMENT, /* app_segment */
	END_PATH_WAY,	  /* link */
};

/* What a segment of no connection brings back */
enum end_cookie {
	COOKIE_NONE,  /* none of ours, or too old */
	COOKIE_LATER, /* not the segment right behind the SYN: that one will come, too */
	COOKIE_GOOD,
};

/* Handshakes that keep nothing (SYN cookies, RFC 4987 section 3.6) */
struct end_cookies {
	/* Answers a peer's SYN */
	void (*answer)(struct env *env, const struct dmm_core_addr_pair *pair,
		       const struct pkt *syn, uint64_t now_ns);
	/* COOKIE_GOOD: *syn is the SYN that its cookie stands for */
	enum end_cookie (*read)(struct env *env, const struct dmm_core_addr_pair *pair,
				const struct pkt *pkt, uint64_t now_ns, struct pkt *syn);
	/* A new end becomes END_ANSWERING, as if it had answered syn. pkt brought the cookie */
	void (*restore)(struct env *env, struct end *e, const struct pkt *syn,
			const struct pkt *pkt, uint64_t now_ns);
};

/* A transport, for the ends of one leg. All but a policy's users see of it is this. */
struct end_ops {
	const char *name;     /* as a policy calls it */
	uint32_t state_bytes; /* of one end, whole words */

	/* A new end: all members but at, to_peer, leg and transport are 0 */
	void (*init)(struct env *env, struct end *e);
	/* syn: what came; it is kept, unanswered, until go(). NULL: an active open. */
	void (*open)(struct env *env, struct end *e, const struct pkt *syn, uint64_t now_ns);
	/* What it was kept from answering, or sending, may go: the other end is there */
	void (*go)(struct env *env, struct end *e);
	/* A segment of the connection came in on this leg */
	void (*input)(struct env *env, struct end *e, const struct pkt *pkt, uint64_t now_ns);
	/* The next packet, of an end on env->ready, into buf; returns its length, or 0: none */
	uint32_t (*output)(struct env *env, struct end *e, uint8_t *buf, uint32_t cap,
			   struct dmm_tx_meta *meta, uint64_t now_ns);
	/* e->timer was popped */
	void (*timer)(struct env *env, struct end *e, uint64_t now_ns);
	void (*abort)(struct env *env, struct end *e, enum end_abort how, uint64_t now_ns);
	/* What it has to say in a listing: of its peer's leg, and of what it has received */
	void (*info)(const struct env *env, const struct end *e, struct dmm_conn_info *info);

	/* What the other end says */
	/* Its own stream ends at snd.tail */
	void (*finish)(struct env *env, struct end *e);
	/* The other end has sent some of what this one has taken in: there may be room for more */
	void (*room)(struct env *env, struct end *e);
	/* Likewise, and it has arrived at the other's peer */
	void (*passed)(struct env *env, struct end *e);
	/* How much that is not sent yet is worth holding for it, bytes */
	uint64_t (*wants)(const struct env *env, const struct end *e);
	/* Whether its peer is there; what comes from it next is told by heard() to who is owed it
	 */
	enum end_care (*ask)(struct env *env, struct end *e);

	/* NULL, each: nothing is to be done */
	void (*heard)(struct env *env, struct end *e);
	/* snd_up has moved, on an open end */
	void (*urgent)(struct env *env, struct end *e);
	void (*path)(struct env *env, struct end *e, enum end_path what);
	/*
	 * An ICMP error that quotes a segment of this end. true: it met what opens an end that is
	 * opening, or, of one that is open, what is on the way.
	 */
	bool (*icmp)(struct env *env, struct end *e, const struct pkt *pkt);
	/* The peer's number up to which everything has come. NULL: its peer gets no ICMP error */
	uint32_t (*taken)(const struct env *env, const struct end *e);
	/* Of an end that is END_WAITING: syn is of a later connection (RFC 6191). NULL: never */
	bool (*is_newer)(const struct env *env, const struct end *e, const struct pkt *syn);
	/* The number behind all that it has used on the wire. NULL: no successor needs it */
	uint32_t (*edge)(const struct env *env, const struct end *e);
	/* false: a SYN that came may not open a connection, and is refused */
	bool (*may_open)(const struct env *env, const struct pkt *syn);
	const struct end_cookies *cookies;

	/*
	 * Idle ends are put away as they are, and moved. rests(): nothing is in flight, held, due
	 * or out of order, and nothing has come for park_ns; NULL: it never does. sleep(): from now
	 * on no list refers to it, and no timer; returns when wake() must be at the latest. wake():
	 * env NULL: a copy to be looked at; its timers are not started.
	 */
	bool (*rests)(const struct env *env, const struct end *e, uint64_t now_ns);
	uint64_t (*sleep)(struct env *env, struct end *e);
	void (*wake)(struct env *env, struct end *e);
};

static inline struct ends *end_ends(const struct end *e)
{
	return (struct ends *)(void *)((char *)e - e->at);
}

static inline struct end *end_peer(const struct end *e)
{
	return (struct end *)(void *)((char *)e + e->to_peer);
}

static inline struct end *ends_end(const struct ends *e, uint32_t leg)
{
	return (struct end *)(void *)((char *)e + e->at[leg]);
}

static inline bool end_is_outer(const struct end *e)
{
	return e->leg == DMM_LEG_OUTER;
}

static inline const struct end_ops *end_ops_of(const struct env *env, const struct end *e)
{
	return env->ops[e->transport];
}

/*
 * The first sequence number of an end, which no stranger can guess: a keyed hash of the
 * connection's names plus a clock of 4 us steps (RFC 6528), in front of what the connection that
 * this one replaces may have left in the network (RFC 6191). Where the app opens, its kernel has
 * chosen one likewise, which the peer sees: in TIME-WAIT it knows that for one that follows on the
 * last connection's, whichever process, or the kernel, carried that.
 */
static inline uint32_t end_first_number(const struct env *env, const struct end *e, uint64_t now_ns)
{
	const struct ends *ends = end_ends(e);
	uint64_t key[2] = {siphash(env->isn_secret, &ends->f.pair, 5), e->leg};
	uint32_t isn = (uint32_t)siphash(env->isn_secret, key, 2) + (uint32_t)(now_ns >> 12);

	if (end_is_outer(e) && !ends->f.passive)
		isn = ends->syn_seq;
	if (end_is_outer(e) && ends->has_isn_floor && (int32_t)(isn - ends->isn_floor) <= 0)
		isn = ends->isn_floor + 65536;
	return isn;
}

/* The state that a listing has for an end that has none but its phase */
static inline uint8_t end_listing_state(const struct end *e)
{
	static const uint8_t states[] = {
		[END_CLOSED] = TCP_CLOSE,	[END_LEAVING] = TCP_CLOSE,
		[END_ASKING] = TCP_SYN_SENT,	[END_ASKED] = TCP_SYN_RECV,
		[END_ANSWERING] = TCP_SYN_RECV, [END_OPEN] = TCP_ESTABLISHED,
		[END_WAITING] = TCP_TIME_WAIT,
	};

	return states[e->phase];
}

/* It may have something to send: output() is called soon */
static inline void end_ready(struct env *env, struct end *e)
{
	/* code that goes on after conn_kill() must leave no trace in the lists */
	if (list_empty(&e->ready) && end_ends(e)->f.phase != CONN_DEAD)
		list_add_tail(&env->ready[e->leg], &e->ready);
}

static inline void ends_path(struct env *env, const struct ends *e, enum end_path what)
{
	struct end *outer = ends_end(e, DMM_LEG_OUTER);

	if (end_ops_of(env, outer)->path)
		end_ops_of(env, outer)->path(env, outer, what);
}

/* Bytes of its stream that were never sent */
static inline uint64_t end_unsent(const struct end *e)
{
	return e->snd.tail + 1 - max_u64(min_u64(e->snd_nxt, e->snd.tail + 1), 1);
}

/* Of an end that is open: that its stream ends was sent, too */
static inline bool end_fin_sent(const struct end *e)
{
	return e->snd_nxt > e->snd.tail + 1;
}

#endif /* DMM_END_H */

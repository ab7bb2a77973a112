/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp.h: one end of a TCP connection (RFC 9293), as the layer above sees it: the same engine for
 * both legs. How it works is told in tcp.c, what its files share is in tcp_int.h, what it tells
 * back in end.h.
 */
#ifndef DMM_TCP_H
#define DMM_TCP_H

#include "cc.h"
#include "end.h"
#include "env.h"
#include "flight.h"
#include "flow.h"
#include "ranges.h"
#include "stream.h"
#include "wheel.h"
#include "wire.h"

/* The kernel's numbers (include/net/tcp_states.h) */
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

enum { TCP_MAX_WINDOW = 1 << 30 }; /* RFC 7323 section 2.3 */

enum tcb_flag {
	TF_ACK_NOW = 1 << 0,
	TF_HOLD = 1 << 1,    /* the handshake waits for the other leg: send nothing */
	TF_SYN_DUE = 1 << 2, /* (re)send the SYN or SYN-ACK */
	TF_RST_DUE = 1 << 3,
	TF_PROBE_DUE = 1 << 4, /* keep-alive or zero-window probe */
	TF_FIN = 1 << 5,       /* the stream ends at snd.tail */
	TF_FIN_SENT = 1 << 6,
	TF_FIN_RCVD = 1 << 7, /* the peer's FIN was taken in order */
	TF_TS = 1 << 8,
	TF_SACK = 1 << 9,
	TF_WS = 1 << 10,
	TF_RECOVERY = 1 << 11,
	TF_FORCE_RTX = 1 << 12, /* the first retransmission of a recovery goes whatever cwnd says */
	TF_TLP_DUE = 1 << 13,
	TF_PUSH_ANY = 1 << 14,	/* the persist timer fired: send however small the window is */
	TF_REORD = 1 << 15,	/* RACK: reordering was seen on this path */
	TF_SYN_RTX = 1 << 16,	/* the SYN was sent more than once: no RTT sample from it (Karn) */
	TF_RST_BARE = 1 << 17,	/* the RST carries no ACK: nothing was received yet */
	TF_RST_FLUSH = 1 << 19, /* what the window takes goes before the RST */
	TF_ECN = 1 << 18,	/* agreed on; in SYN-RECEIVED: asked for by the peer */
	TF_ECN_ASKED = 1 << 25, /* until open: asked for with our SYN */
	TF_ECN_ECHO = 1 << 21,	/* a mark arrived: say so in each ACK */
	TF_ECN_CWR = 1 << 22,	/* the window was reduced: say so in the next new data */
	/* on an open leg: accurate ECN was agreed on, and TF_ECN is clear */
	TF_ACCECN = 1 << 23,
	TF_NO_ECT = 1 << 24,	 /* marks would not come back: nothing sent is ECT */
	TF_PROBE_OWED = 1 << 26, /* inner leg: a probe is answered when the peer is heard of */
	TF_OOO_ACK = 1 << 20,	 /* the pending ACK reports out-of-order data: one per segment */
};

enum rtx_mode {
	RTX_NONE,
	RTX_HOLD, /* waiting for the other leg to open */
	RTX_SYN,
	RTX_RTO,
	RTX_TLP,
	RTX_REO, /* RACK's reordering timer */
	RTX_PERSIST,
	RTX_TIME_WAIT,
};

struct tcb {
	struct list ready;
	struct wheel_node timer;
	struct flight *fl;  /* NULL: nothing in flight */
	struct ranges *ooo; /* NULL: nothing out of order */
	struct stream snd;
	uint64_t snd_una;
	uint64_t snd_nxt;
	uint64_t snd_up;  /* tcp_urg.c: the octet behind the urgent data */
	uint64_t snd_wl1; /* segment of the last window update */
	uint64_t rcv_nxt;
	uint64_t rcv_adv; /* right edge of the advertised window */
	uint64_t last_ack_sent;
	uint64_t rcv_fin;     /* sequence number of the peer's FIN; 0: not seen */
	uint64_t dsack_start; /* a duplicate to report (RFC 2883), if dsack_end != 0 */
	uint64_t dsack_end;
	uint64_t rtx_ns; /* deadlines; NEVER: none */
	uint64_t delack_ns;
	uint64_t keep_ns;
	uint64_t last_rx_ns;
	uint64_t srtt_ns; /* 0: no sample */
	uint64_t rttvar_ns;
	union {
		uint64_t syn_ns; /* until open: when the SYN or SYN-ACK was first sent */
		/* when open: the sequence number that ends the round of the last DSACK */
		uint64_t rack_dsack_round;
	};
	uint32_t iss;
	uint32_t irs;
	uint32_t snd_wnd; /* bytes */
	uint32_t max_wnd;
	uint32_t flags; /* enum tcb_flag */
	uint32_t ts_recent;
	uint32_t ts_recent_s; /* when ts_recent was set */
	uint32_t ts_offset;
	uint32_t unacked_segs; /* received since the last ACK was sent */
	uint16_t mss;	       /* payload bytes per packet, timestamps taken off */
	uint16_t peer_mss;     /* the peer's option, or the default */
	uint8_t leg;
	uint8_t state; /* enum tcp_state */
	uint8_t rtx_mode;
	uint8_t backoff;
	uint8_t retries;
	uint8_t keep_probes;
	uint8_t snd_wscale;
	uint8_t rcv_wscale;
	uint8_t quickacks;
	uint8_t rack_mult;    /* reordering window, in quarters of min_rtt; 0 counts as 1 */
	uint8_t rack_persist; /* recoveries until rack_mult falls back */
	uint8_t burst;	      /* packets since this tcb was put at the end of the ready list */
};

/* tcp_hold.c, of the inner leg; sequence numbers of what the app sends; all 0: nothing is held */
struct hold {
	uint64_t seg[2];      /* where the last two packets from the app's kernel began */
	uint64_t lifted;      /* what is below may be acknowledged whatever the peer has */
	uint64_t again_start; /* came again while it was held, and was not answered */
	uint64_t again_end;
	uint64_t peer_had; /* then, of what the app has sent */
};

/* tcp_accecn.c; r_ is what we received, s_ what the peer tells of what we sent */
struct accecn {
	uint32_t r_bytes[ACCECN_COUNTERS]; /* payload, of code point i + 1; 24 bits go out */
	uint32_t s_ce_bytes;		   /* 24 bits */
	uint32_t opt_ms;		   /* when our option went last */
	uint32_t opt_dsack; /* start of the duplicate reported beside our option; 0: none was */
	uint16_t s_marks;   /* counted since the peer's last option */
	uint8_t r_cep;
	uint8_t s_cep;
	uint8_t ce_untold;	  /* marks since our last ACK */
	uint8_t ce_share;	  /* marked segments of 256, smoothed */
	uint8_t syn_ecn : 2;	  /* how the peer's SYN or SYN-ACK came */
	uint8_t last_ecn : 2;	  /* how the packet before came */
	uint8_t last_counter : 2; /* which byte counter grew last; 0: none did */
	uint8_t opt_due : 2;	  /* ACKs that should bear our option */
	uint8_t flags;		  /* enum accecn_flag */
};

/* What only the outer leg has */
struct outer {
	struct cc cc;
	uint64_t delivered_bytes;
	uint64_t delivered_ns;
	uint64_t first_tx_ns;
	uint64_t lost_bytes;
	/* delivered_bytes at which the application limit ends; 0: not limited */
	uint64_t app_limited_until;
	uint64_t delivery_Bps;	  /* last valid sample */
	uint64_t pace_ns;	  /* when the next data packet may go */
	uint64_t pace_wake_ns;	  /* deadline of the pause that pacing asked for; NEVER: none */
	uint64_t min_rtt_prev_ns; /* minimum of the 5 s before the running 5 s */
	uint64_t min_rtt_cur_ns;
	uint64_t min_rtt_turn_ns;
	uint64_t last_data_ns; /* of the last data packet sent, for restart after idle */
	uint64_t segments_sent;
	uint32_t retransmits;
	uint32_t rto_count;
	uint32_t challenge_ms; /* of the last challenge ACK */
	uint64_t mtu_probe_ns; /* tcp_pmtu.c: when the next probe may go */
	union {
		uint64_t ecn_end;     /* RFC 3168: where the segment with our last CWR ends */
		struct accecn accecn; /* TF_ACCECN */
	};
	/* tcp_spare.c */
	uint64_t spare_seq;	/* where the running pass goes on; 0: none runs */
	uint64_t spare_pass_ns; /* when the last one began */
	uint64_t spare_ns;	/* of the last copy; 0: none yet */
	uint32_t spare_left;	/* bytes that the running pass may still send */
	/* tcp_rack.c: low half of delivered_bytes when reordering was seen last */
	uint32_t reord_delivered;
	uint32_t reord_events; /* how often it was seen, once soon after the other */
	/* tcp_window.c */
	/* the most that came in a round trip and was taken in one, bytes */
	uint32_t rcv_space;
	uint32_t rcv_came; /* the most that came in a round trip of late, bytes */
	/* the shortest round trip of the last one; UINT32_MAX: none is known */
	uint32_t rcv_rtt_ms;
	uint32_t rcv_rtt_new_ms;  /* and of the running one */
	uint32_t rcv_round_tick;  /* when the running round trip began */
	uint32_t rcv_round_came;  /* low bits of what had come then */
	uint32_t rcv_round_taken; /* and of what the app's kernel had taken */
	/* tcp_undo.c: the last reduction was for [undo_una, undo_end) */
	uint64_t undo_una; /* 0: nothing can be undone */
	uint64_t undo_end;
	uint32_t undo_retrans; /* retransmissions not yet reported as duplicates */
	uint32_t retrans_ts;   /* timestamp clock at the first of them */
	uint16_t mtu_full;     /* the MTU before a black hole was suspected; 0: none is */
	uint16_t mtu_probe_wait_s;
	uint8_t mtu_probing;
	uint8_t retrans_ts_known;
	uint8_t undo_timeout; /* the reduction was a timeout's */
	uint8_t frto;	      /* enum frto_step */
	uint8_t rcv_grows;    /* round trips for which rcv_space still counts as growing */
	uint8_t rcv_measured; /* a round trip is being measured */
};

/* Both ends of a connection, and what one tells the other */
struct ends {
	struct flow f;
	/* of the outer leg: behind the sequence numbers of a connection in TIME_WAIT ... */
	uint32_t isn_floor;
	bool has_isn_floor; /* ... that this one replaces */
	uint8_t tos;	    /* DSCP of the app's packets, carried to the outer leg */
	uint8_t ttl;	    /* of the app's packets, likewise; also the hop limit */
	/* the least of the peer's packets, carried to the inner leg (RFC 5082) */
	uint8_t peer_ttl;
	uint8_t peer_tos; /* DSCP of the peer's packets, carried to the inner leg */
	/* what the app takes in a segment, if no MTU allows so little; 0: more */
	uint16_t mss_most;
	/* the longest that the app's kernel was seen to cut its data to; 0: none yet */
	uint16_t app_segment;
	uint32_t flow_label; /* of the app's packets, IPv6 */
	uint32_t peer_label; /* of the peer's */
	uint64_t link;	     /* the way of its packets on the outer leg; 0: none */
	struct hold hold;
	struct tcb leg[2];
	struct outer outer;
};

static inline struct ends *tcb_ends(const struct tcb *t)
{
	return container_of(t - t->leg, struct ends, leg);
}

static inline struct tcb *tcb_peer(const struct tcb *t)
{
	return &tcb_ends(t)->leg[t->leg ^ 1];
}

static inline bool tcb_is_outer(const struct tcb *t)
{
	return t->leg == DMM_LEG_OUTER;
}

/* It is kept from answering or sending until tcp_go() */
static inline bool tcp_is_held(const struct tcb *t)
{
	return t->flags & TF_HOLD;
}

/* Closed, and its peer knows all that it will */
static inline bool tcp_is_over(const struct tcb *t)
{
	return t->state == TCP_CLOSE && !(t->flags & TF_RST_DUE);
}

/* How an end is ended */
enum tcp_abort {
	TCP_ABORT_FREE,	 /* its memory goes: nothing more is said */
	TCP_ABORT_PEER,	 /* its peer has ended it: nothing more is said but a RST that is due */
	TCP_ABORT_NOW,	 /* by a RST, if its peer can know of it */
	TCP_ABORT_FLUSH, /* by a RST behind what is due to its peer */
	/* likewise; but while its peer has bytes that are not acknowledged, by silence */
	TCP_ABORT_MUTE,
	/*
	 * by a RST that waits for no pull, for the end is freed; in TIME-WAIT by the ACK
	 * that is due
	 */
	TCP_ABORT_APART,
};

/* Both ends of e, whose row is filled, of a connection that begins with syn */
void tcp_init(struct env *env, struct ends *e, const struct pkt *syn);
/* syn: what came; it is kept, unanswered, until tcp_go(). NULL: an active open. */
void tcp_open(struct env *env, struct tcb *t, const struct pkt *syn, uint64_t now_ns);
/* What the end was kept from answering, or sending, may go: the other end is there */
void tcp_go(struct env *env, struct tcb *t);
/* A segment of the connection came in on this leg */
void tcp_input(struct env *env, struct tcb *t, const struct pkt *pkt, uint64_t now_ns);
/* The next packet of an end on env->ready into buf; returns its length, or 0: none */
uint32_t tcp_output(struct env *env, struct tcb *t, uint8_t *buf, uint32_t cap,
		    struct dmm_tx_meta *meta, uint64_t now_ns);
/* t->timer was popped */
void tcp_timer(struct env *env, struct tcb *t, uint64_t now_ns);
void tcp_abort(struct env *env, struct tcb *t, enum tcp_abort how, uint64_t now_ns);
/*
 * An ICMP error that quotes a segment of this end. true: it met the SYN of an end that is opening.
 */
bool tcp_icmp(struct env *env, struct tcb *t, const struct pkt *pkt);
/*
 * RFC 9293 section 3.6.1 and RFC 6191: syn, which came in on leg, may take the place
 * of this connection
 */
bool tcp_gives_way(const struct ends *e, uint32_t leg, const struct pkt *syn);
/*
 * true: nothing is in flight, held, due or out of order, nothing has come for park_ns, and from now
 * on no list refers to the ends, until tcp_wake(). *due_ns: when that must be at the latest.
 */
bool tcp_sleep(struct env *env, struct ends *e, uint64_t now_ns, uint64_t *due_ns);
/* env NULL: a copy to be looked at; its timers are not started */
void tcp_wake(struct env *env, struct ends *e);
/* All but what the table knows */
void tcp_info(const struct env *env, const struct ends *e, struct dmm_conn_info *info);

#endif /* DMM_TCP_H */

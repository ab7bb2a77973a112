/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp.h: the state of one end of a TCP connection (RFC 9293): the same engine for both legs. How it
 * works is told in tcp.c, what its files call of each other is in tcp_int.h; nothing above includes
 * either (tcp_end.h).
 */
#ifndef DMM_TCP_H
#define DMM_TCP_H

#include "../base/loss_cause.h"
#include "../cc/cc.h"
#include "../end.h"
#include "flight.h"

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
	TF_NO_ECT = 1 << 24,  /* marks would not come back: nothing sent is ECT */
	TF_OOO_ACK = 1 << 20, /* the pending ACK reports out-of-order data: one per segment */
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
	union {
		struct end end;
		struct {
			END_MEMBERS
		};
	};
	struct flight *fl; /* NULL: nothing in flight */
	uint64_t snd_wl1;  /* segment of the last window update */
	uint64_t rcv_nxt;
	uint64_t rcv_adv; /* right edge of the advertised window */
	uint64_t last_ack_sent;
	uint64_t rcv_fin;     /* sequence number of the peer's FIN; 0: not seen */
	uint64_t dsack_start; /* a duplicate to report (RFC 2883), if dsack_end != 0 */
	uint64_t dsack_end;
	uint64_t rtx_ns; /* deadlines; NEVER: none */
	uint64_t delack_ns;
	uint64_t keep_ns;
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
	uint8_t state;	       /* enum tcp_state */
	uint8_t rtx_mode;
	uint8_t backoff;
	uint8_t retries;
	uint8_t keep_probes;
	uint8_t snd_wscale;
	uint8_t rcv_wscale;
	uint8_t quickacks;
	uint8_t rack_mult;    /* reordering window, in quarters of min_rtt; 0 counts as 1 */
	uint8_t rack_persist; /* recoveries until rack_mult falls back */
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

/* tcp_agree.c */
struct agree {
	uint8_t state;	  /* enum dmm_agreement */
	uint8_t features; /* enum dmm_feature: offered, then agreed on */
	uint8_t nonce;	  /* the offer's */
	uint8_t demand;	  /* 1: without an agreement the connection is refused */
};

/* tcp_loss.c */
struct loss {
	struct loss_pair all;
	struct loss_pair soon;	/* of those sent soon after one that was lost */
	struct loss_pair fresh; /* of all, what the path was not told yet (tcp_paths.c) */
	struct loss_pair fresh_soon;
	uint64_t rtt_ns[2];	  /* shortest of the running round trip and of the last one */
	uint64_t round_ns;	  /* when the running one ends */
	struct loss_off off;	  /* too much was lost */
	uint64_t marked_until_ns; /* a mark of ECN came */
	uint16_t told;		  /* transmissions that the path was told of, up to PATH_SENT */
	bool queue;		  /* one stands */
	uint8_t bulk_rounds;	  /* in a row in which it sent all that the path takes */
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
	/* since when the peer says nothing but what was answered; 0: it does not */
	uint32_t again_ms;
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
	struct loss loss;
	/* tcp_copies.c */
	struct copies *copies; /* NULL: none was planned yet */
	uint64_t copy_planned; /* what is below was looked at */
	uint64_t copy_wake_ns; /* when the next one is due, or earlier; NEVER: none is */
	struct bucket copy_bucket;
	uint64_t path_Bps;	/* the path's rate, seen while a queue stood; 0: not known */
	uint64_t load_told;	/* delivered_bytes that the path was told of */
	uint64_t copy_told_end; /* where the round ends in which a repaired loss was told */
	uint32_t copies_sent;
	uint32_t copies_needed;
	uint64_t syn_copy_ns;	/* when the next copy of our SYN or SYN-ACK is due */
	uint32_t syn_gap_us;	/* from that one to the next */
	uint32_t opened_ms;	/* when the handshake was done */
	uint8_t syn_copies;	/* still to go */
	bool syn_copied;	/* one went */
	uint8_t copy_gap_shift; /* how often the gap between two was doubled */
	bool copying;		/* copies are wanted, and loss is measured for them */
	/* tcp_parity_out.c, tcp_parity_in.c */
	struct parity_out *parity_out; /* NULL: no stream was looked at yet */
	struct parity_in *parity_in;   /* NULL: no parity has come yet */
	uint64_t parity_wake_ns;       /* when the next is due, or earlier; NEVER: none is */
	uint64_t parity_sent;	       /* segments */
	uint64_t peer_repaired;	       /* symbols */
	uint64_t repaired;	       /* symbols, of the peer's stream */
	uint16_t parity_told;	       /* the peer's counter of what it repaired */
	uint8_t parity_tells;	       /* ACKs that are still to say how much we repaired */
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
	struct agree agree;
};

/* What lies at an inner end of this transport, and at an outer one */
struct tcb_inner {
	struct tcb t;
	struct hold hold;
};

struct tcb_outer {
	struct tcb t;
	struct outer outer;
};

static inline struct tcb *tcb_of(const struct end *e)
{
	return container_of(e, struct tcb, end);
}

static inline struct ends *tcb_ends(const struct tcb *t)
{
	return end_ends(&t->end);
}

/* Of any transport, if t is the inner end */
static inline struct end *tcb_peer(const struct tcb *t)
{
	return end_peer(&t->end);
}

/* The inner end is this transport's whatever the outer one is */
static inline struct tcb *tcb_inner_of(const struct ends *e)
{
	return tcb_of(ends_end(e, DMM_LEG_INNER));
}

static inline bool tcb_is_outer(const struct tcb *t)
{
	return t->leg == DMM_LEG_OUTER;
}

static inline struct outer *tcb_outer(const struct tcb *t)
{
	return &container_of(t, struct tcb_outer, t)->outer;
}

static inline struct hold *tcb_hold(const struct tcb *t)
{
	return &container_of(t, struct tcb_inner, t)->hold;
}

/* It is kept from answering or sending until tcp_go() */
static inline bool tcp_is_held(const struct tcb *t)
{
	return t->flags & TF_HOLD;
}

#endif /* DMM_TCP_H */

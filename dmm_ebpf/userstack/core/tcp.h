/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp.h: one end of a TCP connection (RFC 9293), the same engine for both legs.
 *
 * Theory of operation. Sequence numbers are held in 64 bits: 0 is the SYN, byte n of the stream is n + 1, the
 * FIN follows the last byte; iss and irs translate to the wire, so nothing inside ever wraps. A leg's send
 * buffer (snd) is the other leg's receive buffer: in-order bytes are put there as they arrive, the receive
 * window is the room left there, and bytes leave it when this leg's peer has acknowledged them. Nothing is
 * sent by pushing: whatever gives a leg something to send marks it ready (tcp_ready) and tcp_output() makes
 * one packet when it is pulled.
 *
 * tcp_in.c     arrival: acceptability, RST, payload, FIN
 * tcp_merged.c arrival: segments that came as one packet
 * tcp_open.c   arrival: the handshake
 * tcp_ack.c    acknowledgments: cumulative, SACK, windows, round-trip time, delivery rate
 * tcp_rack.c   loss detection: RACK, tail loss probes, NewReno for peers without SACK
 * tcp_prr.c    how fast a recovery sends on the outer leg
 * tcp_inner.c  and on the inner leg
 * tcp_hold.c   what the app's kernel is told of before the peer has it
 * tcp_ecn.c    explicit congestion notification: what is agreed on, RFC 3168
 * tcp_accecn.c accurate ECN (RFC 9768)
 * tcp_urg.c    urgent data
 * tcp_pmtu.c   path MTU: device, route, ICMP, black holes
 * tcp_undo.c   recovery that was needless: Eifel, DSACK, F-RTO
 * tcp_opt.c    SACK and ECN feedback in a segment's options
 * tcp_spare.c  copies of what is on the way while nothing else can be sent
 * tcp_out.c    departure: which segment is next, and its making
 * tcp_run.c    departure: which segments may share a packet that the device cuts
 * tcp_pace.c   departure: when
 * tcp_window.c how much the peer may send
 * tcp_timer.c  deadlines
 *
 * Invariants: snd_una <= snd_nxt; bytes below snd_una are not held; the right edge of the window that was
 * advertised (rcv_adv) never moves back; a state changes only in tcp_set_state().
 */
#ifndef DMM_TCP_H
#define DMM_TCP_H

#include "cc.h"
#include "flight.h"
#include "ranges.h"
#include "stream.h"
#include "wheel.h"
#include "wire.h"

struct dmm_core;
struct conn;

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

enum {
	TCP_MIN_RTO_MS = 200,
	TCP_INIT_RTO_MS = 1000,
	TCP_MAX_RTO_MS = 120000,
	TCP_INNER_MAX_RTO_MS = 5000, /* the kernel is near: a firewall rule that is lifted should show soon */
	TCP_DELACK_MS = 40,
	TCP_RETRIES = 15, /* as net.ipv4.tcp_retries2 */
	TCP_ORPHAN_RETRIES = 8,
	TCP_INNER_RETRIES = 180,
	TCP_SYNACK_RETRIES = 5,
	TCP_INNER_SYN_RETRIES = 4,
	TCP_KEEPALIVE_PROBES = 9,
	TCP_KEEPALIVE_INTVL_S = 75,
	TCP_INNER_TIME_WAIT_MS = 1000, /* the kernel sends its FIN again after 200 ms, 400 ms */
	TCP_INNER_HALF_CLOSED_S = 60,  /* an orphan of the kernel's dies silently after tcp_fin_timeout */
	TCP_QUICKACKS = 16,
	TCP_INIT_CWND_SEGS = 10, /* RFC 6928 */
	TCP_MIN_MSS = 48,	 /* as net.ipv4.tcp_min_snd_mss: less would be all headers */
	TCP_MAX_WSCALE = 14,
	TCP_MAX_WINDOW = 1 << 30, /* RFC 7323 section 2.3 */
	TCP_DUP_THRESH = 3,
	TCP_HOLD_S = 150,  /* longer than any kernel goes on with a SYN */
	TCP_MUTE_S = 1800, /* and longer than it goes on with data, unless told otherwise */
	TCP_NOTSENT_MIN_BYTES =
		256 * 1024, /* unsent data that the outer leg holds at least, before it pushes back */
};

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
	TF_PUSH_ANY = 1 << 14,	 /* the persist timer fired: send however small the window is */
	TF_REORD = 1 << 15,	 /* RACK: reordering was seen on this path */
	TF_SYN_RTX = 1 << 16,	 /* the SYN was sent more than once: no RTT sample from it (Karn) */
	TF_RST_BARE = 1 << 17,	 /* the RST carries no ACK: nothing was received yet */
	TF_RST_FLUSH = 1 << 19,	 /* what the window takes goes before the RST */
	TF_ECN = 1 << 18,	 /* agreed on; in SYN-RECEIVED: asked for by the peer */
	TF_ECN_ASKED = 1 << 25,	 /* until open: asked for with our SYN */
	TF_ECN_ECHO = 1 << 21,	 /* a mark arrived: say so in each ACK */
	TF_ECN_CWR = 1 << 22,	 /* the window was reduced: say so in the next new data */
	TF_ACCECN = 1 << 23,	 /* on an open leg: accurate ECN was agreed on, and TF_ECN is clear */
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
		uint64_t syn_ns;	   /* until open: when the SYN or SYN-ACK was first sent */
		uint64_t rack_dsack_round; /* when open: the sequence number that ends the round of the last
					      DSACK */
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

/* F-RTO (RFC 5682) */
enum frto_step {
	FRTO_OFF,
	FRTO_FIRST,    /* the first segment was sent again, nothing else goes */
	FRTO_NEW_DATA, /* new data goes before any other retransmission */
};

enum accecn_flag {
	ACC_SERVER = 1 << 0,	/* the peer's SYN came first */
	ACC_FIRST = 1 << 1,	/* nothing but SYNs has come yet */
	ACC_HANDSHAKE = 1 << 2, /* the next pure ACK says how the SYN-ACK came */
	ACC_PLAIN_SYN = 1 << 3, /* SYN-ACKs ask for nothing any more */
	ACC_ACE_BAD = 1 << 4,	/* the path clears the peer's ACE field */
	ACC_OPT_BAD = 1 << 5,	/* the path clears the peer's option */
	ACC_OPT_SEEN = 1 << 6,	/* the peer's option arrives */
	ACC_OPT_OFF = 1 << 7,	/* packets with our option seem to be dropped */
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
	uint64_t app_limited_until; /* delivered_bytes at which the application limit ends; 0: not limited */
	uint64_t delivery_Bps;	    /* last valid sample */
	uint64_t pace_ns;	    /* when the next data packet may go */
	uint64_t pace_wake_ns;	    /* deadline of the pause that pacing asked for; NEVER: none */
	uint64_t min_rtt_prev_ns;   /* minimum of the 5 s before the running 5 s */
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
	uint64_t spare_seq;	  /* where the running pass goes on; 0: none runs */
	uint64_t spare_pass_ns;	  /* when the last one began */
	uint64_t spare_ns;	  /* of the last copy; 0: none yet */
	uint32_t spare_left;	  /* bytes that the running pass may still send */
	uint32_t reord_delivered; /* tcp_rack.c: low half of delivered_bytes when reordering was seen last */
	uint32_t reord_events;	  /* how often it was seen, once soon after the other */
	/* tcp_window.c */
	uint32_t rcv_space;	  /* the most that came in a round trip and was taken in one, bytes */
	uint32_t rcv_came;	  /* the most that came in a round trip of late, bytes */
	uint32_t rcv_rtt_ms;	  /* the shortest round trip of the last one; UINT32_MAX: none is known */
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

/* tcp_timer.c */
void tcp_set_deadline(struct dmm_core *core, struct tcb *t, uint64_t *field, uint64_t deadline_ns);
void tcp_set_rtx(struct dmm_core *core, struct tcb *t, enum rtx_mode mode, uint64_t deadline_ns);
void tcp_timer(struct dmm_core *core, struct tcb *t, uint64_t now_ns);
/* Arms the node for the earliest deadline, unless it is armed for an earlier one */
void tcp_timer_start(struct dmm_core *core, struct tcb *t);
/* When a peer that stays silent is asked whether it is there */
uint64_t tcp_keep_due_ns(const struct dmm_core *core, const struct tcb *t);
void tcp_keep_start(struct dmm_core *core, struct tcb *t, uint64_t now_ns);
uint64_t tcp_rto_ns(const struct tcb *t);
void tcp_rearm(struct dmm_core *core, struct tcb *t, uint64_t now_ns);

/* tcp_in.c */
void tcp_init(struct tcb *t, uint32_t leg);
void tcp_set_state(struct dmm_core *core, struct tcb *t, enum tcp_state state);
void tcp_input(struct dmm_core *core, struct tcb *t, const struct pkt *pkt, uint64_t now_ns);
/* Frees buffers and timers; the state becomes TCP_CLOSE */
void tcp_release(struct dmm_core *core, struct tcb *t);
void tcp_enter_time_wait(struct dmm_core *core, struct tcb *t, uint64_t now_ns);

/* tcp_merged.c */
/* How many segments it was on the wire */
uint32_t merged_count(const struct pkt *pkt);
/* Taken as one it has the effect that its segments have one after the other */
bool merged_is_plain(const struct tcb *t, const struct pkt *pkt);
/* The segment whose payload begins at off */
void merged_piece(const struct tcb *t, const struct pkt *pkt, uint32_t off, struct pkt *piece);

/* tcp_open.c */
/* Active open */
void tcp_connect(struct dmm_core *core, struct tcb *t, uint32_t iss, uint64_t now_ns);
/* The smallest window scale with which a window of limit bytes can be told */
uint8_t tcp_pick_wscale(uint64_t limit);
void tcp_learn_syn(struct dmm_core *core, struct tcb *t, const struct pkt *pkt, uint64_t now_ns);
/* This leg's first SYN was ours */
bool open_is_ours(const struct tcb *t);
bool open_acks_syn(const struct tcb *t, const struct pkt *pkt);
/* Our SYN was acknowledged */
void open_done(struct dmm_core *core, struct tcb *t, uint64_t now_ns);
void open_syn_sent(struct dmm_core *core, struct tcb *t, const struct pkt *pkt, uint64_t now_ns);
/* true: dealt with */
bool open_syn_received(struct dmm_core *core, struct tcb *t, const struct pkt *pkt, uint64_t now_ns);

/* tcp_ack.c */
/* Whether the peer may have sent this ACK field (RFC 5961 section 5.2) */
bool tcp_ack_ok(const struct tcb *t, uint32_t field);
/* tcp_ack_ok() was asked */
void tcp_ack(struct dmm_core *core, struct tcb *t, const struct pkt *pkt, uint64_t seq, uint64_t now_ns);
uint64_t tcp_min_rtt_ns(const struct tcb *t);
void tcp_rtt_sample(struct dmm_core *core, struct tcb *t, uint64_t rtt_ns, uint64_t now_ns);

void tcp_exit_recovery(struct tcb *t, uint64_t now_ns);

/* tcp_undo.c, all for the outer leg only; true: the last reduction was needless */
void undo_on_recovery(struct tcb *t);
void undo_on_timeout(struct tcb *t); /* before TF_RECOVERY is set */
void undo_on_resend(struct tcb *t, const struct seg *s, uint64_t now_ns);
bool undo_on_dsack(struct tcb *t, uint64_t start, uint64_t end);
bool undo_by_echo(const struct tcb *t, const struct pkt *pkt);
bool undo_frto(struct tcb *t, bool advanced, bool delivered, bool original, bool has_payload);
void undo_reduction(struct dmm_core *core, struct tcb *t, uint64_t now_ns);

/* tcp_spare.c: a hole worth a copy now; call only when nothing else can be sent and cwnd has room */
bool spare_pick(struct dmm_core *core, struct tcb *t, uint64_t now_ns, uint32_t *idx);
void spare_sent(struct dmm_core *core, struct tcb *t, struct seg *s, uint64_t now_ns);
bool spare_explains_dsack(const struct tcb *t, uint64_t now_ns);

/* tcp_ecn.c; functions that return flags return those of the TCP header */
uint16_t ecn_syn_flags(const struct dmm_core *core, struct tcb *t);
void ecn_learn_syn(const struct dmm_core *core, struct tcb *t, const struct pkt *pkt);
void ecn_learn_syn_again(struct tcb *t, const struct pkt *pkt);
void ecn_input(struct dmm_core *core, struct tcb *t, const struct pkt *pkt, uint64_t now_ns);
/* delivered_segs: newly acknowledged or SACKed by pkt. Returns the marks that it tells of, for cc_sample.ece
 */
uint32_t ecn_echoed(struct dmm_core *core, struct tcb *t, const struct pkt *pkt, uint32_t delivered_segs);
void ecn_reduced(struct tcb *t);
uint16_t ecn_ack_flags(const struct tcb *t);
uint16_t ecn_data_flags(struct tcb *t, const struct seg *s, uint8_t *tos);

/* tcp_accecn.c, only with TF_ACCECN */
void accecn_begin(struct tcb *t, const struct pkt *pkt);
void accecn_syn_again(struct tcb *t, const struct pkt *pkt);
/* The SYN-ACK's flags and option, behind those options that it has */
void accecn_synack(struct tcb *t, struct wire_seg *seg);
void accecn_input(struct dmm_core *core, struct tcb *t, const struct pkt *pkt, uint64_t now_ns);
void accecn_duplicate(struct tcb *t, uint64_t start);
uint32_t accecn_echoed(struct dmm_core *core, struct tcb *t, const struct pkt *pkt, uint32_t delivered_segs);
bool accecn_option_due(const struct tcb *t, uint64_t now_ns);
/* The ACE field of a segment that has all but our option */
void accecn_ace(struct tcb *t, struct wire_seg *seg, bool pure);
/* room: bytes left for options. dsack_start: of the duplicate that seg reports; 0: none */
void accecn_option(struct tcb *t, struct wire_seg *seg, uint32_t room, uint64_t dsack_start, uint64_t now_ns);

/* tcp_urg.c */
/* seq: of the segment, in 64 bits */
void urg_input(struct dmm_core *core, struct tcb *t, const struct pkt *pkt, int64_t seq);
void urg_mark(const struct tcb *t, struct wire_seg *seg, uint64_t seq);

/* tcp_pmtu.c */
/* A way's MTU by that of its device; 0: not known */
uint32_t pmtu_of_device(const struct dmm_core *core, uint8_t family, uint32_t mtu);
/* A new connection goes by a device of that MTU; 0: not known */
void pmtu_start(const struct dmm_core *core, struct conn *c, uint32_t mtu);
/* It goes by another now, or that one's MTU has changed */
void pmtu_device(struct dmm_core *core, struct conn *c, uint32_t mtu);
/* This host's kernel offers that MSS: its route allows no more */
void pmtu_route(struct dmm_core *core, struct conn *c, uint32_t mss);
/* The app's kernel cuts its data to so many bytes, more than any before. */
void pmtu_app_segment(struct dmm_core *core, struct conn *c, uint32_t bytes);
/* A router says so of the segment that begins at seq; mtu 0: it does not tell which */
void pmtu_too_big(struct dmm_core *core, struct conn *c, uint64_t seq, uint32_t mtu);
void pmtu_on_timeout(struct dmm_core *core, struct tcb *t);
uint32_t pmtu_probe_len(const struct dmm_core *core, const struct tcb *t, uint32_t cap, uint64_t now_ns);
/* The newest segment is a probe */
void pmtu_probe_sent(struct tcb *t);
void pmtu_probe_arrived(struct dmm_core *core, struct tcb *t);
bool pmtu_probe_lost(struct dmm_core *core, struct tcb *t, struct seg *s, uint64_t now_ns);

/* tcp_rack.c */
/* Acknowledged now, but not for its last transmission: nothing can be measured by it */
bool rack_told_late(const struct tcb *t, const struct seg *s, uint64_t now_ns);
bool rack_update(struct tcb *t, const struct seg *s, bool told_late, uint64_t old_fack, uint64_t now_ns);
void rack_reordered(struct tcb *t);
/* How long a segment that was overtaken is waited for */
uint64_t rack_window_ns(const struct tcb *t);
/* Marks what is lost; returns its bytes. *wait_ns: how long until more may be found lost, 0: never */
uint64_t rack_detect(struct tcb *t, uint64_t now_ns, uint64_t *wait_ns);
void rack_dsack(struct tcb *t);
uint64_t rack_mark_all_lost(struct tcb *t);
/* delivered_bytes: by the ACK that told of the loss */
void tcp_enter_recovery(struct dmm_core *core, struct tcb *t, uint64_t delivered_bytes, uint64_t now_ns);
/* Loss found outside an ACK (timer, MTU): tells the congestion control */
void tcp_report_loss(struct dmm_core *core, struct tcb *t, uint64_t lost_bytes, uint64_t now_ns);
uint64_t tcp_pto_ns(const struct tcb *t);
bool tcp_tlp_allowed(const struct tcb *t);

/* tcp_prr.c, all for the outer leg only */
void prr_start(struct tcb *t, uint64_t delivered_bytes);
void prr_end(struct tcb *t);
/* safe: the ACK moved snd_una and told of no further loss */
void prr_ack(struct tcb *t, uint64_t delivered_bytes, bool safe);
void prr_sent(struct tcb *t, uint32_t len);

/* tcp_inner.c, all for the inner leg only */
/* Something was marked lost; acked_bytes: by the ACK that told of it */
void inner_lost(struct tcb *t, uint64_t acked_bytes);
void inner_acked(struct tcb *t, uint64_t acked_bytes);
void inner_recovered(struct tcb *t);
bool inner_allows(const struct tcb *t, uint32_t len);

/* tcp_hold.c, all for the inner leg only */
/* What is to be acknowledged; on either leg */
uint64_t hold_ack(const struct tcb *t);
/* ack goes out now */
void hold_told(struct tcb *t, uint64_t ack);
/* Something came, or got to the peer: an ACK now, if it is worth one */
void hold_tell(struct dmm_core *core, struct tcb *t);
/* Data that begins at seq comes in order */
void hold_arrived(struct tcb *t, uint64_t seq);
/* All below upto may be acknowledged now */
void hold_lift(struct dmm_core *core, struct tcb *t, uint64_t upto);
/* [start, end) came, all that a segment has. true: it is held, and was dealt with */
bool hold_again(struct dmm_core *core, struct tcb *t, int64_t start, int64_t end);
/* The peer has answered what was asked for what came again, or for a probe */
void hold_heard(struct dmm_core *core, struct tcb *t);
/* Bytes are held, or a FIN */
bool hold_pending(const struct tcb *t);

/* tcp_window.c */
/* Announces a window that has grown enough */
void tcp_window_opened(struct dmm_core *core, struct tcb *t);
/* The window field of a segment that goes out with this ACK; moves rcv_adv */
uint16_t window_take(struct dmm_core *core, struct tcb *t, uint64_t ack, bool syn);
/* Payload came in on the outer leg */
void window_measure(struct tcb *t, const struct pkt *pkt, uint64_t now_ns);
/*
 * Bytes of the memory limit that what arrives in order on a leg must leave. What the app sends leaves room
 * for what the peer sends, and each direction that holds little may take more: two full stacks must not wait
 * for each other.
 */
uint64_t tcp_mem_reserve(const struct dmm_core *core, const struct tcb *t);
/* The most that this leg receives and the other leg holds */
uint64_t tcp_rcv_limit(const struct dmm_core *core, const struct tcb *t);

/* tcp_pace.c */
/* true: nothing may go now; the leg is made ready again in time */
bool pace_blocked(struct dmm_core *core, struct tcb *t, uint64_t now_ns);
/* A segment of len bytes went out, on the outer leg */
void pace_sent(struct tcb *t, uint32_t len, uint64_t now_ns);

/* The most that goes together: what a burst may be, in payload bytes */
uint64_t pace_burst_bytes(const struct tcb *t);

/* tcp_run.c */
/* Payload that a packet of headers_len bytes of headers may have beyond one segment; 0: it stays alone. The
 * newest segment, mss bytes of new data, is what it begins with; seg is its header. */
uint32_t run_most(const struct dmm_core *core, const struct tcb *t, const struct wire_seg *seg, uint32_t cap);

/* tcp_opt.c */
/* A data segment of len bytes has no options but timestamps */
bool opt_plain(const struct dmm_core *core, const struct tcb *t, uint32_t len, uint64_t now_ns);
/* SACK blocks and ECN feedback beside a payload of len bytes; true: no SACK block is left for another ACK */
bool opt_feedback(struct dmm_core *core, struct tcb *t, struct wire_seg *seg, uint32_t len, uint64_t now_ns);
/* Our option of RFC 9768, if it is due and fits. dsack_start: as accecn_option() takes it */
void opt_accecn(struct dmm_core *core, struct tcb *t, struct wire_seg *seg, uint32_t len,
		uint64_t dsack_start, uint64_t now_ns);

/* tcp_out.c */
void tcp_ready(struct dmm_core *core, struct tcb *t);
void tcp_unready(struct tcb *t);
/* Whether the ACK that ends the handshake is yet to be sent */
bool tcp_is_greeting(const struct tcb *t);
uint32_t tcp_output(struct dmm_core *core, struct tcb *t, uint8_t *buf, uint32_t cap,
		    struct dmm_tx_meta *meta, uint64_t now_ns);
/* Queues a pure ACK as it is now, apart from what the ready list does */
void tcp_ack_apart(struct dmm_core *core, struct tcb *t, uint64_t now_ns);
/* The answer to a segment from the past without payload: a keep-alive probe, of which every open connection
 * may get one; limited all the same, for two stacks could answer each other for ever */
void tcp_stale_ack(struct dmm_core *core, struct tcb *t, uint64_t now_ns);
void tcp_challenge_ack(struct dmm_core *core, struct tcb *t, uint64_t now_ns);
void tcp_set_mss(struct dmm_core *core, struct tcb *t);
/* What a SYN of this leg says. The app's kernel is told what the peer takes, if that is less. */
uint16_t tcp_adv_mss(const struct dmm_core *core, const struct tcb *t);
/* What the peer of this leg takes in a segment: what it has said, or less if the app's kernel cuts its data
 * shorter than it was told to, as it does when a firewall of this host's has written less into what it got.
 */
uint32_t tcp_peer_takes(const struct dmm_core *core, const struct tcb *t);
uint32_t tcp_mtu(const struct dmm_core *core, const struct tcb *t);
uint64_t tcp_inflight(const struct tcb *t);
uint64_t tcp_unsent(const struct tcb *t);
uint32_t tcp_ts_now(const struct tcb *t, uint64_t now_ns);

#endif /* DMM_TCP_H */

/* SPDX-License-Identifier: Apache-2.0 */
/* tcp_int.h: what the files of the TCP layer share; none above it includes this. Theory of
 * operation: tcp.c.
 */
#ifndef DMM_TCP_INT_H
#define DMM_TCP_INT_H

#include "../wire/ctl.h"
#include "tcp.h"

enum {
	TCP_MIN_RTO_MS = 200,
	TCP_INIT_RTO_MS = 1000,
	/* a peer from which nothing came for so long may be dead (Linux: TCP_RTO_MAX) */
	TCP_SILENT_MS = 120000,
	/* a peer that repeats itself for so long does not hear our answers */
	TCP_AGAIN_MS = 400,
	TCP_DELACK_MS = 40,
	TCP_SYNACK_RETRIES = 5,
	TCP_KEEPALIVE_PROBES = 9,
	TCP_KEEPALIVE_INTVL_S = 75,
	TCP_QUICKACKS = 16,
	TCP_INIT_CWND_SEGS = 10, /* RFC 6928 */
	TCP_MIN_MSS = 48,	 /* as net.ipv4.tcp_min_snd_mss: less would be all headers */
	TCP_MAX_WSCALE = 14,
	TCP_DUP_THRESH = 3,
	TCP_HOLD_S = 150,  /* longer than any kernel goes on with a SYN */
	TCP_MUTE_S = 1800, /* and longer than it goes on with data, unless told otherwise */
	/* unsent data that the outer leg holds at least, before it pushes back */
	TCP_NOTSENT_MIN_BYTES = 256 * 1024,
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

static inline void tcp_ready(struct env *env, struct tcb *t)
{
	end_ready(env, &t->end);
}

/* This leg's first SYN was ours */
static inline bool open_is_ours(const struct tcb *t)
{
	return !tcb_ends(t)->f.passive == tcb_is_outer(t);
}

/* In the network, as far as is known */
static inline uint64_t tcp_inflight(const struct tcb *t)
{
	uint64_t dups;

	if (!t->fl)
		return 0;
	dups = (uint64_t)t->fl->reno_dups * t->mss; /* each has left the network */
	return t->fl->inflight_bytes - min_u64(dups, t->fl->inflight_bytes);
}

/* What a leg's timestamp clock is ahead of the core's; no stranger can guess it */
static inline uint32_t tcp_ts_offset(const struct env *env, const struct dmm_core_addr_pair *pair,
				     uint32_t leg)
{
	return (uint32_t)(siphash(env->isn_secret, pair, 5) >> (leg ? 32 : 0));
}

/* The timestamp clock of this leg */
static inline uint32_t tcp_ts_now(const struct tcb *t, uint64_t now_ns)
{
	return (uint32_t)(now_ns / NS_PER_MS) + t->ts_offset;
}

/* What the transport is called for (struct end_ops), of the files of these names */
void tcp_input(struct env *env, struct end *e, const struct pkt *pkt, uint64_t now_ns);
uint32_t tcp_output(struct env *env, struct end *e, uint8_t *buf, uint32_t cap,
		    struct dmm_tx_meta *meta, uint64_t now_ns);
void tcp_timer(struct env *env, struct end *e, uint64_t now_ns);
/* A SYN or SYN-ACK of the app's kernel has come, or come again: what that is to the outer leg */
void tcp_app_asks(struct env *env, struct tcb *inner, uint64_t interval_ns, uint64_t now_ns);
void tcp_app_asks_again(struct env *env, struct tcb *inner, uint64_t now_ns);
void tcp_app_answers_again(struct env *env, struct tcb *inner, uint64_t now_ns);
enum end_care tcp_ask(struct env *env, struct end *e); /* tcp_deadline.c */
void tcp_set_deadline(struct env *env, struct tcb *t, uint64_t *field, uint64_t deadline_ns);
void tcp_set_rtx(struct env *env, struct tcb *t, enum rtx_mode mode, uint64_t deadline_ns);
/* Arms the node for the earliest deadline, unless it is armed for an earlier one */
void tcp_timer_start(struct env *env, struct tcb *t);
uint64_t tcp_rto_ns(const struct env *env, const struct tcb *t);

/* tcp_timer.c */
void tcp_room(struct env *env, struct end *e);			/* tcp_window.c */
void tcp_passed(struct env *env, struct end *e);		/* likewise */
uint64_t tcp_wants(const struct env *env, const struct end *e); /* likewise, of the outer leg */
void tcp_heard(struct env *env, struct end *e);			/* tcp_hold.c */
void tcp_urgent(struct env *env, struct end *e);
void tcp_path(struct env *env, struct end *e, enum end_path what); /* tcp_ip.c */
bool tcp_rests(const struct env *env, const struct end *e, uint64_t now_ns);
uint64_t tcp_sleep(struct env *env, struct end *e);
void tcp_wake(struct env *env, struct end *e); /* tcp_sleep.c */
extern const struct end_cookies tcp_cookies;

/* tcp_timer.c */
/* Makes the kernel say by which way the app's packets leave now */
void tcp_ask_way(struct env *env, struct tcb *inner);
/* When a peer that stays silent is asked whether it is there */
uint64_t tcp_keep_due_ns(const struct env *env, const struct tcb *t);
void tcp_keep_start(struct env *env, struct tcb *t, uint64_t now_ns);
void tcp_rearm(struct env *env, struct tcb *t, uint64_t now_ns);

static inline const struct end_profile *tcp_profile(const struct env *env, const struct tcb *t)
{
	return &env->profile[t->leg];
}

/* tcp_state.c */
enum tcp_event {
	TE_OPEN,      /* our SYN is to go */
	TE_SYN,	      /* the peer's came, and ours is not acknowledged */
	TE_SYN_ACKED, /* ours is acknowledged, and the peer's has come */
	TE_SYN_GONE,  /* the peer's was taken back, by a RST */
	TE_FIN_SENT,
	TE_FIN_ACKED, /* ours */
	TE_FIN,	      /* the peer's came, in order */
	TE_TIME_WAITED,
	TE_EVENTS,
};
/* Nothing, if no arm of the state is for it */
void tcp_event(struct env *env, struct tcb *t, enum tcp_event event, uint64_t now_ns);
/* Frees buffers and timers; the state becomes TCP_CLOSE */
void tcp_release(struct env *env, struct tcb *t);
/* Frees what is noted of what came out of order, not its bytes */
void tcp_ooo_release(struct env *env, struct tcb *t);

/* tcp_rtt.c */
/* NEVER: none was measured */
uint64_t tcp_min_rtt_ns(const struct tcb *t);
void tcp_rtt_sample(struct env *env, struct tcb *t, uint64_t rtt_ns, uint64_t now_ns);

/* tcp_mss.c */
void tcp_set_mss(struct env *env, struct tcb *t);
/* What a SYN of this leg says. The app's kernel is told what the peer takes, if that is less. */
uint16_t tcp_adv_mss(const struct env *env, const struct tcb *t);
/* What the peer of this leg takes in a segment: what it has said, or less if the app's kernel cuts
 * its data shorter than it was told to, as it does when a firewall of this host's has written less
 * into what it got.
 */
uint32_t tcp_peer_takes(const struct env *env, const struct tcb *t);
uint32_t tcp_mtu(const struct env *env, const struct tcb *t);

/* tcp_ip.c */
/* A packet came from the inner leg: the kernel may have another way for the connection now.
 * true: it has */
bool ip_follow(struct env *env, struct ends *e, const struct pkt *pkt);
/* One came from the outer leg: the way back, as long as the kernel has said none */
void ip_turn_back(struct ends *e, const struct pkt *pkt);
/* What the IP header of an app's packet says, for those to the peer */
void ip_learn_app(struct ends *e, const struct pkt *pkt);
/* What that of a peer's packet says, for those to the app; its TTL apart (tcp_in.c) */
void ip_learn_peer(struct ends *e, const struct pkt *pkt);

/* tcp_merged.c */
/* How many segments it was on the wire */
uint32_t merged_count(const struct pkt *pkt);
/* Taken as one it has the effect that its segments have one after the other */
bool merged_is_plain(const struct tcb *t, const struct pkt *pkt);
/* The segment whose payload begins at off */
void merged_piece(const struct tcb *t, const struct pkt *pkt, uint32_t off, struct pkt *piece);

/* tcp_open.c */
/* Active open */
void tcp_connect(struct env *env, struct tcb *t, uint32_t iss, uint64_t now_ns);
/* The smallest window scale with which a window of limit bytes can be told */
uint8_t tcp_pick_wscale(uint64_t limit);
void tcp_learn_syn(struct env *env, struct tcb *t, const struct pkt *pkt, uint64_t now_ns);
bool open_acks_syn(const struct tcb *t, const struct pkt *pkt);
/*
 * true: an agreement is demanded and pkt, which ends the handshake, has brought none: both
 * ends are reset
 */
bool open_is_refused(struct env *env, struct tcb *t, const struct pkt *pkt, uint64_t now_ns);
/* Our SYN was acknowledged */
void open_done(struct env *env, struct tcb *t, uint64_t now_ns);
void open_syn_sent(struct env *env, struct tcb *t, const struct pkt *pkt, uint64_t now_ns);
/* true: dealt with */
bool open_syn_received(struct env *env, struct tcb *t, const struct pkt *pkt, uint64_t now_ns);
/* Likewise; of the inner leg, which keeps its ACK until the peer's handshake is over */
bool open_syn_ack_again(struct env *env, struct tcb *t, const struct pkt *pkt, uint64_t now_ns);

/* tcp_ack.c */
/* Whether the peer may have sent this ACK field (RFC 5961 section 5.2) */
bool tcp_ack_ok(const struct tcb *t, uint32_t field);
/* tcp_ack_ok() was asked */
void tcp_ack(struct env *env, struct tcb *t, const struct pkt *pkt, uint64_t seq, uint64_t now_ns);

/* tcp_undo.c, all for the outer leg only; true: the last reduction was needless */
void undo_on_recovery(struct tcb *t);
void undo_on_timeout(struct tcb *t); /* before TF_RECOVERY is set */
void undo_on_resend(struct tcb *t, const struct seg *s, uint64_t now_ns);
bool undo_on_dsack(struct tcb *t, uint64_t start, uint64_t end);
bool undo_by_echo(const struct tcb *t, const struct pkt *pkt);
bool undo_frto(struct tcb *t, bool advanced, bool delivered, bool original, bool has_payload);
void undo_reduction(struct env *env, struct tcb *t, uint64_t now_ns);

/*
 * tcp_spare.c: a hole worth a copy now; call only when nothing else can be sent and cwnd has room
 */
bool spare_pick(struct env *env, struct tcb *t, uint64_t now_ns, uint32_t *idx);
void spare_sent(struct env *env, struct tcb *t, struct seg *s, uint64_t now_ns);
bool spare_explains_dsack(const struct tcb *t, uint64_t now_ns);

/* tcp_loss.c, of the outer leg. Transmissions, and how many of them were lost; soon: those of them
 * that were sent soon after a lost one */
void loss_count(struct tcb *t, uint32_t sent, uint32_t lost, uint32_t soon, uint32_t soon_lost);
/* One that was counted as lost was not */
void loss_was_none(struct tcb *t);
/* Parts per million: of what is sent, and of what is sent soon after something lost */
uint32_t loss_ppm(const struct tcb *t);
uint32_t loss_soon_ppm(const struct tcb *t);
bool loss_is_bursty(const struct tcb *t);
/* What follows soon follows later from now on */
void loss_spaced_out(struct tcb *t);
/* It is held for random now, not for congestion */
bool loss_is_random(const struct tcb *t, uint64_t now_ns);
/* So many of those that arrived had been lost, and were repaired */
void loss_was_repaired(struct tcb *t, uint32_t n);
/* The peer has told of a mark */
void loss_marked(struct tcb *t, uint64_t now_ns);
void loss_start(struct env *env, struct tcb *t, uint64_t now_ns);
/* arrived: segments told of now that were sent once. rtt_ns: 0: no sample. lone: nothing else
 * was on the way when it was sent */
void loss_ack(struct env *env, struct tcb *t, uint32_t arrived, uint64_t rtt_ns, bool lone,
	      uint64_t now_ns);

/* tcp_paths.c, of the outer leg */
/* What is known of the way to the peer; NULL: nothing */
struct path *paths_find(struct env *env, const struct tcb *t, uint64_t now_ns);
/* Likewise, and if nothing is known it gets a place */
struct path *paths_place(struct env *env, const struct tcb *t, uint64_t now_ns);
/* What the connection knows of it, for later ones; and what earlier ones knew, for it */
void paths_note(struct tcb *t, struct path *p, uint64_t now_ns);
void paths_recall(struct env *env, struct tcb *t, uint64_t now_ns);
/* Its round trip, to a connection that has no sample of its own yet: its SYN went more than once */
void paths_lend_rtt(struct env *env, struct tcb *t, uint64_t now_ns);

/* tcp_budget.c, of the outer leg */
/* Once in a round trip: what the connection does to the path */
void budget_note(struct env *env, struct tcb *t, struct path *p, uint64_t now_ns);
/* The budget has so much left for what is the n-th copy of a segment, or parity; and has that no
 * more */
bool budget_allows(struct env *env, struct tcb *t, uint32_t bytes, uint32_t n, uint64_t now_ns);
void budget_spend(struct env *env, struct tcb *t, uint32_t bytes, uint64_t now_ns);
/* It is a share of a rate that was seen */
bool budget_is_known(struct env *env, const struct tcb *t, uint64_t now_ns);

/* tcp_copies.c, of the outer leg */
enum {
	COPIES_MOST = 5,  /* of a segment */
	COPIES_KEPT = 32, /* segments that are remembered with theirs */
};

/* What an ACK tells of copies */
struct ack_told {
	const struct pkt *pkt;
	uint64_t ack;
	uint64_t dsack_start; /* the duplicate that it reports; both 0: none */
	uint64_t dsack_end;
	uint64_t repaired_bytes; /* out: came in place of what was lost */
};

/* Connections of this kind send some */
bool copies_wanted(const struct env *env, const struct tcb *t);
/* All that there was to send has gone: plans copies of what was not looked at yet */
void copies_plan(struct env *env, struct tcb *t, uint64_t now_ns);
/* Likewise of a segment that was sent again now */
void copies_plan_again(struct env *env, struct tcb *t, const struct seg *s, uint64_t now_ns);
/* The segment of which a copy is to go now; false: none is, and it is looked again in time */
bool copies_next(struct env *env, struct tcb *t, uint64_t now_ns, uint32_t *idx);
/* So little is on the way that nothing of tcp_spare.c's is to come besides */
bool copies_are_enough(const struct tcb *t);
void copies_sent(struct env *env, struct tcb *t, struct seg *s, uint64_t now_ns);
/* A copied segment was told of first. When the transmission went that arrived; 0: not known */
uint64_t copies_arrived(struct env *env, struct tcb *t, const struct seg *s, struct ack_told *told,
			uint64_t now_ns);
/* It is found lost, with all its copies */
void copies_lost(struct tcb *t, const struct seg *s);
/* A DSACK that a copy explains; each explains one */
bool copies_explain(struct tcb *t, uint64_t start, uint64_t end);
void copies_release(struct env *env, struct outer *o);
/* Our SYN or SYN-ACK goes for the first time, or after a timeout */
void copies_plan_syn(struct env *env, struct tcb *t, uint64_t now_ns);
/* A copy of it is to go now */
bool copies_syn_due(struct env *env, struct tcb *t, uint64_t now_ns);
/* pkt acknowledges it, and may tell which copy it answers: that one is measured from now on */
void copies_syn_acked(struct tcb *t, const struct pkt *pkt, uint64_t now_ns);
/* How long to wait for the answer to it */
uint64_t copies_syn_rto_ns(struct env *env, const struct tcb *t, uint64_t now_ns);
uint64_t copies_syn_wait_ns(struct env *env, const struct tcb *t, uint64_t now_ns);
/* What came again came so soon that it is a copy: no timeout of the peer's is as short */
static inline bool copies_too_soon(uint64_t since_ns)
{
	return since_ns < TCP_MIN_RTO_MS * NS_PER_MS;
}

/* tcp_ecn.c; functions that return flags return those of the TCP header */
uint16_t ecn_syn_flags(const struct env *env, struct tcb *t);
void ecn_learn_syn(const struct env *env, struct tcb *t, const struct pkt *pkt);
void ecn_learn_syn_again(struct tcb *t, const struct pkt *pkt);
void ecn_input(struct env *env, struct tcb *t, const struct pkt *pkt, uint64_t now_ns);
/* delivered_segs: newly acknowledged or SACKed by pkt. Returns the marks that it tells of, for
 * cc_sample.ece
 */
uint32_t ecn_echoed(struct env *env, struct tcb *t, const struct pkt *pkt, uint32_t delivered_segs);
void ecn_reduced(struct tcb *t);
uint16_t ecn_ack_flags(const struct tcb *t);
uint16_t ecn_data_flags(struct tcb *t, const struct seg *s, uint8_t *tos);

/* tcp_accecn.c, only with TF_ACCECN */
void accecn_begin(struct tcb *t, const struct pkt *pkt);
void accecn_syn_again(struct tcb *t, const struct pkt *pkt);
/* The SYN-ACK's flags and option, behind those options that it has */
void accecn_synack(struct tcb *t, struct wire_seg *seg);
void accecn_input(struct env *env, struct tcb *t, const struct pkt *pkt, uint64_t now_ns);
void accecn_duplicate(struct tcb *t, uint64_t start, uint64_t now_ns);
uint32_t accecn_echoed(struct env *env, struct tcb *t, const struct pkt *pkt,
		       uint32_t delivered_segs);
bool accecn_option_due(const struct tcb *t, uint64_t now_ns);
/* The ACE field of a segment that has all but our option */
void accecn_ace(struct tcb *t, struct wire_seg *seg, bool pure);
/* room: bytes left for options. dsack_start: of the duplicate that seg reports; 0: none */
void accecn_option(struct tcb *t, struct wire_seg *seg, uint32_t room, uint64_t dsack_start,
		   uint64_t now_ns);

/* tcp_agree.c, nothing on the inner leg */
/* A SYN or SYN-ACK goes out, and has all but our option */
void agree_syn(struct env *env, struct tcb *t, struct wire_seg *seg, uint64_t now_ns);
/* One came; likewise one that came before, and is acceptable */
void agree_learn_syn(struct env *env, struct tcb *t, const struct pkt *pkt, uint64_t now_ns);
void agree_syn_again(struct env *env, struct tcb *t, const struct pkt *pkt);
/* The segment that ends the handshake of an end that answers */
void agree_opened(struct env *env, struct tcb *t, const struct pkt *pkt);
/* An acceptable segment came that is no SYN */
void agree_heard(struct env *env, struct tcb *t);
/* Any other segment goes out, and has its other options */
void agree_confirm(const struct tcb *t, struct wire_seg *seg);
/* How many bytes that takes off its payload */
uint32_t agree_confirm_len(const struct tcb *t);
/* enum dmm_feature: what may be used */
uint32_t agree_features(const struct tcb *t);
/* false: an agreement is demanded, and the peer's SYN offers none */
bool agree_may_open(const struct env *env, const struct pkt *syn);
/* An agreement was demanded, and there is none */
bool agree_lacks(const struct tcb *t);

/* tcp_urg.c */
/* seq: of the segment, in 64 bits */
void urg_input(struct env *env, struct tcb *t, const struct pkt *pkt, int64_t seq);
void urg_mark(const struct tcb *t, struct wire_seg *seg, uint64_t seq);

/* tcp_pmtu.c */
/* A way's MTU by that of its device; 0: not known */
uint32_t pmtu_of_device(const struct env *env, uint8_t family, uint32_t mtu);
/* It goes by another now, or that one's MTU has changed */
void pmtu_device(struct env *env, struct ends *e, uint32_t mtu);
/* This host's kernel offers that MSS: its route allows no more */
void pmtu_route(struct env *env, struct ends *e, uint32_t mss);
/* The app's kernel cuts its data to so many bytes, more than any before. */
void pmtu_app_segment(struct env *env, struct ends *e, uint32_t bytes);
/* On the outer leg: the device or the route allows something else now */
void pmtu_follow(struct env *env, struct tcb *t);
/* Likewise: the app's kernel has cut its data longer than ever */
void pmtu_follow_segment(struct env *env, struct tcb *t);
/* A router says so of the segment that begins at seq; mtu 0: it does not tell which */
void pmtu_too_big(struct env *env, struct tcb *t, uint64_t seq, uint32_t mtu);
void pmtu_on_timeout(struct env *env, struct tcb *t);
uint32_t pmtu_probe_len(const struct env *env, const struct tcb *t, uint32_t cap, uint64_t now_ns);
/* The newest segment is a probe */
void pmtu_probe_sent(struct tcb *t);
void pmtu_probe_arrived(struct env *env, struct tcb *t);
bool pmtu_probe_lost(struct env *env, struct tcb *t, struct seg *s, uint64_t now_ns);

/* tcp_rack.c */
/* Acknowledged now, but not for its last transmission: nothing can be measured by it */
bool rack_told_late(const struct tcb *t, const struct seg *s, uint64_t now_ns);
bool rack_update(struct tcb *t, const struct seg *s, bool told_late, uint64_t old_fack,
		 uint64_t now_ns);
void rack_reordered(struct tcb *t);
/* How long a segment that was overtaken is waited for */
uint64_t rack_window_ns(const struct tcb *t);
/*
 * Marks what is lost; returns its bytes. *wait_ns: how long until more may be found lost, 0: never
 */
uint64_t rack_detect(struct tcb *t, uint64_t now_ns, uint64_t *wait_ns);
void rack_dsack(struct tcb *t);
uint64_t rack_mark_all_lost(struct tcb *t);
/* delivered_bytes: by the ACK that told of the loss */
void tcp_enter_recovery(struct env *env, struct tcb *t, uint64_t delivered_bytes, uint64_t now_ns);
/* Loss found outside an ACK (timer, MTU): tells the congestion control */
void tcp_report_loss(struct env *env, struct tcb *t, uint64_t lost_bytes, uint64_t now_ns);
uint64_t tcp_pto_ns(const struct tcb *t);
bool tcp_tlp_allowed(const struct tcb *t);

/* tcp_prr.c, all but the first for the outer leg only */
void tcp_exit_recovery(struct tcb *t, uint64_t now_ns);
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
void hold_tell(struct env *env, struct tcb *t);
/* Data that begins at seq comes in order */
void hold_arrived(struct tcb *t, uint64_t seq);
/* All below upto may be acknowledged now */
void hold_lift(struct env *env, struct tcb *t, uint64_t upto);
/* [start, end) came, all that a segment has. true: it is held, and was dealt with */
bool hold_again(struct env *env, struct tcb *t, int64_t start, int64_t end);
/* A probe came, whose answer waits until who is beyond the other leg has been heard of */
bool hold_probe(struct env *env, struct tcb *t, const struct pkt *pkt, int64_t seq,
		uint64_t now_ns);
/* Bytes are held, or a FIN */
bool hold_pending(const struct tcb *t);
/* Of the outer leg: nothing is acknowledged, since the app's kernel does not answer */
bool hold_is_mute(const struct tcb *t);
/* It answers; before that is noted, so that the peer is told if it was told nothing for a while */
void hold_app_answers(struct env *env, struct tcb *t);

/* tcp_window.c */
/* The window field of a segment that goes out with this ACK; moves rcv_adv */
uint16_t window_take(struct env *env, struct tcb *t, uint64_t ack, bool syn);
/* Payload came in on the outer leg */
void window_measure(struct tcb *t, const struct pkt *pkt, uint64_t now_ns);
/*
 * Bytes of the memory limit that what arrives in order on a leg must leave. What the app sends
 * leaves room for what the peer sends, and each direction that holds little may take more: two full
 * stacks must not wait for each other.
 */
uint64_t tcp_mem_reserve(const struct env *env, const struct tcb *t);
/* The most that this leg receives and the other leg holds */
uint64_t tcp_rcv_limit(const struct env *env, const struct tcb *t);

/* tcp_pace.c */
/* true: nothing may go now; the leg is made ready again in time */
bool pace_blocked(struct env *env, struct tcb *t, uint64_t now_ns);
/* A segment of len bytes went out, on the outer leg */
void pace_sent(struct tcb *t, uint32_t len, uint64_t now_ns);

/* The most that goes together: what a burst may be, in payload bytes */
uint64_t pace_burst_bytes(const struct tcb *t);

/* tcp_run.c */
/* Payload that a packet of headers_len bytes of headers may have beyond one segment; 0: it stays
 * alone. The newest segment, mss bytes of new data, is what it begins with; seg is its header. */
uint32_t run_most(const struct env *env, const struct tcb *t, const struct wire_seg *seg,
		  uint32_t cap);

/* tcp_opt.c */
/* A data segment of len bytes has no options but timestamps */
bool opt_plain(const struct env *env, const struct tcb *t, uint32_t len, uint64_t now_ns);
/*
 * SACK blocks and ECN feedback beside a payload of len bytes; true: no SACK block is left
 * for another ACK
 */
bool opt_feedback(struct env *env, struct tcb *t, struct wire_seg *seg, uint32_t len,
		  uint64_t now_ns);
/* Our option of RFC 9768, if it is due and fits. dsack_start: as accecn_option() takes it */
void opt_accecn(struct env *env, struct tcb *t, struct wire_seg *seg, uint32_t len,
		uint64_t dsack_start, uint64_t now_ns);

/* tcp_emit.c */
/* The header's fields, and the options of any segment but a SYN, of one that has len bytes from seq
 * on */
void emit_fill(struct env *env, struct tcb *t, struct wire_seg *seg, uint16_t flags, uint64_t seq,
	       uint32_t len, uint64_t now_ns);
/* One packet into buf: headers of seg, the IP header's ECN code point, payload [off, off + len) of
 * the stream. more: segments, beyond the first, that the device makes of it. Returns its length. */
uint32_t emit_packet(struct env *env, struct tcb *t, uint8_t *buf, struct dmm_tx_meta *meta,
		     const struct wire_seg *seg, uint32_t more, uint8_t ecn, uint64_t off,
		     uint32_t len);
/* The header of a segment of the scoreboard, and its ECN code point */
void emit_head(struct env *env, struct tcb *t, const struct seg *s, bool copy, struct wire_seg *seg,
	       uint8_t *ecn, uint64_t now_ns);
/* The packet of one; returns its length */
uint32_t emit_segment(struct env *env, struct tcb *t, uint8_t *buf, struct dmm_tx_meta *meta,
		      const struct seg *s, bool copy, uint64_t now_ns);
/* The sequence number of what carries none of the stream */
uint64_t emit_bare_seq(const struct tcb *t);
/* A pure ACK; returns its length */
uint32_t emit_ack(struct env *env, struct tcb *t, uint8_t *buf, struct dmm_tx_meta *meta,
		  uint64_t seq, uint64_t now_ns);
/* Queues a pure ACK as it is now, apart from what the ready list does */
void tcp_ack_apart(struct env *env, struct tcb *t, uint64_t now_ns);

/* tcp_out.c */
/* Whether the ACK that ends the handshake is yet to be sent */
bool tcp_is_greeting(const struct tcb *t);
/* The answer to a segment from the past without payload: a keep-alive probe, of which every open
 * connection may get one; limited all the same, for two stacks could answer each other for ever */
void tcp_stale_ack(struct env *env, struct tcb *t, uint64_t now_ns);
void tcp_challenge_ack(struct env *env, struct tcb *t, uint64_t now_ns);

#endif /* DMM_TCP_INT_H */

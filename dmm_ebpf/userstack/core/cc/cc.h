/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cc.h: congestion control as plug-ins.
 *
 * tcp.c owns loss detection (RACK), the delivery rate sample (draft-ietf-ccwg-bbr, section on
 * delivery rate) and pacing; a congestion control reads samples and sets cwnd_bytes and pacing_Bps.
 * Pure computation: no clock, no allocation; its state lives in struct cc.priv of the connection.
 *
 * This header is the whole interface of a congestion control that is built apart, as a shared
 * object: it includes nothing else, and says CC_EXPORT() once. See
 * docs/develop/add-a-congestion-control-in-c.md. Text below is read by cffi, which strips lines
 * that start with '#'.
 */
#ifndef DMM_CC_H
#define DMM_CC_H

#include <stdint.h>

/* Of everything below; another number: what was built for it is refused */
#define CC_ABI 1
/* The name of what a shared object exports: one struct cc_export */
#define CC_EXPORT_SYMBOL "dmm_cc_export"
#define CC_EXPORT_SIZES sizeof(struct cc), sizeof(struct cc_sample), sizeof(struct cc_ops)
#define CC_EXPORT(ops) const struct cc_export dmm_cc_export = {CC_ABI, CC_EXPORT_SIZES, &(ops)}

struct cc_ops;

/* Losses are random, copies do no harm (tcp_spare.c) */
enum cc_spare {
	CC_SPARE_NONE,
	CC_SPARE_HOLES, /* of retransmissions */
	CC_SPARE_ALL,	/* of everything on the way */
};

/*
 * One per outer leg, inside the connection. Input fields are kept by tcp.c, output fields
 * by the plug-in.
 */
struct cc {
	const struct cc_ops *ops;
	/* output */
	uint64_t cwnd_bytes;
	uint64_t pacing_Bps;  /* of payload; 0: send as cwnd allows */
	uint64_t spare_bytes; /* what is in flight and copies may add up to in a round trip */
	uint32_t spare;	      /* enum cc_spare: what idle time may be used for */
	/* input, valid at every call */
	uint32_t mss;
	uint32_t in_recovery; /* 1: a loss was marked and recovery_point is not acknowledged */
	/* sent, neither acknowledged, SACKed nor marked lost; after this ACK */
	uint64_t inflight_bytes;
	uint64_t srtt_ns;    /* 0: no sample yet */
	uint64_t min_rtt_ns; /* over the connection's last 10 s; UINT64_MAX: none */
	uint64_t rng;	     /* xorshift state for randomised phases */
	uint64_t priv[40];
};

/* What one ACK (or one batch of them) told */
struct cc_sample {
	uint64_t now_ns;
	uint64_t acked_bytes;	       /* newly acknowledged or SACKed by this ACK */
	uint64_t lost_bytes;	       /* newly marked lost */
	uint64_t loss_delay_ns;	       /* how long the mark waits: RACK's reordering window */
	uint64_t rtt_ns;	       /* 0: no sample */
	uint64_t prior_inflight_bytes; /* before this ACK */
	/* connection total, acknowledged or SACKed, this ACK included */
	uint64_t delivered_bytes;
	/* delivered_bytes when the newest segment acked here was sent */
	uint64_t prior_delivered_bytes;
	/* of the rate sample: max(send, ack elapsed); 0: no valid sample */
	uint64_t interval_ns;
	uint64_t interval_delivered_bytes;
	uint64_t interval_lost_bytes; /* lost over the same interval */
	uint64_t tx_inflight_bytes;   /* inflight when that segment was sent */
	/* the sample was taken while the sender had nothing more to send */
	uint32_t app_limited;
	/* accurate ECN: segments reported as marked; RFC 3168: 1, marks were echoed */
	uint32_t ece;
	/*
	 * the cumulative acknowledgment moved, or the path is known to reorder: this ACK is no
	 * sign of loss
	 */
	uint32_t in_order;
};

struct cc_ops {
	const char *name;
	uint32_t loss_tolerant; /* 1: a few losses do not slow it down */
	/* 1: recovery sends by PRR (RFC 9937) towards the cwnd_bytes that on_enter_recovery sets */
	uint32_t prr;
	void (*init)(struct cc *cc,
		     uint64_t now_ns); /* cwnd_bytes is set to the initial window by tcp.c before */
	void (*on_ack)(struct cc *cc,
		       const struct cc_sample *s); /* every ACK that acknowledges or marks lost */
	void (*on_enter_recovery)(
		struct cc *cc,
		uint64_t now_ns); /* first loss of a round; not again until recovery ends */
	void (*on_exit_recovery)(struct cc *cc, uint64_t now_ns);
	void (*on_rto)(
		struct cc *cc,
		uint64_t now_ns); /* retransmission timeout: everything unacked is marked lost */
	/* sending again after idling */
	void (*on_restart)(struct cc *cc, uint64_t idle_ns, uint64_t now_ns);
	/* The last on_enter_recovery or on_rto was for nothing: what it did may be taken back.
	 * Called in recovery or after it. NULL: nothing is taken back. */
	void (*on_undo)(struct cc *cc, uint64_t now_ns);
	/* The connection has ended, or goes on by another control. NULL: nothing has to be let go.
	 * A core that is destroyed does not say it of idle connections. */
	void (*release)(struct cc *cc);
};

/* What a shared object exports. A built-in control has every function but on_undo and release; of
 * one that is exported only on_ack must be there, cc_guard.h says what stands in for the others. */
struct cc_export {
	uint32_t abi; /* CC_ABI */
	uint32_t cc_bytes;
	uint32_t sample_bytes;
	uint32_t ops_bytes;
	const struct cc_ops *ops;
};

/* A built-in control; NULL: no such name */
const struct cc_ops *cc_find(const char *name);

extern const struct cc_ops cc_bbr;
extern const struct cc_ops cc_cubic;
extern const struct cc_ops cc_reno;
extern const struct cc_ops cc_wan;

#endif /* DMM_CC_H */

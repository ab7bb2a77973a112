/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kern.h: a small TCP endpoint with an application, standing where the host's kernel stands: on the
 * inner leg of a core, or directly on the link. It shares wire.c with the core and nothing else:
 * go-back-N, no SACK, no congestion control.
 */
#ifndef SIM_KERN_H
#define SIM_KERN_H

#include "relay/core.h"
#include "tcp/tcp_int.h"

struct wild;

enum { KERN_KEPT = 8 };

enum kstate { K_CLOSED, K_SYN_SENT, K_SYN_RECV, K_OPEN, K_DONE };

/* What the application does, and what became of it */
struct ksock {
	enum kstate state;
	bool listener_side;
	uint32_t id;
	struct dmm_core_addr_pair pair; /* laddr is this endpoint */
	uint32_t iss, irs;
	uint64_t una, nxt, fin_at; /* sent: offsets in stream bytes, 0 is the first */
	uint64_t sent;		   /* the highest that nxt has been: a timeout takes nxt back */
	uint64_t got;		   /* in order */
	uint64_t to_send;	   /* bytes the app writes, then it shuts down */
	uint64_t written;	   /* of them, so far */
	uint64_t read_until;	   /* bytes that the app has taken */
	uint64_t peer_wnd;
	uint64_t adv; /* right edge offered */
	uint32_t rcvbuf;
	uint32_t peer_mss;
	uint8_t peer_ws, my_ws;
	bool ts, fin_sent, fin_acked, fin_got, accepted;
	bool fin_put; /* the end of the stream was sent, once at least: it is at fin_at */
	bool aborted; /* the app reset the connection */
	bool peer_sack;
	bool stale; /* what it has seen is of a connection before the one that is judged */
	uint32_t ts_recent;
	uint64_t rto_ns; /* deadline; NEVER */
	uint32_t tries;
	uint64_t pause_until_ns; /* the app reads nothing before */
	uint64_t open_after_ns;	 /* the app writes nothing for that long after the handshake */
	uint64_t abort_at;	 /* RST when that many bytes were received; NEVER: no */
	uint64_t close_at;	 /* FIN without waiting for to_send, when that many were received */
	/*
	 * The app writes so many bytes every so often, and reads likewise; gap 0: as fast as it can
	 */
	uint64_t write_bytes, write_gap_ns, write_ns;
	bool asks; /* and writes when that has come back */
	uint64_t read_bytes, read_gap_ns, read_ns;
	bool echoes;	   /* it writes what it has read, and nothing else */
	uint64_t wrote_ns; /* its first write */
	/* whose writes are measured when they are here: its own, or those of the other end */
	const struct ksock *writer;
	uint64_t echo_due; /* of its writes, the end of the first that is not back; NEVER: no matter
			    */
	bool rst_out;
	uint32_t error;	   /* errno the app sees */
	uint64_t mismatch; /* bytes that were wrong */
	uint64_t established_ns, done_ns;
	bool ack_due;
	uint64_t heard_ns; /* last packet */
	uint32_t probes;
	/* for wild.c */
	uint64_t shut_until_ns;
	uint32_t n_kept;
	struct {
		uint64_t start, end;
	} kept[KERN_KEPT];
};

struct kern {
	struct ksock *v;
	uint32_t n;
	bool listening;
	bool refuse; /* answers a SYN by RST */
	bool mute;   /* answers a SYN not at all */
	bool options_sack, options_ts, options_ws;
	uint16_t mss;
	uint32_t gso_max;
	uint64_t keepalive_ns; /* 0: never asks whether a silent peer is there */
	struct wild *wild;     /* NULL: well-behaved */
	/* where packets go */
	void (*send)(void *arg, const uint8_t *p, uint32_t len, uint32_t gso_size);
	void *arg;
	uint32_t isn_base;
};

void kern_pattern_init(void);
/* Back to what it was before the handshake, but for what the app is told to do */
void kern_reset(struct ksock *s);
/* Sends a segment with len bytes of the stream from off, each changed by XOR with `garbage` */
void kern_emit(struct kern *k, struct ksock *s, struct wire_seg seg, uint64_t off, uint32_t len,
	       uint8_t garbage, uint64_t now_ns);
void kern_connect(struct kern *k, struct ksock *s, uint64_t now_ns);
void kern_input(struct kern *k, const uint8_t *p, uint32_t len, bool csum_ok, uint64_t now_ns);
/* Sends what can be sent, runs timers; returns the next deadline */
uint64_t kern_run(struct kern *k, uint64_t now_ns);

#endif

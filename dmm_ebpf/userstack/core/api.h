/* SPDX-License-Identifier: Apache-2.0 */
/*
 * api.h: the whole of what the world sees of the C core (sans I/O).
 *
 * A core owns a set of connections. Each has two legs: the inner leg (this host's kernel, over a
 * TAP device of the stack's, lossless and near) and the outer leg (the real path). Both carry the
 * same 5-tuple; on the inner leg the core plays the remote peer, on the outer leg it plays this
 * host. Bytes go in by dmm_core_input(), packets are pulled out by dmm_core_output(), time is
 * passed in; nothing here reads a clock or makes a system call, but for memory (mmap(2)). Packets
 * are whole IP packets (IPv4 or IPv6) with no link-layer header. No function but create and destroy
 * blocks; no packet of any content makes a function fail: what is wrong is counted, and ends at
 * most its own connection.
 *
 * One thread uses a core at a time. Times are ns of one monotonic clock of the caller's.
 * Text below is read by cffi, which strips lines that start with '#'.
 */
#ifndef DMM_CORE_API_H
#define DMM_CORE_API_H

#include <stdint.h>
#include "packet.h"

enum dmm_leg { DMM_LEG_INNER = 0, DMM_LEG_OUTER = 1 };

struct cc_ops;
struct end_ops;
struct dmm_core;

struct dmm_core_config {
	uint64_t seed;		  /* of every random choice; simulations repeat exactly */
	uint64_t memory_bytes;	  /* limit on all buffered payload; 0: 256 MiB */
	uint32_t max_connections; /* 0: 100000 */
	uint32_t inner_mtu;	  /* of the inner leg, bytes of IP packet; 0: 1500 */
	/* longest IP packet the inner side takes with meta.vnet.gso_size set; 0: no GSO */
	uint32_t inner_gso_max;
	/*
	 * likewise of every device of the outer side, until told
	 * otherwise by dmm_core_set_outer_offload()
	 */
	uint32_t outer_gso_max;
	uint32_t outer_csum_partial;
	/*
	 * per connection, unacknowledged plus unsent; 0: as much as its share of memory_bytes is,
	 * at most 1 GiB
	 */
	uint32_t sndbuf_bytes;
	uint32_t rcvbuf_bytes; /* per connection, towards the app; 0: likewise */
	uint32_t syn_retries;  /* outer SYN; 0: 6 */
	uint64_t keepalive_ns; /* outer idle time before the first probe; 0: 2 h */
	uint64_t time_wait_ns; /* 0: 60 s */
	uint64_t park_ns;      /* quiet for so long, a connection is put away small; 0: 10 s */
	uint32_t ecn_off;      /* 1: no ECN on the outer leg */
	uint32_t accecn_off;   /* 1: only ECN of RFC 3168, no accurate ECN (RFC 9768) */
	/*
	 * connections whose peer has not ended the handshake it began; 0: a quarter of
	 * max_connections, at most 1024
	 */
	uint32_t half_open_max;
	uint32_t syn_cookies; /* enum dmm_syn_cookies */
	uint32_t negotiate;   /* enum dmm_negotiate */
	uint32_t latency;     /* enum dmm_latency */
	/*
	 * of the path's rate, what copies may take, parts per million; 0: 50000;
	 * DMM_REDUNDANCY_NONE: nothing
	 */
	uint32_t redundancy_budget_ppm;
	uint32_t redundancy_residual_ppm; /* loss that copies and parity may leave; 0: 1000 */
	/*
	 * of a stream's bytes, what parity may take besides (DMM_FEATURE_FEC), parts per million;
	 * 0: 270000; DMM_REDUNDANCY_NONE: nothing
	 */
	uint32_t parity_most_ppm;
	char congestion[16]; /* default for new connections: see cc.c; "": cubic */
	char transport[16];  /* of the outer leg, see dmm_core_set_transport(); "": tcp */
};

/* Whether this end speaks of what it can do beyond TCP, so that two of our stacks agree on it */
enum dmm_negotiate {
	DMM_NEGOTIATE_FORBID = 0, /* neither offered nor answered */
	DMM_NEGOTIATE_ALLOW = 1,  /* without an agreement: plain TCP */
	DMM_NEGOTIATE_DEMAND = 2, /* without one the connection is refused: ECONNREFUSED */
};

/* The experiment (RFC 6994) of the option by which they do, see core/tcp/tcp_agree.c */
enum { DMM_CORE_AGREE_EXID = 0x444d4d31 };

/* Bits of what two ends can agree on; four go on the wire */
enum dmm_feature {
	/* copies of segments are welcome, and each is reported as a duplicate (RFC 2883) */
	DMM_FEATURE_COPIES = 1,
	/* parity is taken, and what it repairs is told of, see core/tcp/tcp_parity_out.c */
	DMM_FEATURE_FEC = 2,
};

/* How far a connection's ends have agreed, and why not */
enum dmm_agreement {
	DMM_AGREEMENT_NONE = 0, /* nothing was offered, by neither */
	DMM_AGREEMENT_OFFERED,	/* by our SYN */
	DMM_AGREEMENT_ANSWERED, /* by our SYN-ACK */
	/* by the peer; we say so in each segment until it is heard of again */
	DMM_AGREEMENT_CONFIRMING,
	DMM_AGREEMENT_AGREED,
	/* from here on: plain TCP */
	DMM_AGREEMENT_PLAIN,	   /* the peer says nothing of it, or the path takes it away */
	DMM_AGREEMENT_ECHOED,	   /* our offer came back */
	DMM_AGREEMENT_WRONG,	   /* what came is no offer, or no answer to ours */
	DMM_AGREEMENT_UNANSWERED,  /* SYNs or SYN-ACKs with it got no answer, then one without went
				    */
	DMM_AGREEMENT_SPARED,	   /* that was so with this destination a while ago */
	DMM_AGREEMENT_UNCONFIRMED, /* the peer's first segments did not bear it */
	DMM_AGREEMENT_CROSSED,	   /* a simultaneous open */
};

/* What becomes of a peer's SYN (RFC 4987) */
enum dmm_syn_cookies {
	DMM_SYN_COOKIES_AUTO = 0, /* a connection; a cookie while half_open_max is reached */
	DMM_SYN_COOKIES_ALWAYS = 1,
	DMM_SYN_COOKIES_OFF = 2, /* a connection; the oldest half-open one makes room */
};

/* Which connections send copies of what their app waits for, where the path loses at random */
enum dmm_latency {
	DMM_LATENCY_AUTO = 0,	/* those with the congestion control `wan` */
	DMM_LATENCY_LOW = 1,	/* all */
	DMM_LATENCY_NORMAL = 2, /* none */
};

#define DMM_REDUNDANCY_NONE UINT32_MAX

enum {
	DMM_LINK_DEVICE_SHIFT = 48, /* of meta.link, to the number of its device */
	/* numbers with offloads of their own; a higher one has those of 0 */
	DMM_CORE_DEVICES = 17,
};

/* What the I/O layer knows of a received packet */
struct dmm_rx_meta {
	struct dmm_vnet vnet; /* with either flag the TCP checksum is not checked */
	uint16_t pad[3];
	uint64_t
		/*
		 * the caller's name of a way on the outer leg: of a packet from the outer leg,
		 * the way back to whom it came from; of one from the inner leg, the way that
		 * this host's kernel would have sent it; 0: none. Its upper 16 bits are the
		 * number of the device
		 */
		link;
	uint32_t mtu; /* of that way's device, bytes of IP packet; 0: not known */
	/* 1: the packet lies in a buffer of dmm_core_buffer(), of which the core may keep parts */
	uint32_t lent;
};

/* What the I/O layer needs to send a packet */
struct dmm_tx_meta {
	/*
	 * rx meta.link. Outer leg: the way it goes; 0: none is known, drop it. Inner leg: the way
	 * by which an answer to it would go
	 */
	uint64_t link;
	uint32_t family;      /* AF_INET or AF_INET6 */
	struct dmm_vnet vnet; /* on the outer leg all 0 unless its device can do more */
	uint16_t pad;
};

struct dmm_core_addr_pair {
	uint8_t laddr[16]; /* this host; IPv4 as ::ffff:a.b.c.d */
	uint8_t raddr[16];
	uint16_t lport_be;
	uint16_t rport_be;
	uint8_t family; /* AF_INET 2 or AF_INET6 10 */
	uint8_t proto;	/* 6 */
	uint16_t pad;
}; /* same layout as struct dmm_addr_pair of bpf/abi.h */

/* What the core asks of its caller; pulled with dmm_core_action() */
enum dmm_action_type {
	/*
	 * packets of pair must be given to this core from now on; where they cannot be,
	 * dmm_core_unreachable() says so
	 */
	DMM_ACTION_OWN = 1,
	DMM_ACTION_DISOWN = 2, /* the outer leg is over */
	DMM_ACTION_CLOSED = 3, /* the connection is gone (for logs); info in error */
};

struct dmm_action {
	uint32_t type;
	uint32_t conn;	/* handle; names the connection until its DISOWN */
	uint32_t error; /* CLOSED: 0 or an errno */
	uint32_t pad;
	struct dmm_core_addr_pair pair;
};

/* One connection, for listings */
struct dmm_conn_info {
	uint32_t conn;
	uint32_t passive; /* 1: opened by the remote peer */
	struct dmm_core_addr_pair pair;
	uint32_t inner_state; /* kernel's numbers: TCP_ESTABLISHED = 1 .. TCP_CLOSING = 11 */
	uint32_t outer_state;
	uint64_t bytes_sent;	 /* payload acknowledged on the outer leg */
	uint64_t bytes_received; /* payload received in order on the outer leg */
	uint64_t segments_sent;	 /* outer leg, retransmissions included */
	uint64_t retransmits;
	uint64_t rto_count;
	uint64_t cwnd_bytes;
	uint64_t inflight_bytes;
	uint64_t pacing_Bps; /* 0: not paced */
	uint64_t delivery_Bps;
	uint32_t srtt_us; /* outer leg */
	uint32_t min_rtt_us;
	uint32_t rttvar_us;
	uint32_t mss;
	uint32_t sndbuf_bytes; /* held for the outer leg */
	uint32_t rcvbuf_bytes; /* held for the inner leg */
	/* outer leg, as agreed on: 0 none, 1 RFC 3168, 2 accurate (RFC 9768) */
	uint32_t ecn;
	uint32_t agreed;    /* outer leg: bits of enum dmm_feature; 0: plain TCP */
	uint32_t agreement; /* enum dmm_agreement */
	uint32_t pad;
	uint64_t copies; /* of segments on the way, sent against loss (enum dmm_latency) */
	/* of them, those that came in place of what was lost, as far as the peer tells */
	uint64_t copies_needed;
	uint64_t parity;	/* segments of it, sent against loss (DMM_FEATURE_FEC) */
	uint64_t peer_repaired; /* symbols that the peer has repaired by it, as it tells */
	uint64_t repaired;	/* symbols of the peer's stream that its parity has repaired here */
	char congestion[16];
	char transport[16]; /* of the outer leg */
};

/* What a core has of the system's memory. Per idle connection it takes
 * (used_bytes - payload_bytes + table_bytes) / connections, once they are parked. */
struct dmm_core_memory {
	/* objects in use, each rounded up to its size class: connections, scoreboards, payload */
	uint64_t used_bytes;
	uint64_t held_bytes;	/* taken from the system for them, spare slabs included */
	uint64_t payload_bytes; /* of used_bytes: chunks of payload */
	uint64_t payload_limit_bytes;
	/* of the table of connections; it is made for max_connections at once */
	uint64_t table_bytes;
	uint32_t connections;
	uint32_t parked; /* of them: idle, put away small */
};

enum dmm_core_counter {
	DMM_CORE_IN_PACKETS = 0, /* both legs */
	DMM_CORE_OUT_PACKETS,
	DMM_CORE_MALFORMED, /* not an acceptable IP/TCP header; dropped */
	DMM_CORE_BAD_CSUM,
	DMM_CORE_NO_CONN, /* no such connection; answered by RST where RFC 9293 says so */
	DMM_CORE_BAD_SEQ, /* out of window; answered by ACK where RFC 9293 says so */
	DMM_CORE_PAWS,
	DMM_CORE_RST_IN,
	DMM_CORE_RST_OUT,
	DMM_CORE_ACTIVE_OPEN,	/* by the app */
	DMM_CORE_PASSIVE_OPEN,	/* by the remote peer */
	DMM_CORE_REFUSED_LIMIT, /* max_connections or memory reached */
	DMM_CORE_RETRANSMITS,	/* of data, both legs */
	DMM_CORE_RTO,
	/* payload dropped, in or out of order, because memory_bytes (or its share) is in use */
	DMM_CORE_OOO_DROPPED,
	DMM_CORE_CHALLENGE_ACKS,
	/* loss recoveries and timeouts that turned out needless and were taken back */
	DMM_CORE_UNDONE,
	DMM_CORE_ECN_CE,  /* packets (RFC 3168: data) that came with congestion experienced */
	DMM_CORE_ECN_ECE, /* RFC 3168: windows in which the peer echoed it */
	/* parked connections that could not be woken: the system has no memory */
	DMM_CORE_NO_MEMORY,
	DMM_CORE_MTU_HOLES, /* times a path was taken for one that drops long packets silently */
	DMM_CORE_SYN_COOKIES_SENT,
	DMM_CORE_SYN_COOKIES_VALID, /* came back, and opened a connection */
	/* ACKs of no connection, while cookies are out, that carry none */
	DMM_CORE_SYN_COOKIES_INVALID,
	DMM_CORE_HALF_OPEN_DROPPED, /* oldest half-open connections that made room */
	DMM_CORE_ECN_MARKS,	    /* accurate ECN: marks that peers told of */
	DMM_CORE_SPARE_COPIES,	    /* of what was on the way, sent while nothing else could be */
	DMM_CORE_INNER_RETRANSMITS, /* of RETRANSMITS, those towards the app's kernel */
	DMM_CORE_REASSEMBLED,	    /* packets that came in fragments, put together */
	/* packets that came in fragments and could not be: late, overlapping, too many at once */
	DMM_CORE_FRAGMENTS_DROPPED,
	DMM_CORE_AGREED, /* connections whose ends have agreed, see enum dmm_agreement */
	DMM_CORE_AGREE_PLAIN,
	DMM_CORE_AGREE_ECHOED,
	DMM_CORE_AGREE_WRONG,
	DMM_CORE_AGREE_UNANSWERED,
	DMM_CORE_AGREE_SPARED,
	DMM_CORE_AGREE_UNCONFIRMED,
	DMM_CORE_AGREE_REFUSED, /* for want of an agreement that was demanded */
	DMM_CORE_COPIES,	/* sent against loss (enum dmm_latency) ... */
	DMM_CORE_COPIES_NEEDED, /* ... and came in place of what was lost, as far as peers tell */
	/* planned and not sent: budget, window, or what may be congestion */
	DMM_CORE_COPIES_HELD,
	DMM_CORE_DATAGRAMS_OUT, /* UDP packets relayed to the outer leg; many that go as one are one
				 */
	DMM_CORE_DATAGRAMS_IN,	/* to the inner leg */
	/* of datagrams, sent against loss to peers with a stack of ours (core/udp/udp_copies.h) ...
	 */
	DMM_CORE_DATAGRAM_COPIES,
	DMM_CORE_DATAGRAM_COPIES_HELD, /* ... and planned but not sent, as COPIES_HELD */
	DMM_CORE_DATAGRAMS_REPAIRED,   /* given to the app by the peer's copies */
	DMM_CORE_DATAGRAM_PEERS,       /* hosts that were found to have a stack of ours */
	DMM_CORE_PARITY,	       /* segments of it, sent (DMM_FEATURE_FEC) */
	DMM_CORE_PARITY_HELD, /* owed and not sent: no room in the window or in the budget */
	DMM_CORE_PARITY_IN,   /* segments of it that came */
	/* of them, those that were no use: malformed, too old, of too much that is missing, or no
	 * memory */
	DMM_CORE_PARITY_REFUSED,
	DMM_CORE_REPAIRED, /* symbols, by peers' parity */
	/* times that what was repaired was proven wrong, or parity contradicted itself: the
	 * connection was reset */
	DMM_CORE_REPAIRED_WRONG,
	DMM_CORE_PEER_REPAIRED, /* symbols, by ours, as peers tell */
	DMM_CORE_MAX,
};

/* The name of transport number index (0-based); NULL past the last */
const char *dmm_core_transport(uint32_t index);

/* NULL: no memory, no such congestion control or transport, or an MTU below 576 (IPv6: 1280 is
 * needed) */
struct dmm_core *dmm_core_create(const struct dmm_core_config *config);
void dmm_core_destroy(struct dmm_core *core);

/*
 * A packet came in, or a fragment of one. Inner leg: from the app's kernel (may be up to 64 KiB
 * with gso). Outer leg: from the NIC, TCP, or an ICMP/ICMPv6 error that quotes one of our flows.
 * pkt is not kept, unless meta->lent. A new SYN on either leg makes a connection. On the outer leg,
 * segments put together on the way in (GRO: vnet.gso_type and gso_size, the length of each but the
 * last) count as the segments that they were.
 */
void dmm_core_input(struct dmm_core *core, uint32_t leg, const uint8_t *pkt, uint32_t len,
		    const struct dmm_rx_meta *meta, uint64_t now_ns);

/*
 * A buffer of DMM_CORE_BUFFER_BYTES for a packet to be read into and whatever stands in front of
 * it; NULL: no memory. After each packet that was lent (struct dmm_rx_meta) its reader asks for a
 * buffer for the next one: the same again, if the core keeps nothing of it. It is the core's to
 * write to from then on.
 */
enum { DMM_CORE_BUFFER_BYTES = 65664 };

uint8_t *dmm_core_buffer(struct dmm_core *core);
/* Never NULL */
uint8_t *dmm_core_buffer_next(struct dmm_core *core, uint8_t *buffer);

/* The next packet for leg, written to buf (room for cap bytes: the MTU, on the outer leg the
 * largest that a meta told, or the leg's gso_max, which need not all be there each time). Returns
 * its length; 0: none now.
 */
uint32_t dmm_core_output(struct dmm_core *core, uint32_t leg, uint8_t *buf, uint32_t cap,
			 struct dmm_tx_meta *meta, uint64_t now_ns);

/*
 * dmm_core_output() without a copy: of the packet's length, which it returns, the last
 * payload->bytes are not in buf but in payload's parts. They stay there, whatever else is called,
 * until dmm_core_output_taken(), which must come soon: what is freed meanwhile waits for it.
 */
uint32_t dmm_core_output_parts(struct dmm_core *core, uint32_t leg, uint8_t *buf, uint32_t cap,
			       struct dmm_tx_meta *meta, struct dmm_payload *payload,
			       uint64_t now_ns);
void dmm_core_output_taken(struct dmm_core *core);

enum {
	DMM_CORE_ETH_BYTES = 14,
	DMM_CORE_DATAGRAM_MTU = 1500, /* the longest IP packet that dmm_core_datagram_next() has */
};

/*
 * A UDP packet of len bytes came in by leg, behind an Ethernet header, by the caller's device nic.
 * Returns 1: it is to go on by the other leg as it is, with goes; 0: it is malformed, or has come
 * before, and goes nowhere.
 */
uint32_t dmm_core_datagram(struct dmm_core *core, uint32_t leg, const uint8_t *frame, uint32_t len,
			   uint32_t nic, const struct dmm_vnet *came, struct dmm_vnet *goes,
			   uint64_t now_ns);
/*
 * The next frame of what two stacks of ours send each other of datagrams besides, and of what came
 * by it; its leg, its device, and as the result the length of its IP packet, with no offload; 0:
 * none is due. dmm_core_poll() says when.
 */
uint32_t dmm_core_datagram_next(struct dmm_core *core, uint8_t *frame, uint32_t *leg, uint32_t *nic,
				uint64_t now_ns);
/* For a device that fills in none: the checksum of such a packet that is not to be cut. */
void dmm_core_datagram_csum(uint8_t *pkt, uint32_t len, struct dmm_vnet *goes);

/* Runs timers that are due. Call it last, after inputs and outputs, before waiting. Returns when to
 * call again at the latest (absolute, ns); UINT64_MAX: nothing is pending. After it,
 * dmm_core_output() may have packets on either leg. Pacing deadlines are included. */
uint64_t dmm_core_poll(struct dmm_core *core, uint64_t now_ns);

/* The next action, oldest first. Returns 1 and fills action, or 0. Pulled after an input and before
 * outputs, OWN comes ahead of the first packet of its connection. */
uint32_t dmm_core_action(struct dmm_core *core, struct dmm_action *action);

/* The connection cannot be: the app's connect() fails with error (EHOSTUNREACH, ENETUNREACH), a
 * peer hears nothing. Good until it is open. */
void dmm_core_unreachable(struct dmm_core *core, uint32_t conn, uint32_t error, uint64_t now_ns);

/* The congestion control of connections that open from now on. Returns 1, or 0: no such name,
 * nothing changed. */
uint32_t dmm_core_set_congestion(struct dmm_core *core, const char *name);
/* The same for one that is not built in: ops stay good until the core is destroyed (cc_guard.h). */
void dmm_core_set_congestion_ops(struct dmm_core *core, const struct cc_ops *ops);

/* The transport of the outer leg of connections that open from now on. Returns 1, or 0: no such
 * name, and nothing changed. */
uint32_t dmm_core_set_transport(struct dmm_core *core, const char *name);
/* The same for one that is not built in: ops stay good until the core is destroyed (end_guard.h).
 * Returns 0, too, if six others still have connections, or for want of memory. */
uint32_t dmm_core_set_transport_ops(struct dmm_core *core, const struct end_ops *ops);

/*
 * What a device of the outer leg does with packets, from now on, also with those of open
 * connections. device: its number (meta.link), below DMM_CORE_DEVICES. csum_partial 1: the checksum
 * may be left to it (DMM_VNET_NEEDS_CSUM), as it may always be on the inner leg. gso_max, with
 * csum_partial: the longest IP packet, bytes, that it cuts into segments as TSO does; the segments
 * are those that would else have been pulled one by one. 0 each: packets go out whole, as they are.
 */
void dmm_core_set_outer_offload(struct dmm_core *core, uint32_t device, uint32_t gso_max,
				uint32_t csum_partial);

/* As the members of struct dmm_core_config that are called so, for connections that open from now
 * on; another latency changes nothing. */
void dmm_core_set_latency(struct dmm_core *core, uint32_t latency, uint32_t redundancy_budget_ppm,
			  uint32_t redundancy_residual_ppm, uint32_t parity_most_ppm);
/* enum dmm_syn_cookies, from now on; other values change nothing. */
void dmm_core_set_syn_cookies(struct dmm_core *core, uint32_t mode);
/* enum dmm_negotiate, of connections that begin from now on; other values change nothing. */
void dmm_core_set_negotiate(struct dmm_core *core, uint32_t mode);
/* Until when a segment of no connection may carry a cookie: hand such segments in. 0: no cookie was
 * sent yet.
 */
uint64_t dmm_core_cookies_until_ns(const struct dmm_core *core);

/* Reset every connection on both legs (the stack is being stopped). */
void dmm_core_abort_all(struct dmm_core *core, uint64_t now_ns);

/* Connection number index (0-based, in no order). Returns 1, or 0 past the last. */
uint32_t dmm_core_conn_info(const struct dmm_core *core, uint32_t index,
			    struct dmm_conn_info *info);
void dmm_core_memory(const struct dmm_core *core, struct dmm_core_memory *memory);
uint32_t dmm_core_connections(const struct dmm_core *core);
/*
 * Of them, those that nobody may drop to make room for others: neither in TIME_WAIT nor half open
 */
uint32_t dmm_core_in_use(const struct dmm_core *core);
uint64_t dmm_core_counter(const struct dmm_core *core, uint32_t counter);

#endif /* DMM_CORE_API_H */

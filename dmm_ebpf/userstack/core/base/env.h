/* SPDX-License-Identifier: Apache-2.0 */
/*
 * env.h: what every layer of a core may use of it: configuration, counters, memory, timers,
 * randomness, the lists of who has something to send, and what its devices can do.
 *
 * The lower layers are given this and nothing else of struct dmm_core, whose first member it is: so
 * a transport can be read, and tried, without the table of connections and the relay.
 */
#ifndef DMM_ENV_H
#define DMM_ENV_H

#include "../api.h"
#include "loss_pair.h"
#include "mem.h"
#include "util.h"
#include "wheel.h"

struct cc_ops;
struct ctl_queue;
struct end_events;
struct end_ops;
struct end_profile;

/* What a device of the outer leg does with packets, see dmm_core_set_outer_offload() */
struct offload {
	uint32_t gso_max;
	uint32_t csum_partial;
};

enum { ENV_TRANSPORTS = 8 };

enum {
	AGREE_SPARED = 256, /* destinations in tcp_agree.c's table */
	AGREE_WAYS = 4,	    /* places that one of them may have */
};

/* A destination to which SYNs with our option are not sent */
struct agree_spared {
	uint8_t addr[16];
	uint64_t until_ns; /* 0: the place is free */
	uint32_t times;	   /* that it came to be here */
	uint32_t pad;
};

enum {
	PATHS = 1024,  /* in tcp_paths.c's table */
	PATH_WAYS = 4, /* places that one of them may have */
};

/* Bytes that may go, which become more with time */
struct bucket {
	uint64_t bytes;
	uint64_t filled_ns; /* when it was looked at last */
};

/* What is known of a path, as the last connection over it has noted it */
struct path {
	uint64_t key; /* 0: the place is free */
	uint32_t at_s;
	uint32_t srtt_us;
	uint32_t rttvar_us;
	/* of transmissions, how many were lost; and of those soon after a lost one (tcp_loss.c) */
	struct loss_pair all;
	struct loss_pair soon;
	uint32_t gap_shift; /* how often the gap between copies was doubled */
	uint64_t rate_Bps;  /* 0: not known */
	/* tcp_budget.c: of all connections there together */
	uint64_t load_ns;	   /* since then is counted ... */
	uint64_t load_bytes;	   /* ... what they delivered */
	uint64_t load_Bps[2];	   /* in the last two stretches of time; 0: not known */
	uint64_t bulk_until_ns;	   /* one of them sends as much as the path takes */
	struct bucket copy_bucket; /* of the copies of all of them, meanwhile */
};

struct env {
	struct dmm_core_config cfg; /* without zeros that stand for defaults */
	struct offload offload[DMM_CORE_DEVICES];
	struct mem mem;
	struct wheel wheel;
	uint64_t isn_secret[2];
	uint64_t cookie_secret[2];
	uint64_t rng;
	const struct cc_ops *cc_ops;	   /* of connections that open from now on */
	const struct end_profile *profile; /* end.h: two, by leg */
	/* end.h: TCP for inner ends, and behind it what outer ends have; NULL: the place is free */
	const struct end_ops *ops[ENV_TRANSPORTS];
	const struct end_events *up; /* end.h */
	struct list ready[2];	     /* ends that may have something to send, by leg */
	struct ctl_queue *ctl;	     /* ctl.h: two, by leg */
	/* where the packet that is made tells its payload; NULL: it is copied */
	struct dmm_payload *parts;
	uint64_t cookies_until_ns; /* when the last cookie that was sent expires */
	/* in the latest SYN-ACK of this host's kernel: IPv4, IPv6; 0: none yet */
	uint16_t listener_mss[2];
	uint16_t ip_id;
	uint64_t counters[DMM_CORE_MAX];
	uint64_t parity_bytes; /* memory of tcp_parity_in.c, all connections together */
	struct agree_spared spared[AGREE_SPARED];
	struct path paths[PATHS];
	uint64_t bulk_until_ns; /* the latest of all of them */
};

/* Of the device that a link leads by */
static inline const struct offload *env_offload(const struct env *env, uint64_t link)
{
	uint64_t device = link >> DMM_LINK_DEVICE_SHIFT;

	return &env->offload[device < DMM_CORE_DEVICES ? device : 0];
}

#endif /* DMM_ENV_H */

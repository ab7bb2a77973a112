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

#include "api.h"
#include "mem.h"
#include "util.h"
#include "wheel.h"

struct cc_ops;
struct ctl_queue;
struct end_events;
struct end_profile;

/* What a device of the outer leg does with packets, see dmm_core_set_outer_offload() */
struct offload {
	uint32_t gso_max;
	uint32_t csum_partial;
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
	const struct end_events *up;	   /* end.h */
	struct list ready[2];		   /* ends that may have something to send, by leg */
	struct ctl_queue *ctl;		   /* ctl.h: two, by leg */
	/* where the packet that is made tells its payload; NULL: it is copied */
	struct dmm_payload *parts;
	uint64_t cookies_until_ns; /* when the last cookie that was sent expires */
	/* in the latest SYN-ACK of this host's kernel: IPv4, IPv6; 0: none yet */
	uint16_t listener_mss[2];
	uint16_t ip_id;
	uint64_t counters[DMM_CORE_MAX];
};

/* Of the device that a link leads by */
static inline const struct offload *env_offload(const struct env *env, uint64_t link)
{
	uint64_t device = link >> DMM_LINK_DEVICE_SHIFT;

	return &env->offload[device < DMM_CORE_DEVICES ? device : 0];
}

#endif /* DMM_ENV_H */

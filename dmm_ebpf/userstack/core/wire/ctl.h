/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ctl.h: packets that belong to no connection's send queue, or that must not wait in it: RST to
 * strangers, ICMP errors, single ACKs. How many wait is bounded, see ctl.c.
 */
#ifndef DMM_CTL_H
#define DMM_CTL_H

#include "../base/env.h"
#include "wire.h"

enum {
	CTL_SLOTS = 512,
	CTL_BYTES = 160,
};

struct ctl_queue {
	uint32_t head;
	uint32_t count;
	struct {
		uint64_t link;
		uint16_t len;
		uint8_t family;
		uint8_t data[CTL_BYTES];
	} slot[CTL_SLOTS];
};

/* The direction in which packets of a connection leave by leg */
void ctl_dir(const struct dmm_core_addr_pair *pair, uint32_t leg, struct wire_dir *dir);
void ctl_push_tcp(struct env *env, uint32_t leg, uint64_t link, const struct wire_dir *dir,
		  const struct wire_seg *seg);
/* An ICMP error that quotes the segment (dir, seg) and goes to dir's source, out of leg */
void ctl_push_icmp(struct env *env, uint32_t leg, uint64_t link, const struct wire_dir *dir,
		   const struct wire_seg *seg, uint8_t type, uint8_t code);
/* RFC 9293 section 3.10.7.1: the answer to a segment that belongs to no connection */
void ctl_reset_unknown(struct env *env, uint32_t leg, uint64_t link, const struct pkt *pkt);
uint32_t ctl_pull(struct env *env, uint32_t leg, uint8_t *buf, uint32_t cap,
		  struct dmm_tx_meta *meta);

#endif /* DMM_CTL_H */

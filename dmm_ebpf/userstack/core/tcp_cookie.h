/* SPDX-License-Identifier: Apache-2.0 */
/* tcp_cookie.h: handshakes without a connection: SYN cookies (RFC 4987 section 3.6). */
#ifndef DMM_TCP_COOKIE_H
#define DMM_TCP_COOKIE_H

#include "tcp.h"

enum cookie {
	COOKIE_NONE,  /* none of ours, or too old */
	COOKIE_LATER, /* not the segment right behind the SYN: that one will come, too */
	COOKIE_GOOD,
};

/* Answers a peer's SYN, and keeps nothing of it */
void cookie_answer(struct env *env, const struct dmm_core_addr_pair *pair, const struct pkt *syn,
		   uint64_t now_ns);
/*
 * What a segment of no connection brings back. COOKIE_GOOD: *syn is the SYN that its
 * cookie stands for
 */
enum cookie cookie_read(struct env *env, const struct dmm_core_addr_pair *pair,
			const struct pkt *pkt, uint64_t now_ns, struct pkt *syn);
/* A new end in SYN-RECEIVED, as if it had sent the SYN-ACK. iss: the cookie */
void cookie_restore(struct env *env, struct tcb *t, const struct pkt *syn, uint32_t iss,
		    uint64_t now_ns);

#endif /* DMM_TCP_COOKIE_H */

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * path.h: how packets get from one place to another in virtual time: the link between the
 * hosts, with its rate, queue, delay, losses and middleboxes, and each host's inner leg, which is
 * instant and whole unless told otherwise. Even hosts stand at one end of the link, each sends to
 * the odd one that follows it at the other end.
 *
 * Invariant: the same words (params.h) and the same packets give the same run; all chance is drawn
 * from one seed.
 */
#ifndef SIM_PATH_H
#define SIM_PATH_H

#include <stdbool.h>
#include <stdint.h>

/* Of packets: as this host's kernel sends them, from the other host, from somebody else */
enum way { KERNELS_LINK = 1, PEERS_LINK, OUTSIDERS_LINK };

enum { SIM_HOSTS = 4 };

/* where a packet arrives: off the link, or on an inner leg */
enum place { AT_LINK, AT_CORE, AT_KERN };

struct path_stats {
	uint64_t sent, queue_lost, max_backlog_ns, marked;
	uint64_t parity_bent;
	uint64_t bytes[SIM_HOSTS]; /* of packets, from each host, whatever became of them */
	/* on the way, by chance; rows of such losses with nothing that passed between them */
	uint64_t lost, lost_rows;
	/*
	 * of one connection's data from host 0: what had been sent before, and what of that was ECT
	 */
	uint64_t resent, resent_ect;
};

/* Virtual time; sim.c moves it */
extern uint64_t now;
extern struct path_stats path_stats;

void path_init(void);
void path_deinit(void);
/* Fills in the TCP checksum of a packet that was changed */
void path_mend_csum(uint8_t *p, uint32_t len);
/* Host `from` puts a packet on the link */
void path_link_send(uint32_t from, const uint8_t *p, uint32_t len);
/* On the inner leg of host: true when the packet was taken care of, dropped or delayed; false:
 * deliver it at once */
bool path_inner_send(uint32_t host, enum place to, const uint8_t *p, uint32_t len, bool csum_ok);
/* When the next packet arrives; NEVER: none is under way */
uint64_t path_next_ns(void);
/* Hands over what has arrived by now */
void path_deliver(void (*input)(uint32_t host, enum place at, const uint8_t *p, uint32_t len,
				bool csum_ok));

#endif /* SIM_PATH_H */

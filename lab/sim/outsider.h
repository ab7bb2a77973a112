/* SPDX-License-Identifier: Apache-2.0 */
/*
 * outsider.h: somebody who knows addresses and ports of all connections and writes packets of any
 * shape to both legs: every set of flags, options, lengths, windows, urgent pointers, and ICMP
 * errors. What he sends is watched (unmoved.h): state is compared before and after each.
 *
 * His numbers are random. So that a run is certain, those are sent that are not acceptable; half of
 * them miss narrowly, as random ones seldom would. With outsider_any=1 they are sent as they come,
 * all of them random, on the outer leg: where a SYN, a RST in the window is believed (the app's
 * kernel, tcp_open.c) is not for outsiders.
 */
#ifndef SIM_OUTSIDER_H
#define SIM_OUTSIDER_H

#include "legs.h"

/* P.outsider packets to each leg of each connection of the core */
void outsider_sends(struct dmm_core *core, uint64_t now_ns);
/* Prints forged=N, and forged_LEG_STATE=N of the state that each was sent into */
void outsider_report(void);

#endif /* SIM_OUTSIDER_H */

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * window.h: the window that a Linux 6.18 receiver would offer (P.linux_window, in bytes: its
 * tcp_rmem[1], of which half is window; one connection, no limit of memory).
 *
 * Owns: what that receiver remembers, of one connection in a simulation.
 */
#ifndef SIM_WINDOW_H
#define SIM_WINDOW_H

#include "relay/core.h"

/* Writes it over the core's own into a packet of its outer leg */
void window_as_linux(const struct dmm_core *core, uint8_t *p, uint32_t len);

#endif /* SIM_WINDOW_H */

/* SPDX-License-Identifier: Apache-2.0 */
/* trips.h: how long things took: what an app wrote, to come back from the other's; connections */
#ifndef SIM_TRIPS_H
#define SIM_TRIPS_H

#include "kern.h"

#include <stdint.h>

void trips_add(uint64_t ns);
/*
 * Prints quantiles, microseconds, and how many took longer than late_ns, of all but the first
 * `skip`; nothing if there are none
 */
void trips_report(uint64_t skip, uint64_t late_ns);
/* Quantiles of P.conns connections, from the moment when each was to be opened until the app that
 * opened it was done; nothing if none was */
void lives_report(const struct ksock *opened);

#endif /* SIM_TRIPS_H */

/* SPDX-License-Identifier: Apache-2.0 */
/* trips.h: how long what an app wrote took to come back from the other's */
#ifndef SIM_TRIPS_H
#define SIM_TRIPS_H

#include <stdint.h>

void trips_add(uint64_t ns);
/*
 * Prints quantiles, microseconds, and how many took longer than late_ns, of all but the first
 * `skip`; nothing if there are none
 */
void trips_report(uint64_t skip, uint64_t late_ns);

#endif /* SIM_TRIPS_H */

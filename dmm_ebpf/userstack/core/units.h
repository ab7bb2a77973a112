/* SPDX-License-Identifier: Apache-2.0 */
/*
 * units.h: of time, in nanoseconds.
 */
#ifndef DMM_CORE_UNITS_H
#define DMM_CORE_UNITS_H

#define NS_PER_MS 1000000ull
#define NS_PER_S 1000000000ull

#endif /* DMM_CORE_UNITS_H */

/* SPDX-License-Identifier: Apache-2.0 */
/* tcp_end.h: TCP as a transport (end.h), all that is seen of it from above. How it works is told in
 * tcp.c. */
#ifndef DMM_TCP_END_H
#define DMM_TCP_END_H

#include "../end.h"

/* The same engine for both legs, which differ in what they keep and in what they are asked */
extern const struct end_ops tcp_inner;
extern const struct end_ops tcp_outer;

#endif /* DMM_TCP_END_H */

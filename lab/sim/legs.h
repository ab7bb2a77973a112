/* SPDX-License-Identifier: Apache-2.0 */
/* legs.h: both ends of a connection as what they are here, TCP. */
#ifndef SIM_LEGS_H
#define SIM_LEGS_H

#include "relay/core.h"
#include "tcp/tcp_int.h"

/* What a connection that is not parked consists of */
struct legs {
	struct conn c;
	struct tcb_inner inner;
	struct tcb_outer outer;
};

static inline struct tcb *leg_of(const struct conn *c, uint32_t leg)
{
	return tcb_of(conn_end(c, leg));
}

static inline struct outer *outer_of(const struct conn *c)
{
	return tcb_outer(leg_of(c, DMM_LEG_OUTER));
}

/* A copy of c as it is, or would be if it were awake */
static inline void legs_copy(struct legs *to, const struct dmm_core *core, const struct conn *c)
{
	if (c->ends.f.phase == CONN_PARKED)
		conn_unpark_copy(core, &to->c, c);
	else
		memcpy(to, c, sizeof(*to));
}

#endif /* SIM_LEGS_H */

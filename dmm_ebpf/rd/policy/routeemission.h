/* SPDX-License-Identifier: Apache-2.0 */
/* routeemission.h: what routenodes.c asks of routeentries.c. */
#ifndef DMM_ROUTEEMISSION_H
#define DMM_ROUTEEMISSION_H

#include "routetable.h"

struct dmm_node_value;

/* Of a route's prefix; PLAN_OWN where there is no plan. */
uint32_t plan_of(const struct emission *e, uint32_t route);
/* What a prefix says, by its first route. */
struct dmm_node_value emission_value(const struct emission *e, uint32_t route);

#endif

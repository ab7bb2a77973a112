/* SPDX-License-Identifier: Apache-2.0 */
/* redundancy.h: whether copies are wanted, of segments and of datagrams alike. */
#ifndef DMM_REDUNDANCY_H
#define DMM_REDUNDANCY_H

#include "../base/env.h"
#include "cc.h"

/* What a path is taken to carry as long as it is not known: 20 Mbit/s */
#define REDUNDANCY_ASSUMED_Bps 2500000ull

static inline bool redundancy_is_wanted(const struct env *env)
{
	const struct dmm_core_config *cfg = &env->cfg;

	if (cfg->latency == DMM_LATENCY_NORMAL || cfg->redundancy_budget_ppm == DMM_REDUNDANCY_NONE)
		return false;
	return cfg->latency == DMM_LATENCY_LOW || env->cc_ops == &cc_wan;
}

#endif /* DMM_REDUNDANCY_H */

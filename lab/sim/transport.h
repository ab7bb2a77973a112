/* SPDX-License-Identifier: Apache-2.0 */
/*
 * transport.h: what the outer legs are of, from P.transport_ns on; before that TCP: P.transport, or
 * sim_transport if that is there.
 */
#ifndef SIM_TRANSPORT_H
#define SIM_TRANSPORT_H

#include "relay/core.h"

#include "params.h"

#include <stdio.h>
#include <stdlib.h>

/* Set before main(), see plugged.c; with it neither check nor outsider */
extern const struct end_ops *sim_transport;

/* Whether all outer legs are TCP's */
static inline bool transport_is_plain(void)
{
	return !*P.transport && !sim_transport;
}

static inline void transport_config(struct dmm_core_config *cfg)
{
	if (!P.transport_ns && !sim_transport)
		memcpy(cfg->transport, P.transport, sizeof(cfg->transport));
}

/* Called once before anything else; returns when to call again */
static inline uint64_t transport_switch(struct dmm_core *core, uint64_t now_ns)
{
	static const struct dmm_core *done[2];
	uint64_t due_ns = P.start_ns + P.transport_ns;

	if (!core || (!P.transport_ns && !sim_transport) || core == done[0] || core == done[1])
		return NEVER;
	if (now_ns < due_ns)
		return due_ns;
	if (sim_transport ? !dmm_core_set_transport_ops(core, sim_transport)
			  : !dmm_core_set_transport(core, P.transport)) {
		printf("no_transport=1\n");
		exit(4);
	}
	done[!!done[0]] = core;
	return NEVER;
}

/* Whether the outer leg of the connection is TCP's */
static inline bool transport_is_tcp(const struct dmm_core *core, uint32_t handle)
{
	struct dmm_conn_info info;

	for (uint32_t i = 0; dmm_core_conn_info(core, i, &info); i++) {
		if (info.conn == handle)
			return !strcmp(info.transport, "tcp");
	}
	return false;
}

#endif /* SIM_TRANSPORT_H */

// SPDX-License-Identifier: Apache-2.0
/* datagrams.c: UDP, which is relayed as it is: no connection, no queue, no timer. */
#include "core.h"
#include "../udp/datagram.h"

uint32_t dmm_core_datagram(struct dmm_core *core, uint32_t leg, const uint8_t *pkt, uint32_t len,
			   const struct dmm_vnet *came, struct dmm_vnet *goes)
{
	uint64_t *counters = core->env.counters;

	counters[DMM_CORE_IN_PACKETS]++;
	if (len < WIRE_IP4_LEN || !datagram_pass(pkt, len, came, goes)) {
		counters[DMM_CORE_MALFORMED]++;
		return 0;
	}
	counters[DMM_CORE_OUT_PACKETS]++;
	counters[leg == DMM_LEG_INNER ? DMM_CORE_DATAGRAMS_OUT : DMM_CORE_DATAGRAMS_IN]++;
	return 1;
}

void dmm_core_datagram_csum(uint8_t *pkt, uint32_t len, struct dmm_vnet *goes)
{
	datagram_csum_fill(pkt, len, goes);
}

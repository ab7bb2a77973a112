// SPDX-License-Identifier: Apache-2.0
/*
 * datagrams.c: UDP, which is relayed as it is, and at once: no connection and no queue. Where two
 * stacks of ours may speak with each other (enum dmm_negotiate), copies follow (udp_copies.h).
 */
#include "core.h"
#include "../cc/redundancy.h"
#include "../udp/udp_copies.h"
#include "../udp/datagram.h"

/* Without memory there are none. */
void datagrams_agree(struct dmm_core *core)
{
	static const uint64_t purpose =
		0x636f70696573; /* what peers see of it tells nothing else */

	if (!core->copies && core->env.cfg.negotiate != DMM_NEGOTIATE_FORBID)
		core->copies =
			udp_copies_create(siphash(core->secret, &purpose, 1), core->env.counters);
}

void datagrams_deinit(struct dmm_core *core)
{
	udp_copies_destroy(core->copies);
}

/* False: it is not for the app as it is. */
static bool with_copies(struct dmm_core *core, uint32_t leg, const struct udp_copies_packet *p,
			uint64_t now_ns)
{
	const struct dmm_core_config *cfg = &core->env.cfg;
	struct udp_copies_wanted wanted = {.residual_ppm = cfg->redundancy_residual_ppm};

	if (!core->copies || cfg->negotiate == DMM_NEGOTIATE_FORBID)
		return true;
	if (leg == DMM_LEG_OUTER)
		return udp_copies_in(core->copies, p, now_ns);
	if (redundancy_is_wanted(&core->env))
		wanted.budget_Bps = REDUNDANCY_ASSUMED_Bps * cfg->redundancy_budget_ppm / 1000000;
	udp_copies_out(core->copies, p, &wanted, now_ns);
	return true;
}

uint32_t dmm_core_datagram(struct dmm_core *core, uint32_t leg, const uint8_t *frame, uint32_t len,
			   uint32_t nic, const struct dmm_vnet *came, struct dmm_vnet *goes,
			   uint64_t now_ns)
{
	struct udp_copies_packet p = {.frame = frame, .len = len, .nic = nic, .came = came};
	uint64_t *counters = core->env.counters;

	counters[DMM_CORE_IN_PACKETS]++;
	if (len < WIRE_IP4_LEN || !datagram_pass(frame + DMM_CORE_ETH_BYTES, len, came, goes)) {
		counters[DMM_CORE_MALFORMED]++;
		return 0;
	}
	if (!with_copies(core, leg, &p, now_ns))
		return 0;
	counters[DMM_CORE_OUT_PACKETS]++;
	counters[leg == DMM_LEG_INNER ? DMM_CORE_DATAGRAMS_OUT : DMM_CORE_DATAGRAMS_IN]++;
	return 1;
}

uint32_t dmm_core_datagram_next(struct dmm_core *core, uint8_t *frame, uint32_t *leg, uint32_t *nic,
				uint64_t now_ns)
{
	uint32_t len = core->copies ? udp_copies_next(core->copies, frame, leg, nic, now_ns) : 0;

	if (len) {
		core->env.counters[DMM_CORE_OUT_PACKETS]++;
		core->env.counters[DMM_CORE_DATAGRAMS_IN] += *leg == DMM_LEG_INNER;
	}
	return len;
}

uint64_t datagrams_due_ns(const struct dmm_core *core)
{
	return core->copies ? udp_copies_due_ns(core->copies) : NEVER;
}

void dmm_core_datagram_csum(uint8_t *pkt, uint32_t len, struct dmm_vnet *goes)
{
	datagram_csum_fill(pkt, len, goes);
}

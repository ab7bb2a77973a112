// SPDX-License-Identifier: Apache-2.0
/* load.c: see load.h. */
#include "load.h"
#include "core/units.h"

#define REFUSED_NS NS_PER_S /* so long after a refusal new flows go elsewhere */
#define STUCK_NS NS_PER_S   /* a busy NIC frees a frame long before */

static bool between(bool was, bool above_high, bool above_low)
{
	return above_high || (was && above_low);
}

static bool full_of_connections(const struct load *load, uint32_t in_use)
{
	uint32_t max = load->max_connections;

	return between(load->full & DMM_FULL_CONNECTIONS, in_use >= max, in_use >= max - max / 8);
}

/* Below what the core refuses at (conn.c), and above what large windows may take together. */
static bool full_of_bytes(const struct load *load, uint64_t used, uint64_t limit)
{
	return between(load->full & DMM_FULL_MEMORY, used >= limit - limit / 4,
		       used >= limit - limit / 16 * 5);
}

/*
 * That no frame is free is how a fast sender learns of a slow NIC, and passes; a NIC that takes
 * none for so long serves nobody.
 */
static bool frames_stuck(struct load *load, const struct load_signs *signs, uint64_t now_ns)
{
	if (!signs->blocked || signs->sent_pkts != load->sent_pkts)
		load->stuck_from_ns = now_ns;
	load->sent_pkts = signs->sent_pkts;
	return now_ns - load->stuck_from_ns >= STUCK_NS;
}

static bool refused_lately(struct load *load, uint64_t refused, uint64_t now_ns)
{
	if (refused != load->refused)
		load->refused_until_ns = now_ns + REFUSED_NS;
	else if (now_ns >= load->refused_until_ns)
		load->refused_until_ns = 0;
	load->refused = refused;
	return load->refused_until_ns;
}

uint32_t load_update(struct load *load, const struct load_signs *signs, uint64_t now_ns)
{
	uint32_t full = 0;

	if (full_of_connections(load, signs->in_use))
		full |= DMM_FULL_CONNECTIONS;
	if (full_of_bytes(load, signs->memory_bytes, signs->memory_limit_bytes))
		full |= DMM_FULL_MEMORY;
	if (frames_stuck(load, signs, now_ns))
		full |= DMM_FULL_FRAMES;
	if (refused_lately(load, signs->refused, now_ns))
		full |= DMM_FULL_REFUSED;
	load->full = full;
	return full;
}

uint64_t load_again_ns(const struct load *load)
{
	return load->refused_until_ns ? load->refused_until_ns : UINT64_MAX;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * "KEY=VALUE ..." as the command line, the control socket and the tests say what a direction does.
 *
 * Keys: rate_bps delay_ns queue_pkts queue_bytes queue_ns reorder_ns overhead_bytes loss_above
 * burst_step_ns jitter_ns seed (integers), jitter_exponential jitter_reorder (0 or 1), and loss
 * burst_p burst_r burst_loss_bad burst_loss_good reorder duplicate corrupt (0 to 1); what they mean
 * is at struct emu_params.
 */
#ifndef WANEM_ASSIGN_H
#define WANEM_ASSIGN_H

#include <stdbool.h>
#include <stdint.h>

#include "emu.h"

/* What "KEY=VALUE ..." sets. */
struct control_target {
	struct emu_params params;
	uint64_t seed;
	bool new_seed;
};

/*
 * Applies "KEY=VALUE ..." (modified in place) to the targets in mask; NULL, or why it is refused.
 */
const char *control_assign(struct control_target targets[2], unsigned int mask, char *assignments);

#endif

// SPDX-License-Identifier: Apache-2.0
/* Parameters as words; see assign.h. Refuses unknown keys and what emu_check refuses. */
#define _GNU_SOURCE
#include "assign.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const char *parse_u64(const char *text, uint64_t *value)
{
	char *end;

	errno = 0;
	*value = strtoull(text, &end, 10);
	return *text < '0' || *text > '9' || *end || errno ? "a value is not a whole number" : NULL;
}

static const char *assign(struct control_target *target, const char *key, const char *text)
{
	struct emu_params *params = &target->params;
	const struct {
		const char *key;
		uint64_t *u64;
		double *real;
		bool *flag;
	} keys[] = {
		{"rate_bps", .u64 = &params->rate_bps},
		{"delay_ns", .u64 = &params->delay_ns},
		{"queue_pkts", .u64 = &params->queue_pkts},
		{"queue_bytes", .u64 = &params->queue_bytes},
		{"queue_ns", .u64 = &params->queue_ns},
		{"reorder_ns", .u64 = &params->reorder_ns},
		{"loss_above", .u64 = &params->loss_above},
		{"burst_step_ns", .u64 = &params->bursts.step_ns},
		{"jitter_ns", .u64 = &params->jitter_ns},
		{"seed", .u64 = &target->seed},
		{"loss", .real = &params->loss},
		{"burst_p", .real = &params->bursts.p},
		{"burst_r", .real = &params->bursts.r},
		{"burst_loss_bad", .real = &params->bursts.loss_bad},
		{"burst_loss_good", .real = &params->bursts.loss_good},
		{"reorder", .real = &params->reorder},
		{"duplicate", .real = &params->duplicate},
		{"corrupt", .real = &params->corrupt},
		{"jitter_exponential", .flag = &params->jitter_exponential},
		{"jitter_reorder", .flag = &params->jitter_reorder},
	};
	uint64_t whole;
	const char *why;
	char *end;

	if (!strcmp(key, "overhead_bytes")) {
		why = parse_u64(text, &whole);
		params->overhead_bytes = whole > UINT32_MAX ? UINT32_MAX : (uint32_t)whole;
		return why;
	}
	for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
		if (strcmp(key, keys[i].key) != 0)
			continue;
		if (keys[i].u64) {
			target->new_seed |= keys[i].u64 == &target->seed;
			return parse_u64(text, keys[i].u64);
		}
		if (keys[i].flag) {
			why = parse_u64(text, &whole);
			*keys[i].flag = whole == 1;
			return why || whole > 1 ? "a flag is 0 or 1" : NULL;
		}
		*keys[i].real = strtod(text, &end);
		return end == text || *end ? "a value is not a number" : NULL;
	}
	return "there is no such key";
}

const char *control_assign(struct control_target targets[2], unsigned int mask, char *assignments)
{
	const char *why = NULL;
	char *save, *word;

	for (word = strtok_r(assignments, " ", &save); word; word = strtok_r(NULL, " ", &save)) {
		char *value = strchr(word, '=');

		if (!value)
			return "an assignment is KEY=VALUE";
		*value++ = '\0';
		for (unsigned int i = 0; i < 2 && !why; i++)
			if (mask & (1U << i))
				why = assign(&targets[i], word, value);
		if (why)
			return why;
	}
	for (unsigned int i = 0; i < 2 && !why; i++)
		why = emu_check(&targets[i].params);
	return why;
}

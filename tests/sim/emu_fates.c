// SPDX-License-Identifier: Apache-2.0
/*
 * emu_fates: what the link emulator (lab/wanem/emu.c) does to COUNT frames of BYTES that come every
 * GAP_NS, under a virtual clock.
 *
 *	emu_fates COUNT GAP_NS BYTES [KEY=VALUE...]
 *
 * A line for each frame that is delivered, in order of delivery: its number, and how long it took
 * in ns. Then "stats LOSSES LOSS_BURSTS". Refuses what the emulator refuses, with its words on
 * stderr.
 */
#include "../../lab/wanem/assign.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SLOT_BYTES 2048

static void deliver(struct emu *emu, struct pool *pool, uint64_t gap_ns, uint64_t until_ns)
{
	struct pkt *pkt;
	uint32_t number;

	emu_advance(emu, until_ns);
	while ((pkt = emu_pop_due(emu, until_ns))) {
		memcpy(&number, pkt->data + pkt->len - sizeof(number), sizeof(number));
		printf("%u %" PRIu64 "\n", number, pkt->at_ns - number * gap_ns);
		pool_put(pool, pkt);
	}
}

static void arrive(struct emu *emu, struct pool *pool, uint32_t number, uint32_t len, uint64_t now)
{
	/* IPv4 as far as the emulator looks */
	static const uint8_t ethertype[2] = {0x08, 0x00};
	struct pkt *pkt = pool_get(pool);

	pkt->len = len;
	memset(pkt->data, 0, len);
	memcpy(pkt->data + 12, ethertype, sizeof(ethertype));
	memcpy(pkt->data + len - sizeof(number), &number, sizeof(number));
	emu_arrive(emu, pkt, now);
}

int main(int argc, char **argv)
{
	struct control_target targets[2] = {{.seed = 1}, {.seed = 1}};
	struct pool pool;
	struct emu emu;
	uint32_t count, len;
	uint64_t gap_ns;

	if (argc < 4)
		return 2;
	count = (uint32_t)strtoul(argv[1], NULL, 10);
	gap_ns = strtoull(argv[2], NULL, 10);
	len = (uint32_t)strtoul(argv[3], NULL, 10);
	for (int i = 4; i < argc; i++) {
		const char *why = control_assign(targets, 1, argv[i]);

		if (why) {
			fprintf(stderr, "%s\n", why);
			return 1;
		}
	}
	if (pool_init(&pool, count + 1, SLOT_BYTES))
		return 1;
	emu_init(&emu, &pool, 0, targets[0].seed, 0);
	emu_set(&emu, &targets[0].params, 0);
	for (uint32_t n = 0; n < count; n++) {
		deliver(&emu, &pool, gap_ns, n * gap_ns);
		arrive(&emu, &pool, n, len, n * gap_ns);
	}
	while (emu_next_ns(&emu) != EMU_NEVER)
		deliver(&emu, &pool, gap_ns, emu_next_ns(&emu));
	printf("stats %" PRIu64 " %" PRIu64 "\n", emu.stats.losses, emu.stats.loss_bursts);
	pool_deinit(&pool);
	return 0;
}

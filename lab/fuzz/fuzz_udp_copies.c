/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_udp_copies.c: libFuzzer target for udp_copies.c and what it uses.
 *
 * The input is a program: true datagrams that go, what the other one of two sides is brought of
 * them and of their copies and reports, in any order, bent or not, raw packets, and time that
 * passes. Each frame lies in a block of exactly its size.
 *
 * Checked: what is due fits, and its checksum is right if it is for an app, and not if it goes to
 * the wire; no datagram is given to the app more often than it was sent, as long as none is late by
 * more than is remembered.
 */
#include "../sim/holds.h"
#include "udp/udp_copies.h"

#include <stdlib.h>

#define LATE_NS (NS_PER_S * 9 / 10) /* less than copies are refused for at first */

enum { KEPT = 32, NUMBERS = 64, HEADERS = 28 };

static uint64_t counters[DMM_CORE_MAX];
static struct udp_copies *side[2];
static uint64_t now;
static uint32_t sent[NUMBERS], given[NUMBERS];
static struct {
	uint32_t to;
	uint64_t at_ns;
	uint32_t bytes; /* of the frame; 0: none */
	uint8_t frame[DMM_CORE_ETH_BYTES + DMM_CORE_DATAGRAM_MTU];
} kept[KEPT];
static uint32_t n_kept;

static void keep(uint32_t to, const uint8_t *frame, uint32_t bytes)
{
	uint32_t i = n_kept++ % KEPT;

	kept[i].to = to;
	kept[i].at_ns = now;
	kept[i].bytes = bytes;
	memcpy(kept[i].frame, frame, bytes);
}

/* Of the numbered ones, all alike but for their number */
static uint32_t make(uint8_t *frame, uint8_t number, uint8_t size)
{
	uint32_t udp = DATAGRAM_HEADER_BYTES + 1u + size;
	uint8_t *ip = frame + DMM_CORE_ETH_BYTES;
	struct datagram d = {.ip = ip, .at = 20, .end = 20 + udp};

	memset(frame, 0, DMM_CORE_ETH_BYTES + d.end);
	ip[0] = 0x45;
	put_be16(ip + 2, (uint16_t)d.end);
	ip[9] = DATAGRAM_PROTO;
	ip[15] = 1;
	ip[19] = 2;
	put_be16(ip + 20, 7);
	put_be16(ip + 22, 8);
	put_be16(ip + 24, (uint16_t)udp);
	ip[HEADERS] = number % NUMBERS;
	CHECK(datagram_mark_as(&d, DATAGRAM_RIGHT));
	return d.end;
}

static void give(const uint8_t *frame)
{
	uint32_t number = frame[DMM_CORE_ETH_BYTES + HEADERS] % NUMBERS;

	CHECK(++given[number] <= sent[number]);
}

static void due(uint32_t who)
{
	uint8_t frame[DMM_CORE_ETH_BYTES + DMM_CORE_DATAGRAM_MTU];
	uint32_t leg, nic, len;

	while ((len = udp_copies_next(side[who], frame, &leg, &nic, now))) {
		struct datagram d;

		CHECK(len <= DMM_CORE_DATAGRAM_MTU && leg <= DMM_LEG_OUTER);
		CHECK(datagram_find(frame + DMM_CORE_ETH_BYTES, len, &d));
		CHECK((datagram_mark_of(&d) == DATAGRAM_RIGHT) == (leg == DMM_LEG_INNER));
		if (leg == DMM_LEG_OUTER)
			keep(1 - who, frame, DMM_CORE_ETH_BYTES + len);
		else
			give(frame);
	}
	CHECK(udp_copies_due_ns(side[who]) > now);
}

static void arrive(uint32_t who, const uint8_t *bytes, uint32_t n)
{
	struct dmm_vnet came = {0}, goes;
	uint8_t *frame = n > DMM_CORE_ETH_BYTES ? malloc(n) : NULL;
	struct udp_copies_packet p = {.frame = frame, .len = n - DMM_CORE_ETH_BYTES, .came = &came};

	if (!frame)
		return;
	memcpy(frame, bytes, n);
	if (p.len >= 20 && datagram_pass(frame + DMM_CORE_ETH_BYTES, p.len, &came, &goes))
		udp_copies_in(side[who], &p, now);
	free(frame);
}

static void go(uint8_t number, uint8_t size)
{
	uint8_t frame[DMM_CORE_ETH_BYTES + HEADERS + 1 + UINT8_MAX];
	uint32_t len = make(frame, number, size);
	struct dmm_vnet came = {0};
	struct udp_copies_packet p = {.frame = frame, .len = len, .came = &came};
	struct udp_copies_wanted wanted = {.budget_Bps = 125000, .residual_ppm = 1000};

	sent[number % NUMBERS]++;
	udp_copies_out(side[0], &p, &wanted, now);
	keep(1, frame, DMM_CORE_ETH_BYTES + len);
}

/* One that was kept, unbent, comes once: what a network repeats is no fault of ours. */
static void bring(uint8_t which)
{
	struct dmm_vnet came = {0};
	uint32_t i = which % KEPT;
	struct udp_copies_packet p = {
		.frame = kept[i].frame, .len = kept[i].bytes - DMM_CORE_ETH_BYTES, .came = &came};
	struct datagram d;

	if (!kept[i].bytes || now - kept[i].at_ns > LATE_NS)
		return;
	CHECK(datagram_find(p.frame + DMM_CORE_ETH_BYTES, p.len, &d));
	if (udp_copies_in(side[kept[i].to], &p, now)) {
		CHECK(datagram_mark_of(&d) == DATAGRAM_RIGHT);
		give(p.frame);
	}
	kept[i].bytes = 0;
}

/* In what the checksum covers: else it is one that the network repeats. */
static void bend(uint8_t which, uint8_t at, uint8_t by)
{
	enum { COVERED = DMM_CORE_ETH_BYTES + 12 };
	uint8_t frame[DMM_CORE_ETH_BYTES + DMM_CORE_DATAGRAM_MTU];
	uint32_t i = which % KEPT;

	if (!kept[i].bytes)
		return;
	memcpy(frame, kept[i].frame, kept[i].bytes);
	frame[COVERED + at % (kept[i].bytes - COVERED)] ^= by;
	arrive(kept[i].to, frame, kept[i].bytes);
}

static void pass(uint32_t ms)
{
	now += ms * NS_PER_MS;
	due(0);
	due(1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	now = NS_PER_S;
	n_kept = 0;
	memset(kept, 0, sizeof(kept));
	memset(sent, 0, sizeof(sent));
	memset(given, 0, sizeof(given));
	for (uint32_t i = 0; i < 2; i++)
		side[i] = udp_copies_create(i + 1, counters);
	for (size_t at = 0; at + 4 <= size; at += 4) {
		const uint8_t *step = data + at;

		switch (step[0] % 6) {
		case 0:
		case 1:
			go(step[1], step[2]);
			break;
		case 2:
		case 3:
			bring(step[1]);
			break;
		case 4:
			if (step[3])
				bend(step[1], step[2], step[3]);
			break;
		default:
			arrive(step[1] & 1, data + at, (uint32_t)min_u64(size - at, 200));
		}
		pass(step[0] < 200 ? step[3] & 15 : step[3] * 20u);
	}
	for (uint32_t i = 0; i < 2; i++)
		udp_copies_destroy(side[i]);
	return 0;
}

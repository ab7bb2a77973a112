// SPDX-License-Identifier: Apache-2.0
/* seen.c: see seen.h. */
#include "seen.h"

/* "dmm-ebpf datagram" */
static const uint64_t public_key[2] = {0x646d6d2d65627066ull, 0x6461746167726d31ull};

uint64_t seen_id(const struct datagram *d)
{
	uint32_t bytes = datagram_bytes(d), words = bytes / 8;
	uint64_t tail[3] = {0, bytes, 0};
	const uint8_t *payload = datagram_payload(d);

	memcpy(&tail[0], payload + 8 * words, bytes % 8);
	tail[2] = siphash(public_key, payload, words);
	return siphash(public_key, tail, 3);
}

static uint64_t key_of(const struct seen *s, const struct datagram *d, uint64_t id, bool goes)
{
	bool v4 = d->ip[0] >> 4 == 4;
	uint8_t all[56] = {0};

	memcpy(all, &id, 8);
	memcpy(all + 8, d->ip + (v4 ? 12 : 8), v4 ? 8 : 32);
	memcpy(all + 40, d->ip + d->at, 4);
	all[44] = goes;
	all[45] = v4;
	return siphash(s->secret, all, sizeof(all) / 8) | 1;
}

static struct seen_row *set_of(struct seen *s, uint64_t key)
{
	return &s->rows[(key >> 32) % SEEN_SETS * SEEN_WAYS];
}

static bool is_over(const struct seen_row *row, uint64_t now_ns)
{
	return !row->key || now_ns - row->at_ns >= SEEN_NS;
}

struct seen_row *seen_find(struct seen *s, const struct datagram *d, uint64_t id, bool goes,
			   uint64_t now_ns, uint64_t *key)
{
	struct seen_row *set;

	*key = key_of(s, d, id, goes);
	set = set_of(s, *key);
	for (uint32_t i = 0; i < SEEN_WAYS; i++) {
		if (set[i].key == *key && !is_over(&set[i], now_ns))
			return &set[i];
	}
	return NULL;
}

/* The oldest of those that may be forgotten */
struct seen_row *seen_add(struct seen *s, uint64_t key, uint64_t id, uint64_t now_ns)
{
	struct seen_row *set = set_of(s, key), *row = NULL;

	for (uint32_t i = 0; i < SEEN_WAYS; i++) {
		if (is_over(&set[i], now_ns)) {
			row = &set[i];
			break;
		}
		if (set[i].given <= set[i].originals && (!row || set[i].at_ns < row->at_ns))
			row = &set[i];
	}
	if (!row || !is_over(row, now_ns))
		s->blind_until_ns = now_ns + SEEN_NS;
	if (row)
		*row = (struct seen_row){.key = key, .id = id, .at_ns = now_ns, .first_ns = now_ns};
	return row;
}

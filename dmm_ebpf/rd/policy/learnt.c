/* SPDX-License-Identifier: Apache-2.0 */
/* learnt.c: numbers by bytes, in a hash table of one size with its keys end to end behind it. */
#include "learnt.h"

#include <stdlib.h>
#include <string.h>

enum { SLOTS = 2 * MOST_LEARNT };

struct slot {
	uint32_t hash, at, number;
	uint32_t size; /* 0: free */
};

struct learnt {
	uint32_t count;
	size_t used, room;
	char *keys;
	struct slot slots[SLOTS];
};

/* FNV-1a, http://www.isthe.com/chongo/tech/comp/fnv/; its last bits are mixed once more */
static uint32_t hash_of(const void *key, size_t size)
{
	const unsigned char *bytes = key;
	uint32_t hash = 2166136261u;

	for (size_t i = 0; i < size; i++)
		hash = (hash ^ bytes[i]) * 16777619u;
	return hash ^ hash >> 15;
}

/* The slot that has the key, or the free one where it would be: half of them are always free. */
static uint32_t slot_of(const struct learnt *l, const void *key, size_t size, uint32_t hash)
{
	uint32_t at = hash % SLOTS;

	while (l->slots[at].size) {
		const struct slot *s = &l->slots[at];

		if (s->hash == hash && s->size == size && !memcmp(l->keys + s->at, key, size))
			break;
		at = (at + 1) % SLOTS;
	}
	return at;
}

struct learnt *learnt_new(void)
{
	return calloc(1, sizeof(struct learnt));
}

void learnt_free(struct learnt *l)
{
	if (l)
		free(l->keys);
	free(l);
}

static int make_room(struct learnt *l, size_t size)
{
	size_t room = l->room ? l->room : 4096;
	char *keys;

	while (room < l->used + size)
		room *= 2;
	if (room == l->room)
		return 0;
	keys = realloc(l->keys, room);
	if (!keys)
		return -1;
	l->keys = keys;
	l->room = room;
	return 0;
}

int learnt_put(struct learnt *l, const void *key, size_t size, uint32_t number)
{
	uint32_t hash = hash_of(key, size);
	struct slot *s;

	if (!size || size > MOST_KEY)
		return 0;
	if (make_room(l, size))
		return -1;
	if (l->count == MOST_LEARNT) {
		memset(l->slots, 0, sizeof(l->slots));
		l->count = 0;
		l->used = 0;
	}
	s = &l->slots[slot_of(l, key, size, hash)];
	if (!s->size) {
		*s = (struct slot){.hash = hash, .at = (uint32_t)l->used, .size = (uint32_t)size};
		memcpy(l->keys + l->used, key, size);
		l->used += size;
		l->count++;
	}
	s->number = number;
	return 0;
}

int learnt_get(const struct learnt *l, const void *key, size_t size, uint32_t *number)
{
	const struct slot *s;

	if (!size || size > MOST_KEY)
		return 0;
	s = &l->slots[slot_of(l, key, size, hash_of(key, size))];
	*number = s->number;
	return s->size != 0;
}

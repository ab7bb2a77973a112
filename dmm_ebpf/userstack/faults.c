// SPDX-License-Identifier: Apache-2.0
/* faults.c: see faults.h. */
#include "faults.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static bool has_rule(const struct dmm_fault_plan *plan)
{
	for (uint32_t i = 0; i < DMM_FAULTS; i++)
		if (plan->rule[i].share || plan->rule[i].every || plan->rule[i].first)
			return true;
	return false;
}

static int memory_make(struct faults *f)
{
	if (!f->stream) {
		f->stream = calloc(FAULT_STREAMS, sizeof(*f->stream));
		for (uint32_t i = 0; f->stream && i < FAULT_STREAMS * KEPT_FORS; i++) {
			struct kept_list *list = &f->stream[i / KEPT_FORS].list[i % KEPT_FORS];

			list->end = &list->first;
		}
	}
	if (!f->slots) {
		f->slots = calloc(FAULT_SLOTS, sizeof(*f->slots));
		/* The last first: those at the front are used over and over. */
		for (uint32_t i = FAULT_SLOTS; f->slots && i--;) {
			f->slots[i].next = f->free;
			f->free = &f->slots[i];
		}
	}
	return f->stream && f->slots ? 0 : -ENOMEM;
}

static void all_are_due(struct fault_stream *s)
{
	for (uint32_t i = 0; i < KEPT_FORS; i++)
		for (struct kept *k = s->list[i].first; k; k = k->next)
			k->due_ns = 0;
}

int faults_set(struct faults *f, uint32_t stream, const struct dmm_fault_plan *plan)
{
	bool wanted = has_rule(plan);
	struct fault_stream *s;

	if (!wanted && !(f->on & 1u << stream))
		return 0;
	if (memory_make(f))
		return -ENOMEM;
	s = &f->stream[stream];
	s->plan = *plan;
	s->random = plan->seed;
	memset(&s->counts, 0, sizeof(s->counts));
	for (uint32_t i = 0; i < DMM_FAULTS; i++)
		s->left[i] = plan->rule[i].first;
	f->on = (f->on & ~(1u << stream)) | (uint32_t)wanted << stream;
	if (!wanted)
		all_are_due(s);
	return 0;
}

void faults_free(struct faults *f)
{
	free(f->stream);
	free(f->slots);
}

/* splitmix64 (Steele, Lea, Flood 2014): every seed will do, 0 too. */
uint64_t faults_random(struct fault_stream *s)
{
	uint64_t z = s->random += 0x9e3779b97f4a7c15ull;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return z ^ z >> 31;
}

static bool happens(struct fault_stream *s, uint32_t i)
{
	const struct dmm_fault_rule *rule = &s->plan.rule[i];

	if (rule->first)
		return s->left[i] && s->left[i]--;
	if (rule->every)
		return s->counts.seen % rule->every == 0;
	return rule->share && (uint32_t)faults_random(s) < rule->share;
}

uint32_t faults_next(struct fault_stream *s)
{
	uint32_t what = 0;

	s->counts.seen++;
	for (uint32_t i = 0; i < DMM_FAULTS; i++)
		if (happens(s, i))
			what |= 1u << i;
	/* What is lost has no other fault, and is counted as nothing else. */
	if (what & 1u << DMM_FAULT_DROP)
		what = 1u << DMM_FAULT_DROP;
	for (uint32_t i = 0; i < DMM_FAULTS; i++)
		s->counts.done[i] += what >> i & 1;
	return what;
}

struct kept *faults_keep(struct faults *f, struct fault_stream *s, uint32_t bytes)
{
	struct kept *k = f->free;

	if (!k || f->kept_bytes + bytes > FAULT_KEPT_BYTES) {
		s->counts.no_room++;
		return NULL;
	}
	f->free = k->next;
	f->kept++;
	f->kept_bytes += bytes;
	k->bytes = bytes;
	k->next = NULL;
	return k;
}

void faults_line_up(struct fault_stream *s, struct kept *k, enum kept_for what, uint64_t now_ns)
{
	struct kept_list *list = &s->list[what];

	k->what = what;
	k->due_ns = now_ns;
	k->behind = UINT64_MAX;
	if (what == KEPT_LATE)
		k->due_ns += s->plan.delay_ns;
	if (what == KEPT_BEHIND) {
		k->due_ns += FAULT_BEHIND_NS;
		k->behind = s->counts.seen + FAULT_BEHIND_PKTS;
	}
	*list->end = k;
	list->end = &k->next;
}

static bool is_due(const struct fault_stream *s, const struct kept *k, uint64_t now_ns)
{
	return k && (k->due_ns <= now_ns || k->behind <= s->counts.seen);
}

struct kept *faults_due(struct fault_stream *s, uint64_t now_ns)
{
	for (uint32_t i = 0; i < KEPT_FORS; i++)
		if (is_due(s, s->list[i].first, now_ns))
			return s->list[i].first;
	return NULL;
}

void faults_gone(struct faults *f, struct fault_stream *s, struct kept *k)
{
	struct kept_list *list = &s->list[k->what];

	list->first = k->next;
	if (!list->first)
		list->end = &list->first;
	f->kept--;
	f->kept_bytes -= k->bytes;
	k->next = f->free;
	f->free = k;
}

static void earlier(uint64_t *due_ns, const struct fault_stream *s, const struct kept *k)
{
	uint64_t own_ns = !k ? UINT64_MAX : k->behind <= s->counts.seen ? 0 : k->due_ns;

	if (own_ns < *due_ns)
		*due_ns = own_ns;
}

uint64_t faults_due_ns(const struct faults *f)
{
	uint64_t due_ns = UINT64_MAX;

	for (uint32_t i = 0; f->kept && i < FAULT_STREAMS * KEPT_FORS; i++) {
		const struct fault_stream *s = &f->stream[i / KEPT_FORS];

		earlier(&due_ns, s, s->list[i % KEPT_FORS].first);
	}
	return due_ns;
}

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * choice.h: a program's own choice of its stack, in choices, the socket's storage; what the socket
 * options of dmm.h do is in sockopt.h.
 *
 * Invariant: a choice decides only while a rule of the policy in force lets it: it is made under a
 * generation, and asked of the rules again under any other. While no policy of the instance has let
 * anybody choose (DMM_CONTROL_CHOICE), nobody looks for one.
 */
#ifndef DMM_CHOICE_H
#define DMM_CHOICE_H

#include "decide.h"

static __always_inline bool name_equal(const char *a, const char *b)
{
	const __u64 *x = (const __u64 *)a;
	const __u64 *y = (const __u64 *)b;

	return x[0] == y[0] && x[1] == y[1] && x[2] == y[2] && x[3] == y[3];
}

/* The body of step rule_choose: gathers what the rules that match let the program choose for. */
static __always_inline int rule_choose(struct dmm_search *search)
{
	const struct dmm_rule *rule = rule_next(search, DMM_DIR_CONNECT | DMM_DIR_LISTEN);

	if (!rule || !(rule->choose >> (search->chosen & (DMM_MAX_STACKS - 1)) & 1))
		return 0;
	if (!search->verdict.rule)
		search->verdict.rule = rule->number;
	search->verdict.directions |= rule->directions;
	return 0;
}

/*
 * Whether rules let this program have stack id; then verdict.rule is the first, and directions what
 * for. search: facts, half and an empty verdict; the way through the rules can be gone again.
 */
static __always_inline bool choice_allowed(struct dmm_search *search, __u32 id)
{
	search->chosen = id;
	search->verdict.directions = 0;
	dmm_loop(rules_begin(search), DMM_STEP(rule_choose), search, 0);
	search->next = 0;
	return search->verdict.directions;
}

/* Keeps a choice with what choice_allowed() has found. */
static __always_inline void choice_keep(struct dmm_choice *choice, const struct dmm_search *search,
					__u32 state)
{
	choice->stack = search->chosen;
	choice->rule = search->verdict.rule;
	choice->directions = search->verdict.directions;
	choice->generation = search->generation;
	choice->state = state;
}

/* Whether it is still what it was, by number and name, and rules still let it. */
static __always_inline void choice_renew(struct dmm_choice *choice, struct dmm_search *search)
{
	const struct dmm_stack *stack = stack_get(search->query.half, choice->stack);
	bool allowed = stack && stack->kind && name_equal(stack->name, choice->name) &&
		       choice_allowed(search, choice->stack);

	search->chosen = choice->stack;
	choice_keep(choice, search, allowed ? DMM_CHOICE_TAKEN : DMM_CHOICE_VOID);
	verdict_none(&search->verdict);
}

/* The socket's choice as it stands under the policy in force; NULL: it has none. */
static __always_inline struct dmm_choice *choice_of(const struct dmm_control *control, void *sk,
						    struct dmm_search *search)
{
	struct dmm_choice *choice;

	if (likely(!(control->flags & DMM_CONTROL_CHOICE)) || !search->generation)
		return NULL;
	choice = storage_get(DMM_MAP(choices), sk, 0);
	if (likely(!choice) || choice->state == DMM_CHOICE_NONE)
		return NULL;
	if (choice->state != DMM_CHOICE_REFUSED && choice->generation != search->generation)
		choice_renew(choice, search);
	return choice;
}

/* What becomes of it for a socket in that direction: it decides only if DMM_CHOICE_TAKEN. */
static __always_inline __u32 choice_state(const struct dmm_choice *choice, __u32 direction)
{
	if (choice->state == DMM_CHOICE_TAKEN && !(choice->directions & direction))
		return DMM_CHOICE_REFUSED;
	return choice->state;
}

#endif /* DMM_CHOICE_H */

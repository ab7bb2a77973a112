/* SPDX-License-Identifier: Apache-2.0 */
/*
 * caught.c: see caught.h. Invariant: calls is odd while the object runs, and only its thread
 * changes it.
 */
#include "caught.h"

#include <execinfo.h>
#include <link.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define END_CALL (SIGRTMIN + 5)
#define ALT_STACK_BYTES 65536u
#define FRAMES 64

/* The innermost call that this thread is in */
static _Thread_local struct inside {
	struct caught *caught;
	sigjmp_buf *back;
} inside;

/* For signals of this thread: an object that calls itself without end leaves them none */
static _Thread_local void *alt_stack;

static struct code ours;

static bool lies_in(const struct code *code, const void *address)
{
	return (uintptr_t)address >= code->from && (uintptr_t)address < code->to;
}

/*
 * Whether the code that was interrupted is the object's, or was called by it and not by us. The
 * frames before the first that is not ours are the handler's, and that one is the kernel's way
 * back.
 */
static bool is_foreign(const struct caught *c)
{
	void *frames[FRAMES];
	int n = backtrace(frames, FRAMES), i = 0;

	while (i < n && !lies_in(&ours, frames[i])) /* a sanitizer's backtrace(3) */
		i++;
	while (i < n && lies_in(&ours, frames[i]))
		i++;
	for (i++; i < n; i++) {
		if (lies_in(&ours, frames[i]))
			return false;
		if (lies_in(&c->code, frames[i]))
			return true;
	}
	return true;
}

static void on_signal(int number)
{
	struct caught *c = inside.caught;

	if (number == END_CALL) {
		if (c && __atomic_load_n(&c->ended, __ATOMIC_ACQUIRE) == c->calls && is_foreign(c))
			siglongjmp(*inside.back, number);
		return;
	}
	if (c)
		siglongjmp(*inside.back, number);
	/* not a plug-in's: it happens again, and ends the process */
	signal(number, SIG_DFL);
}

static void catch_signals(void)
{
	const int numbers[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, END_CALL};
	struct sigaction action = {.sa_handler = on_signal,
				   .sa_flags = SA_NODEFER | SA_ONSTACK | SA_RESTART};

	for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
		sigaction(numbers[i], &action, NULL);
}

static void have_alt_stack(void)
{
	stack_t stack = {.ss_size = ALT_STACK_BYTES};

	alt_stack = malloc(ALT_STACK_BYTES);
	stack.ss_sp = alt_stack;
	if (stack.ss_sp)
		sigaltstack(&stack, NULL);
}

struct search {
	const void *inside;
	struct code found;
};

/* The object in which search->inside lies, from its first page of code to its last */
static int look_for(struct dl_phdr_info *info, size_t size, void *arg)
{
	struct code all = {UINTPTR_MAX, 0}, code = {UINTPTR_MAX, 0};
	struct search *search = arg;

	(void)size;
	for (int i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *part = &info->dlpi_phdr[i];
		uintptr_t from = info->dlpi_addr + part->p_vaddr, to = from + part->p_memsz;

		if (part->p_type != PT_LOAD)
			continue;
		all.from = from < all.from ? from : all.from;
		all.to = to > all.to ? to : all.to;
		if (!(part->p_flags & PF_X))
			continue;
		code.from = from < code.from ? from : code.from;
		code.to = to > code.to ? to : code.to;
	}
	if (!lies_in(&all, search->inside))
		return 0;
	search->found = code;
	return 1;
}

static struct code code_of(const void *inside_of_it)
{
	struct search search = {.inside = inside_of_it};

	dl_iterate_phdr(look_for, &search);
	return search.found;
}

void caught_init(struct caught *c, const void *inside_of_it)
{
	void *frame;

	ours = code_of(&ours);
	c->code = code_of(inside_of_it);
	/* what it needs it loads the first time: backtrace(3) */
	backtrace(&frame, 1);
	catch_signals();
}

int caught_call(struct caught *c, void (*what)(void *), void *arg)
{
	const struct inside before = inside;
	const uint32_t depth = c->depth;
	sigjmp_buf back;
	int number;

	if (!alt_stack)
		have_alt_stack();
	if (!depth) {
		__atomic_store_n(&c->thread, pthread_self(), __ATOMIC_RELAXED);
		__atomic_store_n(&c->calls, c->calls + 1, __ATOMIC_RELEASE);
	}
	c->depth = depth + 1;
	number = sigsetjmp(back, 0);
	if (!number) {
		inside = (struct inside){c, &back};
		what(arg);
	}
	inside = before;
	c->depth = depth;
	if (!depth)
		__atomic_store_n(&c->calls, c->calls + 1, __ATOMIC_RELEASE);
	return number;
}

void caught_look(struct caught *c)
{
	uint64_t calls = __atomic_load_n(&c->calls, __ATOMIC_ACQUIRE);

	if (calls & 1 && calls == c->seen) {
		__atomic_store_n(&c->ended, calls, __ATOMIC_RELEASE);
		pthread_kill(__atomic_load_n(&c->thread, __ATOMIC_RELAXED), END_CALL);
	}
	c->seen = calls;
}

void caught_tell(char *why, uint32_t bytes, const char *what, int number)
{
	if (number == END_CALL)
		snprintf(why, bytes, "%s did not return", what);
	else
		snprintf(why, bytes, "%s was ended by SIG%s", what, sigabbrev_np(number));
}

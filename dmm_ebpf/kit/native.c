/* SPDX-License-Identifier: Apache-2.0 */
/*
 * native.c: see native.h. Invariant: calls is odd while the plug-in runs, and only its thread
 * changes it.
 */
#include "native.h"

#include <dlfcn.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define END_CALL (SIGRTMIN + 5)
#define ALT_STACK_BYTES 65536u

struct native {
	struct cc_guard guard;
	const struct cc_ops *ops;
	pthread_t thread; /* that is in a call, or was last */
	uint64_t calls;
	uint64_t seen;	/* calls, when it was last looked at */
	uint64_t ended; /* calls, as of the one that END_CALL is for */
};

/* The call that this thread is in */
static _Thread_local struct {
	struct native *native;
	sigjmp_buf *back;
	void *alt_stack; /* for signals: a control that calls itself without end leaves them none */
} inside;

static void on_signal(int number)
{
	struct native *n = inside.native;

	if (n && (number != END_CALL || __atomic_load_n(&n->ended, __ATOMIC_ACQUIRE) == n->calls))
		siglongjmp(*inside.back, number);
	if (number != END_CALL) {
		/* not a plug-in's: it happens again, and ends the process */
		signal(number, SIG_DFL);
	}
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

	inside.alt_stack = malloc(ALT_STACK_BYTES);
	stack.ss_sp = inside.alt_stack;
	if (stack.ss_sp)
		sigaltstack(&stack, NULL);
}

static uint32_t call_native(struct cc_guard *g, struct cc *cc, const struct cc_call *call)
{
	struct native *n = g->arg;
	sigjmp_buf back;
	int number;

	if (!inside.alt_stack)
		have_alt_stack();
	__atomic_store_n(&n->thread, pthread_self(), __ATOMIC_RELAXED);
	__atomic_store_n(&n->calls, n->calls + 1, __ATOMIC_RELEASE);
	number = sigsetjmp(back, 0);
	if (!number) {
		inside.back = &back;
		inside.native = n;
		cc_ops_call(n->ops, cc, call);
	}
	inside.native = NULL;
	__atomic_store_n(&n->calls, n->calls + 1, __ATOMIC_RELEASE);
	if (!number)
		return 1;
	g->off = 1;
	if (number == END_CALL)
		snprintf(g->why, sizeof(g->why), "%s did not return", cc_call_name(call->type));
	else
		snprintf(g->why, sizeof(g->why), "%s was ended by SIG%s", cc_call_name(call->type),
			 sigabbrev_np(number));
	return 0;
}

void cc_native_look(struct cc_guard *guard)
{
	struct native *n = guard->arg;
	uint64_t calls = __atomic_load_n(&n->calls, __ATOMIC_ACQUIRE);

	if (calls & 1 && calls == n->seen) {
		__atomic_store_n(&n->ended, calls, __ATOMIC_RELEASE);
		pthread_kill(__atomic_load_n(&n->thread, __ATOMIC_RELAXED), END_CALL);
	}
	n->seen = calls;
}

/* Why it cannot be used; NULL: it can */
static const char *refusal(const struct cc_export *export, char *room, size_t size)
{
	if (export->abi != CC_ABI)
		snprintf(room, size, "it was built for ABI %u of cc.h, and this is ABI %u",
			 export->abi, CC_ABI);
	else if (export->cc_bytes != sizeof(struct cc) ||
		 export->sample_bytes != sizeof(struct cc_sample) ||
		 export->ops_bytes != sizeof(struct cc_ops))
		snprintf(room, size,
			 "the structures of the cc.h that it was built with have another size");
	else if (!export->ops || !export->ops->on_ack)
		snprintf(room, size, "it has no on_ack");
	else if (!export->ops->name || !export->ops->name[0])
		snprintf(room, size, "it has no name");
	else
		return NULL;
	return room;
}

struct cc_guard *cc_native_open(const char *path, char *why)
{
	void *object = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	const struct cc_export *export = object ? dlsym(object, CC_EXPORT_SYMBOL) : NULL;
	struct native *n;

	if (!object || !export) {
		snprintf(why, CC_WHY_BYTES, "%s",
			 object ? "it exports no " CC_EXPORT_SYMBOL
				  ", which CC_EXPORT() of cc.h makes"
				: dlerror());
		return NULL;
	}
	n = refusal(export, why, CC_WHY_BYTES) ? NULL : calloc(1, sizeof(*n));
	if (!n) {
		if (!why[0])
			snprintf(why, CC_WHY_BYTES, "out of memory");
		dlclose(object);
		return NULL;
	}
	catch_signals();
	n->ops = export->ops;
	n->guard.call = call_native;
	n->guard.arg = n;
	n->guard.has = cc_ops_has(export->ops);
	cc_guard_init(&n->guard, export->ops->name, &cc_cubic);
	n->guard.ops.loss_tolerant = !!export->ops->loss_tolerant;
	n->guard.ops.prr = !!export->ops->prr;
	return &n->guard;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* endnative.c: see endnative.h. */
#include "endnative.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../userstack/core/end_export.h"
#include "caught.h"

enum { MOST_STATE_BYTES = 8192 };

struct native {
	struct end_guard guard;
	struct caught caught;
};

struct one_call {
	const struct end_ops *ops;
	struct end_call *call;
};

static void run(void *arg)
{
	const struct one_call *one = arg;

	end_ops_call(one->ops, one->call);
}

static uint32_t call_native(struct end_guard *g, struct end_call *call)
{
	struct native *n = g->arg;
	int number = caught_call(&n->caught, run, &(struct one_call){g->own, call});

	if (!number)
		return 1;
	g->off = 1;
	caught_tell(g->why, sizeof(g->why), end_call_name(call->type), number);
	return 0;
}

void end_native_look(struct end_guard *guard)
{
	caught_look(&((struct native *)guard->arg)->caught);
}

/* Of this module, which Python loads for itself alone: what a transport calls has to be found */
static void share_our_names(void)
{
	Dl_info us;

	if (dladdr((const void *)(uintptr_t)share_our_names, &us) && us.dli_fname)
		dlopen(us.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_GLOBAL);
}

static const char *wrong_table(const struct end_ops *ops)
{
	if (!ops)
		return "it has no table";
	if (!ops->name || !ops->name[0])
		return "it has no name";
	if (ops->state_bytes < sizeof(struct end) || ops->state_bytes % 8)
		return "its state_bytes are no struct end with whole words behind it";
	if (ops->state_bytes > MOST_STATE_BYTES)
		return "its state is larger than 8192 bytes";
	return NULL;
}

/* Why it cannot be used; NULL: it can */
static const char *refusal(const struct end_export *export, char *room)
{
	static const uint64_t sizes[END_SIZES] = END_EXPORT_SIZES;
	const char *wrong, *lack;

	if (export->abi != END_ABI) {
		snprintf(room, END_WHY_BYTES,
			 "it was built for ABI %u of end.h, and this is ABI %u", export->abi,
			 END_ABI);
		return room;
	}
	if (memcmp(export->sizes, sizes, sizeof(sizes)) != 0)
		return "it was built with the headers of another version of dmm-ebpf";
	wrong = wrong_table(export->ops);
	lack = wrong ? NULL : end_ops_lack(export->ops);
	if (lack) {
		snprintf(room, END_WHY_BYTES, "it has no function %s", lack);
		return room;
	}
	return wrong;
}

struct end_guard *end_native_open(const char *path, char *why)
{
	const struct end_export *export;
	const char *refused;
	struct native *n;
	void *object;

	share_our_names();
	object = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	export = object ? dlsym(object, END_EXPORT_SYMBOL) : NULL;
	if (!export) {
		snprintf(why, END_WHY_BYTES, "%s",
			 object ? "it exports no " END_EXPORT_SYMBOL
				  ", which END_EXPORT() of end_export.h makes"
				: dlerror());
		return NULL;
	}
	refused = refusal(export, why);
	n = refused ? NULL : calloc(1, sizeof(*n));
	if (n) {
		n->guard.own = export->ops;
		n->guard.call = call_native;
		n->guard.arg = n;
		caught_init(&n->caught, export);
	}
	if (!n || !end_guard_init(&n->guard, export->ops->name)) {
		if (refused != why)
			snprintf(why, END_WHY_BYTES, "%s", refused ? refused : "out of memory");
		free(n);
		dlclose(object);
		return NULL;
	}
	return &n->guard;
}

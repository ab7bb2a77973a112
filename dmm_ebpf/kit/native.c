/* SPDX-License-Identifier: Apache-2.0 */
/* native.c: see native.h. */
#include "native.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#include "caught.h"

struct native {
	struct cc_guard guard;
	struct caught caught;
	const struct cc_ops *ops;
};

struct one_call {
	const struct cc_ops *ops;
	struct cc *cc;
	const struct cc_call *call;
};

static void run(void *arg)
{
	const struct one_call *one = arg;

	cc_ops_call(one->ops, one->cc, one->call);
}

static uint32_t call_native(struct cc_guard *g, struct cc *cc, const struct cc_call *call)
{
	struct native *n = g->arg;
	int number = caught_call(&n->caught, run, &(struct one_call){n->ops, cc, call});

	if (!number)
		return 1;
	g->off = 1;
	caught_tell(g->why, sizeof(g->why), cc_call_name(call->type), number);
	return 0;
}

void cc_native_look(struct cc_guard *guard)
{
	caught_look(&((struct native *)guard->arg)->caught);
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
	caught_init(&n->caught, export->ops);
	n->ops = export->ops;
	n->guard.call = call_native;
	n->guard.arg = n;
	n->guard.has = cc_ops_has(export->ops);
	cc_guard_init(&n->guard, export->ops->name, &cc_cubic);
	n->guard.ops.loss_tolerant = !!export->ops->loss_tolerant;
	n->guard.ops.prr = !!export->ops->prr;
	return &n->guard;
}

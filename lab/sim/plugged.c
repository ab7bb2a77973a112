/* SPDX-License-Identifier: Apache-2.0 */
/*
 * plugged.c: a transport that is a shared object, in the simulator: it is the file that the
 * environment names as SIM_TRANSPORT. Why it cannot be used, and what went wrong with it, goes to
 * stderr as a line "faults fallen sentence".
 */
#include "../../dmm_ebpf/kit/endnative.h"

#include "transport.h"

#include <pthread.h>
#include <unistd.h>

static struct end_guard *guard;

static void *look(void *arg)
{
	for (;;) {
		usleep(50000);
		end_native_look(arg);
	}
	return NULL;
}

static void told(void)
{
	fprintf(stderr, "%lu %lu %s\n", guard->faults, guard->fallen, guard->first);
}

__attribute__((constructor)) static void load(void)
{
	const char *path = getenv("SIM_TRANSPORT");
	char why[END_WHY_BYTES] = "";
	pthread_t looking;

	if (!path)
		return;
	guard = end_native_open(path, why);
	if (!guard) {
		fprintf(stderr, "%s\n", why);
		exit(5);
	}
	sim_transport = guard->ops;
	pthread_create(&looking, NULL, look, guard);
	pthread_detach(looking);
	atexit(told);
}

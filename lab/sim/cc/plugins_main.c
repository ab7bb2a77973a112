/* SPDX-License-Identifier: Apache-2.0 */
/*
 * plugins_main.c: congestion controls as plug-ins, with a sanitizer: `plugins FILE.so` runs one
 * flow of a shared object, `plugins SEED` two of a worker in C that answers at random, well or not,
 * and at last not in time.
 *
 * Prints faults, how many connections went on without the plug-in, and what all flows got in kB.
 */
#include "../../../dmm_ebpf/kit/ask.h"
#include "../../../dmm_ebpf/kit/native.h"
#include "../../../dmm_ebpf/kit/sim/ccsim.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PATIENCE_NS (50 * CCSIM_MS)
#define LATE_US 200000u
#define FLOWS 12u

static uint64_t seed;
static int over;

static uint32_t draw(uint32_t below)
{
	seed = seed * 6364136223846793005ull + 1442695040888963407ull;
	return (uint32_t)(seed >> 33) % below;
}

/* Mostly a window; else a failure, nonsense, or an answer that comes too late */
static void answer(struct cc_ask *ask)
{
	uint32_t n = draw(3000);

	ask->released_n = 0;
	ask->cwnd_bytes += ask->type == CC_ON_ACK ? ask->sample.acked_bytes / 2 : 0;
	if (n == 0) {
		usleep(LATE_US);
		ask->cwnd_bytes = 0;
	} else if (n < 3) {
		ask->failed = 1;
		snprintf(ask->why, sizeof(ask->why), "%s failed", cc_call_name(ask->type));
	} else if (n < 5) {
		ask->cwnd_bytes = (uint64_t)-1;
	} else if (n < 7) {
		ask->pacing_Bps = 1;
	}
}

static void *work(void *arg)
{
	struct cc_ask *ask;

	while ((ask = cc_asker_next(arg)))
		answer(ask);
	return NULL;
}

static void *look(void *arg)
{
	while (!__atomic_load_n(&over, __ATOMIC_ACQUIRE)) {
		usleep(100000);
		cc_native_look(arg);
	}
	return NULL;
}

static void run(const struct cc_guard *guard, uint32_t n)
{
	struct ccsim_path path = {.rate_Bps = 1.25e6,
				  .loss = 0.01,
				  .rtt_ns = 40 * CCSIM_MS,
				  .buffer_bytes = 50000,
				  .end_ns = 20 * CCSIM_S,
				  .ack_every = 2,
				  .seed = 1,
				  .flows_n = n};
	struct ccsim_flow flows[FLOWS] = {0};
	struct ccsim_figures figures[FLOWS];
	double sum = 0;

	for (uint32_t i = 0; i < n; i++)
		flows[i] = (struct ccsim_flow){.ops = &guard->ops, .start_ns = i * CCSIM_S / 4};
	ccsim_run(&path, flows, figures, NULL, 0);
	for (uint32_t i = 0; i < n; i++)
		sum += figures[i].goodput_Bps * 20 / 1000;
	printf("%llu %llu %.0f %s\n", (unsigned long long)guard->faults,
	       (unsigned long long)guard->fallen, sum, guard->first);
}

static int run_file(const char *path)
{
	char why[CC_WHY_BYTES] = "";
	struct cc_guard *guard = cc_native_open(path, why);
	pthread_t looking;

	if (!guard) {
		fprintf(stderr, "%s\n", why);
		return 1;
	}
	pthread_create(&looking, NULL, look, guard);
	run(guard, 2);
	__atomic_store_n(&over, 1, __ATOMIC_RELEASE);
	pthread_join(looking, NULL);
	return 0;
}

int main(int argc, char **argv)
{
	struct cc_guard *guard;
	pthread_t worker;

	if (argc != 2)
		return 2;
	if (strchr(argv[1], '/'))
		return run_file(argv[1]);
	seed = strtoull(argv[1], NULL, 10);
	guard = cc_asker_create("random", (1u << CC_CALLS) - 1, PATIENCE_NS);
	pthread_create(&worker, NULL, work, guard);
	run(guard, FLOWS);
	cc_asker_end(guard);
	pthread_join(worker, NULL);
	cc_asker_destroy(guard);
	return 0;
}

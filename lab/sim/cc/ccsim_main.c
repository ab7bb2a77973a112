/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ccsim_main.c: the simulator of congestion controls (dmm_ebpf/kit/sim) as a program.
 *
 *	ccsim rate=MBIT rtt=MS loss=PCT buf=BDP [dur=S warm=S seed=N ackloss=PCT ack=PKTS burst=US
 * jitter=US trace=MS rate2=MBIT loss2=PCT at2=S reo=1]
 * flow=CC[:start=S][:stop=S][:rtt=MS][:kb=N][:on=MS:off=MS]
 *...
 *
 * One line of JSON comes out; with trace, before it, a line on stderr for each flow and moment. An
 * argument it does not know ends it with status 2.
 */
#include "../../../dmm_ebpf/kit/sim/ccsim.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define POINTS_MAX 1000000u

/* ccsim_ref.c */
extern const struct cc_ops ref_cubic;
extern const struct cc_ops ref_bbr;

static struct ccsim_path path;
static struct ccsim_flow flows[CCSIM_FLOWS];

static void bad(const char *arg)
{
	fprintf(stderr, "ccsim: cannot read %s\n", arg);
	exit(2);
}

static const struct cc_ops *find(const char *name)
{
	static const struct cc_ops *const all[] = {&cc_wan, &cc_bbr, &ref_cubic, &ref_bbr};

	for (unsigned int i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		if (!strcmp(name, all[i]->name))
			return all[i];
	return NULL;
}

static void parse_flow(char *text)
{
	struct ccsim_flow *f = &flows[path.flows_n];
	char *item = strtok(text, ":");

	if (path.flows_n == CCSIM_FLOWS || !item || !(f->ops = find(item)))
		bad(text);
	path.flows_n++;
	while ((item = strtok(NULL, ":"))) {
		char *value = strchr(item, '=');
		double v;

		if (!value)
			bad(item);
		*value++ = 0;
		v = strtod(value, NULL);
		if (!strcmp(item, "start"))
			f->start_ns = (uint64_t)(v * 1e9);
		else if (!strcmp(item, "stop"))
			f->stop_ns = (uint64_t)(v * 1e9);
		else if (!strcmp(item, "rtt"))
			f->rtt_ns = (uint64_t)(v * 1e6);
		else if (!strcmp(item, "kb"))
			f->size_bytes = (uint64_t)(v * 1000);
		else if (!strcmp(item, "on"))
			f->app_on_ns = (uint64_t)(v * 1e6);
		else if (!strcmp(item, "off"))
			f->app_off_ns = (uint64_t)(v * 1e6);
		else
			bad(item);
	}
}

struct option {
	const char *name;
	double value;
};

enum opt {
	RATE,
	RTT,
	LOSS,
	BUF,
	DUR,
	WARM,
	SEED,
	ACKLOSS,
	ACK,
	BURST,
	JITTER,
	TRACE,
	RATE2,
	LOSS2,
	AT2,
	REO,
	OPTS
};

static void parse(int argc, char **argv, struct option *o)
{
	for (int i = 1; i < argc; i++) {
		char *value = strchr(argv[i], '=');
		int k = 0;

		if (!value)
			bad(argv[i]);
		*value++ = 0;
		if (!strcmp(argv[i], "flow")) {
			parse_flow(value);
			continue;
		}
		while (k < OPTS && strcmp(o[k].name, argv[i]))
			k++;
		if (k == OPTS)
			bad(argv[i]);
		o[k].value = strtod(value, NULL);
	}
}

static void configure(const struct option *o)
{
	path.rate_Bps = o[RATE].value * 125000;
	path.rate2_Bps = o[RATE2].value * 125000;
	path.loss = o[LOSS].value / 100;
	path.loss2 = o[LOSS2].value / 100;
	path.ack_loss = o[ACKLOSS].value / 100;
	path.rate2_ns = (uint64_t)(o[AT2].value * 1e9);
	path.end_ns = (uint64_t)(o[DUR].value * 1e9);
	path.warm_ns = (uint64_t)(o[WARM].value * 1e9);
	path.ack_every = (uint64_t)o[ACK].value;
	path.burst_ns = (uint64_t)(o[BURST].value * 1e3);
	path.jitter_ns = (uint64_t)(o[JITTER].value * 1e3);
	path.reordering = o[REO].value > 0 || o[JITTER].value > 0;
	path.trace_ns = (uint64_t)(o[TRACE].value * 1e6);
	path.buffer_bytes = (uint64_t)(o[BUF].value * path.rate_Bps * o[RTT].value / 1e3);
	path.seed = (uint64_t)o[SEED].value;
	path.rtt_ns = (uint64_t)(o[RTT].value * 1e6);
}

static void report_points(const struct ccsim_point *points, uint64_t n)
{
	for (const struct ccsim_point *p = points; p < points + n; p++)
		fprintf(stderr,
			"%7.3f %s q=%.2fms inflight=%llu cwnd=%llu pacing=%.2fMb/s dlv=%llu "
			"lost=%llu "
			"minrtt=%.2f\n",
			(double)p->at_ns / 1e9, flows[p->flow].ops->name, (double)p->queue_ns / 1e6,
			(unsigned long long)p->inflight_bytes / CCSIM_MSS,
			(unsigned long long)p->cwnd_bytes / CCSIM_MSS, (double)p->pacing_Bps * 8e-6,
			(unsigned long long)p->delivered_bytes / CCSIM_MSS,
			(unsigned long long)p->lost_bytes / CCSIM_MSS, (double)p->min_rtt_ns / 1e6);
}

static void report(const struct ccsim_figures *figures)
{
	double limit = path.rate_Bps * (1 - path.loss) * CCSIM_MSS / CCSIM_WIRE;

	printf("{\"limit_Bps\": %.0f, \"flows\": [", limit);
	for (uint32_t i = 0; i < path.flows_n; i++) {
		const struct ccsim_figures *f = &figures[i];

		printf("%s{\"cc\": \"%s\", \"goodput_Bps\": %.0f, \"ratio\": %.4f, \"qdelay_ms\": "
		       "%.3f, "
		       "\"queue_loss\": %.5f, \"random_loss\": %.5f, \"rtos\": %llu, "
		       "\"inflight_bdp\": %.3f, "
		       "\"done_s\": %.4f}",
		       i ? ", " : "", flows[i].ops->name, f->goodput_Bps, f->goodput_Bps / limit,
		       f->qdelay_ms, f->queue_loss, f->random_loss, (unsigned long long)f->rtos,
		       f->inflight_bdp, f->done_s);
	}
	printf("]}\n");
}

int main(int argc, char **argv)
{
	struct ccsim_figures figures[CCSIM_FLOWS];
	struct ccsim_point *points;
	struct option o[OPTS] = {
		[RATE] = {"rate", 100},	  [RTT] = {"rtt", 100},	      [LOSS] = {"loss", 0},
		[BUF] = {"buf", 1},	  [DUR] = {"dur", 15},	      [WARM] = {"warm", 3},
		[SEED] = {"seed", 1},	  [ACKLOSS] = {"ackloss", 0}, [ACK] = {"ack", 2},
		[BURST] = {"burst", 0},	  [JITTER] = {"jitter", 0},   [TRACE] = {"trace", 0},
		[RATE2] = {"rate2", 100}, [LOSS2] = {"loss2", 0},     [AT2] = {"at2", 0},
		[REO] = {"reo", 0},
	};

	parse(argc, argv, o);
	configure(o);
	points = path.trace_ns ? calloc(POINTS_MAX, sizeof(*points)) : NULL;
	report_points(points, ccsim_run(&path, flows, figures, points, points ? POINTS_MAX : 0));
	report(figures);
	free(points);
	return 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ccsim.c: packet-level simulation of congestion controls over one shared bottleneck: the clock, the link,
 *the receivers.
 *
 *	ccsim rate=MBIT rtt=MS loss=PCT buf=BDP [dur=S warm=S seed=N ackloss=PCT ack=PKTS burst=US jitter=US
 *trace=MS rate2=MBIT loss2=PCT at2=S reo=1] flow=CC[:start=S][:stop=S][:rtt=MS][:kb=N][:on=MS:off=MS] ...
 *
 * Random loss strikes after the bottleneck, so rate * (1 - loss) * 1448 / 1538 is the limit of the goodput.
 *One line of JSON comes out. Queueing delay is what packets of the flow met at the bottleneck, dropped ones
 *excluded. An argument it does not know ends it with status 2.
 */
#include "ccsim.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DELACK_NS (40 * CCSIM_MS)

struct event {
	uint64_t at_ns, order;
	uint32_t arg;
	uint16_t flow, type;
};

static struct sim sim;
static struct event *heap;
static uint32_t heap_n, heap_cap;
static uint64_t event_order;

double sim_random(struct sim *s)
{
	s->rng ^= s->rng << 13;
	s->rng ^= s->rng >> 7;
	s->rng ^= s->rng << 17;
	return (double)(s->rng >> 11) / 9007199254740992.0;
}

/* Grows an array of zeroes to hold need elements */
void *sim_grow(void *array, uint64_t need, uint32_t *cap, uint64_t size)
{
	uint32_t old = *cap;

	if (need <= old)
		return array;
	*cap = old ? old * 2 : 1024;
	array = realloc(array, *cap * size);
	if (!array)
		abort();
	memset((char *)array + old * size, 0, (*cap - old) * size);
	return array;
}

/* Order breaks ties, so that events of one instant happen as they were scheduled */
static int earlier(const struct event *a, const struct event *b)
{
	return a->at_ns < b->at_ns || (a->at_ns == b->at_ns && a->order < b->order);
}

void sim_at(uint64_t at_ns, enum ev_type type, uint32_t flow, uint32_t arg)
{
	struct event e = {at_ns, event_order++, arg, (uint16_t)flow, (uint16_t)type};
	uint32_t i = heap_n++;

	heap = sim_grow(heap, heap_n, &heap_cap, sizeof(*heap));
	for (; i && earlier(&e, &heap[(i - 1) / 2]); i = (i - 1) / 2)
		heap[i] = heap[(i - 1) / 2];
	heap[i] = e;
}

static struct event heap_pop(void)
{
	struct event top = heap[0], last = heap[--heap_n];
	uint32_t i = 0, child;

	while ((child = 2 * i + 1) < heap_n) {
		child += child + 1 < heap_n && earlier(&heap[child + 1], &heap[child]);
		if (!earlier(&heap[child], &last))
			break;
		heap[i] = heap[child];
		i = child;
	}
	heap[i] = last;
	return top;
}

void sim_transmit(struct sim *s, struct flow *f, uint32_t tx)
{
	int changed = s->rate2_ns && s->now_ns >= s->rate2_ns, counted = s->now_ns >= s->warm_ns;
	double rate = changed ? s->rate2_Bps : s->rate_Bps, loss = changed ? s->loss2 : s->loss;
	uint64_t wait = s->busy_until_ns > s->now_ns ? s->busy_until_ns - s->now_ns : 0, arrive_ns;

	f->sent_pkts += counted;
	if ((double)wait * rate / 1e9 + CCSIM_WIRE > (double)s->buffer_bytes) {
		f->drop_queue += counted;
		return;
	}
	f->qdelay_ns += counted ? wait : 0;
	f->qdelay_n += counted;
	s->busy_until_ns = s->now_ns + wait + (uint64_t)(CCSIM_WIRE * 1e9 / rate);
	if (loss > 0 && sim_random(s) < loss) {
		f->drop_random += counted;
		return;
	}
	arrive_ns = s->busy_until_ns + f->prop_ns / 2;
	if (s->jitter_ns)
		arrive_ns += (uint64_t)(sim_random(s) * (double)s->jitter_ns);
	sim_at(arrive_ns, EV_ARRIVE, f->index, tx);
}

/* Tells the sender what arrived since the last ACK that was not itself lost */
static void receiver_ack(struct flow *f)
{
	f->rcv_unacked = 0;
	f->delack_ns = 0;
	if (sim.ack_loss > 0 && sim_random(&sim) < sim.ack_loss)
		return;
	sim_at(sim.now_ns + f->prop_ns - f->prop_ns / 2, EV_ACK, f->index, (uint32_t)f->pend_n);
}

static void receiver_arrive(struct flow *f, uint32_t tx)
{
	uint32_t cap = (uint32_t)f->pend_cap, seg = f->tx[tx].seg;
	int gap = tx != f->rcv_next_tx;

	f->pend = sim_grow(f->pend, f->pend_n + 1, &cap, sizeof(*f->pend));
	f->pend_cap = cap;
	f->pend[f->pend_n++] = tx;
	f->rcv_next_tx = tx + 1;
	if (!f->seg_rcvd[seg]) {
		f->seg_rcvd[seg] = 1;
		f->rcvd_segs += sim.now_ns >= sim.warm_ns;
		if (f->size_segs && ++f->rcv_unique == f->size_segs)
			f->done_ns = sim.now_ns;
	}
	if (++f->rcv_unacked >= sim.ack_every || gap) {
		receiver_ack(f);
	} else if (!f->delack_ns) {
		f->delack_ns = sim.now_ns + DELACK_NS;
		sim_at(f->delack_ns, EV_DELACK, f->index, 0);
	}
}

static void dispatch(const struct event *e)
{
	struct flow *f = &sim.flows[e->flow];
	uint64_t told;

	switch (e->type) {
	case EV_START:
		sender_start(&sim, f);
		break;
	case EV_PACE:
		f->pace_timer_ns = 0;
		sender_send(&sim, f);
		break;
	case EV_WAKE:
		f->app_timer_ns = 0;
		sender_send(&sim, f);
		break;
	case EV_ARRIVE:
		receiver_arrive(f, e->arg);
		break;
	case EV_ACK:
		told = f->pend_told;
		f->pend_told = e->arg;
		sender_ack(&sim, f, told, e->arg);
		break;
	case EV_REO:
		sender_reo(&sim, f);
		break;
	case EV_RTO:
		sender_rto(&sim, f);
		break;
	case EV_DELACK:
		if (f->delack_ns && f->delack_ns <= sim.now_ns)
			receiver_ack(f);
		break;
	case EV_TRACE:
		for (f = sim.flows; f < sim.flows + sim.flows_n; f++) {
			uint64_t wait = sim.busy_until_ns > sim.now_ns ? sim.busy_until_ns - sim.now_ns : 0;

			fprintf(stderr,
				"%7.3f %s q=%.2fms inflight=%llu cwnd=%llu pacing=%.2fMb/s dlv=%llu "
				"lost=%llu "
				"minrtt=%.2f |",
				(double)sim.now_ns / 1e9, f->cc.ops->name, (double)wait / 1e6,
				(unsigned long long)f->cc.inflight_bytes / CCSIM_MSS,
				(unsigned long long)f->cc.cwnd_bytes / CCSIM_MSS,
				(double)f->cc.pacing_Bps * 8e-6, (unsigned long long)f->delivered / CCSIM_MSS,
				(unsigned long long)f->lost / CCSIM_MSS, (double)f->cc.min_rtt_ns / 1e6);
			for (int i = 0; i < 39; i++)
				fprintf(stderr, " %llx", (unsigned long long)f->cc.priv[i]);
			fprintf(stderr, "\n");
		}
		sim_at(sim.now_ns + sim.trace_ns, EV_TRACE, 0, 0);
		break;
	}
}

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
	struct flow *f = &sim.flows[sim.flows_n];
	char *item = strtok(text, ":");

	if (sim.flows_n == CCSIM_FLOWS || !item || !(f->cc.ops = find(item)))
		bad(text);
	f->index = sim.flows_n++;
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
			f->prop_ns = (uint64_t)(v * 1e6);
		else if (!strcmp(item, "kb"))
			f->size_segs = (uint64_t)(v * 1000 + CCSIM_MSS - 1) / CCSIM_MSS;
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
	sim.rate_Bps = o[RATE].value * 125000;
	sim.rate2_Bps = o[RATE2].value * 125000;
	sim.loss = o[LOSS].value / 100;
	sim.loss2 = o[LOSS2].value / 100;
	sim.ack_loss = o[ACKLOSS].value / 100;
	sim.rate2_ns = (uint64_t)(o[AT2].value * 1e9);
	sim.end_ns = (uint64_t)(o[DUR].value * 1e9);
	sim.warm_ns = (uint64_t)(o[WARM].value * 1e9);
	sim.ack_every = (uint64_t)o[ACK].value;
	sim.burst_ns = (uint64_t)(o[BURST].value * 1e3);
	sim.jitter_ns = (uint64_t)(o[JITTER].value * 1e3);
	sim.reordering = o[REO].value > 0 || o[JITTER].value > 0;
	sim.trace_ns = (uint64_t)(o[TRACE].value * 1e6);
	sim.buffer_bytes = (uint64_t)(o[BUF].value * sim.rate_Bps * o[RTT].value / 1e3);
	if (sim.buffer_bytes < 2 * CCSIM_WIRE)
		sim.buffer_bytes = 2 * CCSIM_WIRE;
	sim.rng = 0x9e3779b97f4a7c15ull * ((uint64_t)o[SEED].value + 1);
	for (uint32_t i = 0; i < sim.flows_n; i++) {
		struct flow *f = &sim.flows[i];

		f->cc.mss = CCSIM_MSS;
		f->cc.min_rtt_ns = UINT64_MAX;
		f->cc.rng = sim.rng ^ (i + 1) * 0xd1342543de82ef95ull;
		f->minrtt[0].rtt = UINT64_MAX;
		f->minrtt[1].rtt = UINT64_MAX;
		if (!f->prop_ns)
			f->prop_ns = (uint64_t)(o[RTT].value * 1e6);
		sim_at(f->start_ns, EV_START, i, 0);
	}
	if (sim.trace_ns)
		sim_at(0, EV_TRACE, 0, 0);
}

static void report(void)
{
	double seconds = (double)(sim.end_ns - sim.warm_ns) / 1e9;
	double limit = sim.rate_Bps * (1 - sim.loss) * CCSIM_MSS / CCSIM_WIRE;

	printf("{\"limit_Bps\": %.0f, \"flows\": [", limit);
	for (uint32_t i = 0; i < sim.flows_n; i++) {
		const struct flow *f = &sim.flows[i];
		double goodput = (double)f->rcvd_segs * CCSIM_MSS / seconds, sent = (double)f->sent_pkts;

		printf("%s{\"cc\": \"%s\", \"goodput_Bps\": %.0f, \"ratio\": %.4f, \"qdelay_ms\": %.3f, "
		       "\"queue_loss\": %.5f, \"random_loss\": %.5f, \"rtos\": %llu, \"inflight_bdp\": %.3f, "
		       "\"done_s\": %.4f}",
		       i ? ", " : "", f->cc.ops->name, goodput, goodput / limit,
		       f->qdelay_n ? (double)f->qdelay_ns / (double)f->qdelay_n / 1e6 : 0,
		       sent > 0 ? (double)f->drop_queue / sent : 0,
		       sent > 0 ? (double)f->drop_random / sent : 0, (unsigned long long)f->rtos,
		       f->inflight_n
			       ? (double)f->inflight_sum / (double)f->inflight_n /
					 (sim.rate_Bps * CCSIM_MSS / CCSIM_WIRE * (double)f->prop_ns / 1e9)
			       : 0,
		       (double)f->done_ns / 1e9);
	}
	printf("]}\n");
}

int main(int argc, char **argv)
{
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
	while (heap_n) {
		struct event e = heap_pop();

		if (e.at_ns >= sim.end_ns)
			break;
		sim.now_ns = e.at_ns;
		dispatch(&e);
	}
	report();
	return 0;
}

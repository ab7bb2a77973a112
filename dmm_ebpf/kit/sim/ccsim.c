/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ccsim.c: packet-level simulation of congestion controls over one shared bottleneck: the clock,
 * the link, the receivers. See ccsim_run.h.
 */
#include "ccsim.h"

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
	int changed = s->path.rate2_ns && s->now_ns >= s->path.rate2_ns;
	int counted = s->now_ns >= s->path.warm_ns;
	double rate = changed ? s->path.rate2_Bps : s->path.rate_Bps,
	       loss = changed ? s->path.loss2 : s->path.loss;
	uint64_t wait = s->busy_until_ns > s->now_ns ? s->busy_until_ns - s->now_ns : 0, arrive_ns;

	f->sent_pkts += counted;
	if ((double)wait * rate / 1e9 + CCSIM_WIRE > (double)s->path.buffer_bytes) {
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
	arrive_ns = s->busy_until_ns + f->asked.rtt_ns / 2;
	if (s->path.jitter_ns)
		arrive_ns += (uint64_t)(sim_random(s) * (double)s->path.jitter_ns);
	sim_at(arrive_ns, EV_ARRIVE, f->index, tx);
}

/* Tells the sender what arrived since the last ACK that was not itself lost */
static void receiver_ack(struct flow *f)
{
	f->rcv_unacked = 0;
	f->delack_ns = 0;
	if (sim.path.ack_loss > 0 && sim_random(&sim) < sim.path.ack_loss)
		return;
	sim_at(sim.now_ns + f->asked.rtt_ns - f->asked.rtt_ns / 2, EV_ACK, f->index,
	       (uint32_t)f->pend_n);
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
		f->rcvd_segs += sim.now_ns >= sim.path.warm_ns;
		if (f->size_segs && ++f->rcv_unique == f->size_segs)
			f->done_ns = sim.now_ns;
	}
	if (++f->rcv_unacked >= sim.path.ack_every || gap) {
		receiver_ack(f);
	} else if (!f->delack_ns) {
		f->delack_ns = sim.now_ns + DELACK_NS;
		sim_at(f->delack_ns, EV_DELACK, f->index, 0);
	}
}

static void trace(void)
{
	uint64_t wait = sim.busy_until_ns > sim.now_ns ? sim.busy_until_ns - sim.now_ns : 0;

	for (uint32_t i = 0; i < sim.path.flows_n && sim.points_n < sim.points_max; i++) {
		const struct flow *f = &sim.flows[i];

		sim.points[sim.points_n++] =
			(struct ccsim_point){.at_ns = sim.now_ns,
					     .cwnd_bytes = f->cc.cwnd_bytes,
					     .pacing_Bps = f->cc.pacing_Bps,
					     .inflight_bytes = f->cc.inflight_bytes,
					     .delivered_bytes = f->delivered,
					     .lost_bytes = f->lost,
					     .min_rtt_ns = f->cc.min_rtt_ns,
					     .queue_ns = wait,
					     .flow = i};
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
		trace();
		sim_at(sim.now_ns + sim.path.trace_ns, EV_TRACE, 0, 0);
		break;
	}
}

static void begin(const struct ccsim_path *path, const struct ccsim_flow *flows)
{
	memset(&sim, 0, sizeof(sim));
	heap = NULL;
	heap_n = heap_cap = 0;
	event_order = 0;
	sim.path = *path;
	if (sim.path.buffer_bytes < 2 * CCSIM_WIRE)
		sim.path.buffer_bytes = 2 * CCSIM_WIRE;
	sim.rng = 0x9e3779b97f4a7c15ull * (path->seed + 1);
	for (uint32_t i = 0; i < path->flows_n; i++) {
		struct flow *f = &sim.flows[i];

		f->index = i;
		f->asked = flows[i];
		f->size_segs = (flows[i].size_bytes + CCSIM_MSS - 1) / CCSIM_MSS;
		f->cc.ops = flows[i].ops;
		f->cc.mss = CCSIM_MSS;
		f->cc.min_rtt_ns = UINT64_MAX;
		f->cc.rng = sim.rng ^ (i + 1) * 0xd1342543de82ef95ull;
		f->minrtt[0].rtt = UINT64_MAX;
		f->minrtt[1].rtt = UINT64_MAX;
		if (!f->asked.rtt_ns)
			f->asked.rtt_ns = path->rtt_ns;
		sim_at(f->asked.start_ns, EV_START, i, 0);
	}
	if (path->trace_ns)
		sim_at(0, EV_TRACE, 0, 0);
}

static double share(uint64_t part, uint64_t all)
{
	return all ? (double)part / (double)all : 0;
}

static struct ccsim_figures figures_of(const struct flow *f)
{
	double seconds = (double)(sim.path.end_ns - sim.path.warm_ns) / 1e9;
	double bdp = sim.path.rate_Bps * CCSIM_MSS / CCSIM_WIRE * (double)f->asked.rtt_ns / 1e9;

	return (struct ccsim_figures){
		.goodput_Bps = (double)f->rcvd_segs * CCSIM_MSS / seconds,
		.qdelay_ms = share(f->qdelay_ns, f->qdelay_n) / 1e6,
		.queue_loss = share(f->drop_queue, f->sent_pkts),
		.random_loss = share(f->drop_random, f->sent_pkts),
		.inflight_bdp = share(f->inflight_sum, f->inflight_n) / bdp,
		.done_s = (double)f->done_ns / 1e9,
		.sent_packets = f->sent_pkts,
		.lost_packets = f->lost_pkts,
		.spurious_packets = f->spurious_pkts,
		.rtos = f->rtos,
	};
}

/* Nothing of the flow is left */
static void end(struct flow *f)
{
	if (f->cc.ops->release)
		f->cc.ops->release(&f->cc);
	free(f->tx);
	free(f->rtx);
	free(f->seg_acked);
	free(f->seg_rcvd);
	free(f->pend);
}

uint64_t ccsim_run(const struct ccsim_path *path, const struct ccsim_flow *flows,
		   struct ccsim_figures *figures, struct ccsim_point *points, uint64_t points_max)
{
	begin(path, flows);
	sim.points = points;
	sim.points_max = points_max;
	while (heap_n) {
		struct event e = heap_pop();

		if (e.at_ns >= path->end_ns)
			break;
		sim.now_ns = e.at_ns;
		dispatch(&e);
	}
	for (uint32_t i = 0; i < path->flows_n; i++) {
		figures[i] = figures_of(&sim.flows[i]);
		end(&sim.flows[i]);
	}
	free(heap);
	return sim.points_n;
}

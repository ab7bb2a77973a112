// SPDX-License-Identifier: Apache-2.0
/* The emulated link; see emu.h for the model and its invariants. Refuses nothing: what it is given,
 * it owns.
 */
#define _GNU_SOURCE
#include "emu.h"

#include <arpa/inet.h>
#include <errno.h>
#include <net/ethernet.h>
#include <netinet/in.h>
#include <netinet/ip6.h>
#include <string.h>
#include <sys/mman.h>

#include "../../dmm_ebpf/userstack/core/units.h"

/* Steps are walked one by one, so they must not be countless after a pause. */
#define STEP_MIN_NS 100000ULL

int pool_init(struct pool *pool, size_t count, size_t slot_bytes)
{
	*pool = (struct pool){.slot_bytes = slot_bytes};
	pool->pkts = mmap(NULL, count * sizeof(*pool->pkts), PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (pool->pkts == MAP_FAILED)
		return -errno;
	pool->data = mmap(NULL, count * slot_bytes, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (pool->data == MAP_FAILED) {
		int err = errno;

		munmap(pool->pkts, count * sizeof(*pool->pkts));
		return -err;
	}
	pool->count = count;
	return 0;
}

void pool_deinit(struct pool *pool)
{
	if (!pool->count)
		return;
	munmap(pool->pkts, pool->count * sizeof(*pool->pkts));
	munmap(pool->data, pool->count * pool->slot_bytes);
}

struct pkt *pool_get(struct pool *pool)
{
	struct pkt *pkt = pool->free_list;

	if (pkt) {
		/* Last in, first out: the frame used last is the one still in the cache. */
		pool->free_list = pkt->next;
		return pkt;
	}
	if (pool->fresh == pool->count)
		return NULL;
	pkt = &pool->pkts[pool->fresh];
	pkt->data = pool->data + pool->fresh * pool->slot_bytes;
	pool->fresh++;
	return pkt;
}

void pool_put(struct pool *pool, struct pkt *pkt)
{
	pkt->next = pool->free_list;
	pool->free_list = pkt;
}

static void fifo_init(struct fifo *fifo)
{
	*fifo = (struct fifo){.tail = &fifo->head};
}

static void fifo_push(struct fifo *fifo, struct pkt *pkt)
{
	pkt->next = NULL;
	*fifo->tail = pkt;
	fifo->tail = &pkt->next;
	fifo->pkts++;
}

static struct pkt *fifo_pop(struct fifo *fifo)
{
	struct pkt *pkt = fifo->head;

	fifo->head = pkt->next;
	if (!fifo->head)
		fifo->tail = &fifo->head;
	fifo->pkts--;
	return pkt;
}

/* SplitMix64 (Steele, Lea, Flood 2014), the n-th output of a stream without the ones before it. */
static uint64_t splitmix64(uint64_t seed, uint64_t n)
{
	uint64_t z = seed + (n + 1) * 0x9e3779b97f4a7c15ULL;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
	return z ^ (z >> 31);
}

static uint64_t draw_nth(const struct emu *emu, enum emu_fate fate, uint64_t n)
{
	uint64_t stream = splitmix64(emu->seed, (uint64_t)emu->direction * EMU_FATE_COUNT + fate);

	return splitmix64(stream, n);
}

static uint64_t draw(const struct emu *emu, enum emu_fate fate)
{
	return draw_nth(emu, fate, emu->draws);
}

/* 53 bits: what a double holds exactly, so that 0 never strikes and 1 always does. */
static double unit(uint64_t drawn)
{
	return (double)(drawn >> 11) * 0x1p-53;
}

static bool strikes(const struct emu *emu, enum emu_fate fate, double probability)
{
	return unit(draw(emu, fate)) < probability;
}

void emu_seed(struct emu *emu, uint64_t seed)
{
	emu->seed = seed;
	emu->draws = emu->steps = 0;
}

void emu_init(struct emu *emu, struct pool *pool, uint32_t direction, uint64_t seed,
	      uint64_t now_ns)
{
	*emu = (struct emu){.pool = pool, .direction = direction, .clock_ns = now_ns};
	emu->params.overhead_bytes = EMU_ETHERNET_OVERHEAD_BYTES;
	fifo_init(&emu->waiting);
	fifo_init(&emu->line);
	fifo_init(&emu->late);
	emu_seed(emu, seed);
	emu_reset_stats(emu, now_ns);
}

static bool is_probability(double p)
{
	return p >= 0 && p <= 1;
}

const char *emu_check(const struct emu_params *params)
{
	if (!is_probability(params->loss) || !is_probability(params->reorder) ||
	    !is_probability(params->duplicate) || !is_probability(params->corrupt) ||
	    !is_probability(params->bursts.p) || !is_probability(params->bursts.r) ||
	    !is_probability(params->bursts.loss_bad) || !is_probability(params->bursts.loss_good))
		return "a probability is between 0 and 1";
	if (params->bursts.p > 0 && params->bursts.r <= 0)
		return "bursts that begin must end: r is above 0 where p is";
	if (params->bursts.step_ns &&
	    (params->bursts.step_ns < STEP_MIN_NS || params->bursts.step_ns > 3600 * NS_PER_S))
		return "a step of the bursts is between 100 us and one hour, or 0 for a frame";
	if (params->rate_bps && (params->rate_bps < 1000 || params->rate_bps > 1000 * NS_PER_S))
		return "a rate is between 1000 bit/s and 1000 Gbit/s, or 0 for none";
	if (params->delay_ns > 3600 * NS_PER_S || params->reorder_ns > 3600 * NS_PER_S ||
	    params->jitter_ns > 3600 * NS_PER_S)
		return "a delay is at most one hour";
	if (params->queue_ns > 3600 * NS_PER_S)
		return "a queue is at most one hour long";
	if (params->overhead_bytes > 1000)
		return "the overhead of a frame is at most 1000 bytes";
	return NULL;
}

/* The area under the queue's length, up to at_ns; called before the length changes. */
static void account_queue(struct emu *emu, uint64_t at_ns)
{
	if (at_ns <= emu->clock_ns)
		return;
	emu->stats.queue_pkts_ns += (double)emu->waiting.pkts * (double)(at_ns - emu->clock_ns);
	emu->stats.queue_bytes_ns += (double)emu->waiting_bytes * (double)(at_ns - emu->clock_ns);
	emu->clock_ns = at_ns;
}

void emu_reset_stats(struct emu *emu, uint64_t now_ns)
{
	account_queue(emu, now_ns);
	emu->stats = (struct emu_stats){.since_ns = now_ns};
}

static uint32_t wire_bytes(const struct emu *emu, const struct pkt *pkt)
{
	return pkt->len + emu->params.overhead_bytes;
}

static void start_service(struct emu *emu, struct pkt *pkt, uint64_t at_ns)
{
	uint64_t cost;

	emu->in_service = pkt;
	pkt->at_ns = at_ns;
	if (!emu->params.rate_bps)
		return;
	cost = (uint64_t)wire_bytes(emu, pkt) * 8 * NS_PER_S + emu->service_rest;
	pkt->at_ns += cost / emu->params.rate_bps;
	emu->service_rest = cost % emu->params.rate_bps;
}

static void put_in_line(struct fifo *line, struct pkt *pkt, uint64_t due_ns)
{
	if (due_ns < line->last_ns)
		due_ns = line->last_ns;
	line->last_ns = due_ns;
	pkt->at_ns = due_ns;
	fifo_push(line, pkt);
}

/* Two skew heaps as one (Sleator and Tarjan 1986): no store of its own, O(log n) in the mean. */
static struct pkt *merged(struct pkt *a, struct pkt *b)
{
	struct pkt *root = NULL, **at = &root, *rest;

	while (a && b) {
		if (b->at_ns < a->at_ns) {
			rest = a;
			a = b;
			b = rest;
		}
		rest = a->right;
		a->right = a->next;
		*at = a;
		at = &a->next;
		a = rest;
	}
	*at = a ? a : b;
	return root;
}

/* On its way: among the jittered if line is NULL. */
static void put_under_way(struct emu *emu, struct fifo *line, struct pkt *pkt, uint64_t due_ns)
{
	if (line) {
		put_in_line(line, pkt, due_ns);
		return;
	}
	pkt->at_ns = due_ns;
	pkt->next = pkt->right = NULL;
	emu->jittered = merged(emu->jittered, pkt);
	emu->jittered_pkts++;
}

/* Brings the chain to the frame that leaves the transmitter at at_ns; whether that meets bad. */
static bool meets_bad(struct emu *emu, uint64_t at_ns)
{
	const struct gilbert *bursts = &emu->params.bursts;
	uint64_t steps = 1;

	if (!emu->steps) {
		emu->bad = unit(draw_nth(emu, EMU_FATE_STATE, emu->steps++)) <
			   gilbert_bad_share(bursts);
		emu->step_end_ns = at_ns + bursts->step_ns;
		return emu->bad;
	}
	if (bursts->step_ns) {
		if (at_ns < emu->step_end_ns)
			return emu->bad;
		steps += (at_ns - emu->step_end_ns) / bursts->step_ns;
		emu->step_end_ns += steps * bursts->step_ns;
		steps = steps < GILBERT_STEPS_MAX ? steps : GILBERT_STEPS_MAX;
	}
	for (; steps; steps--)
		emu->bad = gilbert_step(bursts, emu->bad,
					unit(draw_nth(emu, EMU_FATE_STATE, emu->steps++)));
	return emu->bad;
}

static bool is_lost(struct emu *emu, const struct pkt *pkt, uint64_t at_ns)
{
	const struct emu_params *params = &emu->params;
	double in_burst = 0;
	bool lost;

	if (params->bursts.p > 0)
		in_burst = gilbert_loss(&params->bursts, meets_bad(emu, at_ns));
	lost = strikes(emu, EMU_FATE_LOSS, params->loss) || strikes(emu, EMU_FATE_BURST, in_burst);
	if (params->loss_above && pkt->len <= ETH_HLEN + params->loss_above)
		lost = false;
	emu->stats.losses += lost;
	emu->stats.loss_bursts += lost && !emu->last_lost;
	emu->last_lost = lost;
	return lost;
}

static void corrupt_one_bit(struct emu *emu, struct pkt *pkt)
{
	uint64_t bit;

	if (pkt->len <= ETH_HLEN)
		return;
	bit = draw(emu, EMU_FATE_CORRUPT_WHERE) % ((uint64_t)(pkt->len - ETH_HLEN) * 8);
	pkt->data[ETH_HLEN + bit / 8] ^= (uint8_t)(1U << (bit % 8));
	emu->stats.corrupted++;
}

static void duplicate(struct emu *emu, const struct pkt *pkt, struct fifo *line, uint64_t due_ns)
{
	struct pkt *copy = pool_get(emu->pool);

	if (!copy) {
		emu->stats.pool_drops++;
		return;
	}
	copy->len = pkt->len;
	copy->control = pkt->control;
	memcpy(copy->data, pkt->data, pkt->len);
	put_under_way(emu, line, copy, due_ns);
	emu->stats.duplicated++;
}

/* The frame's last bit left the transmitter at at_ns. */
static void depart(struct emu *emu, struct pkt *pkt, uint64_t at_ns)
{
	const struct emu_params *params = &emu->params;
	uint64_t due_ns = at_ns + params->delay_ns;
	struct fifo *line = params->jitter_ns && params->jitter_reorder ? NULL : &emu->line;

	if (pkt->control) {
		put_in_line(&emu->line, pkt, due_ns);
		return;
	}
	if (is_lost(emu, pkt, at_ns)) {
		emu->draws++;
		pool_put(emu->pool, pkt);
		return;
	}
	if (strikes(emu, EMU_FATE_CORRUPT, params->corrupt))
		corrupt_one_bit(emu, pkt);
	due_ns += jitter_draw(params->jitter_ns, params->jitter_exponential,
			      unit(draw(emu, EMU_FATE_JITTER)));
	if (strikes(emu, EMU_FATE_REORDER, params->reorder)) {
		line = line ? &emu->late : NULL;
		due_ns += params->reorder_ns;
		emu->stats.reordered++;
	}
	put_under_way(emu, line, pkt, due_ns);
	if (strikes(emu, EMU_FATE_DUPLICATE, params->duplicate))
		duplicate(emu, pkt, line, due_ns);
	emu->draws++;
}

static void take_from_queue(struct emu *emu, uint64_t at_ns)
{
	struct emu_stats *stats = &emu->stats;
	struct pkt *pkt;
	uint64_t wait_ns;

	account_queue(emu, at_ns);
	pkt = fifo_pop(&emu->waiting);
	emu->waiting_bytes -= wire_bytes(emu, pkt);
	wait_ns = at_ns > pkt->at_ns ? at_ns - pkt->at_ns : 0;
	stats->queue_wait_sum_ns += (double)wait_ns;
	if (wait_ns > stats->queue_wait_max_ns)
		stats->queue_wait_max_ns = wait_ns;
	start_service(emu, pkt, at_ns);
}

void emu_advance(struct emu *emu, uint64_t now_ns)
{
	while (emu->in_service && emu->in_service->at_ns <= now_ns) {
		struct pkt *pkt = emu->in_service;
		uint64_t end_ns = pkt->at_ns;

		emu->in_service = NULL;
		if (emu->waiting.head)
			take_from_queue(emu, end_ns);
		else
			emu->service_rest = 0;
		depart(emu, pkt, end_ns);
	}
	account_queue(emu, now_ns);
}

static bool queue_is_full(const struct emu *emu, const struct pkt *pkt)
{
	const struct emu_params *params = &emu->params;
	uint64_t bytes = emu->waiting_bytes + wire_bytes(emu, pkt);

	if (params->queue_pkts && emu->waiting.pkts >= params->queue_pkts)
		return true;
	if (params->queue_bytes && bytes > params->queue_bytes)
		return true;
	return params->queue_ns &&
	       (double)bytes * 8e9 > (double)params->queue_ns * (double)params->rate_bps;
}

void emu_arrive(struct emu *emu, struct pkt *pkt, uint64_t at_ns)
{
	struct emu_stats *stats = &emu->stats;

	emu_advance(emu, at_ns);
	pkt->control = emu_is_control(pkt->data, pkt->len);
	stats->rx_pkts++;
	stats->rx_bytes += pkt->len;
	stats->control_pkts += pkt->control;
	if (!emu->in_service) {
		stats->queue_wait_pkts++;
		start_service(emu, pkt, at_ns);
		return;
	}
	if (queue_is_full(emu, pkt)) {
		stats->queue_drops++;
		pool_put(emu->pool, pkt);
		return;
	}
	stats->queue_wait_pkts++;
	pkt->at_ns = at_ns;
	fifo_push(&emu->waiting, pkt);
	emu->waiting_bytes += wire_bytes(emu, pkt);
	if (emu->waiting.pkts > stats->queue_max_pkts)
		stats->queue_max_pkts = emu->waiting.pkts;
	if (emu->waiting_bytes > stats->queue_max_bytes)
		stats->queue_max_bytes = emu->waiting_bytes;
}

void emu_set(struct emu *emu, const struct emu_params *params, uint64_t now_ns)
{
	struct pkt *pkt;
	uint64_t old_bps = emu->params.rate_bps;
	uint32_t old_overhead = emu->params.overhead_bytes;

	emu_advance(emu, now_ns);
	/* Another chain begins anew. */
	if (memcmp(&emu->params.bursts, &params->bursts, sizeof(params->bursts)) != 0)
		emu->steps = 0;
	emu->params = *params;
	/* Unsigned arithmetic wraps, so a lower overhead is right as well. */
	emu->waiting_bytes += emu->waiting.pkts * ((uint64_t)params->overhead_bytes - old_overhead);
	pkt = emu->in_service;
	if (!pkt || old_bps == params->rate_bps)
		return;
	/* What is left of the frame being transmitted goes on at the new rate. */
	emu->service_rest = 0;
	if (params->rate_bps)
		pkt->at_ns = now_ns + (uint64_t)((double)(pkt->at_ns - now_ns) * (double)old_bps /
						 (double)params->rate_bps);
	else
		pkt->at_ns = now_ns;
}

static uint64_t due_ns_of(const struct pkt *first)
{
	return first ? first->at_ns : EMU_NEVER;
}

struct pkt *emu_pop_due(struct emu *emu, uint64_t now_ns)
{
	struct fifo *first =
		due_ns_of(emu->late.head) < due_ns_of(emu->line.head) ? &emu->late : &emu->line;
	struct pkt *pkt = emu->jittered;

	if (pkt && pkt->at_ns <= now_ns && pkt->at_ns < due_ns_of(first->head)) {
		emu->jittered = merged(pkt->next, pkt->right);
		emu->jittered_pkts--;
		return pkt;
	}
	return due_ns_of(first->head) <= now_ns ? fifo_pop(first) : NULL;
}

uint64_t emu_next_ns(const struct emu *emu)
{
	const struct pkt *firsts[] = {emu->line.head, emu->late.head, emu->jittered};
	uint64_t next_ns = EMU_NEVER;

	if (emu->in_service)
		next_ns = emu->in_service->at_ns + emu->params.delay_ns;
	for (size_t i = 0; i < sizeof(firsts) / sizeof(firsts[0]); i++)
		if (due_ns_of(firsts[i]) < next_ns)
			next_ns = due_ns_of(firsts[i]);
	return next_ns;
}

static bool is_ipv6_control(const uint8_t *packet, uint32_t len)
{
	uint8_t next_header, type;

	if (len < sizeof(struct ip6_hdr) + 1)
		return false;
	next_header = packet[offsetof(struct ip6_hdr, ip6_nxt)];
	/* MLD alone travels with a hop-by-hop router alert. */
	if (next_header == IPPROTO_HOPOPTS)
		return true;
	if (next_header != IPPROTO_ICMPV6)
		return false;
	type = packet[sizeof(struct ip6_hdr)];
	/* RFC 4861: router and neighbour solicitation and advertisement, redirect. */
	return type >= 133 && type <= 137;
}

bool emu_is_control(const uint8_t *frame, uint32_t len)
{
	uint32_t at = 2 * ETH_ALEN;
	uint16_t type;

	if (len < ETH_HLEN)
		return true;
	memcpy(&type, frame + at, sizeof(type));
	at += sizeof(type);
	if (ntohs(type) == ETHERTYPE_VLAN && len >= ETH_HLEN + 4) {
		memcpy(&type, frame + at + 2, sizeof(type));
		at += 4;
	}
	if (ntohs(type) == ETHERTYPE_IP)
		return false;
	if (ntohs(type) == ETHERTYPE_IPV6)
		return is_ipv6_control(frame + at, len - at);
	return true;
}

// SPDX-License-Identifier: Apache-2.0
/* engine_calls.c: what other threads ask of a running engine, see engine.h. */
#include "engine.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>

#include "engine_int.h"

uint32_t dmm_engine_nic_set_port(struct dmm_engine *e, uint32_t nic, enum dmm_port_kind kind)
{
	bool has;

	engine_lock(e);
	has = nic < e->n_nic && kind < DMM_PORT_KINDS && e->nic[nic].ports[kind].n;
	if (has) {
		/* What the other one has been given goes first. */
		engine_nic_kick(e, nic);
		e->nic[nic].by = kind;
		engine_ports_chosen(e);
	}
	engine_unlock(e);
	return has;
}

void dmm_engine_nic_set_device(struct dmm_engine *e, uint32_t nic, uint32_t ifindex,
			       const uint8_t *mac)
{
	engine_lock(e);
	for (uint32_t i = 0; i < e->n_port; i++)
		if (e->port[i].nic == nic)
			port_move(&e->port[i], ifindex);
	if (nic < e->n_nic)
		memcpy(e->nic[nic].mac, mac, MAC_BYTES);
	engine_unlock(e);
}

uint32_t dmm_engine_nic_lost_sockets(struct dmm_engine *e, uint32_t nic)
{
	bool lost = false;

	engine_lock(e);
	for (uint32_t i = 0; i < e->n_port; i++)
		if (e->port[i].nic == nic && port_is_lost(&e->port[i]))
			lost = true;
	engine_unlock(e);
	return lost;
}

void dmm_engine_nic_set_mtu(struct dmm_engine *e, uint32_t nic, uint32_t mtu)
{
	engine_lock(e);
	if (nic < e->n_nic)
		e->nic[nic].mtu = mtu;
	engine_unlock(e);
}

uint32_t dmm_engine_set_congestion(struct dmm_engine *e, const char *name)
{
	uint32_t known;

	engine_lock(e);
	known = dmm_core_set_congestion(e->core, name);
	engine_unlock(e);
	return known;
}

void dmm_engine_set_congestion_ops(struct dmm_engine *e, const struct cc_ops *ops)
{
	engine_lock(e);
	dmm_core_set_congestion_ops(e->core, ops);
	engine_unlock(e);
}

uint32_t dmm_engine_set_transport(struct dmm_engine *e, const char *name)
{
	uint32_t known;

	engine_lock(e);
	known = dmm_core_set_transport(e->core, name);
	engine_unlock(e);
	return known;
}

uint32_t dmm_engine_set_transport_ops(struct dmm_engine *e, const struct end_ops *ops)
{
	uint32_t taken;

	engine_lock(e);
	taken = dmm_core_set_transport_ops(e->core, ops);
	engine_unlock(e);
	return taken;
}

void dmm_engine_set_negotiate(struct dmm_engine *e, uint32_t mode)
{
	engine_lock(e);
	dmm_core_set_negotiate(e->core, mode);
	engine_unlock(e);
}

void dmm_engine_set_syn_cookies(struct dmm_engine *e, uint32_t mode)
{
	engine_lock(e);
	dmm_core_set_syn_cookies(e->core, mode);
	engine_unlock(e);
}

void dmm_engine_set_latency(struct dmm_engine *e, uint32_t latency, uint32_t redundancy_budget_ppm,
			    uint32_t redundancy_residual_ppm, uint32_t parity_most_ppm)
{
	engine_lock(e);
	dmm_core_set_latency(e->core, latency, redundancy_budget_ppm, redundancy_residual_ppm,
			     parity_most_ppm);
	engine_unlock(e);
}

static void add_port_stats(const struct port *port, struct dmm_engine_stats *stats)
{
	struct dmm_port_stats one;

	port_stats(port, &one);
	stats->nic_rx_dropped += one.rx_dropped;
	stats->nic_rx_ring_full += one.rx_ring_full;
	stats->nic_rx_fill_ring_empty += one.rx_fill_ring_empty;
	stats->kicks += one.kicks;
	stats->kicks_again += one.kicks_again;
}

int dmm_engine_capture(struct dmm_engine *e, int fd, uint32_t legs, uint32_t snaplen_bytes)
{
	engine_lock(e);
	int ret = capture_begin(&e->capture, fd, legs, snaplen_bytes);

	engine_unlock(e);
	return ret;
}

uint32_t dmm_engine_capture_drain(struct dmm_engine *e, int fd)
{
	uint32_t left = 0;

	engine_lock(e);
	if (e->capture.fd == fd) {
		e->capture.legs = 0;
		capture_flush(&e->capture);
		left = e->capture.end - e->capture.begin;
	}
	engine_unlock(e);
	return left;
}

void dmm_engine_capture_end(struct dmm_engine *e, int fd)
{
	engine_lock(e);
	if (e->capture.fd == fd)
		capture_end(&e->capture);
	engine_unlock(e);
}

int dmm_engine_set_faults(struct dmm_engine *e, enum dmm_leg leg, enum dmm_bound bound,
			  const struct dmm_fault_plan *plan)
{
	engine_lock(e);
	int ret = faults_set(&e->faults, faults_stream(leg, bound), plan);

	engine_ports_chosen(e);
	engine_unlock(e);
	return ret;
}

uint32_t dmm_engine_faults(struct dmm_engine *e, enum dmm_leg leg, enum dmm_bound bound,
			   struct dmm_fault_plan *plan, struct dmm_fault_counts *counts)
{
	engine_lock(e);
	bool set = faults_wanted(&e->faults, leg, bound);

	if (set) {
		*plan = e->faults.stream[faults_stream(leg, bound)].plan;
		*counts = e->faults.stream[faults_stream(leg, bound)].counts;
	}
	engine_unlock(e);
	return set;
}

void dmm_engine_stats(struct dmm_engine *e, struct dmm_engine_stats *stats)
{
	struct dmm_core_memory memory;

	engine_lock(e);
	*stats = e->stats;
	for (uint32_t i = 0; i < e->n_port; i++)
		add_port_stats(&e->port[i], stats);
	dmm_core_memory(e->core, &memory);
	stats->connections = dmm_core_connections(e->core);
	stats->in_use = dmm_core_in_use(e->core);
	stats->max_connections = e->load.max_connections;
	stats->memory_bytes = memory.payload_bytes;
	stats->memory_limit_bytes = memory.payload_limit_bytes;
	stats->full = e->load.full;
	stats->faulty = (uint64_t)__builtin_popcount(e->faults.on);
	stats->capturing = e->capture.fd >= 0;
	stats->captured = e->capture.frames;
	stats->capture_dropped = e->capture.dropped;
	engine_unlock(e);
}

void dmm_engine_memory(struct dmm_engine *e, struct dmm_core_memory *memory)
{
	engine_lock(e);
	dmm_core_memory(e->core, memory);
	engine_unlock(e);
}

uint64_t dmm_engine_core_counter(struct dmm_engine *e, uint32_t counter)
{
	engine_lock(e);
	uint64_t value = counter < DMM_CORE_MAX ? dmm_core_counter(e->core, counter) : 0;

	engine_unlock(e);
	return value;
}

uint32_t dmm_engine_connections(struct dmm_engine *e, uint32_t first, uint32_t max,
				struct dmm_conn_info *info)
{
	uint32_t n = 0;

	engine_lock(e);
	while (n < max && dmm_core_conn_info(e->core, first + n, &info[n]))
		n++;
	engine_unlock(e);
	return n;
}

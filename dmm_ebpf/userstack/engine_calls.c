// SPDX-License-Identifier: Apache-2.0
/* engine_calls.c: what other threads ask of a running engine, see engine.h. */
#include "engine.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>

#include "engine_int.h"

uint32_t dmm_engine_nic_set_port(struct dmm_engine *e, uint32_t nic, enum dmm_engine_port port)
{
	bool has = false;

	engine_lock(e);
	if (nic < e->n_nic)
		has = port == DMM_PORT_TAP ? e->nic[nic].tap != MAX_PORTS : e->nic[nic].n_xsk;
	if (has) {
		/* What the other one has been given goes first. */
		engine_nic_kick(e, nic);
		e->nic[nic].by_tap = port == DMM_PORT_TAP;
		engine_ports_chosen(e);
	}
	engine_unlock(e);
	return has;
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

void dmm_engine_set_syn_cookies(struct dmm_engine *e, uint32_t mode)
{
	engine_lock(e);
	dmm_core_set_syn_cookies(e->core, mode);
	engine_unlock(e);
}

static void port_stats(const struct port *port, struct dmm_engine_stats *stats)
{
	struct dmm_tapnic_stats tap;
	struct dmm_xsk_stats xsk;

	if (port->tap) {
		dmm_tapnic_stats(port->tap, &tap);
		stats->kicks += tap.sends;
		stats->kicks_again += tap.sends_again;
		return;
	}
	dmm_xsk_stats(port->xsk, &xsk);
	stats->nic_rx_dropped += xsk.rx_dropped;
	stats->nic_rx_ring_full += xsk.rx_ring_full;
	stats->nic_rx_fill_ring_empty += xsk.rx_fill_ring_empty;
	stats->kicks += xsk.kicks;
	stats->kicks_again += xsk.kicks_again;
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

void dmm_engine_stats(struct dmm_engine *e, struct dmm_engine_stats *stats)
{
	struct dmm_core_memory memory;

	engine_lock(e);
	*stats = e->stats;
	for (uint32_t i = 0; i < e->n_port; i++)
		port_stats(&e->port[i], stats);
	dmm_core_memory(e->core, &memory);
	stats->connections = dmm_core_connections(e->core);
	stats->in_use = dmm_core_in_use(e->core);
	stats->max_connections = e->load.max_connections;
	stats->memory_bytes = memory.payload_bytes;
	stats->memory_limit_bytes = memory.payload_limit_bytes;
	stats->full = e->load.full;
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

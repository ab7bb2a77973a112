// SPDX-License-Identifier: Apache-2.0
/*
 * engine_faults.c: packets that get faults.h's faults: copied, changed, kept, and sent on when they
 * are due.
 *
 * Faults stand between the core and its devices, where a path does its harm. A capture shows
 * packets after that: those that the core is given, and those that leave.
 */
#include "engine_int.h"
#include "frame.h"

#include <errno.h>
#include <string.h>

/* Completes the checksum of a TCP packet whose field holds the pseudo-header's sum. */
static void csum_fill(uint8_t *ip, uint32_t len, uint32_t start)
{
	uint64_t sum = 0;

	for (uint32_t i = start; i < len; i += 2)
		sum += (uint32_t)ip[i] << 8 | (i + 1 < len ? ip[i + 1] : 0);
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	ip[start + TCP_CSUM_OFFSET] = (uint8_t)(~sum >> 8);
	ip[start + TCP_CSUM_OFFSET + 1] = (uint8_t)~sum;
}

/*
 * Turns one bit over behind the IP header. A checksum that was left open is completed first, so
 * that it is wrong then: nobody must take the packet for right.
 */
static void corrupt(struct kept *k, struct dmm_vnet *vnet, uint64_t random)
{
	uint8_t *ip = k->frame + DMM_TAP_HEADROOM;
	uint32_t from = ip_header_bytes(ip, ip[0] >> 4 == 6);
	uint32_t start = vnet->csum_start ? vnet->csum_start : from;
	uint32_t at;

	if (vnet->flags & DMM_VNET_NEEDS_CSUM && start + TCP_CSUM_OFFSET + 2 <= k->bytes)
		csum_fill(ip, k->bytes, start);
	memset(vnet, 0, sizeof(*vnet));
	if (from >= k->bytes)
		return;
	at = from + (uint32_t)((random >> 8) % (k->bytes - from));
	ip[at] ^= (uint8_t)(1u << (random & 7));
}

/* A packet on its way, as far as it is the same in both directions */
struct passing {
	uint32_t nic;
	const uint8_t *frame;
	uint32_t len; /* of IP, with payload */
	const struct dmm_payload *payload;
	const struct dmm_rx_meta *rx; /* NULL: outbound */
	const struct dmm_tx_meta *tx;
	uint64_t now;
};

static void copy(struct kept *k, const struct passing *p)
{
	uint32_t head = p->len + ETH_BYTES - p->payload->bytes;
	uint8_t *to = k->frame + DMM_TAP_HEADROOM - ETH_BYTES;

	k->nic = p->nic;
	if (p->rx)
		k->rx = *p->rx;
	else
		k->tx = *p->tx;
	k->rx.lent = 0; /* the core keeps nothing of a place of ours */
	memcpy(to, p->frame, head);
	to += head;
	for (uint32_t i = 0; i < p->payload->n; i++) {
		memcpy(to, p->payload->part[i].data, p->payload->part[i].bytes);
		to += p->payload->part[i].bytes;
	}
}

/* One copy of the packet, put in line. */
static void keep(struct faults *f, struct fault_stream *s, uint32_t what, const struct passing *p)
{
	struct kept *k = faults_keep(f, s, p->len);
	enum kept_for line = KEPT_COPY;

	if (!k)
		return;
	copy(k, p);
	if (what & 1u << DMM_FAULT_CORRUPT)
		corrupt(k, p->rx ? &k->rx.vnet : &k->tx.vnet, faults_random(s));
	if (what & 1u << DMM_FAULT_DELAY)
		line = KEPT_LATE;
	if (what & 1u << DMM_FAULT_REORDER)
		line = KEPT_BEHIND;
	faults_line_up(s, k, line, p->now);
}

static bool pass(struct faults *f, uint32_t stream, const struct passing *p)
{
	struct fault_stream *s = &f->stream[stream];
	uint32_t what = faults_next(s);
	bool taken = what & ~(1u << DMM_FAULT_DUPLICATE);

	if (what & 1u << DMM_FAULT_DUPLICATE)
		keep(f, s, what, p);
	if (taken && !(what & 1u << DMM_FAULT_DROP))
		keep(f, s, what, p);
	return taken;
}

bool engine_fault_in(struct dmm_engine *e, enum dmm_leg leg, uint32_t nic, const uint8_t *frame,
		     uint32_t len, const struct dmm_rx_meta *meta, uint64_t now)
{
	static const struct dmm_payload whole;
	const struct passing p = {
		.nic = nic, .frame = frame, .len = len, .payload = &whole, .rx = meta, .now = now};

	return pass(&e->faults, faults_stream(leg, DMM_INBOUND), &p);
}

bool engine_fault_out(struct dmm_engine *e, enum dmm_leg leg, uint32_t nic, const uint8_t *frame,
		      uint32_t len, const struct dmm_payload *payload,
		      const struct dmm_tx_meta *meta, uint64_t now)
{
	const struct passing p = {
		.nic = nic, .frame = frame, .len = len, .payload = payload, .tx = meta, .now = now};

	return pass(&e->faults, faults_stream(leg, DMM_OUTBOUND), &p);
}

/* To the app's kernel; false: its queue is full. */
static bool inner_put(struct dmm_engine *e, struct kept *k, uint64_t now)
{
	int ret = dmm_tap_write(e->nic[k->nic].inner_fd, k->frame, k->bytes, NULL, &k->tx.vnet);

	if (ret == -EAGAIN)
		return false;
	if (ret) {
		e->stats.inner_tx_refused++;
		return true;
	}
	e->stats.inner_tx_pkts++;
	e->stats.inner_tx_bytes += k->bytes;
	if (capture_wants(&e->capture, DMM_LEG_INNER))
		capture_frame(&e->capture, k->nic, DMM_LEG_INNER, CAPTURE_OUT,
			      k->frame + DMM_TAP_HEADROOM - ETH_BYTES, k->bytes + ETH_BYTES, NULL,
			      now);
	return true;
}

/* Returns whether it has gone. */
static bool go_on(struct dmm_engine *e, uint32_t stream, struct kept *k, uint64_t now)
{
	const uint8_t *frame = k->frame + DMM_TAP_HEADROOM - ETH_BYTES;

	if (stream == faults_stream(DMM_LEG_INNER, DMM_OUTBOUND))
		return inner_put(e, k, now);
	if (stream == faults_stream(DMM_LEG_OUTER, DMM_OUTBOUND))
		return engine_outer_put(e, k, now);
	if (stream == faults_stream(DMM_LEG_INNER, DMM_INBOUND))
		engine_inner_deliver(e, k->nic, frame, k->bytes, &k->rx, now);
	else
		engine_outer_deliver(e, k->nic, frame, k->bytes + ETH_BYTES, k->bytes, &k->rx, now);
	return true;
}

void engine_faults_release(struct dmm_engine *e)
{
	uint64_t now = engine_now_ns();
	struct kept *k;

	e->faults_blocked = false;
	for (uint32_t i = 0; i < FAULT_STREAMS; i++) {
		struct fault_stream *s = &e->faults.stream[i];

		while ((k = faults_due(s, now))) {
			if (!go_on(e, i, k, now)) {
				e->faults_blocked = true;
				break;
			}
			faults_gone(&e->faults, s, k);
		}
	}
}

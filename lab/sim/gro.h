/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gro.h: a device that puts segments together before the core sees them, by the rules of the
 * kernel's tcp_gro_receive() and inet_gro_receive(): the next byte of the same connection, and
 * nothing different in the header but PSH and FIN; a shorter segment, or one of those flags, is the
 * last.
 */
#ifndef SIM_GRO_H
#define SIM_GRO_H

#include "check.h"

struct gro {
	uint8_t data[65536];
	uint32_t len, headers, size; /* of headers; of a segment's payload */
	uint32_t n;		     /* segments; 0: none waits */
	bool full;
	uint64_t due_ns;
};

static inline bool gro_may_wait(const uint8_t *p, uint32_t len, struct pkt *k)
{
	return wire_parse(p, len, true, k) == WIRE_TCP && k->payload_len &&
	       !(k->flags & (TH_SYN | TH_RST | TH_URG | TH_CWR));
}

static inline bool gro_joins(const struct gro *g, const uint8_t *p, const struct pkt *k)
{
	uint32_t ip = p[0] >> 4 == 4 ? 20 : 40, headers = (uint32_t)(k->payload - p);
	const uint8_t *q = g->data;

	if (!g->n || g->full || headers != g->headers || k->payload_len > g->size ||
	    g->len + k->payload_len > 65000 || p[0] != q[0])
		return false;
	if (p[1] != q[1] ||
	    memcmp(p + (ip == 20 ? 12 : 8), q + (ip == 20 ? 12 : 8), ip == 20 ? 8 : 32))
		return false;
	if (memcmp(p + ip, q + ip, 4) || k->seq != get_be32(q + ip + 4) + g->len - g->headers)
		return false;
	if (memcmp(p + ip + 8, q + ip + 8, 5) || ((p[ip + 13] ^ q[ip + 13]) & ~(TH_FIN | TH_PSH)))
		return false;
	return !memcmp(p + ip + 14, q + ip + 14, 2) &&
	       !memcmp(p + ip + 20, q + ip + 20, headers - ip - 20);
}

static inline void gro_begin(struct gro *g, const uint8_t *p, uint32_t len, const struct pkt *k,
			     uint64_t due_ns)
{
	memcpy(g->data, p, len);
	g->len = len;
	g->headers = (uint32_t)(k->payload - p);
	g->size = k->payload_len;
	g->n = 1;
	g->full = k->flags & (TH_FIN | TH_PSH);
	g->due_ns = due_ns;
}

static inline void gro_add(struct gro *g, const uint8_t *p, const struct pkt *k)
{
	uint32_t ip = p[0] >> 4 == 4 ? 20 : 40;

	memcpy(g->data + g->len, k->payload, k->payload_len);
	g->len += k->payload_len;
	g->n++;
	g->data[ip + 13] |= p[ip + 13] & (TH_FIN | TH_PSH);
	g->full = k->payload_len < g->size || (k->flags & (TH_FIN | TH_PSH));
}

/* The packet as the core gets it; g is empty then */
static inline uint32_t gro_take(struct gro *g, struct dmm_vnet *v)
{
	uint8_t *p = g->data;
	uint16_t sum;
	bool v4 = p[0] >> 4 == 4;

	*v = (struct dmm_vnet){.flags = DMM_VNET_DATA_VALID};
	if (g->n > 1) {
		v->gso_type = v4 ? DMM_VNET_GSO_TCPV4 : DMM_VNET_GSO_TCPV6;
		v->gso_size = (uint16_t)g->size;
		v->hdr_len = (uint16_t)g->headers;
		put_be16(p + (v4 ? 2 : 4), (uint16_t)(v4 ? g->len : g->len - 40));
		if (v4) {
			memset(p + 10, 0, 2);
			sum = (uint16_t)~csum_fold(csum_add(p, 20, 0));
			memcpy(p + 10, &sum, 2);
		}
	}
	g->n = 0;
	g->due_ns = NEVER;
	return g->len;
}

#endif /* SIM_GRO_H */

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nic.h: a device that cuts a long packet into segments and fills in checksums, as the kernel's
 * tcp_gso_segment() and inet_gso_segment() do, with the header's fields alone to go by.
 */
#ifndef SIM_NIC_H
#define SIM_NIC_H

#include "check.h"

static inline void nic_csum(uint8_t *p, uint32_t ip, uint32_t len)
{
	struct pkt k;
	struct wire_dir d;

	CHECK(wire_parse(p, len, false, &k) == WIRE_TCP);
	d = (struct wire_dir){.saddr = k.saddr, .daddr = k.daddr, .family = k.family};
	memset(p + ip + 16, 0, 2);
	wire_csum_full(p, &d, ip + 20, len - ip - 20, csum_add(p + ip + 20, len - ip - 20, 0));
}

static inline void nic_lengths(uint8_t *q, uint32_t ip, uint32_t len, uint32_t nth)
{
	uint16_t sum;

	if (ip == 40) {
		put_be16(q + 4, (uint16_t)(len - 40));
		return;
	}
	put_be16(q + 2, (uint16_t)len);
	put_be16(q + 4, (uint16_t)(get_be16(q + 4) + nth));
	memset(q + 10, 0, 2);
	sum = (uint16_t)~csum_fold(csum_add(q, 20, 0));
	memcpy(q + 10, &sum, 2);
}

static inline void nic_cut(uint32_t from, const uint8_t *p, uint32_t len, const struct dmm_vnet *v,
			   void (*send)(uint32_t from, const uint8_t *p, uint32_t len))
{
	static uint8_t q[65536];
	uint32_t ip = v->csum_start, nth = 0;

	CHECK((v->gso_type & ~DMM_VNET_GSO_ECN) ==
	      (ip == 20 ? DMM_VNET_GSO_TCPV4 : DMM_VNET_GSO_TCPV6));
	CHECK(!!(v->gso_type & DMM_VNET_GSO_ECN) == !!(p[ip + 13] & TH_CWR));
	CHECK(v->hdr_len == ip + (p[ip + 12] >> 4) * 4 && len > (uint32_t)v->hdr_len + v->gso_size);
	for (uint32_t off = v->hdr_len; off < len; off += v->gso_size, nth++) {
		uint32_t n = min_u32(v->gso_size, len - off);

		memcpy(q, p, v->hdr_len);
		memcpy(q + v->hdr_len, p + off, n);
		put_be32(q + ip + 4, get_be32(p + ip + 4) + off - v->hdr_len);
		if (off + n < len)
			q[ip + 13] &= (uint8_t) ~(TH_FIN | TH_PSH);
		if (nth)
			q[ip + 13] &= (uint8_t)~TH_CWR;
		nic_lengths(q, ip, v->hdr_len + n, nth);
		nic_csum(q, ip, v->hdr_len + n);
		send(from, q, v->hdr_len + n);
	}
}

static inline void nic_send(uint32_t from, uint8_t *p, uint32_t len, const struct dmm_vnet *v,
			    void (*send)(uint32_t from, const uint8_t *p, uint32_t len))
{
	uint32_t ip = p[0] >> 4 == 4 ? 20 : 40;

	CHECK(!v->gso_type == !v->gso_size && (!v->gso_type || v->flags & DMM_VNET_NEEDS_CSUM));
	if (v->flags & DMM_VNET_NEEDS_CSUM)
		CHECK(v->csum_start == ip && v->csum_offset == 16);
	if (v->gso_type) {
		nic_cut(from, p, len, v, send);
		return;
	}
	if (v->flags & DMM_VNET_NEEDS_CSUM)
		nic_csum(p, ip, len);
	send(from, p, len);
}

#endif /* SIM_NIC_H */

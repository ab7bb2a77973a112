/* SPDX-License-Identifier: Apache-2.0 */
/* tuple.h: addresses and ports of a simulation's connections, those of its sides i, 0 and 1 */
#ifndef SIM_TUPLE_H
#define SIM_TUPLE_H

#include "kern.h"
#include "params.h"

static inline void tuple_address(uint8_t *a, uint8_t last)
{
	static const uint8_t v6[16] = {0x20, 1, 0xd, 0xb8};

	memset(a, 0, 16);
	if (P.v6) {
		memcpy(a, v6, 16);
	} else {
		a[10] = a[11] = 0xff;
		a[12] = 10;
	}
	a[15] = last;
}

/* Of connection c, as side i sees it */
static inline void tuple_of(struct ksock *s, uint32_t i, uint32_t c)
{
	s->id = c;
	s->listener_side = i;
	s->pair.family = P.v6 ? WIRE_AF_INET6 : WIRE_AF_INET;
	s->pair.proto = 6;
	tuple_address(s->pair.laddr, (uint8_t)(1 + i));
	tuple_address(s->pair.raddr, (uint8_t)(2 - i));
	s->pair.lport_be = __builtin_bswap16((uint16_t)(i ? 80 : 10000 + c));
	s->pair.rport_be = __builtin_bswap16((uint16_t)(i ? 10000 + c : 80));
}

#endif /* SIM_TUPLE_H */

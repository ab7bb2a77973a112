/* SPDX-License-Identifier: Apache-2.0 */
/*
 * txmeta.h: metadata of frames that AF_XDP sends, as linux/if_xdp.h of newer kernels has them, and
 * what is to be done where there are none: the checksum filled in.
 */
#ifndef DMM_TXMETA_H
#define DMM_TXMETA_H

#include <stdint.h>
#include <linux/if_xdp.h>

#ifndef XDP_TX_METADATA
#define XDP_TX_METADATA (1 << 1) /* Linux 6.8 */
#define XDP_TXMD_FLAGS_CHECKSUM (1 << 1)
#endif
#ifndef XDP_UMEM_TX_METADATA_LEN
/* Without it, tx_metadata_len is not read (Linux 6.11). */
#define XDP_UMEM_TX_METADATA_LEN (1 << 2)
#endif

/*
 * struct xdp_umem_reg and struct xsk_tx_metadata of linux/if_xdp.h, as Linux 6.8 and 6.15 have them
 */
struct umem_reg {
	uint64_t addr, len;
	uint32_t chunk_size, headroom, flags, tx_metadata_len;
};

struct metadata {
	uint64_t flags;
	uint16_t csum_start, csum_offset;
	uint64_t launch_time;
};

enum { META_BYTES = sizeof(struct metadata) };

static inline uint32_t sum_add(uint32_t sum, const uint8_t *p, uint32_t bytes)
{
	for (uint32_t i = 0; i < bytes; i++)
		sum += i & 1 ? p[i] : (uint32_t)p[i] << 8;
	return sum;
}

/* The checksum (RFC 1071) of a packet of len bytes that left it to others; start: where it begins
 * to count.
 */
static inline void sum_fill(uint8_t *packet, uint32_t len, uint32_t start, uint32_t offset)
{
	if (start + offset + 2 > len)
		return;
	uint32_t sum = sum_add(0, packet + start, len - start);

	sum = (sum & 0xffff) + (sum >> 16);
	sum = ~((sum & 0xffff) + (sum >> 16));
	packet[start + offset] = (uint8_t)(sum >> 8);
	packet[start + offset + 1] = (uint8_t)sum;
}

#endif /* DMM_TXMETA_H */

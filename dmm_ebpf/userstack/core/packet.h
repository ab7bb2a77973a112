/* SPDX-License-Identifier: Apache-2.0 */
/*
 * packet.h: what the core and the ports tell each other of a packet besides its bytes.
 *
 * Text below is read by cffi, which strips lines that start with '#'.
 */
#ifndef DMM_CORE_PACKET_H
#define DMM_CORE_PACKET_H

#include <stdint.h>

/* Of struct dmm_vnet */
enum dmm_vnet_flag {
	/* the checksum field holds the folded pseudo-header sum, not complemented */
	DMM_VNET_NEEDS_CSUM = 1,
	DMM_VNET_DATA_VALID = 2, /* received only: the checksum is complete and right */
};

enum dmm_vnet_gso {
	DMM_VNET_GSO_NONE = 0,
	DMM_VNET_GSO_TCPV4 = 1,
	DMM_VNET_GSO_TCPV6 = 4,
	DMM_VNET_GSO_UDP = 5, /* UDP_SEGMENT (udp(7)); never of a packet that the core makes */
	/* or'ed to these: CWR is set, and belongs to the first segment alone */
	DMM_VNET_GSO_ECN = 0x80,
};

/*
 * What is left to a device, or was done by it, with a packet's checksum and segments: struct
 * virtio_net_hdr, field by field (virtio 1.2 section 5.1.6, linux/virtio_net.h), in this host's
 * byte order. All 0: nothing. csum_start and hdr_len count from the IP header: who puts a
 * link-layer header in front adds its length.
 */
struct dmm_vnet {
	uint8_t flags;	      /* enum dmm_vnet_flag */
	uint8_t gso_type;     /* enum dmm_vnet_gso */
	uint16_t hdr_len;     /* bytes of IP and TCP header, of a packet to be cut */
	uint16_t gso_size;    /* payload bytes of each segment but the last; 0 without gso_type */
	uint16_t csum_start;  /* with NEEDS_CSUM: offset of the TCP header ... */
	uint16_t csum_offset; /* ... and of the checksum in it: 16 */
};

/*
 * Payload where the core holds it: bytes of them in n parts, laid out as struct iovec. So many
 * parts are enough for the payload of one packet.
 */
enum { DMM_MAX_PARTS = 17 };

struct dmm_part {
	const uint8_t *data;
	uint64_t bytes;
};

struct dmm_payload {
	uint32_t n;
	uint32_t bytes;
	struct dmm_part part[DMM_MAX_PARTS];
};

#endif /* DMM_CORE_PACKET_H */

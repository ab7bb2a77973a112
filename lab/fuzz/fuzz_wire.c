/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_wire.c: libFuzzer target for wire.c alone.
 *
 * The first byte says what is mended before the packet is parsed, or else few inputs would pass the
 * checksums: bit 0: the IPv4 header checksum; bit 1: the TCP or ICMP checksum; bit 2: the length
 * fields; bit 3: the parser need not check the TCP checksum. The rest is the packet, in a block of
 * exactly its size, so that AddressSanitizer sees each read behind it.
 *
 * Checked: what the parser leaves points into the packet; a segment or ICMP error that is built
 * from what was parsed parses to the same; checksums agree with the definition (RFC 1071), at any
 * alignment and length.
 */
#include "../sim/holds.h"
#include "wire/wire.h"

enum { MEND_IP = 1, MEND_L4 = 2, MEND_LENGTH = 4, TRUST_CSUM = 8 };

/* RFC 1071 as it is written there, the sum not complemented */
static uint16_t plain_sum(const uint8_t *p, size_t len, uint32_t sum)
{
	for (size_t i = 0; i + 1 < len; i += 2)
		sum += (uint32_t)p[i] << 8 | p[i + 1];
	if (len & 1)
		sum += (uint32_t)p[len - 1] << 8;
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)sum;
}

static uint32_t l4_offset(const uint8_t *p, size_t len)
{
	if (len >= 20 && p[0] >> 4 == 4)
		return (p[0] & 0xf) * 4u;
	return len >= 40 && p[0] >> 4 == 6 ? 40 : UINT32_MAX;
}

static void mend(uint8_t *p, size_t len, uint32_t how)
{
	uint32_t off = l4_offset(p, len), field, sum = 0;
	bool v4 = p[0] >> 4 == 4;
	uint8_t proto;

	if (off > len || off < 20)
		return;
	if (how & MEND_LENGTH)
		put_be16(p + (v4 ? 2 : 4), (uint16_t)(v4 ? len : len - 40));
	if (v4 && (how & MEND_IP)) {
		put_be16(p + 10, 0);
		put_be16(p + 10, (uint16_t)~plain_sum(p, off, 0));
	}
	proto = p[v4 ? 9 : 6];
	field = off + (proto == WIRE_PROTO_TCP ? 16 : 2);
	if (!(how & MEND_L4) || field + 2 > len)
		return;
	if (proto == WIRE_PROTO_TCP || !v4)
		sum = plain_sum(p + (v4 ? 12 : 8), v4 ? 8 : 32, (uint32_t)(len - off) + proto);
	put_be16(p + field, 0);
	put_be16(p + field, (uint16_t)~plain_sum(p + off, len - off, sum));
}

static void dir_of(struct wire_dir *d, const struct pkt *k)
{
	*d = (struct wire_dir){.saddr = k->saddr,
			       .daddr = k->daddr,
			       .sport_be = k->sport_be,
			       .dport_be = k->dport_be,
			       .family = k->family,
			       .tos = k->tos,
			       .may_cut = k->may_cut};
}

static void seg_of(struct wire_seg *s, const struct pkt *k)
{
	*s = (struct wire_seg){
		.seq = k->seq, .ack = k->ack, .flags = k->flags, .wnd = k->wnd, .urg = k->urg};
	if (k->mss)
		wire_opt_mss(s, k->mss);
	if (k->has_sack_perm || k->has_wscale)
		wire_opt_syn_tail(s, k->has_sack_perm, k->has_ts, k->tsval, k->tsecr, k->has_wscale,
				  k->wscale);
	else if (k->has_ts)
		wire_opt_ts(s, k->tsval, k->tsecr);
}

/* As many SACK blocks as fit beside the other options */
static uint32_t add_sack(struct wire_seg *s, const struct pkt *k)
{
	uint32_t n = min_u32(k->n_sack,
			     (WIRE_TCP_OPT_MAX - min_u32(s->opt_len + 4u, WIRE_TCP_OPT_MAX)) / 8);

	if (n)
		wire_opt_sack(s, k->sack, n);
	return n;
}

/* The counters that the parser found, in the order of either kind, if they fit */
static uint8_t add_accecn(struct wire_seg *s, const struct pkt *k)
{
	bool ect1_first = k->accecn_fields & 1 << ECN_ECT1,
	     all = k->accecn_fields & 1 << ECN_ECT0 && ect1_first;

	if (!(k->accecn_fields & 1 << ECN_CE) || s->opt_len + WIRE_ACCECN_FULL > WIRE_TCP_OPT_MAX)
		return 0;
	wire_opt_accecn(s, k->accecn, ect1_first, all);
	return k->accecn_fields;
}

/* Our option, if there was one and it fits */
static bool add_agree(struct wire_seg *s, const struct pkt *k)
{
	if (k->n_agree != 1 || s->opt_len + WIRE_AGREE_LEN > WIRE_TCP_OPT_MAX)
		return false;
	wire_opt_agree(s, &k->agree);
	return true;
}

static void again_tcp(const struct pkt *k)
{
	static uint8_t out[65536 + 128];
	struct wire_dir d;
	struct wire_seg s;
	struct pkt b;
	uint32_t headers, n_sack;
	uint8_t counters;
	bool agree;

	dir_of(&d, k);
	seg_of(&s, k);
	n_sack = add_sack(&s, k);
	counters = add_accecn(&s, k);
	agree = add_agree(&s, k);
	CHECK(s.opt_len <= WIRE_TCP_OPT_MAX && !(s.opt_len & 3));
	headers = wire_ip_len(k->family) + WIRE_TCP_LEN + s.opt_len;
	if (headers + k->payload_len > 65535)
		return;
	CHECK(wire_headers(out, &d, &s, k->payload_len) == headers);
	wire_csum_full(out, &d, headers, k->payload_len,
		       csum_copy(out + headers, k->payload, k->payload_len));
	CHECK(wire_parse(out, headers + k->payload_len, true, &b) == WIRE_TCP);
	CHECK(b.seq == k->seq && b.ack == k->ack && b.flags == k->flags && b.wnd == k->wnd &&
	      b.urg == k->urg);
	CHECK(b.sport_be == k->sport_be && b.dport_be == k->dport_be && b.tos == k->tos &&
	      b.may_cut == k->may_cut);
	CHECK(!memcmp(b.saddr, k->saddr, 16) && !memcmp(b.daddr, k->daddr, 16));
	CHECK(b.mss == k->mss && b.has_ts == k->has_ts && b.tsval == k->tsval &&
	      b.tsecr == k->tsecr);
	CHECK(b.has_sack_perm == k->has_sack_perm && b.has_wscale == k->has_wscale &&
	      b.wscale == k->wscale);
	CHECK(b.accecn_fields == counters && !(k->accecn_fields & ~0xeu));
	CHECK(!counters || !memcmp(b.accecn, k->accecn, sizeof(b.accecn)));
	for (uint32_t i = 0; i < ACCECN_COUNTERS; i++)
		CHECK(k->accecn[i] <= 0xffffff);
	CHECK(b.n_agree == agree && k->n_agree <= 2);
	CHECK(!agree || !memcmp(&b.agree, &k->agree, sizeof(b.agree)));
	CHECK(b.n_sack == n_sack && !memcmp(b.sack, k->sack, n_sack * sizeof(*b.sack)));
	CHECK(b.payload_len == k->payload_len && !memcmp(b.payload, k->payload, k->payload_len));
}

static bool mapped(const uint8_t *a)
{
	static const uint8_t prefix[12] = {[10] = 0xff, [11] = 0xff};

	return !memcmp(a, prefix, 12);
}

static void again_icmp(const struct pkt *k)
{
	uint8_t out[WIRE_ICMP_MAX];
	struct wire_seg s = {.seq = k->seq};
	struct wire_dir d;
	struct pkt b;
	uint32_t n;

	CHECK(mapped(k->saddr) == (k->family == WIRE_AF_INET) &&
	      mapped(k->daddr) == mapped(k->saddr));
	dir_of(&d, k);
	n = wire_icmp_error(out, &d, &s, k->icmp_type, k->icmp_code);
	CHECK(n <= sizeof(out));
	CHECK(wire_parse(out, n, true, &b) == WIRE_ICMP);
	CHECK(b.seq == k->seq && b.sport_be == k->sport_be && b.dport_be == k->dport_be &&
	      b.icmp == k->icmp);
	CHECK(!memcmp(b.saddr, k->saddr, 16) && !memcmp(b.daddr, k->daddr, 16));
}

static void check_tcp(const struct pkt *k, const uint8_t *p, size_t len)
{
	CHECK(k->payload >= p && k->payload + k->payload_len <= p + len);
	CHECK(k->n_sack <= WIRE_MAX_SACK && k->wscale <= 14);
	CHECK(!(k->flags & TH_SYN) || !(k->flags & (TH_FIN | TH_RST)));
	again_tcp(k);
}

static void check_sums(const uint8_t *p, size_t len)
{
	size_t half = len / 2 & ~(size_t)1;
	uint8_t *copy = malloc(len + 1);
	uint16_t want = plain_sum(p, len, 0), got;

	got = csum_fold(csum_add(p, len, 0));
	CHECK((uint16_t)(got >> 8 | got << 8) == want);
	got = csum_fold(csum_add(p + half, len - half, csum_add(p, half, 0)));
	CHECK((uint16_t)(got >> 8 | got << 8) == want);
	got = csum_fold(csum_copy(copy, p, len));
	CHECK((uint16_t)(got >> 8 | got << 8) == want && !memcmp(copy, p, len));
	free(copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	size_t len = size ? size - 1 : 0;
	uint8_t *p = malloc(len ? len : 1);
	struct pkt k;

	memcpy(p, data + (size ? 1 : 0), len);
	if (len >= 20)
		mend(p, len, data[0]);
	check_sums(p, len);
	switch (wire_parse(p, (uint32_t)len, !size || !(data[0] & TRUST_CSUM), &k)) {
	case WIRE_TCP:
		check_tcp(&k, p, len);
		break;
	case WIRE_ICMP:
		again_icmp(&k);
		break;
	case WIRE_MALFORMED:
	case WIRE_BAD_CSUM:
		break;
	}
	free(p);
	return 0;
}

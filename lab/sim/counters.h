/* SPDX-License-Identifier: Apache-2.0 */
/* counters.h: the names under which the test programs print the core's counters (api.h) */
#ifndef SIM_COUNTERS_H
#define SIM_COUNTERS_H

#include "api.h"

static const char *const counter_names[] = {
	[DMM_CORE_IN_PACKETS] = "in_packets",
	[DMM_CORE_OUT_PACKETS] = "out_packets",
	[DMM_CORE_MALFORMED] = "malformed",
	[DMM_CORE_BAD_CSUM] = "bad_csum",
	[DMM_CORE_NO_CONN] = "no_conn",
	[DMM_CORE_BAD_SEQ] = "bad_seq",
	[DMM_CORE_PAWS] = "paws",
	[DMM_CORE_RST_IN] = "rst_in",
	[DMM_CORE_RST_OUT] = "rst_out",
	[DMM_CORE_ACTIVE_OPEN] = "active_open",
	[DMM_CORE_PASSIVE_OPEN] = "passive_open",
	[DMM_CORE_REFUSED_LIMIT] = "refused_limit",
	[DMM_CORE_RETRANSMITS] = "retransmits",
	[DMM_CORE_RTO] = "rto",
	[DMM_CORE_OOO_DROPPED] = "ooo_dropped",
	[DMM_CORE_CHALLENGE_ACKS] = "challenge_acks",
	[DMM_CORE_UNDONE] = "undone",
	[DMM_CORE_ECN_CE] = "ecn_ce",
	[DMM_CORE_ECN_ECE] = "ecn_ece",
	[DMM_CORE_NO_MEMORY] = "no_memory",
	[DMM_CORE_MTU_HOLES] = "mtu_holes",
	[DMM_CORE_SYN_COOKIES_SENT] = "syn_cookies_sent",
	[DMM_CORE_SYN_COOKIES_VALID] = "syn_cookies_valid",
	[DMM_CORE_SYN_COOKIES_INVALID] = "syn_cookies_invalid",
	[DMM_CORE_HALF_OPEN_DROPPED] = "half_open_dropped",
	[DMM_CORE_ECN_MARKS] = "ecn_marks",
	[DMM_CORE_SPARE_COPIES] = "spare_copies",
	[DMM_CORE_INNER_RETRANSMITS] = "inner_retransmits",
	[DMM_CORE_REASSEMBLED] = "reassembled",
	[DMM_CORE_FRAGMENTS_DROPPED] = "fragments_dropped",
	[DMM_CORE_AGREED] = "agreed",
	[DMM_CORE_AGREE_PLAIN] = "agree_plain",
	[DMM_CORE_AGREE_ECHOED] = "agree_echoed",
	[DMM_CORE_AGREE_WRONG] = "agree_wrong",
	[DMM_CORE_AGREE_UNANSWERED] = "agree_unanswered",
	[DMM_CORE_AGREE_SPARED] = "agree_spared",
	[DMM_CORE_AGREE_UNCONFIRMED] = "agree_unconfirmed",
	[DMM_CORE_AGREE_REFUSED] = "agree_refused",
	[DMM_CORE_COPIES] = "copies",
	[DMM_CORE_COPIES_NEEDED] = "copies_needed",
	[DMM_CORE_COPIES_HELD] = "copies_held",
	[DMM_CORE_DATAGRAMS_OUT] = "datagrams_out",
	[DMM_CORE_DATAGRAMS_IN] = "datagrams_in",
	[DMM_CORE_DATAGRAM_COPIES] = "datagram_copies",
	[DMM_CORE_DATAGRAM_COPIES_HELD] = "datagram_copies_held",
	[DMM_CORE_DATAGRAMS_REPAIRED] = "datagrams_repaired",
	[DMM_CORE_DATAGRAM_PEERS] = "datagram_peers",
	[DMM_CORE_PARITY] = "parity",
	[DMM_CORE_PARITY_HELD] = "parity_held",
	[DMM_CORE_PARITY_IN] = "parity_in",
	[DMM_CORE_PARITY_REFUSED] = "parity_refused",
	[DMM_CORE_REPAIRED] = "repaired",
	[DMM_CORE_REPAIRED_WRONG] = "repaired_wrong",
	[DMM_CORE_PEER_REPAIRED] = "peer_repaired",
};

_Static_assert(sizeof(counter_names) / sizeof(*counter_names) == DMM_CORE_MAX,
	       "every counter has a name");

#endif /* SIM_COUNTERS_H */

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * end_export.h: what a shared object that is a transport exports: its table, the number of the
 * headers that it was built with, and how large they say that things are.
 */
#ifndef DMM_END_EXPORT_H
#define DMM_END_EXPORT_H

#include "end.h"

/* Of end.h, all that it includes, and wire/ctl.h; another number: what was built for it is refused
 */
#define END_ABI 1
/* The name of what a shared object exports: one struct end_export */
#define END_EXPORT_SYMBOL "dmm_end_export"
#define END_EXPORT(ops)                                                                            \
	const struct end_export dmm_end_export = {END_ABI, 0, END_EXPORT_SIZES, &(ops)}
#define END_EXPORT_SIZES                                                                           \
	{                                                                                          \
		sizeof(struct end), sizeof(struct ends), sizeof(struct end_ops),                   \
			sizeof(struct end_events), sizeof(struct end_profile), sizeof(struct env), \
			sizeof(struct pkt), sizeof(struct wire_seg), sizeof(struct wire_dir),      \
			sizeof(struct dmm_tx_meta), sizeof(struct dmm_conn_info)                   \
	}

enum { END_SIZES = 11 };

struct end_export {
	uint32_t abi; /* END_ABI */
	uint32_t pad;
	uint64_t sizes[END_SIZES]; /* END_EXPORT_SIZES */
	const struct end_ops *ops;
};

#endif /* DMM_END_EXPORT_H */

/* SPDX-License-Identifier: Apache-2.0 */
/* gbn.h: see gbn.c */
#ifndef GBN_H
#define GBN_H

#include "end.h"

extern const struct end_ops gbn;

#endif /* GBN_H */

/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_self_test.c: a target with a fault that is found at once, so that tools/fuzz's report of
 * faults is tested. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size > 3 && data[0] == 'D') {
		fputs("fuzz_self_test.c: broken: this is the self-test\n", stderr);
		abort();
	}
	return 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/sparkline.h"

#include <string.h>

#define STEPS 8u

void sparkline(const double *values, unsigned count, char *ret_text)
{
    double least = 0, most = 0;
    for (unsigned i = 0; i < count; i++) {
        least = i == 0 || values[i] < least ? values[i] : least;
        most = i == 0 || values[i] > most ? values[i] : most;
    }
    for (unsigned i = 0; i < count; i++) {
        unsigned step = 3;
        if (most > least)
            step = (unsigned)((values[i] - least) / (most - least) * (STEPS - 1) + 0.5);
        ret_text[3 * i] = '\xe2';
        ret_text[3 * i + 1] = '\x96';
        ret_text[3 * i + 2] = (char)(0x81 + step);
    }
    ret_text[3 * count] = '\0';
}

// SPDX-License-Identifier: MIT
//
// Steps of the fused kernel of many rows on a CPU (simt.h): rows with sources and histories of all
// kinds of length, in clusters of few and of many rows, with letters and weights that land at once,
// late or in any order, give the same bits, as do steps of one call or two; and what they give is
// what plain loops in double precision give, within rounding.
#include "simt.h"

#include "tests/kernels/emulation/fused_rows_scene.h"

int main(void)
{
    enum { COUNT = 19 }; /* row 4 is finished, row 0 begins */
    struct outcome some, first, crowd;

    for (int copies = 0; copies < SIMT_COPIES; copies++) {
        simt_copies = (enum simt_copies)copies;
        run<format_f16, 3>(&crowd, 0, COUNT, COUNT);
        if (!copies)
            first = crowd;
        for (int row = 0; row < COUNT; row++)
            compare("letters and weights at any time", first, crowd, row);
        run<format_f16, 1>(&some, 2, 9, 5);
        for (int row = 2; row < 11; row++)
            compare("two clusters", first, some, row);
    }
    run<format_f16, 5>(&some, 0, COUNT, COUNT);
    for (int row = 0; row < COUNT; row++)
        compare("room for 40 rows", first, some, row);
    for (int row = 0; row < COUNT; row++)
        if (row != 4)
            reference<__half>(first, row);
    scene_steps = 4; /* some rows end in the middle */
    run<format_f16, 3>(&crowd, 0, COUNT, COUNT);
    scene_calls = 2;
    run<format_f16, 1>(&some, 0, 9, 5);
    for (int row = 0; row < 9; row++)
        compare("in two calls", crowd, some, row);
    return failures ? 1 : 0;
}

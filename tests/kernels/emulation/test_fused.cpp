// SPDX-License-Identifier: MIT
//
// Steps of the fused kernel on a CPU (simt.h): rows with sources and histories of all kinds of
// length, in clusters of 16 and of 8 blocks, alone and in company, with letters that land at once,
// late or in any order, give the same bits, as do steps of one call or two; and what they give is
// what plain loops in double precision give, within rounding.
#include "simt.h"

#include "kernels/cuda/fused.cu"

typedef struct fused_params scene_params;
typedef struct fused_layer scene_layer;
typedef struct fused_weight scene_weight;

enum { FFN = 256 };

static void scene_rows(scene_params *p, int n, int each)
{
    static int32_t count;

    count = n;
    p->n = &count;
    p->count = n;
    p->early = n == 1;
    (void)each; /* follows from the clusters */
}

#include "tests/kernels/emulation/fused_scene.h"

template <class F, int CL, enum fused_end END = FUSED_TOKENS>
static void run(struct outcome *out, int first, int n, int each)
{
    scene_run<typename F::element>(
        out, first, n, each, [each](const scene_params &p, int clusters) {
            simt_launch(
                {CL * clusters, 1, 1}, THREADS,
                [&] {
                    if (CL == 16 && each == 1)
                        fused<F, 16, FFN, END, ROOM_ALONE>(p);
                    else if (CL == 16 && each <= ROWS_FEW && END == FUSED_TOKENS)
                        fused<F, 16, FFN, FUSED_TOKENS, ROOM_FEW>(p);
                    else
                        fused<F, CL, FFN, END, ROOM_ALL>(p);
                },
                CL);
        });
}

/* Rows of which some are sampled, beside the same rows as none is. */
static void sampled(const struct outcome &plain, int count)
{
    static struct outcome first, alone;

    run<format_f16, 8, FUSED_SAMPLED>(simt_copies ? &alone : &first, 0, count, 5);
    if (simt_copies) {
        for (int row = 0; row < count; row++)
            compare("sampled, letters at any time", first, alone, row);
        return;
    }
    for (int row = 0; row < count; row++)
        if (row % 3 != 2)
            compare("plain beside sampled", plain, first, row);
    run<format_f16, 16, FUSED_SAMPLED>(&alone, 5, 1, 1);
    compare("sampled, 16 blocks, alone", first, alone, 5);
    run<format_f16, 16, FUSED_SAMPLED>(&alone, 6, 3, 3);
    for (int row = 6; row < 9; row++)
        compare("sampled, 16 blocks, three rows", first, alone, row);
    judge("another token is drawn", 2,
          !memcmp(plain.token[2], first.token[2], sizeof plain.token[2]) &&
              !memcmp(plain.token[8], first.token[8], sizeof plain.token[8]),
          0.0);
}

/* Models whose layers' constants come anew in each step, over several. */
static void other_layers(int layers)
{
    struct outcome crowd, other;

    scene_layers = layers;
    scene_steps = 4;
    run<format_f16, 8>(&crowd, 0, 4, 4);
    for (int row = 0; row < 4; row++)
        reference<__half>(crowd, row);
    run<format_f16, 16>(&other, 2, 1, 1);
    compare("other layers, alone", crowd, other, 2);
    scene_calls = 2;
    run<format_f16, 16>(&other, 0, 3, 3);
    for (int row = 0; row < 3; row++)
        compare("other layers, in two calls", crowd, other, row);
    scene_calls = 1;
}

int main(void)
{
    enum { COUNT = 9 }; /* row 4 is finished, row 0 begins */
    struct outcome alone, first, crowd;

    for (int copies = 0; copies < SIMT_COPIES; copies++) {
        simt_copies = (enum simt_copies)copies;
        run<format_f16, 8>(&crowd, 0, COUNT, 5);
        if (!copies)
            first = crowd;
        for (int row = 0; row < COUNT; row++)
            compare("letters at any time", first, crowd, row);
        run<format_f16, 16>(&alone, 2, 1, 1);
        compare("16 blocks, alone", crowd, alone, 2);
        run<format_f16, 8>(&alone, 2, 1, 1);
        compare("8 blocks, alone", crowd, alone, 2);
        run<format_f16, 16>(&alone, 4, 1, 1);
        compare("a cluster whose row has ended", crowd, alone, 4);
        run<format_f16, 16>(&alone, 3, 5, 5);
        for (int row = 3; row < 8; row++)
            compare("16 blocks, five rows", crowd, alone, row);
        sampled(first, COUNT);
    }
    for (int row = 0; row < COUNT; row++)
        if (row != 4)
            reference<__half>(first, row);
    simt_copies = (enum simt_copies)0;
    other_layers(1);
    other_layers(3);
    return failures ? 1 : 0;
}

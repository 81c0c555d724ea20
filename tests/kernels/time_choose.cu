/* SPDX-License-Identifier: MIT
 *
 * time_choose: median times of the kernels of choose.h, by graph replays. `profile`: each call once
 * and no graph (for ncu).
 */
#include "tests/kernels/test_choose.cuh"

static bool profile;

enum { TIME_NODES = 20, TIME_REPLAYS = 15 };

/* Median time of one call in microseconds: a graph of TIME_NODES calls, replayed. */
template <typename Reset, typename Call> static double time_calls(Reset reset, Call call)
{
    std::vector<float> times;
    cudaStream_t stream;
    cudaGraphExec_t exec;
    cudaEvent_t start, stop;
    cudaGraph_t graph;

    if (profile) {
        reset();
        call((cudaStream_t)0);
        OK(cudaDeviceSynchronize());
        return 0;
    }
    OK(cudaStreamCreate(&stream));
    OK(cudaEventCreate(&start));
    OK(cudaEventCreate(&stop));
    OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    for (int i = 0; i < TIME_NODES; i++)
        call(stream);
    OK(cudaStreamEndCapture(stream, &graph));
    OK(cudaGraphInstantiate(&exec, graph, 0));
    for (int i = 0; i < TIME_REPLAYS; i++) {
        float ms;

        reset();
        OK(cudaDeviceSynchronize());
        OK(cudaEventRecord(start, stream));
        OK(cudaGraphLaunch(exec, stream));
        OK(cudaEventRecord(stop, stream));
        OK(cudaStreamSynchronize(stream));
        OK(cudaEventElapsedTime(&ms, start, stop));
        if (i > 2)
            times.push_back(ms * 1000.0f / TIME_NODES);
    }
    std::sort(times.begin(), times.end());
    OK(cudaGraphExecDestroy(exec));
    OK(cudaGraphDestroy(graph));
    OK(cudaStreamDestroy(stream));
    return times[times.size() / 2];
}

static void time_full(int32_t V, int32_t count, bool pdl, float temperature, int32_t top_k,
                      float top_p, float penalty, const char *what)
{
    struct world w;
    double us;

    make_world(&w, V, 128, count, false);
    for (int32_t r = 0; r < count; r++) {
        struct cuda_row *row = &w.row.host[r];

        if (r < 64)
            fill_logits(&w.logits.host[(size_t)r * V], V, NORMAL);
        else
            memcpy(&w.logits.host[(size_t)r * V], &w.logits.host[(size_t)(r % 64) * V],
                   V * sizeof(float));
        w.logits.host[(size_t)r * V] = -50.0f; /* EOS: no row ends */
        random_row(&w, r);
        row->finished = 0;
        row->flags = CUDA_ROW_SAMPLE;
        row->position = 32;
        row->max_new = 128;
        row->min_new = 128;
        row->temperature = temperature;
        row->top_k = top_k;
        row->top_p = top_p;
        row->repetition_penalty = penalty;
        w.active.host[r] = r;
        for (int32_t p = 0; p < 32; p++)
            w.tokens.host[(size_t)r * 128 + p] = random_below(V);
    }
    w.logits.put();
    w.active.put();
    w.tokens.put();
    w.n.host[0] = count;
    w.n.put();
    us = time_calls([&] { w.row.put(); },
                    [&](cudaStream_t stream) {
                        OK(choose_full(w.view(), w.device_rules, NULL, w.logits.device,
                                       w.active.device, w.n.device, count, pdl, stream));
                    });
    printf("%-34s V %-7d rows %-5d pdl %d  %8.2f us\n", what, V, count, pdl, us);
}

static void time_beams(int32_t V, int32_t groups, int32_t beams, bool pdl)
{
    struct world w;
    int32_t rows = groups * beams;
    double us;

    make_world(&w, V, 128, groups * BEAM_MAX, false);
    for (int32_t r = 0; r < rows; r++) {
        struct cuda_row *row = &w.row.host[r];

        if (r < 64)
            fill_logits(&w.logits.host[(size_t)r * V], V, NORMAL);
        else
            memcpy(&w.logits.host[(size_t)r * V], &w.logits.host[(size_t)(r % 64) * V],
                   V * sizeof(float));
        w.logits.host[(size_t)r * V] = -50.0f;
        row->flags = CUDA_ROW_BEAM;
        row->max_new = 128;
        row->repetition_penalty = 1.0f;
        row->position = 32;
        w.place.host[r] = r;
    }
    for (int32_t g = 0; g < groups; g++) {
        struct cuda_beam_group *group = &w.groups.host[g];

        group->num_beams = beams;
        beam_init(&group->state, beams, 128, 0, 1.0f, false);
        group->state.length = 32;
        for (int32_t b = 0; b < beams; b++) {
            group->state.running[b] = -(float)b;
            group->rows[b] = g * beams + b;
            for (int32_t p = 0; p < 128; p++)
                w.source_row.host[(size_t)(g * beams + b) * 128 + p] = g * beams + b;
        }
        w.groups_list.host[g] = g;
    }
    w.logits.put();
    w.place.put();
    w.groups_list.put();
    w.source_row.put();
    w.n.host[0] = groups;
    w.n.put();
    us = time_calls(
        [&] {
            w.row.put();
            w.groups.put();
            w.logits.put();
        },
        [&](cudaStream_t stream) {
            OK(choose_beams(w.view(), w.device_rules, w.logits.device, w.groups_list.device,
                            w.n.device, groups, w.place.device, w.work.device, pdl, stream));
        });
    printf("%-34s V %-7d groups %-3d x%d pdl %d %6.2f us\n", "beams", V, groups, beams, pdl, us);
}

static void time_all(void)
{
    for (int pdl = 0; pdl < 2; pdl++) {
        for (int32_t rows : {1, 32, 128, 512, 2048})
            time_full(3000, rows, pdl, 0.7f, 50, 0.95f, 1.0f, "top-k 50, top-p 0.95");
        time_beams(3000, 1, 4, pdl);
        time_beams(3000, 128, 4, pdl);
    }
    time_full(3000, 512, true, 0.7f, 0, 1.0f, 1.0f, "temperature alone");
    time_full(3000, 512, true, 0.7f, 50, 1.0f, 1.0f, "top-k 50");
    time_full(3000, 512, true, 0.7f, 0, 0.95f, 1.0f, "top-p 0.95");
    time_full(3000, 512, true, 0.7f, 50, 0.95f, 1.2f, "top-k 50, top-p 0.95, penalty");
    for (int32_t rows : {1, 32, 512}) {
        time_full(62518, rows, true, 0.7f, 50, 0.95f, 1.0f, "top-k 50, top-p 0.95");
        time_full(62518, rows, true, 0.7f, 0, 0.95f, 1.0f, "top-p 0.95");
    }
    time_beams(62518, 1, 4, true);
    time_beams(62518, 16, 4, true);
}

int main(int argc, char **argv)
{
    profile = argc > 1 && !strcmp(argv[1], "profile");
    time_all();
    return 0;
}

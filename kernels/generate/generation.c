/* SPDX-License-Identifier: MIT */
#include "kernels/generate/generation.h"

void generation_request_init(struct generation_request *request)
{
    const struct text empty = {"", 0};

    *request = (struct generation_request){
        .job_id = empty,
        .prompt = empty,
        .target_language = empty,
        .author = empty,
        .max_length = 128,
        .temperature = 1.0f,
        .top_p = 1.0f,
        .repetition_penalty = 1.0f,
        .length_penalty = 1.0f,
        .num_beams = 1,
        .num_return_sequences = 1,
        .stream_interval = 1,
        .tenant = empty,
        .model = empty,
    };
}

/* SPDX-License-Identifier: MIT
 *
 * worker_fixture: what the tests of worker/ share: a seeded generator, ids and jobs by number.
 * Include it after cmocka.h. A failing sequence is run again with PGPT_TEST_SEED=<the printed
 * seed>.
 */
#ifndef PGPT_TESTS_WORKER_FIXTURE_H
#define PGPT_TESTS_WORKER_FIXTURE_H

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/job.h"

static uint64_t fixture_state = 1;

/* Seeds by name, or by PGPT_TEST_SEED. */
__attribute__((unused)) static void fixture_seed(uint64_t seed)
{
    const char *wanted = getenv("PGPT_TEST_SEED");

    fixture_state = (wanted ? strtoull(wanted, NULL, 10) : seed) * 0x9E3779B97F4A7C15u + 1;
}

/* 0..below-1 */
__attribute__((unused)) static uint64_t fixture_random(uint64_t below)
{
    fixture_state ^= fixture_state << 13;
    fixture_state ^= fixture_state >> 7;
    fixture_state ^= fixture_state << 17;
    return (fixture_state >> 11) % below;
}

__attribute__((unused)) static void fixture_id(uint64_t number, uint8_t id[16])
{
    memset(id, 0, 16);
    for (int i = 0; i < 8; i++)
        id[15 - i] = (uint8_t)(number >> 8 * i);
}

/* A job at an offset whose id is `number`; its texts stay until job_destroy(). */
__attribute__((unused)) static struct job *fixture_job(int32_t partition, int64_t offset,
                                                       uint32_t epoch, uint64_t number)
{
    struct job *job = job_create(256);

    assert_non_null(job);
    job->partition = job->log.partition = partition;
    job->offset = job->log.offset = offset;
    job->epoch = epoch;
    job->has_id = true;
    fixture_id(number, job->id);
    uuid_format(job->id, job->job_id);
    job->request.job_id = (struct text){job->job_id, 36};
    return job;
}

__attribute__((unused)) static void fixture_jobs_destroy(struct job_list *jobs)
{
    struct job *job;

    while ((job = job_list_pop(jobs)))
        job_destroy(job);
}

#endif

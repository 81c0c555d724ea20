/* SPDX-License-Identifier: MIT
 *
 * any_record: room for a record of any type, for tests that take the type as it comes.
 */
#ifndef PGPT_TESTS_ANY_RECORD_H
#define PGPT_TESTS_ANY_RECORD_H

#include "schema/records.h"

union any_record {
    struct generation_request request;
    struct generation_chunk chunk;
    struct generation_result result;
    struct job_event event;
    struct job_index index;
    struct job_control control;
};

#endif

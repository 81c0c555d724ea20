/* SPDX-License-Identifier: MIT */
#include "producer/load_report.h"

#include <stdio.h>

#include "producer/output.h"

enum { LATE_US = 10000 }; /* worth telling */

static json_t *latency_json(const struct latency *l)
{
    return json_pack("{sI sI sf sf sf sf sf sI}", "count", (json_int_t)l->count, "min",
                     (json_int_t)l->min, "mean", latency_mean(l), "p50",
                     latency_percentile(l, 0.50), "p90", latency_percentile(l, 0.90), "p95",
                     latency_percentile(l, 0.95), "p99", latency_percentile(l, 0.99), "max",
                     (json_int_t)l->max);
}

static double per_second(const struct load_report *r, uint64_t count)
{
    return r->seconds > 0 ? (double)count / r->seconds : 0;
}

static uint64_t ended(const struct load_report *r)
{
    return r->completed + r->failed + r->cancelled + r->expired;
}

json_t *load_report_json(const struct load_report *r)
{
    return json_pack("{sf ss sI sI sI sI sI sI sI sI sI sI sI sf sf sf so so so so}", "rate",
                     r->rate, "arrivals", r->arrivals, "planned", (json_int_t)r->planned, "sent",
                     (json_int_t)r->sent, "acknowledged", (json_int_t)r->acknowledged, "refused",
                     (json_int_t)r->refused, "completed", (json_int_t)r->completed, "failed",
                     (json_int_t)r->failed, "cancelled", (json_int_t)r->cancelled, "expired",
                     (json_int_t)r->expired, "unfinished", (json_int_t)r->unfinished, "tokens",
                     (json_int_t)r->tokens, "chunks", (json_int_t)r->chunks, "seconds", r->seconds,
                     "jobs_per_s", per_second(r, ended(r)), "tokens_per_s",
                     per_second(r, r->tokens), "late_us", latency_json(&r->late), "first_chunk_us",
                     latency_json(&r->first), "result_us", latency_json(&r->result),
                     "result_from_sent_us", latency_json(&r->from_sent));
}

static void print_latency(const char *name, const struct latency *l)
{
    const double shares[] = {0.50, 0.90, 0.95, 0.99, 1};

    if (!l->count)
        return;
    printf("%-24s", name);
    for (size_t i = 0; i < sizeof shares / sizeof *shares; i++) {
        char text[32];

        output_duration(latency_percentile(l, shares[i]), text);
        printf(" %10s", text);
    }
    putchar('\n');
}

void load_report_print(const struct load_report *r)
{
    printf("sent %llu of %llu jobs at %g a second (%s), %llu acknowledged, %llu refused\n",
           (unsigned long long)r->sent, (unsigned long long)r->planned, r->rate, r->arrivals,
           (unsigned long long)r->acknowledged, (unsigned long long)r->refused);
    if (ended(r) + r->unfinished)
        printf("%llu completed, %llu failed, %llu cancelled, %llu expired, %llu unfinished: "
               "%.1f jobs/s, %.0f tokens/s in %.1f s\n",
               (unsigned long long)r->completed, (unsigned long long)r->failed,
               (unsigned long long)r->cancelled, (unsigned long long)r->expired,
               (unsigned long long)r->unfinished, per_second(r, ended(r)), per_second(r, r->tokens),
               r->seconds);
    printf("\n%-24s %10s %10s %10s %10s %10s\n", "since the job was due", "p50", "p90", "p95",
           "p99", "max");
    print_latency("  sent", &r->late);
    print_latency("  first chunk", &r->first);
    print_latency("  result", &r->result);
    print_latency("result since sent", &r->from_sent);
    if (latency_percentile(&r->late, 0.99) > LATE_US)
        puts("\nThe sender itself was late: this machine is busy, or --outstanding was reached. "
             "The\n"
             "latencies since a job was due include that.");
}

/* SPDX-License-Identifier: MIT */
#include "producer/viewer.h"

#include <string.h>
#include <unistd.h>

#include "kernels/base/clock.h"
#include "producer/output.h"

enum { WAIT_MS = 100 };

struct viewer {
    struct cli *cli;
    const struct command *command;
    bool live;    /* one job: its first sequence is written as it grows */
    bool several; /* lines begin with their job's id */
    bool results_only;
    bool line_open; /* text without its newline stands on standard output */
    bool heard;     /* of any job */
    int code;
};

static void end_line(struct viewer *v)
{
    if (v->line_open)
        putchar('\n');
    v->line_open = false;
}

static void show_piece(struct viewer *v, const struct follow_event *event)
{
    const struct merge_piece *piece = &event->piece;

    if (v->results_only)
        return;
    if (v->cli->json) {
        output_line(output_piece(event));
        return;
    }
    if (!v->live || piece->sequence > 0)
        return; /* shown whole with the result */
    if (piece->restart) {
        end_line(v);
        fflush(stdout);
        cli_say(v->command, "another engine took the job over; the text starts again");
    }
    if (!piece->text.size)
        return;
    fwrite(piece->text.data, 1, piece->text.size, stdout);
    v->line_open = true;
    fflush(stdout);
}

static void show_summary(const struct follow_event *event)
{
    const struct generation_result *r = event->result;
    char queue[32], first[32], total[32];

    if (!isatty(STDERR_FILENO))
        return;
    output_duration((double)r->timings.queue_us, queue);
    output_duration((double)r->timings.first_token_us, first);
    output_duration((double)r->timings.total_us, total);
    fprintf(stderr, "%s %s: %d tokens; queued %s, first token after %s, total %s\n", event->job_id,
            r->status, r->usage.generated_tokens, queue, first, total);
}

static void show_result(struct viewer *v, const struct follow_event *event)
{
    const struct generation_result *r = event->result;

    if (strcmp(r->status, "completed") != 0)
        v->code = EXIT_JOB_FAILED;
    if (v->cli->json) {
        output_line(output_result(r));
        return;
    }
    end_line(v);
    for (size_t i = v->live ? 1 : 0; i < r->sequence_count; i++) {
        if (v->several)
            printf("%s\t", event->job_id);
        fwrite(r->sequences[i].text.data, 1, r->sequences[i].text.size, stdout);
        putchar('\n');
    }
    fflush(stdout);
    if (r->has_error)
        cli_say(v->command, "job %s %s: %s: %s", event->job_id, r->status,
                r->error.error_class.data, r->error.message.data);
    else if (strcmp(r->status, "completed") != 0)
        cli_say(v->command, "job %s %s", event->job_id, r->status);
    show_summary(event);
}

/* What remains watched has not ended. */
static void report_missing(struct viewer *v, struct follow *follow, const char *const *job_ids,
                           size_t count, const char *trouble)
{
    double seconds = (double)v->cli->timeout_us / 1e6;

    for (size_t i = 0; i < count; i++)
        if (follow_forget(follow, job_ids[i]))
            cli_say(v->command,
                    v->heard && count == 1
                        ? "job %s has not finished: no news for %g s (--timeout)"
                        : "job %s was not found, or has no result yet, after %g s (--timeout; "
                          "--since says how far back to look)",
                    job_ids[i], seconds);
    if (*trouble)
        cli_say(v->command, "the last connection error: %s", trouble);
    v->code = EXIT_NOT_FOUND;
}

int viewer_run(struct cli *cli, const struct command *command, struct follow *follow,
               const char *const *job_ids, size_t count, bool results_only)
{
    struct viewer v = {.cli = cli,
                       .command = command,
                       .live = count == 1 && !results_only,
                       .several = count > 1,
                       .results_only = results_only};
    int64_t heard_us = clock_mono_us();
    struct follow_event event;
    struct error error;

    while (follow_count(follow)) {
        enum follow_kind kind = follow_next(follow, WAIT_MS, &event, &error);

        if (kind == FOLLOW_ERROR) {
            end_line(&v);
            return cli_failed(command, CLIENT_FAILED, &error);
        }
        if (kind == FOLLOW_PIECE)
            show_piece(&v, &event);
        else if (kind == FOLLOW_RESULT)
            show_result(&v, &event);
        if (kind != FOLLOW_NOTHING) {
            v.heard = true;
            heard_us = clock_mono_us();
        } else if (clock_mono_us() - heard_us > cli->timeout_us) {
            break;
        }
        if (cli_interrupted()) {
            end_line(&v);
            return EXIT_INTERRUPTED;
        }
    }
    /* The job whose result ended it is no longer counted, but its pieces are all out by then. */
    end_line(&v);
    if (follow_count(follow))
        report_missing(&v, follow, job_ids, count, follow_trouble(follow, heard_us));
    return v.code;
}

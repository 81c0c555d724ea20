/* SPDX-License-Identifier: MIT
 *
 * http: /metrics (Prometheus text), /healthz (200 while every thread makes progress) and /readyz
 * (200 while jobs are consumed; else 503 and the reasons, one a line). Reads health and metrics
 * alone. Its thread is its own; connections, their memory and their time are bounded, so a slow or
 * hostile client costs nothing else. http.port = 0 serves nothing.
 */
#ifndef PGPT_WORKER_HTTP_H
#define PGPT_WORKER_HTTP_H

#include "worker/pipeline.h"

struct http *http_create(struct pipeline *pipeline, struct error *error) PGPT_MUST_CHECK;
int http_start(struct http *http, struct error *error) PGPT_MUST_CHECK;
void http_stop(struct http *http);
void http_destroy(struct http *http); /* NULL is allowed */

#endif

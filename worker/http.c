/* SPDX-License-Identifier: MIT */
#include "worker/http.h"

#include <errno.h>
#include <microhttpd.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "kernels/base/clock.h"
#include "worker/health.h"

enum {
    CONNECTIONS_MAX = 64,
    CONNECTION_BYTES = 16384, /* request line and headers, and the response's */
    CONNECTION_SECONDS = 10,
    REASONS_BYTES = 4096
};

struct http {
    struct pipeline *pipeline;
    struct MHD_Daemon *daemon;
};

/* ---- responses ---- */

static enum MHD_Result reply(struct MHD_Connection *connection, unsigned status, const char *type,
                             struct MHD_Response *response)
{
    enum MHD_Result result;

    if (!response)
        return MHD_NO; /* out of memory: the connection is closed */
    MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, type);
    MHD_add_response_header(response, MHD_HTTP_HEADER_CACHE_CONTROL, "no-store");
    if (status == MHD_HTTP_METHOD_NOT_ALLOWED)
        MHD_add_response_header(response, MHD_HTTP_HEADER_ALLOW, "GET, HEAD");
    result = MHD_queue_response(connection, status, response);
    MHD_destroy_response(response);
    return result;
}

static enum MHD_Result reply_text(struct MHD_Connection *connection, unsigned status,
                                  const char *text)
{
    return reply(
        connection, status, "text/plain; charset=utf-8",
        MHD_create_response_from_buffer(strlen(text), (void *)text, MHD_RESPMEM_MUST_COPY));
}

static enum MHD_Result reply_metrics(struct MHD_Connection *connection)
{
    size_t size;
    char *text = metrics_render(&size);
    struct MHD_Response *response =
        text ? MHD_create_response_from_buffer(size, text, MHD_RESPMEM_MUST_FREE) : NULL;

    if (!response)
        free(text);
    return reply(connection, MHD_HTTP_OK, "text/plain; version=0.0.4; charset=utf-8", response);
}

static enum MHD_Result reply_health(struct http *http, struct MHD_Connection *connection)
{
    char reason[REASONS_BYTES] = "";

    if (health_alive(http->pipeline->health, clock_mono_us(), reason, sizeof reason))
        return reply_text(connection, MHD_HTTP_OK, "ok\n");
    return reply_text(connection, MHD_HTTP_SERVICE_UNAVAILABLE, reason);
}

static enum MHD_Result reply_ready(struct http *http, struct MHD_Connection *connection)
{
    char reasons[REASONS_BYTES] = "";

    if (health_failed(http->pipeline->health, reasons, sizeof reasons) ||
        !health_ready(http->pipeline->health, reasons, sizeof reasons))
        return reply_text(connection, MHD_HTTP_SERVICE_UNAVAILABLE, reasons);
    return reply_text(connection, MHD_HTTP_OK, "ready\n");
}

static enum MHD_Result on_request(void *user, struct MHD_Connection *connection, const char *url,
                                  const char *method, const char *version, const char *upload,
                                  size_t *upload_size, void **state)
{
    struct http *http = user;

    (void)version;
    (void)upload;
    if (strcmp(method, "GET") != 0 && strcmp(method, "HEAD") != 0) {
        if (!*state) { /* the body, if any, is not read: answer at once */
            *state = http;
            return reply_text(connection, MHD_HTTP_METHOD_NOT_ALLOWED, "use GET\n");
        }
        *upload_size = 0;
        return MHD_YES;
    }
    if (!strcmp(url, "/metrics"))
        return reply_metrics(connection);
    if (!strcmp(url, "/healthz"))
        return reply_health(http, connection);
    if (!strcmp(url, "/readyz"))
        return reply_ready(http, connection);
    return reply_text(connection, MHD_HTTP_NOT_FOUND, "here are /metrics, /healthz and /readyz\n");
}

/* ---- life ---- */

static void log_line(void *user, const char *format, va_list args)
{
    char text[512];
    size_t size;

    (void)user;
    vsnprintf(text, sizeof text, format, args);
    size = strlen(text);
    if (size && text[size - 1] == '\n')
        text[size - 1] = '\0';
    log_write(LOG_DEBUG, "http", NULL, "%s", text);
}

struct http *http_create(struct pipeline *pipeline, struct error *error)
{
    struct http *http = calloc(1, sizeof *http);

    if (!http)
        error_set(error, "http: out of memory");
    else
        http->pipeline = pipeline;
    return http;
}

int http_start(struct http *http, struct error *error)
{
    const struct config *config = http->pipeline->config;
    const struct addrinfo hints = {.ai_flags = AI_PASSIVE | AI_NUMERICSERV,
                                   .ai_socktype = SOCK_STREAM};
    struct addrinfo *address;
    char port[8];
    unsigned flags = MHD_USE_AUTO_INTERNAL_THREAD | MHD_USE_ERROR_LOG;
    int code;

    if (!config->http_port)
        return 0;
    snprintf(port, sizeof port, "%d", (int)config->http_port);
    code = getaddrinfo(config->http_address, port, &hints, &address);
    if (code)
        return error_set(error, "http.address %s: %s", config->http_address, gai_strerror(code));
    if (address->ai_family == AF_INET6)
        flags |= MHD_USE_IPv6;
    errno = 0;
    http->daemon = MHD_start_daemon(
        flags, 0, NULL, NULL, on_request, http, MHD_OPTION_EXTERNAL_LOGGER, log_line, NULL,
        MHD_OPTION_SOCK_ADDR, address->ai_addr, MHD_OPTION_CONNECTION_LIMIT,
        (unsigned)CONNECTIONS_MAX, MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)CONNECTION_SECONDS,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)CONNECTION_BYTES,
        MHD_OPTION_LISTENING_ADDRESS_REUSE, 1u, MHD_OPTION_END);
    code = errno;
    freeaddrinfo(address);
    if (!http->daemon)
        return error_set(error,
                         "nothing can listen on http.address %s, http.port %s: %s; set "
                         "another http.port, or 0 for none",
                         config->http_address, port, code ? strerror(code) : "refused");
    return 0;
}

void http_stop(struct http *http)
{
    if (http->daemon)
        MHD_stop_daemon(http->daemon);
    http->daemon = NULL;
}

void http_destroy(struct http *http)
{
    if (!http)
        return;
    http_stop(http);
    free(http);
}

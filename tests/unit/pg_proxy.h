/* SPDX-License-Identifier: MIT
 *
 * pg_proxy: stands between libpq and a PostgreSQL on Unix sockets and ends the connection after a
 * given number of the server's messages, silently or with the server's FATAL error. One connection
 * after the other, in a thread of its own. Include it after cmocka.h.
 */
#ifndef PGPT_TESTS_PG_PROXY_H
#define PGPT_TESTS_PG_PROXY_H

#include <arpa/inet.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

struct pg_proxy {
    char directory[64], url[160];
    struct sockaddr_un own, server;
    int listening;
    pthread_t thread;
    _Atomic bool stopping;
    _Atomic bool tells;  /* a FATAL error before the end */
    _Atomic int passing; /* messages of the server that still pass */
};

static struct sockaddr_un pg_proxy_address(const char *directory)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};

    snprintf(a.sun_path, sizeof a.sun_path, "%s/.s.PGSQL.5432", directory);
    return a;
}

static bool pg_proxy_send(int to, const char *data, size_t size)
{
    while (size) {
        ssize_t sent = send(to, data, size, MSG_NOSIGNAL);

        if (sent <= 0)
            return false;
        data += sent;
        size -= (size_t)sent;
    }
    return true;
}

/* Passes whole messages on; what is left of an unfinished one stays in the buffer. False: the end.
 */
static bool pg_proxy_answer(struct pg_proxy *p, int server, int client, char *buffer, size_t room,
                            size_t *held)
{
    static const char fatal[] = "E\0\0\0:"
                                "SFATAL\0VFATAL\0C57P01\0Mterminated by an administrator\0";
    ssize_t got = recv(server, buffer + *held, room - *held, 0);
    size_t at = 0;

    if (got <= 0)
        return false;
    *held += (size_t)got;
    while (*held - at >= 5) {
        uint32_t length;

        memcpy(&length, buffer + at + 1, sizeof length);
        length = ntohl(length) + 1;
        if (*held - at < length)
            break;
        if (atomic_fetch_sub(&p->passing, 1) <= 0) {
            if (atomic_load(&p->tells))
                pg_proxy_send(client, fatal, sizeof fatal);
            return false;
        }
        if (!pg_proxy_send(client, buffer + at, length))
            return false;
        at += length;
    }
    memmove(buffer, buffer + at, *held - at);
    *held -= at;
    return true;
}

static void pg_proxy_serve(struct pg_proxy *p, int client, int server)
{
    static char answers[1 << 20], requests[1 << 16];
    struct pollfd fds[] = {{client, POLLIN, 0}, {server, POLLIN, 0}};
    size_t held = 0;

    while (!atomic_load(&p->stopping)) {
        if (poll(fds, 2, 50) < 0)
            return;
        if (fds[0].revents) {
            ssize_t got = recv(client, requests, sizeof requests, 0);

            if (got <= 0 || !pg_proxy_send(server, requests, (size_t)got))
                return;
        }
        if (fds[1].revents && !pg_proxy_answer(p, server, client, answers, sizeof answers, &held))
            return;
    }
}

static void *pg_proxy_main(void *argument)
{
    struct pg_proxy *p = argument;

    while (!atomic_load(&p->stopping)) {
        struct pollfd fd = {p->listening, POLLIN, 0};
        int client, server;

        if (poll(&fd, 1, 50) <= 0 || (client = accept(p->listening, NULL, NULL)) < 0)
            continue;
        server = socket(AF_UNIX, SOCK_STREAM, 0);
        if (!connect(server, (struct sockaddr *)&p->server, sizeof p->server))
            pg_proxy_serve(p, client, server);
        close(server);
        close(client);
    }
    return NULL;
}

/* server_directory: where the server's socket lies. */
static void pg_proxy_open(struct pg_proxy *p, const char *server_directory)
{
    memset(p, 0, sizeof *p);
    strcpy(p->directory, "/tmp/pgpt-proxy.XXXXXX");
    assert_non_null(mkdtemp(p->directory));
    p->own = pg_proxy_address(p->directory);
    p->server = pg_proxy_address(server_directory);
    snprintf(p->url, sizeof p->url, "postgresql://app@/pgpt?host=%s", p->directory);
    p->listening = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(p->listening, (struct sockaddr *)&p->own, sizeof p->own), 0);
    assert_int_equal(listen(p->listening, 8), 0);
    assert_int_equal(pthread_create(&p->thread, NULL, pg_proxy_main, p), 0);
}

static void pg_proxy_close(struct pg_proxy *p)
{
    atomic_store(&p->stopping, true);
    pthread_join(p->thread, NULL);
    close(p->listening);
    unlink(p->own.sun_path);
    rmdir(p->directory);
}

#endif

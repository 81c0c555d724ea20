/* SPDX-License-Identifier: MIT
 *
 * pg_fake: as much of a PostgreSQL server as one session of the recorder needs: it lets anybody in,
 * calls every statement done, takes copies, and can fall silent. One connection after the other, in
 * a thread of its own, on a Unix socket. Include it after cmocka.h.
 */
#ifndef PGPT_TESTS_PG_FAKE_H
#define PGPT_TESTS_PG_FAKE_H

#include <arpa/inet.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

struct pg_fake {
    char directory[64], url[160];
    struct sockaddr_un address;
    int listening;
    pthread_t thread;
    _Atomic bool stopping;
    _Atomic bool silent;              /* reads and answers nothing more */
    _Atomic char silent_at, leave_at; /* by a message of this type; 0 = none */
};

static bool pg_fake_read(struct pg_fake *f, int from, void *data, size_t size)
{
    char *at = data;

    while (size && !atomic_load(&f->stopping)) {
        struct pollfd fd = {from, POLLIN, 0};
        ssize_t got;

        if (atomic_load(&f->silent) || poll(&fd, 1, 20) <= 0) {
            usleep(1000);
            continue;
        }
        got = recv(from, at, size, 0);
        if (got <= 0)
            return false;
        at += got;
        size -= (size_t)got;
    }
    return size == 0;
}

static bool pg_fake_say(struct pg_fake *f, int to, const char *bytes, size_t size)
{
    return atomic_load(&f->silent) || send(to, bytes, size, MSG_NOSIGNAL) == (ssize_t)size;
}

#define PG_FAKE_SAY(f, to, bytes) pg_fake_say(f, to, bytes, sizeof bytes - 1)
#define PG_FAKE_READY "Z\0\0\0\5I"
#define PG_FAKE_DONE "C\0\0\0\7OK\0"

static bool pg_fake_answer(struct pg_fake *f, int client, char type, const char *body)
{
    if (type == atomic_load(&f->leave_at))
        return false;
    if (type == atomic_load(&f->silent_at)) {
        atomic_store(&f->silent, true);
        return true;
    }
    switch (type) {
    case 'Q':
        return strncmp(body, "copy", 4) ? PG_FAKE_SAY(f, client, PG_FAKE_DONE PG_FAKE_READY)
                                        : PG_FAKE_SAY(f, client, "G\0\0\0\7\1\0\0");
    case 'P':
        return PG_FAKE_SAY(f, client, "1\0\0\0\4");
    case 'B':
        return PG_FAKE_SAY(f, client, "2\0\0\0\4");
    case 'D':
        return PG_FAKE_SAY(f, client, "n\0\0\0\4");
    case 'E':
        return PG_FAKE_SAY(f, client, PG_FAKE_DONE);
    case 'S':
        return PG_FAKE_SAY(f, client, PG_FAKE_READY);
    case 'c':
        return PG_FAKE_SAY(f, client, PG_FAKE_DONE PG_FAKE_READY);
    default:
        return type != 'X';
    }
}

static void pg_fake_serve(struct pg_fake *f, int client)
{
    char *body = NULL, type = 0;
    uint32_t size;

    /* the first message has no type, and what it asks for is granted */
    while (pg_fake_read(f, client, &size, 4)) {
        size = ntohl(size) - 4;
        body = realloc(body, size + 1);
        body[size] = '\0';
        if (!pg_fake_read(f, client, body, size) ||
            !(type ? pg_fake_answer(f, client, type, body)
                   : PG_FAKE_SAY(f, client, "R\0\0\0\10\0\0\0\0" PG_FAKE_READY)) ||
            !pg_fake_read(f, client, &type, 1))
            break;
    }
    free(body);
}

static void *pg_fake_main(void *argument)
{
    struct pg_fake *f = argument;

    while (!atomic_load(&f->stopping)) {
        struct pollfd fd = {f->listening, POLLIN, 0};
        int client;

        if (poll(&fd, 1, 20) <= 0 || (client = accept(f->listening, NULL, NULL)) < 0)
            continue;
        pg_fake_serve(f, client);
        close(client);
    }
    return NULL;
}

static void pg_fake_open(struct pg_fake *f)
{
    memset(f, 0, sizeof *f);
    strcpy(f->directory, "/tmp/pgpt-fake.XXXXXX");
    assert_non_null(mkdtemp(f->directory));
    f->address.sun_family = AF_UNIX;
    snprintf(f->address.sun_path, sizeof f->address.sun_path, "%s/.s.PGSQL.5432", f->directory);
    snprintf(f->url, sizeof f->url, "postgresql://app@/pgpt?host=%s", f->directory);
    f->listening = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(f->listening, (struct sockaddr *)&f->address, sizeof f->address), 0);
    assert_int_equal(listen(f->listening, 8), 0);
    assert_int_equal(pthread_create(&f->thread, NULL, pg_fake_main, f), 0);
}

static void pg_fake_close(struct pg_fake *f)
{
    atomic_store(&f->stopping, true);
    pthread_join(f->thread, NULL);
    close(f->listening);
    unlink(f->address.sun_path);
    rmdir(f->directory);
}

#endif

/* SPDX-License-Identifier: MIT
 *
 * Fuzz target of the settings file: any bytes give settings or at least one message. Settings that
 * were read are printed, and what is printed holds no secret and is read back as the same.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "worker/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

static int file;
static char path[64];

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    file = memfd_create("settings", 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    setenv("PGPT_DATABASE_URL", "postgresql://u:the-secret@h/d", 1);
    return file < 0 ? -1 : 0;
}

static struct config *load(const void *data, size_t size, FILE *problems)
{
    if (ftruncate(file, 0) || pwrite(file, data, size, 0) != (ssize_t)size)
        abort();
    return config_load(path, problems);
}

static char *printed(const struct config *config, size_t *size)
{
    char *text = NULL;
    FILE *out = open_memstream(&text, size);

    if (!out)
        abort();
    config_print(config, out);
    fclose(out);
    return text;
}

/* Values with outer spaces, quotes or line ends cannot be printed so that they are read the same.
 */
static bool plain(const uint8_t *data, size_t size)
{
    for (size_t i = 0; i < size; i++)
        if (data[i] == '"' || (data[i] < 0x20 && data[i] != '\n'))
            return false;
    return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *problems = NULL, *first, *second;
    size_t problems_size = 0, first_size, second_size;
    FILE *out = open_memstream(&problems, &problems_size);
    struct config *config, *again;

    if (!out || size > 65536)
        abort();
    config = load(data, size, out);
    fclose(out);
    if (!config == !problems_size)
        abort(); /* refused without a word, or accepted with one */
    free(problems);
    if (!config)
        return 0;
    first = printed(config, &first_size);
    config_free(config);
    if (strstr(first, "the-secret"))
        abort();
    if (plain(data, size)) {
        again = load(first, first_size, NULL);
        if (!again)
            abort();
        second = printed(again, &second_size);
        if (strcmp(first, second))
            abort();
        free(second);
        config_free(again);
    }
    free(first);
    return 0;
}

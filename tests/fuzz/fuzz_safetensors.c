/* SPDX-License-Identifier: MIT
 *
 * Fuzz target of the weights file. What is accepted must be whole: every tensor that the header
 * names can be looked up and read to its last element, and the bytes are the caller's.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/model/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int condition, const char *what)
{
    if (condition)
        return;
    fprintf(stderr, "%s\n", what);
    abort();
}

/* Names that stand between quotes in the header are tried, whether they are tensors or not. */
static size_t tensors_read(const struct safetensors *file, const char *header, size_t size)
{
    size_t found = 0;

    for (size_t at = 0; at < size;) {
        const char *open = memchr(header + at, '"', size - at), *close;
        struct model_tensor tensor;
        char name[256];
        size_t length;

        if (!open || !(close = memchr(open + 1, '"', size - (size_t)(open + 1 - header))))
            break;
        length = (size_t)(close - open - 1);
        at = (size_t)(close - header) + 1;
        if (length >= sizeof name)
            continue;
        memcpy(name, open + 1, length);
        name[length] = '\0';
        if (strlen(name) == length && safetensors_find(file, name, &tensor)) {
            int64_t count = tensor.rows * tensor.cols;
            float *values = malloc((size_t)count * sizeof *values);

            require(values != NULL, "out of memory");
            model_tensor_f32(&tensor, values); /* AddressSanitizer watches the end of the data */
            free(values);
            found++;
        } else {
            at = (size_t)(open - header) + 1;
        }
    }
    return found;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct error error = {""};
    uint8_t *copy = malloc(size ? size : 1); /* exactly as long, at the sanitizer's borders */
    struct safetensors *file;

    if (!copy)
        return 0;
    memcpy(copy, data, size);
    file = safetensors_parse(copy, size, "fuzz", &error);
    if (file) {
        uint64_t hash = safetensors_hash(file);

        require(hash == safetensors_hash(file), "the hash changes");
        tensors_read(file, (const char *)copy + 8, size - 8);
    } else {
        require(error.message[0] != '\0', "refused without a message");
    }
    safetensors_close(file);
    free(copy);
    return 0;
}

/* SPDX-License-Identifier: MIT */
#include "kernels/text/sentencepiece.h"

#include <sentencepiece_processor.h>

#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

struct spm {
    sentencepiece::SentencePieceProcessor processor;
};

extern "C" struct spm *spm_open(const char *path, struct error *error)
{
    struct spm *sp = nullptr;

    try {
        sp = new struct spm;
        const auto status = sp->processor.Load(path);
        if (status.ok())
            return sp;
        error_set(error, "%s: not a SentencePiece model: %s", path, status.ToString().c_str());
    } catch (const std::exception &e) {
        error_set(error, "%s: cannot load: %s", path, e.what());
    }
    delete sp;
    return nullptr;
}

extern "C" void spm_close(struct spm *sp)
{
    delete sp;
}

extern "C" int32_t spm_count(const struct spm *sp)
{
    return sp->processor.GetPieceSize();
}

/* Pieces that the file does not know lose their text in the ids: then cut again, as strings. */
static int encode(const struct spm *sp, absl::string_view text, spm_fn each, void *user,
                  struct error *error)
{
    std::vector<int> ids;
    std::vector<std::string> pieces;
    const int unknown = sp->processor.unk_id();
    bool has_unknown = false;
    auto status = sp->processor.Encode(text, &ids);

    for (int id : ids)
        has_unknown |= id == unknown;
    if (status.ok() && has_unknown)
        status = sp->processor.Encode(text, &pieces);
    if (!status.ok())
        return error_set(error, "SentencePiece: %s", status.ToString().c_str());
    for (size_t i = 0; i < ids.size(); i++) {
        const std::string &piece = has_unknown ? pieces.at(i) : sp->processor.IdToPiece(ids[i]);
        const int rc = each(user, ids[i], piece.data(), piece.size());
        if (rc)
            return rc;
    }
    return 0;
}

extern "C" int spm_encode(const struct spm *sp, const char *text, size_t size, spm_fn each,
                          void *user, struct error *error)
{
    try {
        return encode(sp, absl::string_view(text, size), each, user, error);
    } catch (const std::exception &e) {
        return error_set(error, "SentencePiece: %s", e.what());
    }
}

extern "C" const char *spm_piece(const struct spm *sp, int32_t id, size_t *size)
{
    const std::string &piece = sp->processor.IdToPiece(id);

    *size = piece.size();
    return piece.data();
}

extern "C" bool spm_is_unknown(const struct spm *sp, int32_t id)
{
    return sp->processor.IsUnknown(id);
}

/* The library itself says how a piece reads behind other text: decode it behind "x". */
static int read_text(const struct spm *sp, const std::string &piece, struct spm_reading *reading,
                     struct error *error)
{
    std::string whole;
    const auto status = sp->processor.Decode(std::vector<std::string>{"x", piece}, &whole);

    if (!status.ok())
        return error_set(error, "SentencePiece: %s", status.ToString().c_str());
    if (whole.empty() || whole[0] != 'x')
        return error_set(error, "SentencePiece: the model rewrites decoded text (a denormaliser), "
                                "which token by token output does not support");
    reading->surface_size = whole.size() - 1;
    reading->surface = static_cast<char *>(std::malloc(whole.size()));
    if (!reading->surface)
        return error_set(error, "out of memory");
    std::memcpy(reading->surface, whole.c_str() + 1, whole.size()); /* with its NUL */
    return 0;
}

extern "C" int spm_read(const struct spm *sp, const char *piece, size_t size,
                        struct spm_reading *reading, struct error *error)
{
    *reading = {SPM_TEXT, 0, nullptr, 0};
    try {
        const std::string text(piece, size);
        const int id = sp->processor.PieceToId(text);

        if (sp->processor.IsControl(id)) {
            reading->kind = SPM_CONTROL;
        } else if (sp->processor.IsByte(id)) { /* "<0xE2>" */
            reading->kind = SPM_BYTE;
            reading->byte =
                static_cast<uint8_t>(std::strtoul(text.substr(3, 2).c_str(), nullptr, 16));
        } else {
            return read_text(sp, text, reading, error);
        }
        return 0;
    } catch (const std::exception &e) {
        return error_set(error, "SentencePiece: %s", e.what());
    }
}

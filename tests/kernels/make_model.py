#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Makes Marian model directories with random weights by a fixed seed, the same bytes anywhere.

  make_model.py opus DIR                 6+6 layers, ffn 2048, 60,000 pieces, fp16 (OPUS-MT's sizes)
  make_model.py opus DIR --dtype F32     the same numbers as float32
  make_model.py tiny DIR                 6+2 layers of 256 in heads of 32 (OPUS-MT's tiny students)
  make_model.py big DIR                  6+6 layers of 1,024, ffn 4096 (OPUS-MT's tc-big)
  make_model.py gelu DIR                 small and odd in one way; --list names all of them

Plain Python. Every number is a half float first, so the fp16 and the fp32 file hold the same model
(bf16 is cut from it). There are no texts: pgpt-engine generate needs --tokens.
"""
import argparse
import array
import hashlib
import json
import math
import pathlib
import struct

SMALL = {
    "d_model": 128, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 71,
    "max_position_embeddings": 64, "activation_function": "relu", "scale_embedding": True,
    "share_encoder_decoder_embeddings": True, "tie_word_embeddings": True,
    "eos_token_id": 3, "pad_token_id": 0, "decoder_start_token_id": 0, "forced_eos_token_id": 3,
}
OPUS = {
    "d_model": 512, "encoder_layers": 6, "decoder_layers": 6, "encoder_attention_heads": 8,
    "decoder_attention_heads": 8, "encoder_ffn_dim": 2048, "decoder_ffn_dim": 2048,
    "vocab_size": 60000, "max_position_embeddings": 512, "activation_function": "swish",
    "scale_embedding": True, "share_encoder_decoder_embeddings": True, "tie_word_embeddings": True,
    "eos_token_id": 0, "pad_token_id": 59999, "decoder_start_token_id": 59999,
    "forced_eos_token_id": 0, "bad_words_ids": [[59999]], "logits_bias": True, "spread": 1.0,
}
PUBLISHED = {
    "opus": OPUS,
    "tiny": {**OPUS, "d_model": 256, "decoder_layers": 2, "encoder_ffn_dim": 1536,
             "decoder_ffn_dim": 1536, "activation_function": "relu", "max_position_embeddings": 256},
    "big": {**OPUS, "d_model": 1024, "encoder_attention_heads": 16, "decoder_attention_heads": 16,
            "encoder_ffn_dim": 4096, "decoder_ffn_dim": 4096, "max_position_embeddings": 1024},
}
# Each is SMALL but for what is named: one oddity a model, and one with all of them.
PRESETS = {
    **PUBLISHED,
    "plain": {},
    "untied": {"tie_word_embeddings": False},
    "separate": {"share_encoder_decoder_embeddings": False},
    "separate_untied": {"share_encoder_decoder_embeddings": False, "tie_word_embeddings": False},
    "swish": {"activation_function": "swish"},
    "gelu": {"activation_function": "gelu"},
    "logits_bias": {"logits_bias": True},
    "unscaled": {"scale_embedding": False},
    "deep_encoder": {"encoder_layers": 5, "decoder_layers": 1},
    "deep_decoder": {"encoder_layers": 1, "decoder_layers": 4},
    "bf16": {"dtype": "BF16"},
    "odd_sizes": {"d_model": 48, "encoder_attention_heads": 3, "decoder_attention_heads": 1,
                  "encoder_ffn_dim": 70, "decoder_ffn_dim": 45, "vocab_size": 67},
    "forbidden": {"bad_words_ids": [[0], [7, 9], [11, 12, 13]], "suppress_tokens": [5, 6],
                  "forced_bos_token_id": 17},
    "no_forced_eos": {"forced_eos_token_id": None},
    "all_odd": {"d_model": 96, "encoder_attention_heads": 2, "decoder_attention_heads": 3,
                "encoder_ffn_dim": 51, "decoder_ffn_dim": 77, "vocab_size": 83,
                "encoder_layers": 3, "decoder_layers": 1, "activation_function": "gelu",
                "scale_embedding": False, "share_encoder_decoder_embeddings": False,
                "tie_word_embeddings": False, "logits_bias": True, "eos_token_id": 1,
                "pad_token_id": 82, "decoder_start_token_id": 82, "forced_eos_token_id": 1,
                "bad_words_ids": [[82]]},
}

HALVES = [struct.unpack("<e", struct.pack("<H", code))[0] for code in range(65536)]


def uniform_halves(seed, name, count, bound):
    """count half floats, uniform in (-a, a) with a the power of two next to bound, as bytes."""
    exponent = round(math.log2(bound))
    high = bytearray(256)
    for byte in range(256):
        sign, place = byte & 1, byte >> 1
        octave, slots = 0, 64
        while octave < 5 and place >= slots:  # half of all numbers lie in the top octave, and so on
            place -= slots
            octave, slots = octave + 1, slots // 2
        high[byte] = sign << 7 | (exponent + 14 - octave) << 2 | (place * 4 // max(slots, 4)) % 4
    data = bytearray(hashlib.shake_128(f"{seed}/{name}".encode()).digest(2 * count))
    data[1::2] = data[1::2].translate(bytes(high))
    return data


def signs(seed, name, count, bound):
    """count half floats near 1 or -1: norms that turn what passes through them, so that a model
    with tied embeddings does not just say its last token again."""
    values = struct.unpack(f"<{count}e", uniform_halves(seed, name, count, bound))
    return bytearray(struct.pack(f"<{count}e", *(math.copysign(1 - abs(v), v) for v in values)))


def converted(data, dtype):
    """Half floats as the file keeps them."""
    if dtype == "F16":
        return data
    codes = array.array("H", bytes(data))
    if dtype == "F32":
        return array.array("f", map(HALVES.__getitem__, codes)).tobytes()
    cut = [struct.unpack("<I", struct.pack("<f", value))[0] >> 16 for value in HALVES]
    return array.array("H", map(cut.__getitem__, codes)).tobytes()


def tensors_of(config):
    """(name, shape, kind) in the order of the file."""
    d, v = config["d_model"], config["vocab_size"]
    if config["share_encoder_decoder_embeddings"]:
        yield "model.shared.weight", (v, d), "embedding"
        if not config["tie_word_embeddings"]:  # transformers 5 looks for its copies then
            yield "model.encoder.embed_tokens.weight", (v, d), "shared"
            yield "model.decoder.embed_tokens.weight", (v, d), "shared"
    else:
        yield "model.encoder.embed_tokens.weight", (v, d), "embedding"
        yield "model.decoder.embed_tokens.weight", (v, d), "embedding"
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (v, d), "embedding"
    if config.get("logits_bias"):
        yield "final_logits_bias", (1, v), "bias"
    for side in ("encoder", "decoder"):
        for layer in range(config[f"{side}_layers"]):
            prefix = f"model.{side}.layers.{layer}."
            for attention in ("self_attn", "encoder_attn")[: 1 if side == "encoder" else 2]:
                for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    yield f"{prefix}{attention}.{part}.weight", (d, d), "weight"
                    yield f"{prefix}{attention}.{part}.bias", (d,), "bias"
                yield f"{prefix}{attention}_layer_norm.weight", (d,), "norm"
                yield f"{prefix}{attention}_layer_norm.bias", (d,), "bias"
            f = config[f"{side}_ffn_dim"]
            yield f"{prefix}fc1.weight", (f, d), "weight"
            yield f"{prefix}fc1.bias", (f,), "bias"
            yield f"{prefix}fc2.weight", (d, f), "weight"
            yield f"{prefix}fc2.bias", (d,), "bias"
            yield f"{prefix}final_layer_norm.weight", (d,), "norm"
            yield f"{prefix}final_layer_norm.bias", (d,), "bias"


def tensor_bytes(config, seed, name, shape, kind):
    count = math.prod(shape)
    if kind == "norm":
        return signs(seed, name, count, 0.25)
    if kind == "bias":
        return uniform_halves(seed, name, count, 0.25)
    if kind == "shared":
        name, kind = "model.shared.weight", "embedding"
    # Uniform in (-a, a) has the deviation a / sqrt(3). Logits spread by `spread`.
    deviation = config.get("spread", 2.0) if kind == "embedding" else 1.0
    data = uniform_halves(seed, name, count, math.sqrt(3) * deviation / math.sqrt(shape[1]))
    if kind == "embedding" and "spread" not in config:
        at = config["eos_token_id"] * shape[1]
        for i in range(at, at + shape[1]):  # EOS's row doubled, so that outputs end
            data[2 * i + 1] += 4
    return data


def write_weights(path, config, dtype, seed):
    size = 4 if dtype == "F32" else 2
    header, at = {}, 0
    for name, shape, _ in tensors_of(config):
        end = at + math.prod(shape) * size
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape, kind in tensors_of(config):
            file.write(converted(tensor_bytes(config, seed, name, shape, kind), dtype))


GENERATION_KEYS = ("eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_eos_token_id",
                   "forced_bos_token_id", "bad_words_ids", "suppress_tokens")


def make_model(preset, directory, dtype=None, seed=1):
    config = {**SMALL, **PRESETS[preset]}
    dtype = dtype or config.pop("dtype", "F16")
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    shown = {k: v for k, v in config.items() if k not in ("spread", "logits_bias", "dtype")}
    shown.update(architectures=["MarianMTModel"], model_type="marian", is_encoder_decoder=True,
                 decoder_vocab_size=config["vocab_size"], static_position_embeddings=True,
                 dtype={"F16": "float16", "F32": "float32", "BF16": "bfloat16"}[dtype])
    for key in ("bad_words_ids", "suppress_tokens"):
        shown.pop(key, None)
    (directory / "config.json").write_text(json.dumps(shown, indent=2, sort_keys=True) + "\n")
    generation = {k: config[k] for k in GENERATION_KEYS if config.get(k) is not None}
    (directory / "generation_config.json").write_text(
        json.dumps(generation, indent=2, sort_keys=True) + "\n")
    write_weights(directory / "model.safetensors", config, dtype, seed)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("preset", nargs="?", choices=sorted(PRESETS))
    parser.add_argument("directory", nargs="?")
    parser.add_argument("--dtype", choices=("F16", "F32", "BF16"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(PRESETS))
    elif not arguments.directory:
        parser.error("PRESET and DIR are needed")
    else:
        make_model(arguments.preset, arguments.directory, arguments.dtype, arguments.seed)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: MIT
"""Convert a Hugging Face Marian directory for CTranslate2 with numpy alone.

CTranslate2's own Marian loader drops the last vocabulary row and starts the decoder from zeros, which is wrong for a
model whose trained <pad> embedding starts the decoder; this goes through its generic specification instead.
"""
import json
import os
import struct

import numpy as np
from ctranslate2.converters import utils
from ctranslate2.specs import common_spec, transformer_spec

ACTIVATIONS = {"relu": common_spec.Activation.RELU, "swish": common_spec.Activation.SWISH,
               "silu": common_spec.Activation.SWISH, "gelu": common_spec.Activation.GELU}


def tensors_read(path):
    """All tensors of a safetensors file as float32."""
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        data = file.read()
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        if entry["dtype"] == "BF16":
            words = np.frombuffer(data[begin:end], np.uint16).astype(np.uint32) << 16
            values = words.view(np.float32)
        else:
            values = np.frombuffer(data[begin:end], {"F32": np.float32, "F16": np.float16}[entry["dtype"]])
        tensors[name] = values.astype(np.float32).reshape(entry["shape"])
    return tensors


def positions(count, width):
    """Marian's table: sines in the first half, cosines in the second."""
    angle = np.arange(count)[:, None] / np.power(10000, 2 * np.arange(width // 2) / width)
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)


class Filler:
    """Copies tensors of the directory into CTranslate2's specification."""

    def __init__(self, tensors, config):
        self.tensors, self.config = tensors, config

    def first(self, *names):
        return next((self.tensors[name] for name in names if name in self.tensors), None)

    def linear(self, spec, name):
        spec.weight, spec.bias = self.tensors[name + ".weight"], self.tensors[name + ".bias"]

    def norm(self, spec, name):
        spec.gamma, spec.beta = self.tensors[name + ".weight"], self.tensors[name + ".bias"]

    def attention(self, spec, name, own):
        parts = [common_spec.LinearSpec() for _ in range(3)]
        for part, letter in zip(parts, "qkv"):
            self.linear(part, f"{name}.{letter}_proj")
        if own:
            utils.fuse_linear(spec.linear[0], parts)
        else:
            utils.fuse_linear(spec.linear[0], parts[:1])
            utils.fuse_linear(spec.linear[1], parts[1:])
        self.linear(spec.linear[-1], name + ".out_proj")

    def side(self, spec, side, embeddings):
        config = self.config
        width = config["d_model"]
        table = self.first(f"model.{side}.embed_positions.weight")
        spec.scale_embeddings = width ** 0.5 if config.get("scale_embedding") else 1.0
        spec.position_encodings.encodings = (
            table if table is not None else positions(config["max_position_embeddings"], width))
        embeddings.weight = self.first(f"model.{side}.embed_tokens.weight", "model.shared.weight")
        for i, layer in enumerate(spec.layer):
            name = f"model.{side}.layers.{i}"
            self.attention(layer.self_attention, name + ".self_attn", True)
            self.norm(layer.self_attention.layer_norm, name + ".self_attn_layer_norm")
            if side == "decoder":
                self.attention(layer.attention, name + ".encoder_attn", False)
                self.norm(layer.attention.layer_norm, name + ".encoder_attn_layer_norm")
            self.linear(layer.ffn.linear_0, name + ".fc1")
            self.linear(layer.ffn.linear_1, name + ".fc2")
            self.norm(layer.ffn.layer_norm, name + ".final_layer_norm")


def vocabulary(directory, size):
    """Pieces by id; rows without a piece (random test models have no vocabulary) get a name."""
    pieces = [f"<row_{i}>" for i in range(size)]
    path = os.path.join(directory, "vocab.json")
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            for piece, index in json.load(file).items():
                pieces[index] = piece
    return pieces


def convert(directory, out):
    """directory (Marian) to out (CTranslate2, float32; the compute type is chosen at load time). Returns the pieces."""
    with open(os.path.join(directory, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    fill = Filler(tensors_read(os.path.join(directory, "model.safetensors")), config)
    spec = transformer_spec.TransformerSpec.from_config(
        (config["encoder_layers"], config["decoder_layers"]), config["encoder_attention_heads"], pre_norm=False,
        activation=ACTIVATIONS[config["activation_function"]])
    fill.side(spec.encoder, "encoder", spec.encoder.embeddings[0])
    fill.side(spec.decoder, "decoder", spec.decoder.embeddings)
    output = fill.first("lm_head.weight", "model.decoder.embed_tokens.weight", "model.shared.weight")
    spec.decoder.projection.weight = output
    bias = fill.first("final_logits_bias")
    if bias is not None and bias.any():
        spec.decoder.projection.bias = bias.reshape(-1)
    pieces = vocabulary(directory, output.shape[0])
    spec.register_source_vocabulary(pieces)
    spec.register_target_vocabulary(pieces)
    spec.config.bos_token = pieces[config.get("bos_token_id", 0) or 0]
    spec.config.eos_token = pieces[config["eos_token_id"]]
    spec.config.unk_token = pieces[1]
    spec.config.decoder_start_token = pieces[config["decoder_start_token_id"]]
    spec.validate()
    spec.optimize(quantization=None)
    os.makedirs(out, exist_ok=True)
    spec.save(out)
    return pieces

# SPDX-License-Identifier: MIT
"""Model directories: made ones that are odd in one way each against Hugging Face's vectors, one of
OPUS-MT's size, and bad ones, which give one line and exit code 2."""
import json
import shutil
import struct

import pytest
from tool import GOLDEN, MODEL, engine, generate, maker, refused

SMALL = [preset for preset in maker.PRESETS if preset not in maker.PUBLISHED]


@pytest.mark.parametrize("preset", SMALL)
def test_small_models_compute_what_hugging_face_does(preset, tmp_path):
    maker.make_model(preset, tmp_path)
    done = engine("verify", "--model", tmp_path, "--golden", GOLDEN / "odd" / preset, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["kind"]: row for row in json.loads(done.stdout)["checks"]}
    for kind in ("greedy", "greedy_rep1.3", "beam4", "probabilities", "encoder", "logits"):
        assert rows[kind]["total"] >= 6 and rows[kind]["judged"], kind


@pytest.mark.parametrize("preset", ["plain", "logits_bias", "all_odd"])
def test_float32_and_half_files_hold_the_same_numbers(preset, tmp_path):
    """... but for computed positions, which follow the type of the file."""
    seen = []
    for dtype in ("F16", "F32"):
        maker.make_model(preset, tmp_path / dtype, dtype)
        source = {"source_tokens": [9, 17, 25, 33, 1], "max_length": 12}
        result, = generate([source], "--tokens", model=tmp_path / dtype)
        seen.append(result)
    a, b = (result["sequences"][0] for result in seen)
    assert abs(a["score"] - b["score"]) < 0.05 and len(a["token_ids"]) == len(b["token_ids"])
    assert seen[0]["model_version"] != seen[1]["model_version"]


@pytest.mark.parametrize("compute", ["fp32", "int8"])
def test_a_model_of_opus_size_runs(compute, tmp_path):
    maker.make_model("opus", tmp_path)
    info = json.loads(engine("info", "--model", tmp_path, "--json", "--compute", compute,
                             "--rows", "4").stdout)
    assert info["config"]["decoder_layers"] == 6 and info["limits"]["vocabulary"] == 60000
    requests = [{"source_tokens": [100 * n, 200, 300, 0], "max_length": 6,
                 "num_beams": 1 + n % 2} for n in range(1, 5)]
    several = generate(requests, "--tokens", "--compute", compute, "--rows", "4",
                       model=tmp_path)
    alone = generate(requests[1:2], "--tokens", "--compute", compute, "--rows", "4",
                     model=tmp_path)
    assert several[1]["sequences"] == alone[0]["sequences"]
    for result in several:
        assert result["status"] == "completed"
        assert 59999 not in result["sequences"][0]["token_ids"]  # a bad word
        assert result["sequences"][0]["score"] < 0


# ---- bad directories ----

CONFIG = json.loads((MODEL / "config.json").read_text())


@pytest.fixture
def directory(tmp_path):
    target = tmp_path / "model"
    shutil.copytree(MODEL, target, ignore=shutil.ignore_patterns("golden", "*.md"))
    return target


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_files_are_named(directory, name):
    (directory / name).unlink()
    assert f"{directory}/{name}" in refused("info", "--model", directory)


@pytest.mark.parametrize("name", ["source.spm", "target.spm", "vocab.json"])
def test_missing_texts_are_named_and_not_needed_for_tokens(directory, name):
    (directory / name).unlink()
    assert name in refused("generate", "--model", directory, text='{"prompt": "a"}\n')
    generate([{"source_tokens": [4, 7, 3]}], "--tokens", model=directory)


def test_texts_are_read_by_the_target_file(directory):
    """As MarianTokenizer.decode does; the two files differ in published models."""
    request = {"prompt": "Where is the station?", "target_language": "ru"}
    before, = generate([request], model=directory)
    vocabulary = {i: piece for piece, i in json.loads((directory / "vocab.json").read_text()).items()}
    ids = before["sequences"][0]["token_ids"]
    piece = next(vocabulary[i] for i in ids if vocabulary[i].strip("\u2581").isalpha())
    entry = b"\x0a%c" % len(piece.encode()) + piece.encode() + b"\x15"
    size = len(entry) + 4 # and its score, a float
    for name, changes in (("source.spm", False), ("target.spm", True)):
        data = (directory / name).read_bytes()
        at = data.index(b"\x0a%c" % size + entry)
        # the same piece as a control symbol, which reads as nothing
        (directory / name).write_bytes(data[:at] + b"\x0a%c" % (size + 2) + data[at + 2:at + 2 + size] + b"\x18\x03"
                                       + data[at + 2 + size:])
        after, = generate([request], model=directory)
        assert after["sequences"][0]["token_ids"] == ids
        assert (after["sequences"][0]["text"] != before["sequences"][0]["text"]) == changes, (name, piece)


@pytest.mark.parametrize("change, message", [
    ({"model_type": "t5"}, "model_type is t5; only marian is supported"),
    ({"d_model": 500}, "d_model"),
    ({"d_model": 1024}, "has shape (3000, 512), config.json needs (3000, 1024)"),
    ({"d_model": "big"}, "d_model must be an integer"),
    ({"d_model": -8}, "d_model is -8, supported are"),
    ({"d_model": 1 << 40}, "d_model is 1099511627776, supported are"),
    ({"encoder_layers": 3}, "model.encoder.layers.2"),
    ({"decoder_layers": 0}, "decoder_layers is 0"),
    ({"decoder_ffn_dim": 128}, "fc1.weight has shape (256, 512)"),
    ({"decoder_attention_heads": 7}, "multiple of the attention heads"),
    ({"encoder_attention_heads": 256, "decoder_attention_heads": 256}, "heads"),
    ({"activation_function": "tanh"}, "activation_function"),
    ({"vocab_size": 4000, "decoder_vocab_size": 4000}, "has shape (3000, 512)"),
    ({"decoder_vocab_size": 4000}, "decoder_vocab_size 4000 differs"),
    ({"tie_word_embeddings": False}, "lm_head.weight is missing"),
    ({"share_encoder_decoder_embeddings": False}, "model.encoder.embed_tokens.weight is missing"),
    ({"max_position_embeddings": 1}, "max_position_embeddings is 1"),
])
def test_bad_configurations_are_named(directory, change, message):
    (directory / "config.json").write_text(json.dumps({**CONFIG, **change}))
    assert message in refused("info", "--model", directory)


@pytest.mark.parametrize("text", ["", "{", "[]", "\0\0", '{"d_model": 1, "d_model": 2}', "\xff"])
def test_configurations_that_are_no_json_object(directory, text):
    (directory / "config.json").write_text(text)
    assert "config.json" in refused("info", "--model", directory)


@pytest.mark.parametrize("change, message", [
    ({"eos_token_id": 3000}, "eos_token_id is 3000"),
    ({"forced_eos_token_id": 2}, "forced_eos_token_id 2 differs"),
    ({"bad_words_ids": [[]]}, "empty list"),
    ({"suppress_tokens": "x"}, "suppress_tokens must be a list"),
])
def test_bad_generation_configurations_are_named(directory, change, message):
    path = directory / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert message in refused("info", "--model", directory)


def weights(directory, edit):
    """Rewrites the header of the weights: edit(header) changes it in place."""
    data = (MODEL / "model.safetensors").read_bytes()
    size, = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + size])
    edit(header)
    text = json.dumps(header).encode()
    (directory / "model.safetensors").write_bytes(
        struct.pack("<Q", len(text)) + text + data[8 + size:])


NAME = "model.decoder.layers.0.fc1.weight"


@pytest.mark.parametrize("edit, message", [
    (lambda h: h.pop(NAME), "hole"),
    (lambda h: h[NAME].update(shape=[256, 511]), "its shape needs"),
    (lambda h: h[NAME].update(shape=[512, 256]), "config.json needs (256, 512)"),
    (lambda h: h[NAME].update(shape=[2**31 - 1, 2**31 - 1]), "its shape needs"),
    (lambda h: h[NAME].update(shape=[2**62, 4]), "its shape must have"),
    (lambda h: h[NAME].update(shape=[-1, 512]), "its shape must have"),
    (lambda h: h[NAME].update(shape="x"), "its shape must have"),
    (lambda h: h[NAME].update(dtype="I8"), "dtype I8 is not supported"),
    (lambda h: h[NAME].update(data_offsets=[0, 2**60]), "data_offsets lie outside"),
    (lambda h: h[NAME].update(data_offsets=[-4, 4]), "data_offsets lie outside"),
    (lambda h: h[NAME].update(data_offsets=[8, 4]), "data_offsets lie outside"),
    (lambda h: h[NAME].update(data_offsets=[1]), "is missing"),
    (lambda h: h.update({NAME + ".copy": h[NAME]}), "overlaps"),
    (lambda h: h.update({NAME: 7}), "is missing"),
])
def test_hostile_weight_headers_are_named(directory, edit, message):
    weights(directory, edit)
    assert message in refused("info", "--model", directory)


@pytest.mark.parametrize("cut", [0, 4, 8, 100, 20000, 1 << 20, 17818895])
def test_truncated_weights_are_refused(directory, cut):
    data = (MODEL / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(data[:cut])
    assert "model.safetensors" in refused("info", "--model", directory)


@pytest.mark.parametrize("head", [b"\xff" * 8, b"\0" * 8, struct.pack("<Q", 2**63),
                                  struct.pack("<Q", 64) + b"[" * 64,
                                  struct.pack("<Q", 1 << 20) + b'{"a":' * (1 << 18)])
def test_weights_that_are_none(directory, head):
    (directory / "model.safetensors").write_bytes(head + bytes(1 << 20))
    assert "model.safetensors" in refused("info", "--model", directory)


def test_a_directory_in_place_of_a_file(directory):
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors").mkdir()
    assert "model.safetensors" in refused("info", "--model", directory)

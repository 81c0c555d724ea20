# SPDX-License-Identifier: MIT
"""pgpt-engine verify, bench and info: that they pass what is right, and fail what is not."""
import json
import os
import shutil
import struct

import pytest
from tool import GOLDEN, MODEL, cases, engine, refused


def verify(*arguments, model=MODEL):
    """(exit code, rows by kind)"""
    done = engine("verify", "--model", model, "--json", *arguments)
    assert done.returncode in (0, 1), done.stderr
    report = json.loads(done.stdout)
    assert report["ok"] == (done.returncode == 0)
    return done.returncode, {row["kind"]: row for row in report["checks"]}


def test_the_shipped_model_is_the_reference():
    code, rows = verify()
    assert code == 0
    for kind, total in (("prompt to ids", 300), ("ids to text", 300), ("greedy", 300),
                        ("beam4", 60), ("greedy_rep1.3", 60), ("probabilities", 40), ("batch, k 16", 32)):
        assert rows[kind]["total"] == rows[kind]["equal"] == total and rows[kind]["judged"], kind
    assert 0 < rows["probabilities"]["worst"] <= 1e-5
    assert 0 < rows["logits"]["worst"] <= 2e-4 and 0 < rows["encoder"]["worst"] <= 2e-4


@pytest.mark.parametrize("compute", ["int8", "dynamic"])
def test_int8_gives_the_same_bits_in_any_batch(compute):
    _, rows = verify("--compute", compute, "--only", "batches")
    assert len(rows) == 5
    assert all(row["equal"] == row["total"] == 32 and row["ok"] for row in rows.values())


def test_the_table_shows_every_check():
    done = engine("verify", "--model", MODEL, "--only", "texts,tensors")
    assert done.returncode == 0 and done.stdout.endswith("\nok\n")
    for kind in ("prompt to ids", "ids to text", "probabilities", "encoder", "logits"):
        assert f"\n{kind} " in done.stdout


@pytest.fixture
def golden(tmp_path):
    """A copy of the golden directory and a way to change it."""
    target = tmp_path / "golden"
    shutil.copytree(GOLDEN / "prometheus-mini", target)

    def change(edit):
        some = cases()[:8]
        edit(some)
        (target / "cases.json").write_text(json.dumps(some))
        return target

    return change


def test_one_wrong_id_is_found(golden):
    def edit(some):
        some[3]["greedy_ids"][2] += 1
        del some[3]["warped"]

    os.remove(golden(edit) / "tensors.safetensors")
    code, rows = verify("--golden", golden(edit), "--only", "ids,tensors")
    assert code == 1
    row = rows["greedy"]
    assert (row["total"], row["equal"], row["ok"]) == (8, 7, False)
    first, = row["first"]
    right = cases()[3]["greedy_ids"][2]
    assert (first["case"], first["position"]) == (3, 1)
    assert (first["expected"], first["got"]) == (right + 1, right)
    assert first["gap"] > 0 and rows["beam4"]["ok"]


def test_a_wrong_beam_penalty_probability_support_and_text_are_found(golden):
    def edit(some):
        some[0]["beam4_ids"][1] = 77
        some[1]["greedy_rep1.3_ids"].insert(1, 77)
        some[2]["warped"][0]["top"][0][1] += 2e-5
        some[4]["warped"][1]["support"] += 2
        some[5]["greedy_text"] += "!"
        some[6]["prompt"] += " no"

    code, rows = verify("--golden", golden(edit), "--only", "texts,ids,tensors")
    assert code == 1
    wrong = {kind for kind, row in rows.items() if not row["ok"]}
    assert wrong == {"beam4", "greedy_rep1.3", "probabilities", "ids to text", "prompt to ids"}
    assert rows["probabilities"]["total"] - rows["probabilities"]["equal"] == 2
    assert [d["case"] for d in rows["probabilities"]["first"]] == [2, 4]


def model_with(tmp_path, change):
    """A copy of the shipped model whose weights (as bytes behind the header) were changed."""
    target = tmp_path / "model"
    shutil.copytree(MODEL, target, symlinks=False, ignore=shutil.ignore_patterns("golden"))
    data = bytearray((MODEL / "model.safetensors").read_bytes())
    size, = struct.unpack("<Q", data[:8])
    change(json.loads(data[8:8 + size]), memoryview(data)[8 + size:])
    (target / "model.safetensors").write_bytes(data)
    return target


def test_one_changed_weight_tensor_is_found(tmp_path):
    def change(header, data):
        begin, end = header["model.decoder.layers.1.fc2.bias"]["data_offsets"]
        data[begin:end] = bytes(end - begin)

    code, rows = verify("--golden", GOLDEN / "prometheus-mini", "--only", "ids,tensors",
                        model=model_with(tmp_path, change))
    assert code == 1 and rows["encoder"]["ok"]
    assert not rows["logits"]["ok"] and not rows["greedy"]["ok"]
    assert rows["logits"]["worst"] > 2e-4


@pytest.mark.parametrize("edit, message", [
    (lambda c: c[1].pop("input_ids"), "case 1: input_ids must be a list"),
    (lambda c: c[1].update(input_ids=[3000]), "case 1: input_ids must be a list"),
    (lambda c: c[1].update(input_ids=[4] * 300), "case 1: input_ids must be a list"),
    (lambda c: c[2].update(greedy_ids="x"), "case 2: greedy_ids must be a list"),
    (lambda c: c[0]["warped"][0].update(top=[[1]]), "case 0: warped.top must be"),
    (lambda c: c[0]["warped"][0].update(temperature=None), "case 0: temperature must be a number"),
    (lambda c: c[0].update(max_new_tokens=0), "case 0: max_new_tokens must be"),
    (lambda c: c[0].update(prompt=7), "case 0: prompt must be a string"),
    (lambda c: c[0]["greedy_ids"].pop(), "case0.logits has shape"),
    (lambda c: c.clear(), "must be a list of 1 to 100000 cases"),
])
def test_bad_golden_files_are_named(golden, edit, message):
    assert message in refused("verify", "--model", MODEL, "--golden", golden(edit))


def test_missing_or_damaged_golden_files(golden, tmp_path):
    assert "cases.json" in refused("verify", "--model", MODEL, "--golden", tmp_path / "none")
    target = golden(lambda c: None)
    (target / "cases.json").write_text("[{")
    assert "cases.json" in refused("verify", "--model", MODEL, "--golden", target)
    target = golden(lambda c: None)
    data = (target / "tensors.safetensors").read_bytes()
    (target / "tensors.safetensors").write_bytes(data[:-100])
    assert "truncated" in refused("verify", "--model", MODEL, "--golden", target)


def test_info():
    human = engine("info", "--model", MODEL).stdout
    info = json.loads(engine("info", "--model", MODEL, "--json").stdout)
    assert info["config"]["d_model"] == 512 and info["limits"]["vocabulary"] == 3000
    assert info["engine_id"] in human and info["device"] in human
    other = json.loads(engine("info", "--model", MODEL, "--json", "--compute", "int8").stdout)
    assert other["engine_id"] != info["engine_id"]
    assert other["model_version"] == info["model_version"]
    assert other["weight_bytes"] <= 0.35 * info["weight_bytes"]


def bench(*arguments):
    done = engine("bench", "--model", MODEL, *arguments)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_bench_prints_a_line_for_each_batch():
    lines = bench("--batch", "1,4", "--source", "8", "--new", "6", "--traffic", "--seconds", "1",
                  "--threads", "1", "--compute", "int8")
    assert [line["batch"] for line in lines] == [1, 4]
    for line in lines:
        assert line["model"] == "prometheus-mini" and line["threads"] == 1
        assert line["rounds"] >= 5 and line["phases"] == 14 and line["compute"].startswith("int8")
        assert line["us_per_step_min"] <= line["us_per_step"] <= line["us_per_step_max"]
        assert 0 < line["floor_us"] and line["floor_share"] > 0
        assert line["tok_per_s_min"] <= line["tok_per_s"] <= line["tok_per_s_max"]
        # a round's wall time holds its decode steps, one token a sequence each
        assert line["tok_per_s_max"] * line["us_per_step_min"] <= line["batch"] * 1e6 * 1.01
        assert line["traffic_tok_per_s"] > 0 and line["traffic_rows_mean"] <= line["batch"]


def test_bench_with_beams_and_sampling():
    beam, = bench("--batch", "2", "--beams", "3", "--source", "8", "--new", "6")
    sample, = bench("--batch", "2", "--sample", "--source", "8", "--new", "6")
    assert beam["beams"] == 3 and sample["sample"] and sample["beams"] == 1


def test_bench_of_natural_lines(tmp_path):
    path = tmp_path / "lines"
    path.write_text("".join(c["prompt"] + "\n" for c in cases()[:30]
                            if c["target_language"] == "ru"))
    count = path.read_text().count("\n")
    line, = bench("--lines", path, "--language", "ru", "--rows", "8")
    assert line["lines"] == line["latency_lines"] == count and line["rounds"] == 5
    assert 0 < line["p50_ms"] <= line["p95_ms"] <= line["p99_ms"]
    assert line["tok_per_s"] > line["lines_per_s"] > 0
    done = engine("bench", "--model", MODEL, "--lines", path, "--language", "xx")
    assert done.returncode == 3 and "no language of the model" in done.stderr

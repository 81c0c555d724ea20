# SPDX-License-Identifier: MIT
"""The codec against fastavro: what one encodes the other decodes to the same values, for the
product's schemas and for older and newer writers, defaults included."""
import io
import json
import os
import pathlib
import random
import subprocess

import fastavro
import pytest

import random_records
from random_records import RECORDS, ROOT, schema_files

BUILD = pathlib.Path(os.environ.get("PGPT_BUILD_DIR", ROOT / "build"))
BAD_PAYLOAD, UNKNOWN_SCHEMA, BAD_FRAME = "3", "2", "1"
# A writer's schema that breaks the contract, and what the message must name.
REFUSED = {
    "GenerationRequest.wrong_type": "field max_length",
    "GenerationRequest.wrong_item": "field stop",
    "GenerationRequest.missing": "field prompt",
}
OWN = {name: json.loads((ROOT / f"schema/{name}.avsc").read_text()) for name in RECORDS}


class Tool:
    def __init__(self):
        self.process = subprocess.Popen(
            [BUILD / "tests/codec_tool", ROOT / "tests/schema_versions"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8", errors="replace")

    def ask(self, record, payload):
        self.process.stdin.write(f"{record} {payload.hex()}\n")
        self.process.stdin.flush()
        status, _, rest = self.process.stdout.readline().rstrip("\n").partition(" ")
        return status, rest


@pytest.fixture(scope="module")
def tool():
    tool = Tool()
    yield tool
    tool.process.stdin.close()
    assert tool.process.wait(60) == 0  # leaks found by a sanitizer fail here


def fingerprint(schema):
    form = fastavro.schema.to_parsing_canonical_form(schema)
    return bytes.fromhex(fastavro.schema.fingerprint(form, "CRC-64-AVRO"))


def frame(schema, body):
    return b"\xc3\x01" + fingerprint(schema) + body


def read(body, writer, reader=None):
    reader = fastavro.parse_schema(reader, named_schemas={}) if reader else None
    return fastavro.schemaless_reader(io.BytesIO(body), fastavro.parse_schema(writer, named_schemas={}), reader)


def same(ours, theirs):
    """Equal, comparing floats as bits would print them."""
    return json.dumps(ours, sort_keys=True, default=list) == json.dumps(theirs, sort_keys=True, default=list)


def writers():
    return [p for p in schema_files() if p.stem not in REFUSED and not p.stem.endswith(".promoted")]


@pytest.mark.parametrize("path", writers(), ids=lambda p: p.stem)
def test_round_trip_of_random_records(tool, path):
    writer = json.loads(path.read_text())
    own = OWN[writer["name"]]
    rng = random.Random(path.stem)
    for _ in range(300):
        body = random_records.body(writer, random_records.value(writer, rng, {}))
        status, answer = tool.ask(writer["name"], frame(writer, body))
        assert status == "0", answer
        answer = bytes.fromhex(answer)
        assert answer[:10] == b"\xc3\x01" + fingerprint(own)
        assert same(read(answer[10:], own), read(body, writer, own))


@pytest.mark.parametrize("name", RECORDS)
def test_own_encoding_is_byte_for_byte_fastavros(tool, name):
    rng = random.Random(name)
    for _ in range(100):
        payload = frame(OWN[name], random_records.body(OWN[name], random_records.value(OWN[name], rng, {})))
        assert tool.ask(name, payload) == ("0", payload.hex())


@pytest.mark.parametrize("stem", sorted(REFUSED))
def test_writer_that_breaks_the_contract(tool, stem):
    writer = json.loads((ROOT / f"tests/schema_versions/{stem}.avsc").read_text())
    body = random_records.body(writer, {
        "job_id": "x", "prompt": "x", "created_at_us": 1, "max_length": "x", "stop": [1]})
    status, message = tool.ask("GenerationRequest", frame(writer, body))
    assert status == BAD_PAYLOAD and REFUSED[stem] in message


def test_promotions_unions_and_order(tool):
    writer = json.loads((ROOT / "tests/schema_versions/GenerationRequest.promoted.avsc").read_text())
    record = {
        "created_at_us": -5, "job_id": "идент".encode(), "prompt": "p", "max_length": 17, "temperature": 0.5,
        "top_p": 1, "length_penalty": -3, "seed": -7, "deadline_us": 1 << 60, "stop": ["a", "ж".encode()],
        "source_tokens": [1, 2], "tenant": None, "metadata": {"k": "v"}}
    status, answer = tool.ask("GenerationRequest", frame(writer, random_records.body(writer, record)))
    assert status == "0", answer
    got = read(bytes.fromhex(answer)[10:], OWN["GenerationRequest"])
    wanted = {**record, "job_id": "идент", "stop": ["a", "ж"], "tenant": "", "top_p": 1.0, "length_penalty": -3.0}
    assert {key: got[key] for key in wanted} == wanted
    assert got["num_beams"] == 1 and got["author"] == ""


@pytest.mark.parametrize("change, field", [
    ({"max_length": 1 << 31}, "max_length"),
    ({"temperature": 1e300}, "temperature"),
    ({"prompt": None}, "prompt"),
    ({"stop": [None]}, "stop"),
    ({"metadata": {"k": None}}, "metadata"),
    ({"job_id": b"\xff"}, "job_id"),
    ({"source_tokens": [1 << 40]}, "source_tokens"),
])
def test_values_that_do_not_fit(tool, change, field):
    writer = json.loads((ROOT / "tests/schema_versions/GenerationRequest.promoted.avsc").read_text())
    record = {
        "created_at_us": 0, "job_id": b"x", "prompt": "p", "max_length": 1, "temperature": 1.0, "top_p": 1,
        "length_penalty": 1, "seed": 1, "deadline_us": None, "stop": [], "source_tokens": None, "tenant": "t",
        "metadata": None, **change}
    status, message = tool.ask("GenerationRequest", frame(writer, random_records.body(writer, record)))
    assert status == BAD_PAYLOAD and f"field {field}" in message


@pytest.mark.parametrize("bad", [
    b"\xff", b"\xc0\x80", b"\xe0\x80\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xf8\x88\x80\x80\x80",
    b"\xe2\x82", b"a\x80", b"\xf0\x9f\x98"])
def test_invalid_utf8_names_its_field(tool, bad):
    own = OWN["JobControl"]
    filler = b"?" * len(bad)
    body = random_records.body(own, {"job_id": "x", "action": "cancel", "reason": filler.decode(), "created_at_us": 0})
    status, message = tool.ask("JobControl", frame(own, body.replace(filler, bad)))
    assert status == BAD_PAYLOAD and "field reason" in message and "UTF-8" in message


def test_frames_that_are_none(tool):
    own = OWN["JobControl"]
    payload = frame(own, random_records.body(own, {"job_id": "x", "action": "cancel", "reason": "", "created_at_us": 0}))
    assert tool.ask("JobControl", payload)[0] == "0"
    for bad in (b"", b"\xc3", payload[:9], b"\xc3\x02" + payload[2:], b"{" + payload, b"\x00\x00\x00\x01"):
        assert tool.ask("JobControl", bad)[0] == BAD_FRAME
    status, message = tool.ask("JobControl", b"\x00\x00\x00\x00\x07" + payload[10:])
    assert status == UNKNOWN_SCHEMA and "registry" in message and "7" in message
    status, message = tool.ask("JobControl", payload[:2] + payload[2:10][::-1] + payload[10:])
    assert status == UNKNOWN_SCHEMA
    status, message = tool.ask("GenerationRequest", payload)
    assert status == UNKNOWN_SCHEMA and "JobControl" in message

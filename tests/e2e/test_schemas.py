# SPDX-License-Identifier: MIT
"""Writers older and newer than the worker: their schemas lie in schema.dir, their jobs run."""
import json
import uuid

import fastavro
import pytest

import wire
from conftest import ROOT
from realm import request

OLD_AND_NEW = ROOT / "tests/schema_versions"


def schema(name):
    return json.loads((OLD_AND_NEW / f"{name}.avsc").read_text())


def test_the_published_request_schema_is_the_contracts():
    published = fastavro.schema.load_schema(str(ROOT / "schema/GenerationRequest.avsc"))
    assert wire.fingerprint(published) == wire.fingerprint(wire.GENERATION_REQUEST)
    control = fastavro.schema.load_schema(str(ROOT / "schema/JobControl.avsc"))
    assert wire.fingerprint(control) == wire.fingerprint(wire.JOB_CONTROL)


def test_oldest_writer_gets_the_defaults(main, generate):
    job = {"job_id": str(uuid.uuid4()), "prompt": "Where is the nearest station?", "created_at_us": 0}
    result, = main.run(job, schema=schema("GenerationRequest.v0"))
    explicit, = generate([request(job["prompt"], target_language="")])
    assert result["status"] == "completed", result["error"]
    assert result["sequences"][0]["text"] == explicit["sequences"][0]["text"]


def test_newer_writer_with_every_kind_of_added_field(main, generate):
    job = request(do_sample=True, seed=3, num_return_sequences=2, metadata={"a": "b"})
    extra = {"note": "unknown to the worker", "origin": {"host": "h", "port": 1, "parent": {"host": "g", "port": 2, "parent": None}},
             "nulls": [None] * 5, "empties": [{"a": None, "b": None}] * 3, "pairs": {"x": [1.5, 2.5]}, "grade": "B",
             "digest": b"1234", "raw": b"\x00\xff", "tree": [[{"k": None}], []]}
    result, = main.run({**job, **extra}, schema=schema("GenerationRequest.v9"))
    reference, = generate([job])
    assert result["status"] == "completed", result["error"]
    assert [s["text"] for s in result["sequences"]] == [s["text"] for s in reference["sequences"]]
    assert result["metadata"] == {"a": "b"}


def test_promoted_types_and_another_order(main):
    writer = schema("GenerationRequest.promoted")
    values = {"created_at_us": 5, "job_id": str(uuid.uuid4()).encode(), "prompt": "Where is the nearest station?",
              "max_length": 6, "temperature": 1.0, "top_p": 1, "length_penalty": 1, "seed": 4, "deadline_us": None,
              "stop": ["never", b"there"], "source_tokens": None, "tenant": "t", "metadata": {"a": "b"}}
    assert set(values) == {f["name"] for f in writer["fields"]}
    job_id = values["job_id"].decode()
    main.produce("requests", job_id, wire.encode(writer, values))
    main.flush()
    result = main.result(job_id)
    assert result["status"] == "completed", result["error"]
    assert 0 < result["usage"]["generated_tokens"] <= 6 and result["metadata"] == {"a": "b"}


@pytest.mark.parametrize("name, record", [
    ("missing", {}), ("wrong_type", {"prompt": "x", "max_length": "128"}), ("wrong_item", {"prompt": "x", "stop": [1]})])
def test_writers_that_cannot_be_read_are_dead_lettered(main, name, record):
    before = len(main.reader.records["dlq"])
    payload = wire.encode(schema(f"GenerationRequest.{name}"), {"job_id": str(uuid.uuid4()), "created_at_us": 0, **record})
    main.produce("requests", f"writer-{name}", payload)
    main.flush()
    main.dead_letters(before + 1)
    letter = main.reader.records["dlq"][-1]
    assert letter.value == payload and dict(letter.headers)["dlq.error_class"] == b"undecodable"


def test_old_control_records_cancel(main):
    """JobControl as its oldest writer sent it."""
    job = request()
    main.produce("control", job["job_id"], wire.encode(schema("JobControl.v0"), {"job_id": job["job_id"], "action": "cancel"}))
    main.flush()
    main.reader.quiet(0.5)
    assert main.run(job)[0]["status"] == "cancelled"

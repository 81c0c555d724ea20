# SPDX-License-Identifier: MIT
"""What cannot be decoded, or has no UUID, goes to the dead-letter topic with its bytes and headers as
they were, and blocks nobody."""
import copy
import random
import time

import pytest

import wire
from realm import request

TRACE = [("traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"), ("tracestate", b"a=b,c=d")]
NAMES = ["dlq.topic", "dlq.partition", "dlq.offset", "dlq.attempt", "dlq.error_class", "dlq.error_message",
         "dlq.worker", "dlq.at_us"]
GOOD = wire.encode(wire.GENERATION_REQUEST, request())
RNG = random.Random(1)


def no_uuid(job_id):
    return wire.encode(wire.GENERATION_REQUEST, request(job_id=job_id))


def body_of(schema, record):
    """A record written with another schema but framed as the published one."""
    return GOOD[:10] + wire.encode(schema, record)[10:]


def with_type(field, kind):
    schema = copy.deepcopy(wire.GENERATION_REQUEST)
    changed = next(f for f in schema["fields"] if f["name"] == field)
    changed["type"] = kind
    changed.pop("default", None)
    return schema


UNKNOWN = {"type": "record", "name": "GenerationRequest", "namespace": "pgpt",
           "fields": [{"name": "job_id", "type": "string"}, {"name": "unknown_to_all", "type": "int"}]}


def not_utf8(field):
    """From a writer that does not check its strings: on the wire the same as `bytes`."""
    return body_of(with_type(field, "bytes"), {**request(), "tenant": "", **{field: b"\xd0\xbf\xd1"}})


JUNK = {
    "empty": (b"", "undecodable"),
    "random": (bytes(RNG.getrandbits(8) for _ in range(300)), "undecodable"),
    "text": (b'{"job_id": "not avro at all"}', "undecodable"),
    "header_alone": (GOOD[:10], "undecodable"),
    "cut": (GOOD[:-3], "undecodable"),
    "half": (GOOD[:len(GOOD) // 2], "undecodable"),
    "bytes_after": (GOOD + b"\x00", "undecodable"),
    "unknown_schema": (wire.encode(UNKNOWN, {"job_id": request()["job_id"], "unknown_to_all": 1}), "undecodable"),
    "another_record": (wire.encode(wire.JOB_CONTROL, {"job_id": request()["job_id"], "action": "cancel",
                                                       "created_at_us": 0}), "undecodable"),
    "huge_length": (GOOD[:10] + b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01" + GOOD[11:], "undecodable"),
    "negative_length": (GOOD[:10] + b"\x01" + GOOD[11:], "undecodable"),
    "huge_array": (body_of(with_type("stop", "long"), request(stop=2 ** 40)), "undecodable"),
    "job_id_word": (no_uuid("not-a-uuid"), "no_job_id"),
    "job_id_empty": (no_uuid(""), "no_job_id"),
    "job_id_short": (no_uuid("0" * 35), "no_job_id"),
    "job_id_no_dashes": (no_uuid("0" * 36), "no_job_id"),
    "job_id_braces": (no_uuid("{" + request()["job_id"][2:] + "}"), "no_job_id"),
    "job_id_not_utf8": (not_utf8("job_id"), "undecodable"),
    "prompt_not_utf8": (not_utf8("prompt"), "undecodable"),
    "tenant_not_utf8": (not_utf8("tenant"), "undecodable"),
}


@pytest.fixture(scope="module")
def dead(main_realm, main_worker):
    """name -> (what was sent, its dead letter); good jobs between them finish."""
    realm, good = main_realm, []
    before = {r.key for r in realm.reader.records["dlq"]}
    since = time.time() * 1e6
    for name, (payload, _) in JUNK.items():
        good.append(request(f"Between the bad ones: {name}."))
        realm.produce("requests", f"junk-{name}", payload, TRACE, partition=1)
        realm.send(good[-1], partition=1)
    assert all(r["status"] == "completed" for r in realm.results([g["job_id"] for g in good]).values())
    letters = realm.dead_letters(len(before) + len(JUNK))
    sent = {f"junk-{name}".encode() for name in JUNK} # other modules send junk of their own
    return since, {r.key.decode(): r for r in letters if r.key in sent}


@pytest.mark.parametrize("name", JUNK)
def test_original_bytes_and_headers(name, dead, main):
    since, letters = dead
    letter, (payload, error_class) = letters[f"junk-{name}"], JUNK[name]
    headers = dict(letter.headers)
    assert letter.value == payload
    assert set(NAMES) <= set(headers) and len(headers) == len(letter.headers)
    assert headers["dlq.topic"] == main.topic("requests").encode()
    assert headers["dlq.partition"] == b"1" and int(headers["dlq.offset"]) >= 0
    assert headers["dlq.attempt"] == b"1"
    assert headers["dlq.error_class"].decode() == error_class
    assert headers["dlq.error_message"].decode().strip()
    if name.endswith("not_utf8"):
        assert name.removesuffix("_not_utf8") in headers["dlq.error_message"].decode()
    assert headers["dlq.worker"] == b"main-worker"
    assert since <= int(headers["dlq.at_us"]) <= time.time() * 1e6
    assert headers["traceparent"] == TRACE[0][1] and headers["tracestate"] == TRACE[1][1]


def test_offsets_in_the_headers_are_where_the_record_lies(dead):
    offsets = [int(dict(letter.headers)["dlq.offset"]) for letter in dead[1].values()]
    assert len(set(offsets)) == len(JUNK)


def test_no_dead_letter_has_a_result_or_an_event(dead, main):
    main.reader.quiet(0.5)
    for kind in ("results", "events"):
        assert not [r for r in main.reader.records[kind] if (r.key or b"").startswith(b"junk-")]


def test_no_key_no_value_no_headers(main):
    """A tombstone and a record without key or headers."""
    count = len(main.reader.records["dlq"])
    main.produce("requests", None, b"junk without a key")
    main.produce("requests", b"tombstone", None)
    main.flush()
    main.reader.until(lambda: len(main.reader.records["dlq"]) >= count + 2, 90, lambda: "two dead letters")
    letters = main.reader.records["dlq"][count:]
    assert sorted((r.key or b"", r.value or b"") for r in letters) == [(b"", b"junk without a key"), (b"tombstone", b"")]
    assert all("traceparent" not in dict(r.headers) for r in letters)


def test_a_record_at_the_topics_limit_keeps_every_byte(main):
    payload = bytes(RNG.getrandbits(8) for _ in range(1024)) * 1023
    count = len(main.reader.records["dlq"])
    main.produce("requests", b"big", payload, TRACE)
    main.flush()
    main.reader.until(lambda: len(main.reader.records["dlq"]) > count, 90, lambda: "the big dead letter")
    assert main.reader.records["dlq"][-1].value == payload


def test_oversized_trace_headers_are_dropped_not_fatal(main):
    job = request()
    main.send(job, headers=[("traceparent", b"x" * 5000), ("tracestate", b"y" * 4096), ("other", b"z")])
    assert main.result(job["job_id"])["status"] == "completed"
    assert dict(main.reader.results[job["job_id"]][0].headers) == {"tracestate": b"y" * 4096}


def test_a_replayed_record_runs_again_as_the_next_attempt(main):
    """The operator asked for a second result: dlq.attempt makes it no duplicate."""
    job = request()
    main.run(job)
    main.produce("requests", job["job_id"], wire.encode(wire.GENERATION_REQUEST, job), [("dlq.attempt", b"1")])
    main.flush()
    reader = main.reader
    reader.until(lambda: len(reader.results[job["job_id"]]) == 2, 90, lambda: "a second result")
    first, second = [r.value for r in reader.results[job["job_id"]]]
    assert (first["attempt"], second["attempt"]) == (1, 2)
    assert first["sequences"] == second["sequences"]
    assert [e["attempt"] for e in main.final_events(job["job_id"], count=2)] == [1, 2]
    row, = main.wait_rows("select * from job where job_id = %s", (job["job_id"],), lambda rows: rows and rows[0]["finals"] == 2)
    assert (row["attempt"], row["status"]) == (2, "completed")
    assert len(main.rows("select 1 from job_latency where job_id = %s", (job["job_id"],))) == 1


def test_junk_that_is_replayed_is_dead_lettered_as_the_next_attempt(main):
    count = len(main.reader.records["dlq"])
    main.produce("requests", b"again", b"still junk", [("dlq.attempt", b"4")])
    main.flush()
    main.reader.until(lambda: len(main.reader.records["dlq"]) > count, 90, lambda: "the dead letter")
    assert dict(main.reader.records["dlq"][-1].headers)["dlq.attempt"] == b"5"


def test_too_many_dead_letters_stop_the_intake(realm):
    """More than 20 % of at least 200: unready, with the reason; nothing is read on; a restart goes on."""
    worker = realm.worker("limited")
    for n in range(160):
        realm.send(request(max_length=4), partition=0)
    realm.results(realm.sent)
    assert worker.http("/readyz")[0] == 200
    for n in range(60):
        realm.produce("requests", f"junk-{n}", b"junk %d" % n, partition=0)
    realm.flush()
    deadline = time.time() + 90
    while worker.http("/readyz")[0] != 503 and time.time() < deadline:
        time.sleep(0.05)
    status, reason = worker.http("/readyz")
    assert status == 503 and "dead-letter" in reason, reason
    late = request()
    realm.send(late, partition=0)
    realm.reader.quiet(1.5)
    assert not realm.reader.results[late["job_id"]], "a stopped intake went on"
    assert worker.http("/healthz")[0] == 200, "stopped on purpose is not dead"
    assert worker.terminate() == 0
    realm.worker("after")
    assert realm.result(late["job_id"])["status"] == "completed"
    assert sorted(r.key for r in realm.dead_letters(60)) == sorted(b"junk-%d" % n for n in range(60))

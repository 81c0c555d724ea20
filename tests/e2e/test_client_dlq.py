# SPDX-License-Identifier: MIT
"""`pgpt dlq` against a real broker."""
import json
import os
import time
import uuid

from confluent_kafka import Producer

from client_fixtures import brokers, client, encode # noqa: F401


def dead_letters(client, letters):
    """letters: (key, value, extra headers); written as the worker does, within a transaction."""
    p = Producer({"bootstrap.servers": client.brokers, "transactional.id": f"{client.prefix}-dlq", "log_level": 0,
                  "message.max.bytes": 2000000})
    p.init_transactions(30)
    for abort in (True, False):
        p.begin_transaction()
        for i, (key, value, extra) in enumerate(letters):
            headers = {"traceparent": "00-aa-bb-01", "dlq.topic": client.topic("requests"), "dlq.partition": "2",
                       "dlq.offset": str(i), "dlq.attempt": "1", "dlq.error_class": "undecodable",
                       "dlq.error_message": "why", "dlq.worker": "w1", "dlq.at_us": str(int(time.time() * 1e6)), **extra}
            p.produce(client.topic("dlq"), value, key, headers=list(headers.items()))
        p.flush(30)
        p.abort_transaction(30) if abort else p.commit_transaction(30)


def request_bytes(prompt="Hello"):
    job = str(uuid.uuid4())
    return job, encode("GenerationRequest", {"job_id": job, "prompt": prompt, "created_at_us": 1, "temperature": 0.7})


def test_dlq_list_and_show(client):
    assert client.run("dlq", "list").out == ""
    job, good = request_bytes()
    dead_letters(client, [(b"k1", b"\x01junk\xff" + bytes(range(256)) * 4, {}),
                          (job, good, {"dlq.error_class": "poison", "dlq.attempt": "3"}),
                          (None, b"", {"dlq.error_message": "with \x1b[31m colours"})])
    rows = [json.loads(line) for line in client.run("dlq", "list", "--json").lines]
    assert [(r["key"], r["error_class"], r["attempt"]) for r in rows] == [
        ("k1", "undecodable", 1), (job, "poison", 3), (None, "undecodable", 1)]
    assert rows[0]["source_partition"] == 2 and rows[0]["worker"] == "w1" and rows[0]["bytes"] == 1030
    listed = client.run("dlq", "list").out
    assert "\x1b" not in listed and len(listed.splitlines()) == 3
    assert [json.loads(x)["key"] for x in client.run("dlq", "list", "--class", "poison", "--json").lines] == [job]
    assert [json.loads(x)["key"] for x in client.run("dlq", "list", "--key", "k1", "--json").lines] == ["k1"]
    assert len(client.run("dlq", "list", "--limit", 2).lines) == 2
    assert client.run("dlq", "list", "--since", "0").out == ""

    place = f"{rows[1]['partition']}:{rows[1]['offset']}"
    shown = json.loads(client.run("dlq", "show", place, "--json").out)
    assert shown["request"]["prompt"] == "Hello" and shown["request"]["temperature"] == 0.7
    assert shown["headers"]["traceparent"] == "00-aa-bb-01"
    assert '"prompt": "Hello"' in client.run("dlq", "show", rows[1]["offset"]).out
    told = client.run("dlq", "show", rows[0]["offset"]).out
    assert "not a request:" in told and "00000000  01 6a 75 6e 6b ff 00" in told and "518 more bytes" in told
    shown = json.loads(client.run("dlq", "show", rows[0]["offset"], "--json", "--bytes", 0).out)
    assert bytes.fromhex(shown["value_hex"]) == b"\x01junk\xff" + bytes(range(256)) * 4
    assert "there is no dead letter 999" in client.run("dlq", "show", 999, code=4).err


def test_dlq_replay_sends_the_same_bytes_as_the_next_attempt(client):
    job, good = request_bytes()
    junk = b"\x01junk" + os.urandom(500)
    dead_letters(client, [(job, good, {"dlq.error_class": "poison", "dlq.attempt": "3"}), (b"\xffkey", junk, {}),
                          (None, b"no key", {"dlq.partition": "77"})])
    offsets = [json.loads(x)["offset"] for x in client.run("dlq", "list", "--json").lines]
    assert "3 requests would be sent" in client.run("dlq", "replay", "--all", "--dry-run").err
    assert client.records("requests") == []
    assert "1 of 1 requests sent again" in client.run("dlq", "replay", offsets[0], offsets[0]).out
    [m] = client.records("requests")
    assert (m.key(), m.value(), m.partition()) == (job.encode(), good, 2)
    assert m.headers() == [("traceparent", b"00-aa-bb-01"), ("dlq.attempt", b"3")]
    assert "2 of 2 requests sent again" in client.run("dlq", "replay", *offsets[1:]).out
    sent = {m.value(): m for m in client.records("requests")}
    assert sent[junk].key() == b"\xffkey" and sent[b"no key"].key() is None
    assert dict(sent[junk].headers())["dlq.attempt"] == b"1"
    assert len(client.records("dlq")) == 3


def test_dlq_replay_sends_a_request_once_in_a_run(client):
    job, good = request_bytes()
    dead_letters(client, [(job, good, {"dlq.attempt": "3"})] + [(b"x", b"other", {})] +
                 [(job, good, {"dlq.attempt": str(a)}) for a in (4, 5)])
    assert "2 of 2 requests sent again" in client.run("dlq", "replay", "--all").out
    sent = {m.value(): m for m in client.records("requests")}
    assert len(sent) == len(client.records("requests")) == 2
    assert dict(sent[good].headers())["dlq.attempt"] == b"5" # its newest


def test_dlq_replay_of_many_asks(client):
    dead_letters(client, [(b"k", b"junk %d" % i, {"dlq.worker": f"w{i % 2}"}) for i in range(30)])
    assert "30 requests would be sent again; say --yes" in client.run("dlq", "replay", "--all", code=2).err
    assert client.records("requests") == []
    assert "4 of 4" in client.run("dlq", "replay", "--all", "--limit", 4).out
    assert "15 of 15" in client.run("dlq", "replay", "--all", "--worker", "w1", "--yes").out


def test_dlq_replay_leaves_cut_payloads_out(client):
    dead_letters(client, [(b"k", b"cut", {"dlq.sha256": "00"}), (b"k", b"whole", {})])
    told = client.run("dlq", "replay", "--all")
    assert "1 of 1" in told.out and "had to cut it" in told.err
    assert [m.value() for m in client.records("requests")] == [b"whole"]

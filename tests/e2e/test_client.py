# SPDX-License-Identifier: MIT
"""The `pgpt` command against a real broker and a worker of ordinary libraries."""
import json
import os
import pty
import random
import select
import signal
import time
import uuid

import psycopg
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, NewPartitions

from client_fixtures import (DECODER, KINDS, PARTITIONS, Worker, bare, brokers, client, database_url, encode,
                             murmur2, worker)  # noqa: F401

COMMANDS = ("submit", "follow", "cancel", "status", "translate", "load", "topics", "dlq")


# ---- the command line ----

def test_help_of_each_command(bare):
    overview = bare.run("--help").out
    for command in COMMANDS:
        assert f"  {command} " in overview
        text = bare.run(command, "--help").out
        assert text.startswith(f"usage: pgpt {command} ")
        assert "Examples\n  pgpt " in text.replace("\n  id=$(pgpt", "\n  pgpt") and "--json" in text and "Exit codes" in text


@pytest.mark.parametrize("arguments, told", [
    ([], "usage: pgpt COMMAND"),
    (["sbmit"], "no command sbmit"),
    (["submit", "--nothing", "x"], "--nothing: there is no such option"),
    (["submit", "--beams", "two", "x"], "--beams two: must be a whole number"),
    (["submit", "--job-id", "12", "x"], "--job-id 12: must be a UUID"),
    (["submit", "--job-id", "x" * 36, "x"], "must be a UUID"),
    (["submit", ""], "text 1 is empty"),
    (["submit"], "standard input holds no text"),
    (["submit", "-X", "acks", "x"], "-X acks: must be name=value"),
    (["submit", "-X", "no.such.setting=1", "x"], "no.such.setting"),
    (["follow"], "which job?"),
    (["follow", "--since", "yesterday", str(uuid.uuid4())], "--since yesterday"),
    (["follow", "nonsense"], "not a UUID"),
    (["cancel", "nonsense"], "not a UUID"),
    (["status", "nonsense"], "not a UUID"),
    (["status"], "PGPT_DATABASE_URL"),
    (["translate", "hello"], "standard input"),
    (["load", "x"], "--rate is missing"),
    (["load", "--rate", "5"], "nothing to send"),
    (["load", "--rate", "5", "--arrivals", "often", "x"], "--arrivals often"),
    (["load", "--rate", "5", "--file", "/no/such/file"], "/no/such/file cannot be opened"),
    (["topics"], "--create or --check"),
    (["dlq"], "list, show or replay"),
    (["dlq", "show"], "show which?"),
    (["dlq", "show", "x"], "PARTITION:OFFSET"),
    (["dlq", "replay"], "replay which?"),
])
def test_wrong_use_says_what_and_exits_2(bare, arguments, told):
    assert told in bare.run(*arguments, code=2).err


def test_password_is_not_printed(bare):
    told = bare.run("submit", "x", code=2, env={"PGPT_KAFKA_SSL_KEY_PASSWORD": "s3cret", "PGPT_KAFKA_SSL_NONE": "1"}).err
    assert "ssl.none" in told and "s3cret" not in told


@pytest.mark.parametrize("arguments", [["submit", "x"], ["follow", str(uuid.uuid4())], ["topics", "--check"], ["dlq", "list"],
                                       ["cancel", str(uuid.uuid4())], ["load", "--rate", "5", "x"], ["translate"]])
def test_unreachable_brokers(bare, arguments):
    begun = time.time()
    told = bare.run(*arguments, "--brokers", "127.0.0.1:1", "--timeout", "1s", code=3).err
    assert "127.0.0.1:1" in told and "refused" in told
    assert time.time() - begun < 8


def test_missing_topic_names_the_remedy(bare):
    assert f"{bare.topic('requests')} is missing; create the topics by: pgpt topics --create" in \
        bare.run("submit", "x", code=3).err


# ---- topics ----

def described(client, kind):
    resource = ConfigResource(ConfigResource.Type.TOPIC, client.topic(kind))
    return {n: e.value for n, e in client.admin.describe_configs([resource])[resource].result(10).items()}


def counts(client):
    topics = client.admin.list_topics(timeout=10).topics
    return {kind: len(topics[client.topic(kind)].partitions) for kind in KINDS}


def test_topics_are_created_as_the_contract_says(client):
    day = 86400 * 1000
    assert counts(client) == {"requests": 3, "chunks": 3, "results": 3, "events": 3, "index": 3, "control": 1, "dlq": 1}
    for kind, keeps in {"requests": 7 * day, "chunks": day, "results": 7 * day, "events": 30 * day,
                        "index": 3600 * 1000, "control": day, "dlq": 30 * day}.items():
        settings = described(client, kind)
        assert settings["retention.ms"] == str(keeps), kind
        assert settings["cleanup.policy"] == "delete" and settings["min.insync.replicas"] == "1"
        assert settings["max.message.bytes"] == str((1 << 20) + (64 << 10 if kind == "dlq" else 0))
    again = client.run("topics", "--create").out
    assert "created" not in again and "grown" not in again and "as they should be" in again
    assert "as they should be, 3 partitions" in client.run("topics", "--check").out


def test_topics_check_tells_each_difference(client):
    admin = client.admin
    entry = ConfigEntry("retention.ms", "1000", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, client.topic("results"), incremental_configs=[entry])
    admin.incremental_alter_configs([resource])[resource].result(10)
    admin.create_partitions([NewPartitions(client.topic("chunks"), 5)])[client.topic("chunks")].result(10)
    admin.delete_topics([client.topic("index")])[client.topic("index")].result(10)
    told = client.run("topics", "--check", code=6).lines
    assert sorted(told) == sorted([f"{client.topic('results')}: retention.ms is 1000, should be 604800000",
                                   f"{client.topic('chunks')}: partitions is 5, should be 3",
                                   f"{client.topic('index')}: topic is missing, should be present"])
    found = json.loads(client.run("topics", "--check", "--json", code=6).out)
    assert not found["ok"] and len(found["differences"]) == 3
    client.run("topics", "--create", "--partitions", 5)
    assert described(client, "results")["retention.ms"] == "1000" # set by somebody: left alone
    assert client.run("topics", "--check", code=6).lines == [f"{client.topic('results')}: retention.ms is 1000, should be 604800000"]
    client.run("topics", "--create", "--alter")
    assert described(client, "results")["retention.ms"] == "604800000"
    client.run("topics", "--check")


def test_topics_grow_outputs_first(client):
    lines = client.run("topics", "--create", "--partitions", 6).lines
    grown = [line.split(":")[0].rsplit(".", 1)[1] for line in lines if "grown" in line]
    assert grown == ["chunks", "results", "events", "index", "requests"]
    assert counts(client) == {"requests": 6, "chunks": 6, "results": 6, "events": 6, "index": 6, "control": 1, "dlq": 1}
    assert client.run("topics", "--create", "--partitions", 3).out.count("is 6, should be 3") == 5 # never fewer


# ---- submit ----

def test_submitted_request_is_what_was_asked_for(client):
    ids = client.run("submit", "--to", "en", "--author", "author_3", "--max-length", 50, "--min-length", 2, "--sample",
                     "--temperature", 0.7, "--top-k", 5, "--top-p", 0.9, "--seed", -12, "--repetition-penalty", 1.5,
                     "-n", 2, "--stop", "a", "--stop", "б", "--stream", "--stream-interval", 4, "--priority", -3,
                     "--tenant", "t", "--model", "m", "--metadata", "k=v=w", "--deadline", "1h", "Привет", "two").lines
    sent = {m.key().decode(): m for m in client.records("requests")}
    assert set(ids) == set(sent) and len(ids) == 2
    records = {key: DECODER.decode(m.value())[1] for key, m in sent.items()}
    first = records[ids[0]]
    assert (first["job_id"], first["prompt"], records[ids[1]]["prompt"]) == (ids[0], "Привет", "two")
    assert abs(first.pop("created_at_us") - time.time() * 1e6) < 60e6
    assert abs(first.pop("deadline_us") - time.time() * 1e6 - 3600e6) < 60e6
    floats = {name: round(first.pop(name), 6) for name in ("temperature", "top_p", "repetition_penalty", "length_penalty")}
    assert floats == {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.5, "length_penalty": 1.0}
    del first["job_id"], first["prompt"]
    assert first == {"source_tokens": None, "target_language": "en", "author": "author_3", "max_length": 50,
                     "min_length": 2, "do_sample": True, "top_k": 5, "num_beams": 1, "num_return_sequences": 2,
                     "early_stopping": False, "stop": ["a", "б"], "seed": -12, "stream": True, "stream_interval": 4,
                     "priority": -3, "tenant": "t", "model": "m", "metadata": {"k": "v=w"}}


def test_partition_is_the_keys_murmur2(client):
    undo = ["-X", "partitioner=random", "-X", "acks=0", "-X", "enable.idempotence=false"] # which -X cannot
    ids = client.run("submit", *undo, *[f"text {i}" for i in range(60)]).lines
    partitions = {m.key().decode(): m.partition() for m in client.records("requests")}
    assert partitions == {i: (murmur2(i.encode()) & 0x7FFFFFFF) % PARTITIONS for i in ids}
    assert set(partitions.values()) == set(range(PARTITIONS))


def test_acknowledgement_says_where(client):
    job = str(uuid.uuid4())
    ack = json.loads(client.run("submit", "--job-id", job, "--json", stdin="из трубы\nвторая\n\n".encode()).out)
    [m] = client.records("requests")
    assert ack == {"job_id": job, "partition": m.partition(), "offset": m.offset()}
    assert DECODER.decode(m.value())[1]["prompt"] == "из трубы\nвторая"


def test_text_that_no_worker_could_decode_is_refused(client):
    assert "prompt: its text is not valid UTF-8" in client.run("submit", stdin=b"caf\xe9", code=2).err
    assert client.records("requests") == []


def test_request_over_the_topics_limit(client):
    assert "was not accepted" in client.run("submit", stdin=b"x" * (1 << 20), code=1).err
    assert client.run("submit", stdin=b"x" * ((1 << 20) - 2000)).out


# ---- streams ----

def follow_new(client, prompt, *options, code=0):
    return client.run("submit", "--follow", *options, prompt, code=code)


def test_stream_is_shown_and_equals_the_result(client, worker):
    shown = follow_new(client, "раз два three")
    assert shown.out == "РАЗ ДВА THREE \n" and shown.err == ""
    pieces = [json.loads(line) for line in follow_new(client, "раз два three", "--json").lines]
    result = pieces.pop()
    pieces = pieces[1:] # after the acknowledgement
    # three chunks, or fewer pieces when the result is read before the last of them
    assert "".join(p["text"] for p in pieces) == result["sequences"][0]["text"] == "РАЗ ДВА THREE "
    assert [p["text_start"] for p in pieces] == [0, 7, 14][:len(pieces)] and pieces[-1]["finish_reason"] == "eos"
    assert sum([p["token_ids"] for p in pieces], []) == result["sequences"][0]["token_ids"]
    assert result["status"] == "completed" and result["usage"] == {"prompt_tokens": 3, "generated_tokens": 4}
    assert worker.requests[0][1]["stream"] is True


def test_text_appears_while_the_job_runs(client):
    def slow(worker, request, partition):
        words = ["ONE ", "TWO "]
        worker.stream(request, partition, words, 0, 1)
        time.sleep(1)
        worker.stream(request, partition, words, 1)
        return [worker.result(request, partition, ["ONE TWO "])]
    worker = Worker(client, {"slow": slow})
    shown = client.start("submit", "--follow", "!script slow")
    begun = time.time()
    assert os.read(shown.stdout.fileno(), 100) == b"ONE "
    assert time.time() - begun < 0.9 + 5 and shown.poll() is None
    first = time.time()
    assert os.read(shown.stdout.fileno(), 100).startswith(b"TWO ")
    assert time.time() - first > 0.5
    assert shown.wait(10) == 0
    worker.stop()


WORDS = [f"w{i} " for i in range(12)]
OTHER = [f"v{i} " for i in range(9)]


def died_and_again(worker, request, partition):
    """Same engine: the second attempt repeats the bytes; the first one's last records come late."""
    worker.stream(request, partition, WORDS, 0, 7)
    worker.stream(request, partition, WORDS, 0, 4, attempt=2)
    worker.stream(request, partition, WORDS, 7, 9)
    worker.stream(request, partition, WORDS, 4, attempt=2)
    return [worker.result(request, partition, ["".join(WORDS)], attempt=2)]


def other_engine(worker, request, partition):
    """Another engine takes over; the dead worker's last records come late."""
    worker.stream(request, partition, WORDS, 0, 7)
    worker.stream(request, partition, OTHER, 0, 3, attempt=2, engine_id="engine-b")
    worker.stream(request, partition, WORDS, 7)
    worker.stream(request, partition, OTHER, 3, attempt=2, engine_id="engine-b")
    return [worker.result(request, partition, ["".join(OTHER)], attempt=2, engine_id="engine-b")]


def handed_back(worker, request, partition):
    """A drained worker hands back: the attempt stays, the engine changes."""
    worker.stream(request, partition, WORDS, 0, 5)
    worker.stream(request, partition, OTHER, engine_id="engine-b")
    return [worker.result(request, partition, ["".join(OTHER)], engine_id="engine-b")]


def expired_chunks(worker, request, partition):
    """The beginning of the stream is gone: the result fills it in."""
    worker.stream(request, partition, WORDS, 5)
    return [worker.result(request, partition, ["".join(WORDS)])]


def result_before_chunks(worker, request, partition):
    worker.stream(request, partition, WORDS, 0, 2)
    worker.commit([worker.result(request, partition, ["".join(WORDS)])])
    worker.stream(request, partition, WORDS, 2)


def aborted_result(worker, request, partition):
    """A result in an aborted transaction was never there."""
    worker.stream(request, partition, WORDS)
    worker.commit([worker.result(request, partition, ["WRONG"])], abort=True)
    return [worker.result(request, partition, ["".join(WORDS)])]


def junk_between(worker, request, partition):
    """Records that are none, or not of this job, under its key."""
    for junk in (b"", b"junk", b"\xc3\x01" + bytes(20)):
        worker.chunks.produce(worker.client.topic("chunks"), junk, request["job_id"], partition=partition)
        worker.chunks.produce(worker.client.topic("chunks"), junk, b"\xff\xfe", partition=partition)
    worker.chunk(request, partition, sequence=99, text="no", text_start=0)
    worker.chunk(request, partition, text="no", text_start=-7)
    worker.stream(request, partition, WORDS)
    return [worker.result(request, partition, ["".join(WORDS)])]


@pytest.mark.parametrize("script, words, restarts", [
    (died_and_again, WORDS, 0), (other_engine, OTHER, 1), (handed_back, OTHER, 1), (expired_chunks, WORDS, 0),
    (result_before_chunks, WORDS, 0), (aborted_result, WORDS, 0), (junk_between, WORDS, 0)])
def test_stream_has_no_gaps_and_no_repeats(client, script, words, restarts):
    worker = Worker(client, {"it": script})
    lines = [json.loads(line) for line in follow_new(client, "!script it", "--json").lines]
    text, tokens, seen = "", [], 0
    for piece in lines[1:-1]:
        if piece["restart"]:
            text, tokens, seen = "", [], seen + 1
        assert piece["text_start"] == len(text.encode()) and piece["token_start"] == len(tokens)
        text += piece["text"]
        tokens += piece["token_ids"]
    assert text == "".join(words) and seen <= restarts # none when the result is read first
    assert lines[-1]["sequences"][0]["text"] == text and lines[-1]["sequences"][0]["token_ids"] == tokens
    worker.stop()
    told = client.run("follow", lines[0]["job_id"])
    assert told.out.endswith("".join(words) + "\n") and told.err.count("starts again") <= restarts


def test_several_sequences(client):
    def two(worker, request, partition):
        for i in (1, 0):
            worker.stream(request, partition, ["A ", "B "] if i == 0 else ["C ", "D "], sequence=i)
        return [worker.result(request, partition, ["A B ", "C D "])]
    worker = Worker(client, {"two": two})
    assert follow_new(client, "!script two", "-n", "2", "--sample").out == "A B \nC D \n"
    worker.stop()


def test_follow_finished_jobs_later(client, worker):
    ids = client.run("submit", "one", "two", "!fail top_k is 9: must be 0..8").lines
    told = client.run("follow", *ids, "--json", "--results", code=5)
    results = {r["job_id"]: r for r in map(json.loads, told.lines)}
    assert [results[i]["status"] for i in ids] == ["completed", "completed", "failed"]
    assert results[ids[2]]["error"] == {"class": "invalid", "message": "top_k is 9: must be 0..8"}
    told = client.run("follow", *ids, code=5)
    assert sorted(told.lines) == sorted([f"{ids[0]}\tONE ", f"{ids[1]}\tTWO "])
    assert f"job {ids[2]} failed: invalid: top_k is 9: must be 0..8" in told.err
    assert client.run("follow", ids[0].upper()).out == "ONE \n"


def test_unknown_job_has_an_exit_code_of_its_own(client, worker):
    [known] = client.run("submit", "one").lines
    unknown = str(uuid.uuid4())
    begun = time.time()
    told = client.run("follow", known, unknown, "--timeout", "2s", code=4)
    assert f"job {unknown} was not found" in told.err and known in told.out
    assert 2 <= time.time() - begun < 8
    assert f"job {known} was not found" in client.run("follow", known, "--since", "0", "--timeout", "1s", code=4).err
    told = client.run("submit", "--follow", "--timeout", "1s", "!silent", code=4)
    assert "--timeout" in told.err


def test_follow_begins_before_the_result_is_there(client):
    """Partitions that hold nothing at the time asked for: what comes while the reader starts counts."""
    worker = Worker(client)
    for i in range(6):
        [job] = client.run("submit", f"!slow {i * 0.02} late").lines
        assert client.run("follow", "--timeout", "5s", "--results", job).out == "LATE \n"
    worker.stop()


def test_follow_can_wait_for_a_later_attempt(client):
    worker = Worker(client)
    [job] = client.run("submit", "one").lines
    client.run("follow", job)
    request, partition = worker.requests[0][1], worker.requests[0][0].partition()
    worker.stop()
    worker.commit([worker.result(request, partition, ["AGAIN "], attempt=4)])
    assert client.run("follow", "--attempt", "2", job).out == "AGAIN \n"


def test_interrupt(client, worker):
    for arguments in (["submit", "--follow", "!silent"], ["follow", str(uuid.uuid4())]):
        waiting = client.start(*arguments)
        time.sleep(1.5)
        waiting.send_signal(signal.SIGINT)
        assert waiting.wait(10) == 130


def test_messages_cannot_steer_a_terminal(client, worker):
    told = client.run("submit", "--follow", "!fail \x1b]0;title\x07 \x1b[31m", code=5)
    assert "invalid: ?]0;title? ?[31m" in told.err


# ---- cancel ----

def test_cancel_reaches_the_control_topic(client):
    ids = [str(uuid.uuid4()) for _ in range(3)]
    client.run("cancel", "--reason", "why not", *ids)
    records = [(m.key().decode(), DECODER.decode(m.value())) for m in client.records("control")]
    assert [key for key, _ in records] == ids
    for key, (name, record) in records:
        assert name == "JobControl" and record["job_id"] == key
        assert (record["action"], record["reason"]) == ("cancel", "why not")
        assert abs(record["created_at_us"] - time.time() * 1e6) < 60e6


# ---- translate ----

def test_translate_keeps_the_order(client, worker):
    draw = random.Random(5)
    lines = [f"!slow {draw.random() * 0.3:.3f} line {i}" for i in range(300)]
    out = client.run("translate", "--in-flight", 50, stdin="\n".join(lines).encode()).lines
    assert out == [f"LINE {i} " for i in range(300)]
    keys = [m.key() for m, _ in worker.requests]
    assert len(set(keys)) == 300


def test_translate_goes_on_past_what_fails(client, worker):
    given = "one\n\n!fail bad author\n".encode() + b"caf\xe9\n" + "last, no newline".encode()
    told = client.run("translate", stdin=given, code=5)
    assert told.out == "ONE \n\n\n\nLAST, NO NEWLINE \n"
    assert "line 3 failed: bad author" in told.err and "line 4 failed: prompt: its text is not valid UTF-8" in told.err
    rows = [json.loads(line) for line in client.run("translate", "--json", stdin=given, code=5).lines]
    assert [(r["line"], r["status"], r["text"]) for r in rows] == [
        (1, "completed", "ONE "), (2, "completed", ""), (3, "failed", ""), (4, "failed", ""),
        (5, "completed", "LAST, NO NEWLINE ")]


def test_translate_gives_up_on_a_line_not_on_all(client, worker):
    told = client.run("translate", "--timeout", "2s", stdin=b"one\n!silent\nthree\n", code=4)
    assert told.out == "ONE \n\nTHREE \n" and "line 2 late: no result within --timeout" in told.err


def test_translate_is_bounded(client):
    worker = Worker(client)
    worker.stalled_until = time.time() + 3
    running = client.start("translate", "--in-flight", "4", stdin=-1)
    running.stdin.write(b"".join(b"line %d\n" % i for i in range(20)))
    running.stdin.flush()
    time.sleep(2)
    assert len(worker.requests) == 4 # the rest waits for room
    out, _ = running.communicate(timeout=30)
    assert out.decode().splitlines() == [f"LINE {i} " for i in range(20)]
    worker.stop()


def test_translate_answers_while_input_stays_open(client, worker):
    running = client.start("translate", stdin=-1)
    for text in (b"one\n", b"two\n"):
        running.stdin.write(text)
        running.stdin.flush()
        assert select.select([running.stdout], [], [], 10)[0]
        assert os.read(running.stdout.fileno(), 100) == text.upper()[:-1] + b" \n"
    running.stdin.close()
    assert running.wait(10) == 0


# ---- load ----

def load(client, *arguments, code=0):
    return json.loads(client.run("load", "--json", *arguments, code=code).out)


def test_load_counts_and_measures(client, worker):
    report = load(client, "--rate", 100, "--count", 200, "--stream", "!slow 0.2 one two")
    assert (report["planned"], report["sent"], report["acknowledged"], report["completed"]) == (200,) * 4
    assert (report["failed"], report["unfinished"], report["refused"]) == (0, 0, 0)
    assert 0 < report["chunks"] <= 400 and report["tokens"] == 600 # results may be read before last chunks
    for name in ("first_chunk_us", "result_us", "result_from_sent_us"):
        times = report[name]
        assert times["count"] == 200 and 200e3 <= times["min"] <= times["p50"] <= times["p99"] <= times["max"] < 5e6
    assert report["first_chunk_us"]["p50"] <= report["result_us"]["p50"]
    assert len({m.key() for m, _ in worker.requests}) == 200


def test_load_charges_a_stall_to_all_it_delayed(client):
    worker = Worker(client)
    worker.stalled_until = time.time() + 3
    report = load(client, "--rate", 100, "--arrivals", "constant", "--count", 300, "--outstanding", 1, "one")
    assert report["completed"] == 300
    # One job at a time saw the stall; from when they were due, most did.
    assert report["result_from_sent_us"]["p90"] < 500e3
    assert report["result_us"]["p90"] > 2 * report["result_from_sent_us"]["p90"]
    assert report["result_us"]["max"] > 2e6 and report["late_us"]["max"] > 1e6
    worker.stop()


def test_load_tells_failures_and_missing_results(client, worker):
    report = load(client, "--rate", 200, "--count", 20, "ok", "!fail no", code=5)
    assert (report["completed"], report["failed"]) == (10, 10)
    report = load(client, "--rate", 200, "--count", 10, "--timeout", "1s", "ok", "!silent", code=4)
    assert (report["completed"], report["unfinished"]) == (5, 5)


def test_load_warmup_file_and_plain_report(client, worker, tmp_path):
    (tmp_path / "lines").write_text("one\n\ntwo words\n")
    report = load(client, "--rate", 50, "--duration", "2s", "--warmup", "1s", "--arrivals", "constant",
                  "--file", tmp_path / "lines")
    assert report["sent"] == 100 and report["completed"] == 50
    assert {r["prompt"] for _, r in worker.requests} == {"one", "two words"}
    told = client.run("load", "--rate", 50, "--count", 20, "one").out
    assert "20 completed, 0 failed" in told and "p99" in told


def test_load_send_only(client):
    report = load(client, "--rate", 1000, "--count", 500, "--send-only", "one")
    assert report["acknowledged"] == 500 and len(client.records("requests")) == 500


def terminal(client, *arguments):
    """Runs with standard error on a terminal; what came there."""
    master, slave = pty.openpty()
    running = client.start(*arguments, stderr=slave, env={**client.env, "TERM": "xterm"})
    os.close(slave)
    shown = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError: # the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(master)
    assert running.wait(30) == 0
    return shown.decode(), running.stdout.read().decode()


def test_progress_on_a_terminal_only(client, worker):
    shown, out = terminal(client, "load", "--rate", "50", "--count", "60", "one")
    assert "\r" in shown and "[####" in shown and "jobs/s" in shown and "\r" not in out
    assert shown.endswith("\r\x1b[K")
    assert client.run("load", "--rate", "50", "--count", "30", "one").err == ""


# ---- dead letters ----

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


# ---- status ----

@pytest.fixture
def job_row(database_url):
    job = uuid.uuid4()
    with psycopg.connect(database_url, autocommit=True) as db:
        db.execute("insert into job (job_id, status, state_rank, attempt, tenant, model, worker, source_partition,"
                   " source_offset, accepted_at, finished_at, updated_at, generated_tokens, total_us, error_class)"
                   " values (%s, 'failed', 3, 2, 'acme', 'm', 'w-7', 1, 42, now(), now(), now(), 17, 5000, 'poison')", [job])
        yield str(job)
        db.execute("delete from job where job_id = %s", [job])


def test_status_of_jobs(client, database_url, job_row):
    env = {"PGPT_DATABASE_URL": database_url}
    row = json.loads(client.run("status", "--json", job_row, env=env).out)
    assert (row["job_id"], row["status"], row["attempt"], row["tenant"], row["worker"]) == (job_row, "failed", 2, "acme", "w-7")
    assert (row["generated_tokens"], row["error_class"], row["dead_lettered"], row["queue_us"]) == (17, "poison", False, None)
    unknown = str(uuid.uuid4())
    told = client.run("status", job_row.upper(), unknown, env=env, code=4)
    assert "failed" in told.out and f"job {unknown} is not in the database" in told.err and job_row not in told.err


def test_status_overview(client, database_url):
    env = {"PGPT_DATABASE_URL": database_url}
    told = json.loads(client.run("status", "--json", env=env).out)
    assert set(told) == {"latency_percentiles", "throughput", "workers"}
    assert "Latency of completed jobs" in client.run("status", env=env).out


def test_status_without_database_or_tables(client, database_url):
    told = client.run("status", "--database", "postgresql://app@127.0.0.1:1/x", code=3).err
    assert "Connection refused" in told
    elsewhere = database_url.rsplit("/", 1)[0] + "/postgres"
    assert "sqitch" in client.run("status", "--database", elsewhere, code=1).err

# SPDX-License-Identifier: MIT
"""`pgpt submit` and `pgpt follow` against a real broker and a worker of ordinary libraries."""
import json
import os
import re
import select
import signal
import threading
import time
import uuid
from pathlib import Path

import pytest

from client_fixtures import DECODER, PARTITIONS, Worker, brokers, client, murmur2, worker # noqa: F401


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
    seen = threading.Event()

    def slow(worker, request, partition):
        """The second word is not made before the first one was seen."""
        words = ["ONE ", "TWO "]
        worker.stream(request, partition, words, 0, 1)
        assert seen.wait(60), "the first word is not shown"
        worker.stream(request, partition, words, 1)
        return [worker.result(request, partition, ["ONE TWO "])]
    worker = Worker(client, {"slow": slow})
    shown = client.start("submit", "--follow", "!script slow")
    assert select.select([shown.stdout], [], [], 30)[0] and os.read(shown.stdout.fileno(), 100) == b"ONE "
    assert shown.poll() is None
    seen.set()
    assert os.read(shown.stdout.fileno(), 100).startswith(b"TWO ")
    assert shown.wait(30) == 0
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
    assert 2 <= time.time() - begun < 12
    assert f"job {known} was not found" in client.run("follow", known, "--since", "0", "--timeout", "1s", code=4).err
    told = client.run("submit", "--follow", "--timeout", "2s", "!silent", code=4)
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


def wait_catches(process, number, timeout=60):
    """Until a process has a handler for the signal."""
    deadline = time.time() + timeout
    while True:
        caught = re.search(r"^SigCgt:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text(), re.M)
        if caught and int(caught.group(1), 16) >> (number - 1) & 1:
            return
        assert time.time() < deadline, f"signal {number} is not caught"
        time.sleep(0.01)


def test_interrupt(client, worker):
    for arguments in (["submit", "--follow", "!silent"], ["follow", str(uuid.uuid4())]):
        waiting = client.start(*arguments)
        wait_catches(waiting, signal.SIGINT)
        if arguments[0] == "submit":
            worker.wait_requests(1)
        time.sleep(0.5) # or it comes while it connects: that is the same to who interrupts
        waiting.send_signal(signal.SIGINT)
        assert waiting.wait(30) == 130


def test_messages_cannot_steer_a_terminal(client, worker):
    told = client.run("submit", "--follow", "!fail \x1b]0;title\x07 \x1b[31m", code=5)
    assert "invalid: ?]0;title? ?[31m" in told.err

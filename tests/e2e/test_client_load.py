# SPDX-License-Identifier: MIT
"""`pgpt translate` and `pgpt load` against a real broker and a worker of ordinary libraries."""
import json
import os
import pty
import random
import select
import time

from client_fixtures import Worker, brokers, client, worker # noqa: F401


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
    told = client.run("translate", "--timeout", "3s", stdin=b"one\n!silent\nthree\n", code=4)
    assert told.out == "ONE \n\nTHREE \n" and "line 2 late: no result within --timeout" in told.err


def test_translate_is_bounded(client):
    worker = Worker(client, stall_s=600)
    running = client.start("translate", "--in-flight", "4", stdin=-1)
    running.stdin.write(b"".join(b"line %d\n" % i for i in range(20)))
    running.stdin.flush()
    worker.wait_requests(4)
    time.sleep(1)
    assert len(worker.requests) == 4 # the rest waits for room
    worker.go_on()
    out, _ = running.communicate(timeout=60)
    assert out.decode().splitlines() == [f"LINE {i} " for i in range(20)]
    worker.stop()


def test_translate_answers_while_input_stays_open(client, worker):
    running = client.start("translate", stdin=-1)
    for text in (b"one\n", b"two\n"):
        running.stdin.write(text)
        running.stdin.flush()
        assert select.select([running.stdout], [], [], 30)[0]
        assert os.read(running.stdout.fileno(), 100) == text.upper()[:-1] + b" \n"
    running.stdin.close()
    assert running.wait(30) == 0


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
    worker = Worker(client, stall_s=3)
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
    report = load(client, "--rate", 200, "--count", 10, "--timeout", "2s", "ok", "!silent", code=4)
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

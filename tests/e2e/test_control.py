# SPDX-License-Identifier: MIT
"""Cancels and deadlines at every step of a job's way."""
import time

import pytest
from confluent_kafka import Producer

import wire
from realm import joined, paced, request

# all 8 rows of a worker that has no more, for 250 steps: some tenths of a second, or as long as a pace says
SLOW = {"do_sample": True, "seed": 1, "num_return_sequences": 8, "min_length": 250, "max_length": 256}


def now_us():
    return int(time.time() * 1e6)


def check_broken_off(realm, job, result, status):
    """A job that ended while it ran: what the result keeps is in the chunks, every sequence is ended."""
    assert result["status"] == status and result["error"] is None
    chunks = realm.chunks(job["job_id"])
    assert chunks, "it had begun to stream"
    for n in {c["sequence"] for c in chunks}:
        parts = joined(chunks, n)
        assert parts[-1]["finish_reason"] in (status, "eos", "length")
        assert [c["finish_reason"] for c in parts[:-1]] == [None] * (len(parts) - 1)
        text, ids = "".join(c["text"] for c in parts), [i for c in parts for i in c["token_ids"]]
        if n < len(result["sequences"]):
            sequence = result["sequences"][n]
            assert text.startswith(sequence["text"]) and ids[:len(sequence["token_ids"])] == sequence["token_ids"]
            assert sequence["finish_reason"] in (status, "eos", "length")
    assert status in [c["finish_reason"] for c in chunks]


def test_early_cancel_counts(main):
    job = request(stream=True)
    main.cancel(job["job_id"])
    main.reader.quiet(0.5)
    result, = main.run(job)
    assert (result["status"], result["sequences"], result["usage"]["generated_tokens"]) == ("cancelled", [], 0)
    main.reader.quiet(0.2)
    assert main.chunks(job["job_id"]) == []
    assert main.final_events(job["job_id"])[0]["state"] == "cancelled"


def test_cancel_sent_while_no_worker_ran_counts(realm):
    jobs = [request() for _ in range(6)]
    for job in jobs[::2]:
        realm.cancel(job["job_id"])
    realm.send(*jobs)
    realm.worker()
    results = realm.results(realm.sent)
    assert [results[j["job_id"]]["status"] for j in jobs] == ["cancelled", "completed"] * 3


@pytest.mark.release_only
def test_results_do_not_wait_for_the_reader_of_cancels(main):
    """Each result waits until the end of the cancels is known: asked for on the connection on which they are
    fetched, every job would take 100 to 200 ms, for the broker answers the waiting fetch first."""
    reader, waited = main.reader, []
    for _ in range(15):
        job = request("Good morning.")
        since = time.monotonic()
        main.send(job)
        reader.until(lambda: reader.results.get(job["job_id"]), 60, main.state)
        waited.append(time.monotonic() - since - main.result(job["job_id"])["timings"]["total_us"] / 1e6) # since it was done
    assert sorted(waited)[3] < 0.06, waited # a busy machine holds up some of them


def open_transaction(realm, job_id):
    """A cancel in a transaction that stays open: readers of committed records stop before it."""
    producer = Producer({"bootstrap.servers": realm.brokers, "transactional.id": f"{realm.prefix}-open",
                         "transaction.timeout.ms": 120000, "log_level": 0})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(realm.topic("control"), wire.encode(wire.JOB_CONTROL, {
        "job_id": job_id, "action": "cancel", "created_at_us": now_us()}), job_id)
    producer.flush(30)
    return producer


def test_an_open_transaction_on_the_control_topic_holds_no_worker_back(new_realm):
    """What was committed before it counts; what lies behind it counts when it has ended."""
    realm = new_realm(partitions=1)
    before, inside, behind = request(), request(), request()
    realm.cancel(before["job_id"])
    producer = open_transaction(realm, inside["job_id"])
    realm.cancel(behind["job_id"])
    realm.worker() # waits until it is ready
    assert [r["status"] for r in realm.run(before, inside)] == ["cancelled", "completed"]
    producer.commit_transaction(30)
    realm.reader.quiet(1.0)
    assert realm.run(behind)[0]["status"] == "cancelled"


@pytest.mark.release_only # waits for long jobs
def test_cancel_of_a_queued_job(new_realm):
    """Behind a job that takes all rows for some two seconds."""
    realm = new_realm(partitions=1)
    blocker, queued = request(**SLOW), [request(max_length=4) for _ in range(4)]
    realm.worker(engine_max_rows=8, faults=paced(8))
    realm.send(blocker, *queued)
    realm.cancel(queued[1]["job_id"])
    results = realm.check_exactly_once(status=None)
    assert [results[q["job_id"]]["status"] for q in queued] == ["completed", "cancelled", "completed", "completed"]
    assert results[queued[1]["job_id"]]["sequences"] == []
    at, end = (realm.final_events(job["job_id"])[0]["at_us"] for job in (queued[1], blocker))
    assert at < end - 300_000, "it waited for its turn to be cancelled"


def test_cancel_of_a_running_job(realm):
    realm.worker(faults=paced(20))
    job = request(stream=True, **SLOW)
    realm.send(job)
    realm.wait_chunk(job["job_id"])
    realm.cancel(job["job_id"])
    result = realm.result(job["job_id"])
    realm.reader.quiet(0.3)
    check_broken_off(realm, job, result, "cancelled")
    assert 0 < result["usage"]["generated_tokens"] < 8 * 250
    realm.wait_rows("select status from job where job_id = %s", (job["job_id"],), lambda r: r and r[0]["status"] == "cancelled")


def test_cancel_frees_the_rows_for_others(new_realm):
    realm = new_realm(partitions=1)
    realm.worker(engine_max_rows=8, faults=paced(20))
    slow, after = [request(stream=True, **SLOW) for _ in range(5)], request(max_length=8)
    realm.send(*slow, after)
    realm.wait_chunk(slow[0]["job_id"])
    for job in slow:
        realm.cancel(job["job_id"])
    results = realm.check_exactly_once(status=None)
    assert results[after["job_id"]]["status"] == "completed"
    assert [results[j["job_id"]]["status"] for j in slow] == ["cancelled"] * 5


def test_cancel_after_the_result_changes_nothing(main):
    job = request()
    main.run(job)
    main.cancel(job["job_id"])
    main.reader.quiet(0.7)
    assert [r.value["status"] for r in main.reader.results[job["job_id"]]] == ["completed"]
    assert len(main.final_events(job["job_id"])) == 1


def test_other_actions_and_junk_on_the_control_topic_are_ignored(main):
    job = request()
    main.cancel(job["job_id"], action="pause")
    main.produce("control", b"x", b"junk")
    main.produce("control", b"x", b"")
    main.flush()
    main.reader.quiet(0.4)
    assert main.run(job)[0]["status"] == "completed"


def test_a_deadline_in_the_past_expires_at_once(main):
    job = request(deadline_us=now_us() - 1, stream=True)
    result, = main.run(job)
    assert (result["status"], result["sequences"], result["error"]) == ("expired", [], None)
    assert main.chunks(job["job_id"]) == []
    assert main.run(request(deadline_us=now_us() + 60_000_000))[0]["status"] == "completed"


@pytest.mark.release_only # waits for long jobs
def test_a_deadline_passes_in_the_queue(new_realm):
    realm = new_realm(partitions=1)
    realm.worker(engine_max_rows=8, faults=paced(10))
    blocker = request(stream=True, **SLOW)
    realm.send(blocker)
    realm.wait_chunk(blocker["job_id"]) # it has all rows, for two and a half seconds
    late = request(deadline_us=now_us() + 800_000)
    realm.send(late)
    results = realm.check_exactly_once(status=None)
    assert (results[late["job_id"]]["status"], results[late["job_id"]]["sequences"]) == ("expired", [])
    at, end = (realm.final_events(job["job_id"])[0]["at_us"] for job in (late, blocker))
    assert late["deadline_us"] < at < end - 300_000, "it was swept when its turn came, not its time"


def test_a_deadline_passes_while_it_runs(new_realm):
    realm = new_realm(partitions=1)
    realm.worker(faults=paced(16))
    slow = {**SLOW, "num_return_sequences": 2, "min_length": 180, "max_length": 190}
    company, job = request(stream=True, **slow), request(stream=True, **slow)
    job["deadline_us"] = now_us() + 1_500_000 # of the three seconds that both take
    realm.send(company, job)
    results = realm.check_exactly_once(status=None)
    check_broken_off(realm, job, results[job["job_id"]], "expired")
    assert results[company["job_id"]]["status"] == "completed"

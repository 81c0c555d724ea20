# SPDX-License-Identifier: MIT
"""Workers that stall or die at named points of a transaction, and jobs that kill them. The build has
fault points (worker/fault.h); every other worker here is the same build without a fault."""
import os
import subprocess
import time

import pytest

import wire
from realm import KINDS, check_stream, request

LONG = {"stream": True, "do_sample": True, "num_return_sequences": 4, "min_length": 40, "max_length": 50}


def work(count):
    return [request(f"This is sentence number {n}.", seed=n, **LONG) for n in range(count)]


def send_by_fours(realm, jobs, stopped):
    """Each four are seen, so committed, before the next are sent: a transaction at least, on any machine."""
    seen = realm.reader.results
    for i in range(4, len(jobs) + 1, 4):
        realm.send(*jobs[i - 4:i])
        deadline = time.time() + 60
        while not stopped() and time.time() < deadline and not all(seen.get(job["job_id"]) for job in jobs[:i]):
            realm.reader.poll()


def check_all(realm, generate):
    results = realm.check_exactly_once()
    assert not realm.reader.records["dlq"]
    for job_id, result in results.items():
        check_stream(realm.chunks(job_id), result)
    for reference in generate(list(realm.sent.values())):
        assert [s["text"] for s in results[reference["job_id"]]["sequences"]] == [s["text"] for s in reference["sequences"]]
    realm.wait_lag_zero()
    return results


@pytest.mark.release_only # times a rebalance
@pytest.mark.parametrize("point", ["produce_result", "send_offsets", "commit"])
def test_a_stall_inside_a_transaction_during_a_rebalance(point, new_realm, generate):
    """Worker one stands still between produce, offsets and commit while worker two joins and takes
    partitions: nothing is committed for a partition that moved, nothing is lost."""
    realm = new_realm(partitions=4)
    first = realm.worker("first", faults=f"{point}:stall:2500@3")
    realm.send(*work(30))
    realm.reader.until(lambda: len(realm.reader.records["results"]) >= 2, 90, realm.state)
    realm.worker("second", faults="none")
    realm.send(*work(20))
    results = check_all(realm, generate)
    assert {r["worker"] for r in results.values()} == {"first", "second"}
    assert first.alive and first.http("/healthz")[0] == 200


@pytest.mark.release_only
@pytest.mark.parametrize("point", ["commit"])
def test_a_stall_longer_than_a_call_may_take(point, new_realm, generate):
    """Longer than the revoke waits and the transaction lives: aborted or fenced, then done again."""
    realm = new_realm(partitions=4)
    realm.worker("first", faults=f"{point}:stall:7000@3", transaction_timeout_ms=3000, kafka_call_timeout_ms=2000)
    realm.send(*work(30))
    realm.reader.until(lambda: len(realm.reader.records["results"]) >= 2, 90, realm.state)
    realm.worker("second", faults="none")
    check_all(realm, generate)


@pytest.mark.release_only
@pytest.mark.parametrize("point, thread", [("send_offsets", "settle"), ("prepare", "prepare"), ("first_chunk", "text")],
                         ids=["settle", "prepare", "text"])
def test_a_thread_that_stands_still_ends_its_worker(point, thread, new_realm, generate):
    """As when a call of the Kafka client never returns: the process ends and others do the jobs."""
    realm = new_realm(partitions=2)
    stuck = realm.worker("stuck", faults=f"{point}:stall:600000@2", worker_stall_ms=3000)
    send_by_fours(realm, work(20), lambda: not stuck.alive)
    assert not stuck.alive and stuck.child.returncode == 1, stuck.tail(5)
    assert f"the {thread} thread has made no progress" in stuck.tail(3), stuck.tail(3)
    realm.worker("successor", faults="none")
    check_all(realm, generate)


def test_a_drain_ends_even_when_a_thread_does_not(new_realm, generate):
    realm = new_realm(partitions=2)
    stuck = realm.worker("stuck", faults="send_offsets:stall:600000@2", worker_drain_ms=1000, kafka_call_timeout_ms=2000)
    send_by_fours(realm, work(20), lambda: stuck.says("stalls at send_offsets"))
    stuck.wait_says("stalls at send_offsets")
    assert stuck.terminate(60) == 1
    realm.worker("successor", faults="none")
    check_all(realm, generate)


@pytest.mark.parametrize("point", ["drained", "ended"])
def test_a_worker_that_is_drained_ends_with_0_whatever_hangs_then(point, new_realm, generate):
    """As a Kafka client that is destroyed once was seen to: all is committed and given back before."""
    realm = new_realm(partitions=2)
    worker = realm.worker("stuck", faults=f"{point}:stall:600000", worker_drain_ms=1000, kafka_call_timeout_ms=2000)
    realm.send(*work(4))
    check_all(realm, generate)
    assert worker.terminate(40) == 0, worker.tail(3)
    assert "it was drained, but does not end" in worker.tail(1)


@pytest.mark.parametrize("point", ["open_marked:kill", "decode:kill@7", "produce_result:kill@4", "send_offsets:kill@3",
                                   "commit:kill@3"])
def test_death_at_a_point(point, new_realm, generate):
    realm = new_realm(partitions=2)
    victim = realm.worker("victim", faults=point, wait=False, commit_max_jobs=2, engine_max_rows=8)
    send_by_fours(realm, work(20), lambda: not victim.alive)
    assert not victim.alive, f"it never passed {point}"
    realm.worker("successor", faults="none")
    results = check_all(realm, generate)
    assert all(r["attempt"] <= 2 for r in results.values())


@pytest.mark.release_only
def test_poison_is_dead_lettered_after_its_third_death_alone(new_realm, generate):
    """It kills every worker that starts it. Its neighbours finish; it ends in the dead-letter topic
    with its bytes, and as a failed result of class poison."""
    realm = new_realm(partitions=1)
    before, poison, after = work(6), request("This one kills.", metadata={"a": "b"}), work(6)
    realm.send(*before)
    realm.send(poison, headers=[("traceparent", b"00-0-0-01")])
    realm.send(*after)
    deaths = 0
    while not realm.reader.results.get(poison["job_id"]):
        worker = realm.worker(f"w{deaths + 1}", faults=f"{poison['job_id']}:kill", wait=False)
        deadline = time.time() + 60
        while worker.alive and not realm.reader.results.get(poison["job_id"]):
            assert time.time() < deadline, realm.state()
            realm.reader.poll()
        deaths += not worker.alive
        assert deaths <= 7, "the poison job kills for ever"
    results = realm.check_exactly_once(status=None)
    assert deaths == 6, "two in company, one in a group, three alone"
    verdict = results.pop(poison["job_id"])
    assert (verdict["status"], verdict["error"]["class"], verdict["metadata"]) == ("failed", "poison", {"a": "b"})
    assert all(r["status"] == "completed" for r in results.values())
    letter, = realm.dead_letters(1)
    headers = dict(letter.headers)
    assert letter.value == wire.encode(wire.GENERATION_REQUEST, poison) and letter.key.decode() == poison["job_id"]
    assert headers["dlq.error_class"] == b"poison" and headers["traceparent"] == b"00-0-0-01"
    assert int(headers["dlq.attempt"]) == deaths + 1
    event, = realm.final_events(poison["job_id"])
    assert event["dead_lettered"] and event["state"] == "failed"
    for reference in generate(before + after):
        assert [s["text"] for s in results[reference["job_id"]]["sequences"]] == [s["text"] for s in reference["sequences"]]
    row, = realm.wait_rows("select * from job where job_id = %s", (poison["job_id"],), lambda r: r and r[0]["finished_at"])
    assert row["dead_lettered"] and row["error_class"] == "poison"
    # the count is back at 0: the next death is a first one
    worker.kill()
    realm.worker("healthy", faults="none")
    assert realm.run(request())[0]["status"] == "completed"


@pytest.mark.release_only
def test_a_bad_deploy_that_fails_every_record_stops_itself(new_realm):
    """A build that refuses what it reads dead-letters 200 records, not the topic. The next build does the
    rest; what was dead-lettered is replayed, and every job has one result."""
    realm = new_realm(partitions=2)
    jobs = [request(f"This is sentence number {n}.", max_length=4) for n in range(600)]
    realm.send(*jobs)
    bad = realm.worker("bad", faults="decoded:fail", wait=False)
    deadline = time.time() + 90
    while "dead-letter" not in bad.http("/readyz")[1] and time.time() < deadline:
        time.sleep(0.05)
    status, reason = bad.http("/readyz")
    assert status == 503 and "pgpt dlq list" in reason, reason
    assert bad.terminate() == 0, bad.tail()
    realm.reader.quiet(1.0)
    letters = realm.reader.records["dlq"]
    assert 200 <= len(letters) <= 210 and not realm.reader.records["results"]
    realm.worker("good", faults="none")
    replay = subprocess.run([str(realm.cluster.build / "pgpt"), "dlq", "replay", "--all", "--yes", "--json"], check=False,
                            capture_output=True, text=True, timeout=60,
                            env={**os.environ, "PGPT_BROKERS": realm.brokers,
                                 **{f"PGPT_TOPIC_{kind.upper()}": realm.topic(kind) for kind in KINDS}})
    assert replay.returncode == 0, replay.stderr
    results = realm.results([job["job_id"] for job in jobs], timeout=120)
    realm.reader.quiet(1.0)
    assert all(len(realm.reader.results[job_id]) == 1 for job_id in results), "a second result"
    assert {r["attempt"] for r in results.values()} == {1, 2} and len(realm.reader.records["dlq"]) == len(letters)
    assert all(r["status"] == "completed" for r in results.values())
    realm.wait_lag_zero()

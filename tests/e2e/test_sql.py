# SPDX-License-Identifier: MIT
"""PostgreSQL is a projection of the events: rows equal results, whatever happens to it."""
from datetime import datetime, timedelta, timezone

import psycopg

from realm import request

COUNTS = """select jobs from latency_percentiles where metric = 'total'"""
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
TIMINGS = ("queue_us", "encode_us", "first_token_us", "decode_us", "total_us", "batch_size_mean")


def at(us):
    return EPOCH + timedelta(microseconds=us)


def recorded(realm, ids, timeout=90):
    """job_id -> row, once every job has its final one."""
    ids = list(ids)
    rows = realm.wait_rows("select *, job_id::text as id from job where job_id = any(%s::uuid[])", (ids,),
                           lambda rows: sum(r["finished_at"] is not None for r in rows) == len(ids), timeout)
    return {r["id"]: r for r in rows}


def mixed(count):
    kinds = [{}, {"stream": True}, {"max_length": 0}, {"deadline_us": 1}, {"do_sample": True, "num_return_sequences": 3},
             {"num_beams": 4}]
    return [request(f"Sentence number {n}.", tenant=f"tenant-{n % 3}", **kinds[n % len(kinds)]) for n in range(count)]


def check_rows(realm, results):
    """Rows of job and job_latency against the results and final events, value by value."""
    rows = recorded(realm, results)
    latency = {r["id"]: r for r in realm.rows("select *, job_id::text as id from job_latency")}
    assert len(latency) == len(realm.rows("select 1 from job_latency")) == len(results)
    for job_id, result in results.items():
        row, event, sent = rows[job_id], realm.final_events(job_id)[0], realm.sent[job_id]
        assert (row["status"], row["attempt"], row["finals"]) == (result["status"], result["attempt"], 1)
        assert (row["tenant"], row["model"], row["worker"]) == (sent.get("tenant", ""), result["model"], result["worker"])
        assert (row["prompt_tokens"], row["generated_tokens"]) == (result["usage"]["prompt_tokens"],
                                                                  result["usage"]["generated_tokens"])
        assert {f: row[f] for f in TIMINGS} == result["timings"]
        assert {f: latency[job_id][f] for f in TIMINGS} == result["timings"]
        assert row["finished_at"] == at(event["at_us"])
        assert row["accepted_at"] == at(event["accepted_at_us"])
        assert row["started_at"] == (at(event["started_at_us"]) if event["started_at_us"] else None)
        error = result["error"] or {"class": None, "message": None}
        assert (row["error_class"], row["error_message"]) == (error["class"], error["message"])
        assert (row["source_partition"], row["source_offset"]) == (event["source_partition"], event["source_offset"])


def snapshot(realm):
    """All that analysts can read, but for when it was written."""
    tables = {"job": "job_id", "job_latency": "job_id", "latency_histogram": "minute, model, tenant, metric, bucket",
              "job_minute": "minute, model, tenant, worker, status"}
    return {name: realm.rows(f"select * from {name} order by {order}") for name, order in tables.items()}


def test_rows_equal_results(realm):
    realm.worker()
    realm.send(*mixed(60))
    check_rows(realm, realm.check_exactly_once(status=None))


def test_percentiles_and_views(realm):
    realm.worker()
    realm.send(*mixed(60))
    results = realm.check_exactly_once(status=None)
    recorded(realm, results)
    completed = [r for r in results.values() if r["status"] == "completed"]
    rows = {r["metric"]: r for r in realm.rows("select * from latency_percentiles")}
    assert set(rows) == {"queue", "first_token", "per_token", "total"}
    for metric, row in rows.items():
        assert list(row)[-4:] == ["p50", "p90", "p95", "p99"]
        assert row["jobs"] == len(completed)
        assert row["p50"] <= row["p90"] <= row["p95"] <= row["p99"]
        if metric != "per_token":
            exact = sorted(r["timings"][f"{metric}_us"] for r in completed)
            for name, q in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99)]:
                value = exact[max(0, -(-int(q * 100) * len(exact) // 100) - 1)]
                assert abs(row[name] - value) <= 0.01 * value + 1e-6, (metric, name)
    minutes = realm.rows("select status, sum(jobs)::int as jobs, sum(generated_tokens)::int as tokens from job_minute group by 1")
    assert {r["status"]: r["jobs"] for r in minutes} == {
        s: sum(r["status"] == s for r in results.values()) for s in {r["status"] for r in results.values()}}
    assert sum(r["tokens"] for r in minutes) == sum(r["usage"]["generated_tokens"] for r in results.values())
    assert realm.rows("select * from throughput") and realm.rows("select * from worker_status")


def test_truncated_tables_are_rebuilt_from_the_log(realm):
    worker = realm.worker("first")
    realm.send(*mixed(48))
    results = realm.check_exactly_once(status=None)
    recorded(realm, results)
    assert worker.terminate() == 0
    before = snapshot(realm)
    with psycopg.connect(realm.database, autocommit=True) as db:
        db.execute("truncate job, job_latency, latency_histogram, job_minute, recorder_offset")
    realm.worker("second")
    recorded(realm, results)
    assert snapshot(realm) == before


def test_a_lost_recorder_offset_alone_counts_nothing_twice(realm):
    """The place is forgotten, the rows are kept: the log is read again and changes no value; only
    job.finals, the count of final states seen, tells of it."""
    worker = realm.worker("first")
    realm.send(*mixed(24))
    results = realm.check_exactly_once(status=None)
    recorded(realm, results)
    assert worker.terminate() == 0
    before = snapshot(realm)
    with psycopg.connect(realm.database, autocommit=True) as db:
        places = {p: o for p, o in db.execute("select partition, next_offset from recorder_offset")}
        db.execute("delete from recorder_offset")
    realm.worker("second")
    realm.wait_rows("select partition, next_offset from recorder_offset", None,
                    lambda rows: {r["partition"]: r["next_offset"] for r in rows} == places)
    after = snapshot(realm)
    for row in before["job"] + after["job"]:
        del row["finals"]
    assert after == before


def test_postgres_is_killed_and_comes_back(realm, cluster):
    """Jobs go on without it; what it missed is written when it is back, once."""
    worker = realm.worker()
    realm.run(*mixed(12))
    cluster.postgres.kill()
    try:
        during = mixed(24)
        realm.send(*during)
        realm.results([j["job_id"] for j in during])
        assert worker.http("/readyz")[0] == 200, "PostgreSQL is no condition for work"
        assert worker.metric("pgpt_recorder_connected") in (0, 1)
    finally:
        cluster.postgres.start()
    realm.send(*mixed(12))
    check_rows(realm, realm.check_exactly_once(status=None))
    assert worker.metric("pgpt_recorder_errors_total") > 0
    worker.wait_metric("pgpt_recorder_connected", 1)


def test_two_recorders_write_everything_once(new_realm):
    realm = new_realm(partitions=4)
    realm.worker("one")
    realm.worker("two")
    realm.send(*mixed(60))
    results = realm.check_exactly_once(status=None)
    check_rows(realm, results)
    assert realm.rows(COUNTS)[0]["jobs"] == sum(r["status"] == "completed" for r in results.values())

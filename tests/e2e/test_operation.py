# SPDX-License-Identifier: MIT
"""What an operator sees: settings, readiness and its reasons, metrics, exit codes."""
import re
import subprocess
import time

import pytest
from confluent_kafka import Consumer, TopicPartition

from cluster import Worker, free_port
from conftest import BUILD, MODEL, ROOT
from realm import request

SAMPLE = re.compile(r'^([a-zA-Z_:][\w:]*)(\{(?:[a-zA-Z_]\w*="(?:[^"\\\n]|\\.)*",?)*\})? (NaN|[+-]?Inf|[-+0-9.eE]+)$')


def parse_metrics(text):
    """Prometheus text format 0.0.4, strictly: name -> (type, {labels: value})."""
    types, helps, samples = {}, set(), {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in types, f"{name}: two TYPE lines"
            types[name] = kind
        elif line.startswith("# HELP "):
            helps.add(line.split(" ")[2])
        else:
            found = SAMPLE.match(line)
            assert found, f"not a sample: {line!r}"
            samples.setdefault(found[1], {})[found[2] or ""] = float(found[3])
    for name, kind in types.items():
        assert name in helps, f"{name} has no HELP"
        assert kind in ("counter", "gauge", "histogram")
        if kind == "histogram":
            check_histogram(name, samples)
        else:
            assert name in samples, f"{name} has no sample"
            assert kind != "counter" or name.endswith("_total"), name
    known = {n for n, kind in types.items() if kind != "histogram"} \
        | {n + end for n, kind in types.items() if kind == "histogram" for end in ("_bucket", "_sum", "_count")}
    assert set(samples) == known, "samples without TYPE, or TYPE without samples"
    return types, samples


def check_histogram(name, samples):
    buckets = [(float(re.search(r'le="([^"]+)"', labels)[1].replace("+Inf", "inf")), value)
               for labels, value in samples[f"{name}_bucket"].items()]
    assert [b for b, _ in buckets] == sorted(b for b, _ in buckets) and buckets[-1][0] == float("inf")
    assert [v for _, v in buckets] == sorted(v for _, v in buckets), f"{name}: buckets are cumulative"
    assert samples[f"{name}_count"][""] == buckets[-1][1]
    assert samples[f"{name}_sum"][""] >= 0


def test_metrics_parse_and_count(realm):
    worker = realm.worker()
    jobs = [request() for _ in range(5)] + [request(num_beams=9), request(deadline_us=1), request(stream=True)]
    results = realm.run(*jobs)
    for outcome, count in {"completed": 6, "failed": 1, "expired": 1}.items():
        worker.wait_metric(f'pgpt_jobs_total{{outcome="{outcome}"}}', count)
    for gauge in ("jobs_in_flight", "queue_jobs", "engine_rows"): # which are looked at now and then
        worker.wait_metric(f"pgpt_{gauge}", 0)
    types, samples = parse_metrics(worker.http("/metrics")[1])
    assert all(name.startswith("pgpt_") for name in types)
    outcomes = samples["pgpt_jobs_total"]
    assert (outcomes['{outcome="completed"}'], outcomes['{outcome="failed"}'], outcomes['{outcome="expired"}']) == (6, 1, 1)
    assert samples["pgpt_requests_consumed_total"][""] == len(jobs)
    assert samples["pgpt_tokens_generated_total"][""] == sum(r["usage"]["generated_tokens"] for r in results)
    assert samples["pgpt_chunks_total"][""] == len(realm.chunks(jobs[-1]["job_id"]))
    assert samples["pgpt_partitions_assigned"][""] == 2
    assert samples["pgpt_jobs_in_flight"][""] == samples["pgpt_queue_jobs"][""] == samples["pgpt_engine_rows"][""] == 0
    assert samples["pgpt_job_duration_seconds_count"][""] == 6


def test_every_metric_is_documented(main, main_worker):
    page = ROOT / "monitoring/METRICS.md"
    documented = set(re.findall(r"\bpgpt_[a-z_]+\b", page.read_text()))
    types, _ = parse_metrics(main_worker.http("/metrics")[1])
    assert not set(types) - documented, f"not in {page.name}"


def test_http_answers_what_it_knows_and_nothing_else(main, main_worker):
    assert main_worker.http("/healthz")[0] == 200 and main_worker.http("/readyz")[0] == 200
    assert main_worker.http("/nothing")[0] == 404
    assert main_worker.http("/metrics/../etc/passwd")[0] == 404


def test_not_ready_until_topics_exist(new_realm):
    """Without its topics it runs, is not ready and says which one is missing; then it goes on by itself."""
    realm = new_realm()
    for future in realm.admin.delete_topics([realm.topic("results")]).values():
        future.result(10)
    worker = realm.worker(wait=False)
    deadline = time.time() + 90
    while realm.topic("results") not in worker.http("/readyz")[1] and time.time() < deadline:
        time.sleep(0.1)
    status, reason = worker.http("/readyz")
    assert status == 503 and realm.topic("results") in reason and "pgpt topics --create" in reason, reason
    assert worker.alive
    from confluent_kafka.admin import NewTopic
    for future in realm.admin.create_topics([NewTopic(realm.topic("results"), realm.partitions, 1)]).values():
        future.result(10)
    worker.wait_ready(30)
    assert realm.run(request())[0]["status"] == "completed"


@pytest.mark.release_only
def test_a_partition_without_counterparts_stays_paused(new_realm):
    """Requests grown before the outputs: unready, with the reason; after the outputs grew it runs."""
    from confluent_kafka.admin import NewPartitions
    realm = new_realm(partitions=1)
    for future in realm.admin.create_partitions([NewPartitions(realm.topic("requests"), 2)]).values():
        future.result(10)
    worker = realm.worker(wait=False)
    deadline = time.time() + 90
    while "counterpart" not in worker.http("/readyz")[1] and time.time() < deadline:
        time.sleep(0.1)
    assert worker.http("/readyz")[0] == 503 and "partition 1" in worker.http("/readyz")[1], worker.http("/readyz")
    held, other = request(), request()
    realm.send(held, partition=1)
    realm.send(other, partition=0)
    assert realm.result(other["job_id"])["status"] == "completed", "the other partition goes on"
    grown = [NewPartitions(realm.topic(kind), 2) for kind in ("chunks", "results", "events", "index")]
    for future in realm.admin.create_partitions(grown).values():
        future.result(10)
    worker.wait_ready(60)
    reader = realm.new_reader()
    reader.consumer.assign([TopicPartition(realm.topic("results"), p, 0) for p in range(2)])
    reader.until(lambda: reader.results.get(held["job_id"]), 90, realm.state)


@pytest.mark.parametrize("kind", ["control", "dlq"])
def test_a_missing_topic_is_named(new_realm, kind):
    """Of those with one partition as well: without cancels read to their end nothing may be admitted."""
    realm = new_realm()
    for future in realm.admin.delete_topics([realm.topic(kind)]).values():
        future.result(10)
    worker = realm.worker(wait=False)
    deadline = time.time() + 90
    while realm.topic(kind) not in worker.http("/readyz")[1] and time.time() < deadline:
        time.sleep(0.1)
    status, reason = worker.http("/readyz")
    assert status == 503 and realm.topic(kind) in reason and "pgpt topics --create" in reason, reason


@pytest.mark.release_only
def test_large_requests_are_bounded_by_their_bytes(new_realm):
    """queue.max_mb: the intake waits long before queue.max_jobs, and nothing is lost by that."""
    realm = new_realm(partitions=1)
    jobs = [request("Good morning!" + " " * 60_000, num_beams=8) for _ in range(60)]
    realm.send(*jobs)
    worker = realm.worker(queue_max_mb=1, engine_max_rows=8, wait=False)
    most_jobs, most_bytes, deadline = 0, 0, time.time() + 120
    while len(realm.reader.results) < len(jobs):
        assert time.time() < deadline, realm.state()
        realm.reader.poll(0.01)
        most_jobs = max(most_jobs, worker.metric("pgpt_jobs_in_flight") or 0) # None before it answers
        most_bytes = max(most_bytes, worker.metric("pgpt_jobs_in_flight_bytes") or 0)
    realm.check_exactly_once()
    # Those that fit and one more; a job holds its payload several times.
    assert 0 < most_jobs <= 16 and most_bytes < 2_500_000, (most_jobs, most_bytes)


@pytest.mark.release_only
def test_the_first_job_does_not_wait(new_realm):
    """A ready worker fetches: the client's own look at what was resumed comes up to a second later."""
    waits = []
    while len(waits) < 3 and min(waits, default=1e6) > 200_000: # a busy machine has another try
        realm = new_realm()
        realm.reader.quiet(0.1)
        realm.worker()
        waits.append(realm.run(request(max_length=4))[0]["timings"]["queue_us"])
    assert min(waits) <= 200_000, waits


def test_offset_out_of_range_is_an_error_not_a_jump(new_realm):
    """The group's place is no longer in the log: unready with the reason, nothing skipped silently."""
    realm = new_realm(partitions=1)
    realm.send(*[request(max_length=4) for _ in range(20)], partition=0)
    group = Consumer({"bootstrap.servers": realm.brokers, "group.id": realm.group, "enable.auto.commit": False})
    group.commit(offsets=[TopicPartition(realm.topic("requests"), 0, 3)], asynchronous=False)
    group.close()
    for future in realm.admin.delete_records([TopicPartition(realm.topic("requests"), 0, 10)]).values():
        future.result(10)
    worker = realm.worker(wait=False)
    deadline = time.time() + 90
    while worker.http("/readyz")[1].find("offset") < 0 and time.time() < deadline:
        time.sleep(0.1)
    status, reason = worker.http("/readyz")
    assert status == 503 and "offset" in reason.lower(), reason
    realm.reader.quiet(1.0)
    assert not realm.reader.records["results"], "it went on somewhere else"
    assert realm.committed()[0] == 3


def test_no_committed_offset_means_earliest(new_realm):
    realm = new_realm(partitions=2)
    realm.send(*[request() for _ in range(10)])
    realm.worker()
    realm.check_exactly_once()


# ---- settings and exit codes ----

def run_worker(*arguments, **env):
    import os
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PGPT_")}
    return subprocess.run([str(BUILD / "pgpt-worker"), *map(str, arguments)], capture_output=True, text=True, timeout=60,
                          check=False, env={**inherited, **env})


def test_check_config_prints_the_effective_settings_without_secrets(tmp_path):
    file = tmp_path / "worker.conf"
    file.write_text('brokers = "broker:9092"\nqueue.max_jobs = 77 \n# a comment\ndatabase_url = postgresql://u:verysecret@h/db\n'
                    "kafka.sasl.password = alsosecret\nkafka.security.protocol = sasl_ssl\n")
    done = run_worker("--config", file, "--check-config", PGPT_COMMIT_INTERVAL_MS="9")
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(" = ", 1) for line in done.stdout.splitlines() if " = " in line)
    assert (lines["brokers"], lines["queue.max_jobs"], lines["commit.interval_ms"]) == ("broker:9092", "77", "9")
    assert lines["kafka.security.protocol"] == "sasl_ssl" and "u:" in lines["database_url"]
    assert "secret" not in done.stdout + done.stderr


def test_check_config_says_what_is_wrong_line_by_line(tmp_path):
    file = tmp_path / "worker.conf"
    file.write_text("queue.max_job = 5\nqueue.max_jobs = many\n\nno equals sign\nhttp.port = 70000\nlog.level = loud\n"
                    "recorder.enabled = perhaps\nrecorder.enabled = false\n")
    done = run_worker("--config", file, "--check-config", PGPT_COMMIT_MAX_JOBS="0")
    assert done.returncode not in (0, None) and done.returncode > 0
    for expected in [f"{file}:1: unknown setting queue.max_job; did you mean queue.max_jobs?", f"{file}:2: queue.max_jobs",
                     f"{file}:4: ", f"{file}:5: http.port is 70000, outside 0..65535", f"{file}:6: log.level",
                     f"{file}:7: recorder.enabled", "PGPT_COMMIT_MAX_JOBS"]:
        assert expected in done.stderr, (expected, done.stderr)


def test_the_sample_of_settings_is_complete(tmp_path):
    """Every effective setting is in --check-config's output with its default, and can be read back."""
    done = run_worker("--check-config", PGPT_RECORDER_ENABLED="false", PGPT_WORKER_NAME="w")
    assert done.returncode == 0, done.stderr
    file = tmp_path / "again.conf"
    file.write_text("".join(line + "\n" for line in done.stdout.splitlines() if " = " in line and not line.endswith("= ")))
    again = run_worker("--config", file, "--check-config")
    assert again.returncode == 0 and again.stdout == done.stdout, again.stderr


@pytest.mark.parametrize("env, words", [
    ({"PGPT_MODEL": "/nowhere"}, ["/nowhere"]),
    ({"PGPT_ENGINE_DEVICE": "cuda:99"}, ["cuda"]),
    ({"PGPT_ENGINE_COMPUTE": "fp64"}, ["engine.compute", "fp32"]),
    ({"PGPT_DATABASE_URL": "", "PGPT_RECORDER_ENABLED": "true"}, ["database_url", "recorder.enabled"])],
    ids=["model", "device", "compute", "database"])
def test_what_cannot_start_says_why_and_exits(env, words, cluster):
    done = run_worker(**{"PGPT_BROKERS": cluster.kafka.bootstrap, "PGPT_HTTP_PORT": "0", "PGPT_MODEL": str(MODEL),
                         "PGPT_RECORDER_ENABLED": "false", **env})
    assert done.returncode > 0, f"exit code {done.returncode}"
    assert all(word in done.stderr + done.stdout for word in words), done.stderr


def test_no_broker_is_an_error_in_finite_time(tmp_path):
    """It either waits unready or exits non-zero with the broker's name; SIGTERM always ends it."""
    address = f"127.0.0.1:{free_port()}"
    worker = Worker("lonely", tmp_path, {"PGPT_BROKERS": address, "PGPT_MODEL": str(MODEL), "PGPT_HTTP_PORT": str(free_port()),
                                         "PGPT_RECORDER_ENABLED": "false", "PGPT_KAFKA_CALL_TIMEOUT_MS": "1500"},
                    BUILD / "pgpt-worker")
    worker.start()
    deadline = time.time() + 90
    while worker.alive and worker.http("/readyz")[0] != 503 and time.time() < deadline:
        time.sleep(0.1)
    if worker.alive:
        assert worker.http("/readyz")[0] == 503
        time.sleep(2)
    if worker.alive:
        assert worker.terminate(30) is not None, "SIGTERM did not end it"
    else:
        assert worker.child.returncode > 0 and address in worker.tail(30), worker.tail(30)

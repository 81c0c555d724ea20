# SPDX-License-Identifier: MIT
"""The `pgpt` command: its command line, topics, cancels and status, against a real broker and database."""
import json
import time
import uuid

import psycopg
import pytest
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, NewPartitions

from client_fixtures import DECODER, KINDS, bare, brokers, client, database_url # noqa: F401

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


def test_topics_that_brokers_refuse(bare):
    """There is one broker."""
    told = bare.run("topics", "--create", "--replication", 3, code=1).err
    assert f"creating topic {bare.topic('chunks')}: " in told and "--replication may be as high as the number of brokers" in told


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

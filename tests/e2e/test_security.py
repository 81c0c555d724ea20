# SPDX-License-Identifier: MIT
"""What SECURITY.md says: TLS, SASL and ACLs to Kafka, TLS and SCRAM to PostgreSQL with the recorder's own role,
secrets and texts that are not printed, a bounded HTTP listener, hardened programs. Real certificates, made here."""
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from types import SimpleNamespace

import psycopg
import pytest
from confluent_kafka.admin import (AclBinding, AclBindingFilter, AclOperation, AclPermissionType, ResourcePatternType,
                                   ResourceType)

from cluster import Kafka, Postgres, Worker, free_port
from conftest import BUILD, MODEL, SESSION_MS
from realm import Realm, request

PASSWORD = "open-sesame-31337" # of both servers: it must never be seen


# ---- certificates and servers ----

def openssl(*words, cwd):
    subprocess.run(["openssl", *words], cwd=cwd, check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(cluster):
    """An authority, a server's certificate of it for 127.0.0.1, and another authority that nobody should trust."""
    where = cluster.directory / "certificates"
    where.mkdir()
    where.chmod(0o755)
    for name in ("authority", "stranger"):
        openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}", "-keyout", f"{name}.key",
                "-out", f"{name}.crt", cwd=where)
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=server", "-keyout", "server.key", "-out", "server.csr", cwd=where)
    (where / "server.ext").write_text("subjectAltName=IP:127.0.0.1\n")
    openssl("x509", "-req", "-in", "server.csr", "-CA", "authority.crt", "-CAkey", "authority.key", "-CAcreateserial", "-days", "2",
            "-extfile", "server.ext", "-out", "server.crt", cwd=where)
    (where / "server.pem").write_text((where / "server.key").read_text() + (where / "server.crt").read_text())
    return where


def secure_kafka(directory, certificates):
    """A broker with a listener for SASL_SSL, an authorizer, and the tests' own listener, whose clients may do all."""
    kafka = Kafka(directory, session_ms=SESSION_MS)
    broker, secure = kafka.brokers[0], free_port()
    listeners = next(line for line in broker.config.read_text().splitlines() if line.startswith("listeners="))
    with open(broker.config, "a", encoding="utf-8") as out:
        out.write(f"""{listeners},SECURE://127.0.0.1:{secure}
advertised.listeners=PLAINTEXT://127.0.0.1:{broker.port},SECURE://127.0.0.1:{secure}
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SECURE:SASL_SSL
ssl.keystore.type=PEM
ssl.keystore.location={certificates}/server.pem
listener.name.secure.sasl.enabled.mechanisms=PLAIN
listener.name.secure.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
user_worker="{PASSWORD}";
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
""")
    kafka.secure = f"127.0.0.1:{secure}"
    return kafka


def secure_postgres(directory, certificates):
    """TLS alone, and a password by SCRAM, for the role recorder; the tests' own role comes in as before."""
    postgres = Postgres(directory)
    for name in ("server.crt", "server.key"):
        shutil.copy(certificates / name, postgres.data / name)
        os.chmod(postgres.data / name, 0o600)
        shutil.chown(postgres.data / name, postgres.data.owner(), postgres.data.group())
    with open(postgres.data / "postgresql.conf", "a", encoding="utf-8") as out:
        out.write("ssl = on\npassword_encryption = 'scram-sha-256'\n")
    (postgres.data / "pg_hba.conf").write_text("host all app 127.0.0.1/32 trust\nhostssl all recorder 127.0.0.1/32 scram-sha-256\n")
    return postgres


@pytest.fixture(scope="module")
def secure(cluster, certificates):
    directory = cluster.directory / "secure"
    directory.mkdir()
    directory.chmod(0o755)
    kafka, postgres = secure_kafka(directory, certificates), secure_postgres(directory, certificates)
    try:
        kafka.start()
        postgres.start()
        postgres.create()
        with psycopg.connect(postgres.url, autocommit=True) as db:
            db.execute(f"alter role recorder password '{PASSWORD}'")
        yield SimpleNamespace(kafka=kafka, postgres=postgres, build=BUILD, directory=directory, names=[])
    finally:
        postgres.kill()
        postgres.remove_outside()
        kafka.stop()


def rights(realm):
    """The rights of a worker as deploy/README.md lists them: (kind of resource, name, operation)."""
    topic = {kind: realm.topic(kind) for kind in ("requests", "control", "index", "events", "chunks", "results", "dlq")}
    reads, writes = ("requests", "control", "index", "events"), ("chunks", "results", "events", "index", "dlq")
    return ([(ResourceType.TOPIC, topic[k], AclOperation.READ) for k in reads]
            + [(ResourceType.TOPIC, topic[k], AclOperation.WRITE) for k in writes]
            + [(ResourceType.GROUP, realm.group, AclOperation.READ),
               (ResourceType.GROUP, f"{realm.prefix}-recorder", AclOperation.READ),
               (ResourceType.TRANSACTIONAL_ID, f"{realm.group}-", AclOperation.WRITE)])


def allow(realm, wanted):
    """These rights too; a realm's names are its own."""
    bindings = [AclBinding(kind, name, ResourcePatternType.PREFIXED if kind == ResourceType.TRANSACTIONAL_ID
                           else ResourcePatternType.LITERAL, "User:worker", "*", operation, AclPermissionType.ALLOW)
                for kind, name, operation in wanted]
    for future in realm.admin.create_acls(bindings).values():
        future.result(10)


@pytest.fixture
def secure_realm(request, secure):
    name = re.sub(r"[^a-z]+", "-", request.node.name.lower().removeprefix("test_")).strip("-")
    realm = Realm(secure, f"{len(secure.names)}-{name}"[:40], partitions=1)
    secure.names.append(realm.name)
    yield realm
    realm.close()


def secure_worker(realm, certificates, password=PASSWORD, authority="authority", **settings):
    database = realm.database.replace("app@", f"recorder:{PASSWORD}@") + f"?sslmode=verify-full&sslrootcert={certificates}/authority.crt"
    return realm.worker(**{"wait": False, "brokers": realm.cluster.kafka.secure, "kafka_security_protocol": "sasl_ssl",
                           "kafka_ssl_ca_location": f"{certificates}/{authority}.crt", "kafka_sasl_mechanism": "PLAIN",
                           "kafka_sasl_username": "worker", "kafka_sasl_password": password, "database_url": database,
                           "log_level": "debug", **settings})


def log_says(worker, *words, timeout=90):
    """A line with all the words; secrets are in none."""
    deadline = time.time() + timeout
    while time.time() < deadline:
        text = worker.log.read_text(errors="replace") + worker.http("/readyz")[1]
        assert PASSWORD not in text, "a secret was printed"
        line = next((line for line in text.splitlines() if all(word in line for word in words)), None)
        if line:
            return line
        time.sleep(0.1)
    raise AssertionError(f"no line with {words}: {worker.tail(10)}")


# ---- Kafka and PostgreSQL ----

def test_a_job_through_tls_sasl_acls_and_scram(secure_realm, certificates):
    """With exactly the documented rights, and the recorder's role, everything works."""
    allow(secure_realm, rights(secure_realm))
    worker = secure_worker(secure_realm, certificates)
    worker.wait_ready()
    job = request(stream=True)
    secure_realm.send(job)
    assert secure_realm.result(job["job_id"])["status"] == "completed"
    junk = secure_realm.produce("requests", b"junk", b"junk") or secure_realm.flush()
    assert junk is None and secure_realm.dead_letters(1)
    rows = secure_realm.wait_rows("select status from job where job_id = %s", (job["job_id"],), lambda r: r and r[0]["status"] == "completed")
    assert rows
    assert worker.terminate() == 0
    assert PASSWORD not in worker.log.read_text()


@pytest.mark.parametrize("missing, words", [
    ((ResourceType.TOPIC, "requests", AclOperation.READ), ["requests", "uthoriz"]),
    ((ResourceType.TOPIC, "results", AclOperation.WRITE), ["results", "uthoriz"]),
    ((ResourceType.TOPIC, "chunks", AclOperation.WRITE), ["chunks", "uthoriz"]),
    ((ResourceType.TOPIC, "index", AclOperation.READ), ["index", "uthoriz"]),
    ((ResourceType.TOPIC, "control", AclOperation.READ), ["control", "uthoriz"]),
    ((ResourceType.GROUP, "-workers", AclOperation.READ), ["roup", "uthoriz"]),
    ((ResourceType.TRANSACTIONAL_ID, "-workers-", AclOperation.WRITE), ["ransactional", "uthoriz"])],
    ids=["read-requests", "write-results", "write-chunks", "read-index", "read-control", "group", "transactions"])
def test_a_missing_right_is_named(missing, words, secure_realm, certificates):
    """The worker says which right it lacks, does not crash and loses nothing: with the right it goes on."""
    kind, name, operation = missing
    left = [r for r in rights(secure_realm) if not (r[0] == kind and r[1].endswith(name) and r[2] == operation)]
    assert len(left) == len(rights(secure_realm)) - 1
    allow(secure_realm, left)
    job = request(stream=True)
    secure_realm.send(job)
    worker = secure_worker(secure_realm, certificates, log_level="warn")
    log_says(worker, *words)
    assert worker.alive or worker.child.returncode == 1, "it waits, or ends and says why"
    secure_realm.reader.quiet(0.5)
    assert not secure_realm.reader.results[job["job_id"]]
    allow(secure_realm, [r for r in rights(secure_realm) if r not in left])
    deadline = time.time() + 90
    while not secure_realm.reader.results[job["job_id"]] and time.time() < deadline:
        if not worker.alive:
            worker.start() # as a supervisor does
        secure_realm.reader.poll(0.2)
    assert secure_realm.result(job["job_id"])["status"] == "completed"


def test_a_client_without_rights_says_which_it_needs(secure_realm, certificates):
    """It may see the topics and no more: neither their settings, nor write or read them."""
    kinds = ("requests", "control", "results", "chunks", "events", "index", "dlq")
    allow(secure_realm, [(ResourceType.TOPIC, secure_realm.topic(kind), AclOperation.DESCRIBE) for kind in kinds])
    env = {k: v for k, v in os.environ.items() if not k.startswith("PGPT_")}
    env |= {f"PGPT_TOPIC_{kind.upper()}": secure_realm.topic(kind) for kind in kinds}
    env |= {"PGPT_BROKERS": secure_realm.cluster.kafka.secure, "PGPT_KAFKA_SECURITY_PROTOCOL": "sasl_ssl",
            "PGPT_KAFKA_SSL_CA_LOCATION": f"{certificates}/authority.crt", "PGPT_KAFKA_SASL_MECHANISM": "PLAIN",
            "PGPT_KAFKA_SASL_USERNAME": "worker", "PGPT_KAFKA_SASL_PASSWORD": PASSWORD}
    # What is refused first, the producer's id or its topic, is the broker's to say.
    for command, words in (("topics --check", [f"topic {secure_realm.topic('chunks')}: "]),
                           ("submit x", ["IDEMPOTENT_WRITE", "Topic authorization failed"]),
                           ("follow 6f1e0c2a-9a54-4c0e-8d0b-0d5b1c8f7a11", ["READ on the groups pgpt-*"])):
        done = subprocess.run([str(BUILD / "pgpt"), *command.split()], env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1 and any(w in done.stderr for w in words), f"{command}: {done}"
        assert "(kafka-acls)" in done.stderr, f"{command}: {done}"
        assert PASSWORD not in done.stderr


def test_rights_taken_away_end_the_worker(secure_realm, certificates):
    """A member that its group refuses is broken for good as the Kafka client sees it: no worker that limps."""
    group = next(r for r in rights(secure_realm) if r[1] == secure_realm.group)
    allow(secure_realm, rights(secure_realm))
    worker = secure_worker(secure_realm, certificates, log_level="warn")
    worker.wait_ready()
    for future in secure_realm.admin.delete_acls([AclBindingFilter(group[0], group[1], ResourcePatternType.LITERAL, None, None,
                                                                   AclOperation.ANY, AclPermissionType.ANY)]).values():
        future.result(10)
    assert worker.child.wait(90) == 1 and "Group authorization failed" in worker.tail(3)


@pytest.mark.parametrize("how, words", [({"password": "wrong-one"}, ["uthentication"]), ({"authority": "stranger"}, ["certificate"])],
                         ids=["password", "certificate"])
def test_a_broker_that_refuses_or_is_not_trusted(how, words, secure_realm, certificates):
    worker = secure_worker(secure_realm, certificates, log_level="warn", **how)
    line = log_says(worker, *words)
    assert "wrong-one" not in line
    assert worker.http("/readyz")[0] != 200


@pytest.mark.parametrize("change, words", [
    (lambda url, where: url.replace(PASSWORD, "wrong-one"), ["PostgreSQL", "password authentication failed"]),
    (lambda url, where: url.replace("authority.crt", "stranger.crt"), ["PostgreSQL", "certificate"])], ids=["password", "certificate"])
def test_a_database_that_refuses_or_is_not_trusted(change, words, secure_realm, certificates):
    """The recorder says why, and jobs go on without it."""
    allow(secure_realm, rights(secure_realm))
    url = secure_realm.database.replace("app@", f"recorder:{PASSWORD}@") + f"?sslmode=verify-full&sslrootcert={certificates}/authority.crt"
    worker = secure_worker(secure_realm, certificates, log_level="warn", database_url=change(url, certificates))
    assert "wrong-one" not in log_says(worker, *words)
    job = request()
    secure_realm.send(job)
    assert secure_realm.result(job["job_id"])["status"] == "completed"


# ---- what is printed ----

def test_texts_are_not_logged(new_realm):
    """Neither prompts nor results stand in logs or metrics below the level debug, whatever happens to a job."""
    realm = new_realm(partitions=1)
    worker = realm.worker(log_level="info")
    mark = "Xylophonquark"
    jobs = [request(f"{mark} is a word."), request(f"{mark} again.", stream=True), request(f"{mark} {mark} " * 400),
            request(f"{mark}.", max_length=100000, stop=[mark])]
    realm.send(*jobs)
    realm.produce("requests", b"junk", mark.encode())
    realm.flush()
    realm.results([j["job_id"] for j in jobs])
    realm.dead_letters(1)
    text = worker.log.read_text() + worker.http("/metrics")[1] + worker.http("/readyz")[1]
    assert jobs[3]["job_id"] in text, "the failed job is logged, without its text"
    assert mark not in text and "Xyloph" not in text


# ---- HTTP ----

def test_http_is_on_loopback_unless_told_otherwise():
    env = {k: v for k, v in os.environ.items() if not k.startswith("PGPT_")}
    shown = subprocess.run([str(BUILD / "pgpt-worker"), "--check-config"], env={**env, "PGPT_RECORDER_ENABLED": "false"},
                           capture_output=True, text=True, check=True, timeout=60).stdout
    assert "http.address = 127.0.0.1" in shown.replace('"', "")


def talk(port, data, timeout=5):
    """Sends bytes; what comes back until the other side closes or says nothing for so long."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as s:
        answer = b""
        try:
            s.sendall(data)
            while piece := s.recv(65536):
                answer += piece
        except OSError:
            pass
        return answer


@pytest.mark.release_only # counts seconds
def test_http_is_bounded(tmp_path, cluster):
    """Endless headers, odd requests and more slow clients than it has places cost memory and time within bounds, and
    an ordinary request is answered when they are gone."""
    worker = Worker("http", tmp_path, {"PGPT_BROKERS": cluster.kafka.bootstrap, "PGPT_MODEL": str(MODEL), "PGPT_HTTP_PORT": str(free_port()),
                                       "PGPT_RECORDER_ENABLED": "false", "PGPT_GROUP": "http"}, BUILD / "pgpt-worker")
    worker.start()

    def memory():
        return int(next(line for line in open(f"/proc/{worker.child.pid}/status", encoding="ascii") if line.startswith("VmRSS")).split()[1])
    deadline, before = time.time() + 120, 0
    while not worker.says("engine_id") or memory() != before: # the model is loaded, and memory grows no more
        assert time.time() < deadline, worker.tail()
        before = memory()
        time.sleep(1)
    assert b" 200 " not in talk(worker.port, b"GET /metrics HTTP/1.1\r\n" + b"X: " + b"y" * (4 << 20) + b"\r\n\r\n")
    assert b" 200 " not in talk(worker.port, b"GET /" + b"z" * (1 << 20) + b" HTTP/1.1\r\n\r\n")
    for odd in (b"\0" * 1000, b"POST /metrics HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", b"GET /metrics HTTP/9.9\r\n\r\n",
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"):
        assert b" 200 " not in talk(worker.port, odd, timeout=2)
    slow = [socket.create_connection(("127.0.0.1", worker.port), timeout=5) for _ in range(100)]
    for s in slow:
        s.sendall(b"GET /metr") # and never the rest
    began = time.time()
    while worker.http("/healthz", timeout=2)[0] != 200:
        assert time.time() - began < 60, "slow clients hold the listener for ever"
        time.sleep(0.2)
    assert worker.alive and memory() - before < 20000, f"{memory() - before} KB for bad clients"
    for s in slow:
        s.close()
    assert worker.terminate() == 0


def test_scrapes_beside_slow_readers(main, main_worker):
    """A client that asks and does not read does not hold the others."""
    stuck = [socket.create_connection(("127.0.0.1", main_worker.port), timeout=5) for _ in range(20)]
    for s in stuck:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        s.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 50)
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(main_worker.http("/metrics", 20)[0])) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(30)
    assert answers == [200] * 8
    for s in stuck:
        s.close()


# ---- hostile records ----

def test_hostile_keys_headers_and_metadata(realm):
    """They pass through as they are, or the job fails cleanly; the worker stays."""
    worker = realm.worker()
    odd = "\u202e\u0007\x1b[31m'; drop table job; --\U0001f600" + "é" * 100
    good = request(metadata={"k": odd, "": "empty key"}, tenant="a", author="")
    realm.send(good, headers=[("traceparent", b"\xff\xfe\0"), ("x" * 1000, None), ("", b""), ("dlq.attempt", b"-1")])
    assert realm.result(good["job_id"])["metadata"]["k"] == odd
    named = request(tenant=odd[:60])
    realm.send(named)
    assert realm.result(named["job_id"])["status"] in ("completed", "failed")
    record = request()
    import wire
    realm.produce("requests", b"\0\xff" * 500, wire.encode(wire.GENERATION_REQUEST, record))
    realm.flush()
    assert realm.result(record["job_id"])["status"] == "completed"
    log = worker.log.read_bytes()
    assert b"\x1b" not in log and b"\x07" not in log and not [line for line in log.splitlines() if not line.startswith(b"time=")], \
        "control characters or broken lines in the log"
    assert worker.alive


# ---- programs ----

@pytest.mark.release_only # sanitizers link otherwise
@pytest.mark.parametrize("program", ["pgpt-worker", "pgpt", "pgpt-engine"])
def test_programs_are_hardened(program):
    """Position-independent, read-only relocations bound at start, no executable stack, checked stack and libc calls."""
    def readelf(*words):
        return subprocess.run(["readelf", "-W", *words, str(BUILD / program)], capture_output=True, text=True, check=True).stdout
    assert "DYN (Position-Independent Executable" in readelf("-h")
    segments = readelf("-l")
    assert "GNU_RELRO" in segments
    stack = next(line for line in segments.splitlines() if "GNU_STACK" in line)
    assert " RW " in stack and "RWE" not in stack
    dynamic = readelf("-d")
    assert "BIND_NOW" in dynamic and "RPATH" not in dynamic and "RUNPATH" not in dynamic
    symbols = readelf("--dyn-syms")
    assert "__stack_chk_fail" in symbols and "_chk@" in symbols

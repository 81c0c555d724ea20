# SPDX-License-Identifier: MIT
"""One broker and one PostgreSQL for the session, a realm (topics, group, database) for each test or
group of tests. PGPT_BUILD_DIR names the build under test. Everything lies in BUILD/e2e-*/: removed
after a clean run, kept with all logs when something failed.

Sanitizer builds run the tests that are not marked `release_only` (timing, or long for little); what
was left out is counted at the end."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/lib"))
from cluster import Kafka, Postgres # noqa: E402
from realm import Realm # noqa: E402

BUILD = Path(os.environ.get("PGPT_BUILD_DIR", ROOT / "build")).resolve()
MODEL = ROOT / "models/prometheus-mini"
SESSION_MS = 3000 # a killed worker's partitions move after this


def cache(build, name):
    """A variable of a build's CMake cache; "" when it is not there."""
    try:
        found = re.search(rf"^{name}:\w+=(.*)$", (build / "CMakeCache.txt").read_text(), re.M)
    except OSError:
        return ""
    return found.group(1) if found else ""


SANITIZE = cache(BUILD, "PGPT_SANITIZE")


class Cluster:
    def __init__(self):
        self.build = BUILD
        self.directory = Path(tempfile.mkdtemp(prefix="e2e-", dir=BUILD))
        self.directory.chmod(0o755)
        self.kafka = Kafka(self.directory, session_ms=SESSION_MS)
        self.postgres = Postgres(self.directory)
        self.names = set()

    def start(self):
        self.kafka.start()
        self.postgres.start()
        self.postgres.create()

    def stop(self):
        self.postgres.kill()
        self.kafka.stop()

    def realm(self, name, **how):
        unique, n = name, 1
        while unique in self.names:
            n += 1
            unique = f"{name}-{n}"
        self.names.add(unique)
        return Realm(self, unique, **how)

    def faults_build(self):
        """The build whose worker has fault points: this one, or build-faults beside it."""
        if cache(self.build, "PGPT_FAULTS") == "ON":
            return self.build
        other = self.build.parent / "build-faults"
        assert (other / "pgpt-worker").exists(), f"{other}/pgpt-worker is missing: tests/run e2e builds it"
        return other


def pytest_configure(config):
    config.addinivalue_line("markers", "release_only: not run under sanitizers")
    signal.signal(signal.SIGTERM, signal.default_int_handler) # the fixtures' ends stop what they started


def pytest_collection_modifyitems(config, items):
    if not SANITIZE:
        return
    left_out = [i for i in items if i.get_closest_marker("release_only")]
    items[:] = [i for i in items if not i.get_closest_marker("release_only")]
    config.hook.pytest_deselected(items=left_out)
    config.left_out = len(left_out)


def pytest_terminal_summary(terminalreporter, config):
    kept = getattr(config, "kept_directory", None)
    if kept:
        terminalreporter.write_line(f"logs of this run are kept: {kept}")
    if SANITIZE:
        terminalreporter.write_line(f"{SANITIZE}: {getattr(config, 'left_out', 0)} tests marked release_only left out")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    setattr(item, f"failed_{report.when}", report.failed)
    if report.failed:
        item.config.any_failed = True
        realms = {id(r): r for value in getattr(item, "funcargs", {}).values() for r in getattr(value, "realms", [value])}
        for worker in (w for r in realms.values() for w in getattr(r, "workers", [])):
            report.sections.append((f"{worker.log}, its end", worker.tail(12)))
    return report


@pytest.fixture(scope="session")
def cluster(request):
    cluster = Cluster()
    request.config.kept_directory = str(cluster.directory)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        if not getattr(request.config, "any_failed", False):
            request.config.kept_directory = None
            cluster.postgres.remove_outside()
            shutil.rmtree(cluster.directory, ignore_errors=True)


@pytest.fixture(scope="session")
def main_realm(cluster):
    """The contract's own topic names; closed last."""
    realm = cluster.realm("main", prefix="pgpt", partitions=4)
    yield realm
    realm.close()


@pytest.fixture(scope="session")
def main_worker(main_realm):
    """One worker for all tests that need nothing special of it; it must survive them all."""
    worker = main_realm.worker("main-worker", schema_dir=ROOT / "tests/schema_versions")
    worker.deaths = []
    yield worker
    code = worker.terminate()
    report = sanitizer_reports(worker)
    assert code == 0 and not report, f"main-worker exited {code}: {report}\n{worker.tail()}"
    assert not worker.deaths, f"main-worker died before {worker.deaths}: {worker.log}"


@pytest.fixture
def main(request, main_realm, main_worker):
    if not main_worker.alive: # one test's crash is not every later test's failure, but the session's
        main_worker.deaths.append(request.node.name)
        main_worker.start()
        main_worker.wait_ready()
    return main_realm


def sanitizer_reports(worker):
    """Lines of sanitizer reports in a worker's log."""
    marks = ("ERROR: AddressSanitizer", "ERROR: LeakSanitizer", "WARNING: ThreadSanitizer", "runtime error:")
    text = worker.log.read_text(errors="replace") if worker.log.exists() else ""
    return [line for line in text.splitlines() if any(mark in line for mark in marks)]


@pytest.fixture
def new_realm(request, cluster):
    """new_realm(partitions=2, ...): a realm of this test alone. Its workers' logs must be free of
    sanitizer reports."""
    realms = []

    def make(**how):
        name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:40]
        realms.append(cluster.realm(name, **how))
        return realms[-1]
    make.realms = realms
    yield make
    for realm in realms:
        realm.close(keep_database=getattr(request.node, "failed_call", False))
    for worker in (w for r in realms for w in r.workers):
        report = sanitizer_reports(worker)
        assert not report, f"{worker.log}: {report}"


@pytest.fixture
def realm(new_realm):
    return new_realm()


@pytest.fixture(scope="session")
def generate():
    """The engine alone: requests in, results out, one after the other."""
    def run(requests):
        lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in requests)
        done = subprocess.run([str(BUILD / "pgpt-engine"), "generate", "--model", str(MODEL), "--device", "cpu",
                               "--threads", "1"], input=lines, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines() if line.strip()]
    return run


@pytest.fixture(scope="session")
def golden():
    """Hugging Face's own answers for the shipped model."""
    return json.loads((ROOT / "tests/golden/prometheus-mini/cases.json").read_text())

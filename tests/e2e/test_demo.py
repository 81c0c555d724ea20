# SPDX-License-Identifier: MIT
"""The README's first command, as one types it a second time: everything is installed and built. It gets a
stack of its own, so that one that runs beside the tests is left alone."""
import os
import re
import socket
import subprocess

import pytest

from cluster import ROOT, free_port
from conftest import BUILD


def free_pair():
    """Kafka takes two ports in a row."""
    while True:
        port = free_port()
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", port + 1))
                return port
            except OSError:
                continue


@pytest.mark.release_only
@pytest.mark.skipif(BUILD != ROOT / "build", reason="the demo builds and runs build/")
def test_the_demo_translates_and_reports(cluster):
    env = {**{k: v for k, v in os.environ.items() if not k.startswith("PGPT_") or k == "PGPT_LOCAL_DIR"},
           "PGPT_LOCAL_RUN_DIR": str(cluster.directory / "demo"), "PGPT_LOCAL_KAFKA_PORT": str(free_pair()),
           "PGPT_LOCAL_POSTGRES_PORT": str(free_port()), "PGPT_HTTP_PORT": str(free_port())}

    def run(*command):
        return subprocess.run([ROOT / "deploy/local" / command[0], *command[1:]], cwd="/", env=env, check=False,
                              capture_output=True, text=True, timeout=240)
    try:
        done = run("demo", "--down")
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        translated = [line.split(" -> ", 1) for line in lines if " -> " in line]
        assert len(translated) == 36 and "36 of 36 jobs completed" in lines
        for source, target in translated: # each into the other language
            assert bool(re.search("[а-яё]", source.lower())) != bool(re.search("[а-яё]", target.lower())), (source, target)
        rows = [[cell.strip() for cell in line.split("|")] for line in lines if line.count("|") >= 4]
        assert ["completed", "36"] in [row[:2] for row in rows], rows
        for metric in ("first_token", "queue", "total", "per_token (us)"):
            row, = [row for row in rows if row[0] == metric]
            assert row[1] == "36" and sorted(map(int, row[2:])) == [int(cell) for cell in row[2:]], row
    finally:
        assert run("down", "--delete").returncode == 0
    assert not (cluster.directory / "demo").exists()

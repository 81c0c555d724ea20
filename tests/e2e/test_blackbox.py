# SPDX-License-Identifier: MIT
"""The client that knows the wire contract alone, against a worker in its ordinary settings."""
import subprocess
import sys

from conftest import ROOT


def test_black_box_client_finds_nothing_wrong(main):
    done = subprocess.run([sys.executable, str(ROOT / "tests/blackbox/blackbox.py"), "--brokers", main.brokers,
                           "--schemas", str(ROOT / "schema"), "--database", main.database, "--jobs", "300", "--seed", "20261125"],
                          capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert done.stdout.splitlines()[-1].endswith("violations 0")

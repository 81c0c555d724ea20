# SPDX-License-Identifier: MIT
"""Runs pgpt-engine for the tests beside this file."""
import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("PGPT_BUILD_DIR", ROOT / "build"))
ENGINE = BUILD / "pgpt-engine"
MODEL = ROOT / "models" / "prometheus-mini"
GOLDEN = ROOT / "tests" / "golden"

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import make_model as maker  # noqa: E402


def engine(*arguments, text="", timeout=300):
    """The finished process; a signal or a sanitizer's report fails the test here."""
    done = subprocess.run([str(ENGINE), *map(str, arguments)], input=text, capture_output=True,
                          text=True, timeout=timeout)
    assert 0 <= done.returncode <= 3, (done.returncode, done.stderr[-2000:])
    assert "Sanitizer" not in done.stderr, done.stderr[-4000:]
    return done


def refused(*arguments, text=""):
    """Exit code 2 and one line on standard error, which is returned."""
    done = engine(*arguments, text=text)
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("pgpt-engine: "), done.stderr
    return done.stderr


def generate(requests, *arguments, model=MODEL, code=0):
    """Results of requests, which are dicts or raw lines."""
    lines = [r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in requests]
    done = engine("generate", "--model", model, *arguments, text="".join(l + "\n" for l in lines))
    assert done.returncode == code, (done.returncode, done.stdout[-2000:], done.stderr)
    return [json.loads(line) for line in done.stdout.splitlines()]


def cases():
    return json.loads((GOLDEN / "prometheus-mini" / "cases.json").read_text())

# SPDX-License-Identifier: MIT
"""What README.md tells a newcomer to type works as it stands there: the first request in Python and
every SQL statement."""
import ast
import os
import re
import subprocess
import sys

import psycopg

from cluster import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language):
    found = re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)
    assert len(found) == 1, f"README.md has {len(found)} blocks of {language}"
    return found[0]


def test_first_request_from_python(main):
    code = block("python")
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) == 15 and max(map(len, lines)) <= 125, "the README promises 15 lines"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True, text=True,
                          timeout=120, env={**os.environ, "PGPT_BROKERS": main.brokers})
    assert done.returncode == 0, done.stderr
    records = [ast.literal_eval(line) for line in done.stdout.splitlines()]
    result, = [r for r in records if "status" in r]
    chunks = sorted((r for r in records if "text_start" in r), key=lambda r: r["seq"])
    assert result["status"] == "completed" and result["error"] is None
    text = result["sequences"][0]["text"]
    assert re.search("[а-яё]", text), text
    assert len(chunks) > 2 and "".join(c["text"] for c in chunks) == text
    assert chunks[-1]["finish_reason"] == result["sequences"][0]["finish_reason"]


def test_sql_statements(main):
    main.run({"job_id": "5b7a2a3e-8a5e-4d8e-9b57-6f0f0a1f7c11", "prompt": "Good morning!", "target_language": "ru",
              "created_at_us": 0})
    statements = [s for s in re.sub("--.*", "", block("sql")).split(";") if s.strip()]
    assert len(statements) >= 6
    with psycopg.connect(main.database) as sql:
        for statement in statements:
            assert sql.execute(statement).description, statement

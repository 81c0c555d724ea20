# SPDX-License-Identifier: MIT
"""Makes tests/schema/fingerprints.txt anew: name, CRC-64-AVRO and Parsing Canonical Form of each
schema in tests/schema/canonical and of the product's own. Java Avro and fastavro must agree on all.

    python3 tests/schema/fingerprints.py [--check]

Needs fastavro, Java 17 and Maven (which fetches org.apache.avro:avro into its own cache).
--check compares with the stored file instead of writing it.
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import fastavro

HERE = pathlib.Path(__file__).resolve().parent
STORED = HERE / "fingerprints.txt"
AVRO = "1.12.1"
POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>pgpt</groupId><artifactId>fingerprints</artifactId><version>1</version><packaging>pom</packaging>
<dependencies><dependency><groupId>org.apache.avro</groupId><artifactId>avro</artifactId><version>{AVRO}</version>
</dependency></dependencies></project>"""


def files():
    return sorted(HERE.glob("canonical/*.avsc")) + sorted((HERE.parents[1] / "schema").glob("*.avsc"))


def by_java():
    with tempfile.TemporaryDirectory() as directory:
        (pathlib.Path(directory) / "pom.xml").write_text(POM)
        subprocess.run(
            ["mvn", "-q", "-B", "dependency:copy-dependencies", f"-DoutputDirectory={directory}/lib"],
            cwd=directory, check=True)
        output = subprocess.run(
            ["java", "-cp", f"{directory}/lib/*", str(HERE / "Fingerprints.java"), *map(str, files())],
            check=True, capture_output=True, text=True, env={**os.environ, "JAVA_TOOL_OPTIONS": "-Dstdout.encoding=UTF-8"})
    return output.stdout.splitlines()


def by_fastavro():
    for path in files():
        form = fastavro.schema.to_parsing_canonical_form(json.loads(path.read_text()))
        little_endian = bytes.fromhex(fastavro.schema.fingerprint(form, "CRC-64-AVRO"))
        yield f"{path.name} {little_endian[::-1].hex()} {form}"


def main():
    java = by_java()
    failed = False
    for ours, theirs in zip(java, by_fastavro(), strict=True):
        if ours != theirs:
            failed = True
            print(f"Java and fastavro differ:\n  {ours}\n  {theirs}", file=sys.stderr)
    text = "\n".join(java) + "\n"
    if "--check" in sys.argv[1:]:
        if STORED.read_text() != text:
            sys.exit(f"{STORED} is not what Java Avro {AVRO} computes")
    elif not failed:
        STORED.write_text(text)
    print(f"{len(java)} schemas")
    sys.exit(failed)


main()

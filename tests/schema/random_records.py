# SPDX-License-Identifier: MIT
"""Random data that fits an Avro schema. As a program: writes the fuzz target's seed inputs,
one of each schema of the product and of tests/schema_versions.

    python3 tests/schema/random_records.py tests/fuzz/corpus/codec
"""
import io
import pathlib
import random
import struct
import sys

import fastavro

ROOT = pathlib.Path(__file__).resolve().parents[2]
RECORDS = ["GenerationRequest", "GenerationChunk", "GenerationResult", "JobEvent", "JobIndex", "JobControl"]
WORDS = ["", "completed", "eos", "слово"]
ALPHABET = "abc XYZ 019 \"\\/\n\t\0 жёЯ é € 漢字 \U0001f600"


def text(rng, nul=True):
    letters = ALPHABET if nul else ALPHABET.replace("\0", "")
    return "".join(rng.choice(letters) for _ in range(rng.choice([0, 1, 3, 20, 70])))


def integer(rng, bits):
    edge = 1 << (bits - 1)
    return rng.choice([0, 1, -1, 63, 64, -64, -65, edge - 1, -edge, rng.randrange(-edge, edge)])


def single(value):
    return struct.unpack("<f", struct.pack("<f", value))[0]


def value(schema, rng, named, depth=0):
    """A random value of a schema parsed from JSON; `named` collects named types on the way."""
    if isinstance(schema, str):
        if schema in named:
            return value(named[schema], rng, named, depth)
        return {
            "null": lambda: None,
            "boolean": lambda: rng.random() < 0.5,
            "int": lambda: integer(rng, 32),
            "long": lambda: integer(rng, 64),
            "float": lambda: single(rng.uniform(-1e6, 1e6)),
            "double": lambda: rng.uniform(-1e300, 1e300),
            "bytes": lambda: text(rng).encode(),
            "string": lambda: text(rng),
        }[schema]()
    if isinstance(schema, list):
        branch = schema[0] if depth > 6 else rng.choice(schema)
        return value(branch, rng, named, depth + 1)
    kind = schema["type"]
    if kind in ("record", "enum", "fixed"):
        named[schema["name"]] = schema
    if kind == "record":
        return {
            f["name"]: rng.choice(WORDS)
            if f["name"] in ("status", "state", "finish_reason")
            else value(f["type"], rng, named, depth + 1)
            for f in schema["fields"]
        }
    if kind == "enum":
        return rng.choice(schema["symbols"])
    if kind == "fixed":
        return rng.randbytes(schema["size"])
    count = 0 if depth > 6 else rng.choice([0, 1, 2, 5])
    if kind == "array":
        return [value(schema["items"], rng, named, depth + 1) for _ in range(count)]
    if kind == "map":
        return {text(rng, nul=False): value(schema["values"], rng, named, depth + 1) for _ in range(count)}
    return value(kind, rng, named, depth)


def body(schema, record):
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), record)
    return out.getvalue()


def schema_files():
    own = [ROOT / "schema" / f"{name}.avsc" for name in RECORDS]
    return own + sorted((ROOT / "tests/schema_versions").glob("*.avsc"), key=lambda p: p.name)


def main(directory):
    import json

    rng = random.Random(1)
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(schema_files()):
        schema = json.loads(path.read_text())
        (directory / f"schema-{path.stem}").write_bytes(b"\xfe" + path.read_bytes())
        for copy in range(2):
            record = body(schema, value(schema, rng, {}))
            (directory / f"body-{path.stem}-{copy}").write_bytes(bytes([number]) + record)
        if number < len(RECORDS):
            fingerprint = fastavro.schema.fingerprint(fastavro.schema.to_parsing_canonical_form(schema), "CRC-64-AVRO")
            frame = b"\xc3\x01" + bytes.fromhex(fingerprint)
            (directory / f"framed-{path.stem}").write_bytes(b"\xff" + frame + record)


if __name__ == "__main__":
    main(sys.argv[1])

# SPDX-License-Identifier: MIT
"""The wire contract as an outsider would write it down: schemas, framing, topics. Nothing here is
imported from the product, so that a mistake in the product's own schemas cannot hide in the test."""
import io
import struct

import fastavro

GENERATION_REQUEST = {
    "type": "record",
    "name": "GenerationRequest",
    "namespace": "pgpt",
    "fields": [
        {"name": "job_id", "type": "string"},
        {"name": "prompt", "type": "string"},
        {"name": "source_tokens", "type": ["null", {"type": "array", "items": "int"}], "default": None},
        {"name": "target_language", "type": "string", "default": ""},
        {"name": "author", "type": "string", "default": ""},
        {"name": "max_length", "type": "int", "default": 128},
        {"name": "min_length", "type": "int", "default": 0},
        {"name": "do_sample", "type": "boolean", "default": False},
        {"name": "temperature", "type": "float", "default": 1.0},
        {"name": "top_k", "type": "int", "default": 0},
        {"name": "top_p", "type": "float", "default": 1.0},
        {"name": "repetition_penalty", "type": "float", "default": 1.0},
        {"name": "length_penalty", "type": "float", "default": 1.0},
        {"name": "num_beams", "type": "int", "default": 1},
        {"name": "num_return_sequences", "type": "int", "default": 1},
        {"name": "early_stopping", "type": "boolean", "default": False},
        {"name": "stop", "type": {"type": "array", "items": "string"}, "default": []},
        {"name": "seed", "type": ["null", "long"], "default": None},
        {"name": "stream", "type": "boolean", "default": False},
        {"name": "stream_interval", "type": "int", "default": 1},
        {"name": "priority", "type": "int", "default": 0},
        {"name": "deadline_us", "type": ["null", "long"], "default": None},
        {"name": "tenant", "type": "string", "default": ""},
        {"name": "model", "type": "string", "default": ""},
        {"name": "created_at_us", "type": "long"},
        {"name": "metadata", "type": {"type": "map", "values": "string"}, "default": {}},
    ],
}

JOB_CONTROL = {
    "type": "record",
    "name": "JobControl",
    "namespace": "pgpt",
    "fields": [
        {"name": "job_id", "type": "string"},
        {"name": "action", "type": "string"},
        {"name": "reason", "type": "string", "default": ""},
        {"name": "created_at_us", "type": "long"},
    ],
}


def crc64_avro(data):
    """CRC-64-AVRO (Rabin), as the Avro specification defines it."""
    empty = 0xC15D213AA4D7A795
    table = []
    for i in range(256):
        fp = i
        for _ in range(8):
            fp = (fp >> 1) ^ (empty if fp & 1 else 0)
        table.append(fp)
    fp = empty
    for byte in data:
        fp = (fp >> 8) ^ table[(fp ^ byte) & 0xFF]
    return fp


def fingerprint(schema):
    canonical = fastavro.schema.to_parsing_canonical_form(schema)
    return crc64_avro(canonical.encode())


def encode(schema, record):
    """Single-object encoding: C3 01, the schema's fingerprint (little endian), the Avro body."""
    body = io.BytesIO()
    fastavro.schemaless_writer(body, fastavro.parse_schema(schema), record)
    return b"\xc3\x01" + struct.pack("<Q", fingerprint(schema)) + body.getvalue()


class Decoder:
    """Decodes what the product writes with the schemas it publishes (schema/<Record>.avsc)."""

    def __init__(self, schema_dir, names):
        self.by_fingerprint = {}
        for name in names:
            schema = fastavro.schema.load_schema(f"{schema_dir}/{name}.avsc")
            raw = fastavro.schema.to_parsing_canonical_form(schema)
            self.by_fingerprint[crc64_avro(raw.encode())] = (name, schema)

    def decode(self, data):
        if data[:2] != b"\xc3\x01":
            raise ValueError(f"not single-object framing: {data[:8].hex()}")
        (fp,) = struct.unpack("<Q", data[2:10])
        name, schema = self.by_fingerprint[fp]
        body = io.BytesIO(data[10:])
        record = fastavro.schemaless_reader(body, schema)
        if body.read(1):
            raise ValueError("bytes left after the record")
        return name, record

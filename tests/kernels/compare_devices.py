#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The same random requests on two devices: greedy, sampled, beams, penalties, lengths, stops, several sequences.

    tests/kernels/compare_devices.py [--requests 400] [--seed 1] [--first cpu:fp32] [--second cuda:0:fp32]

Each is a run of `pgpt-engine generate`. Sequences are to be equal but for ties: a difference is let pass as a tie where
it is one of few (at most 1 % of the requests of a kind, at least one); scores of equal sequences are to be within 1e-4
a token. Prints a line for each kind; exit code 1 when one fails. Needs no Python packages."""
import argparse
import json
import os
import pathlib
import random
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
ENGINE = pathlib.Path(os.environ.get("PGPT_BUILD_DIR", ROOT / "build")) / "pgpt-engine"
MODEL = ROOT / "models/prometheus-mini"
CASES = MODEL / "golden/cases.json"

KINDS = {
    "greedy": lambda draw: {},
    "lengths": lambda draw: {"min_length": draw.randint(0, 20), "max_length": draw.randint(20, 60)},
    "short": lambda draw: {"max_length": draw.randint(1, 5)},
    "penalty": lambda draw: {"repetition_penalty": draw.choice([0.8, 1.1, 1.3, 2.0])},
    "stop": lambda draw: {"stop": draw.sample(["о", "е ", ".", "th", "на", " a"], 2)},
    "sample": lambda draw: {"do_sample": True, "seed": draw.getrandbits(62),
                            "temperature": draw.choice([0.5, 0.9, 1.5])},
    "sample, top-k, top-p": lambda draw: {"do_sample": True, "seed": draw.getrandbits(62), "top_k": draw.choice([5, 50]),
                                          "top_p": draw.choice([0.5, 0.9, 0.95])},
    "sample, all together": lambda draw: {"do_sample": True, "seed": draw.getrandbits(62), "top_k": 40, "top_p": 0.9,
                                          "repetition_penalty": 1.2, "min_length": 4, "max_length": 40,
                                          "num_return_sequences": draw.randint(2, 8)},
    "beams": lambda draw: {"num_beams": draw.randint(2, 8), "early_stopping": draw.random() < 0.5,
                           "length_penalty": draw.choice([-1.0, 0.0, 0.6, 1.0, 2.0])},
    "beams, several": lambda draw: {"num_beams": 4, "num_return_sequences": draw.randint(2, 4), "max_length": 30,
                                    "repetition_penalty": draw.choice([1.0, 1.2]), "min_length": draw.randint(0, 8)},
}


def requests(count, seed):
    draw, cases = random.Random(seed), json.loads(CASES.read_text())
    made = []
    for n in range(count):
        kind, case = list(KINDS)[n % len(KINDS)], draw.choice(cases)
        made.append((kind, {"prompt": case["prompt"], "target_language": case["target_language"],
                            "author": (case["author"] or "").strip("<>"), **KINDS[kind](draw)}))
    return made


def results(place, made):
    device, compute = place.rsplit(":", 1)
    text = "".join(json.dumps(r) + "\n" for _, r in made)
    done = subprocess.run([ENGINE, "generate", "--model", MODEL, "--device", device, "--compute", compute], input=text,
                          capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{place}: exit code {done.returncode}: {done.stderr[-500:]}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def is_near(a, b):
    return abs(a["score"] - b["score"]) <= 1e-4 * (len(a["token_ids"]) + 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", default="cpu:fp32")
    parser.add_argument("--second", default="cuda:0:fp32")
    options = parser.parse_args()
    made = requests(options.requests, options.seed)
    first, second = results(options.first, made), results(options.second, made)
    failed = False
    for kind in KINDS:
        pairs = [(a, b) for (k, _), a, b in zip(made, first, second) if k == kind]
        ids = [[(s["token_ids"], s["finish_reason"], s["text"]) for s in r["sequences"]] for p in pairs for r in p]
        differ = sum(a != b for a, b in zip(ids[::2], ids[1::2]))
        far = sum(not is_near(s, t) for a, b in pairs for s, t in zip(a["sequences"], b["sequences"])
                  if s["token_ids"] == t["token_ids"])
        is_bad = not pairs or differ > max(1, len(pairs) // 100) or far
        failed |= bool(is_bad)
        print(f"{kind:22} {len(pairs):5} requests {differ:3} differ {far:3} scores off  {'FAILED' if is_bad else 'ok'}")
    return failed


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The same random requests on two devices: greedy, sampled, beams, penalties, lengths, stops, several sequences.

    tests/kernels/compare_devices.py [--model DIR] [--requests 400] [--seed 1] [--first cpu:fp32] [--second cuda:0:fp32]

With a model of make_model.py, which has no texts, sources are random tokens and nothing stops at a text. Each is a run of `pgpt-engine generate`. Sequences are to be equal but for ties: a difference is let pass as a tie where
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


def has_texts(model):
    return (model / "source.spm").exists()


def text_source(draw, cases):
    case = draw.choice(cases)
    return {"prompt": case["prompt"], "target_language": case["target_language"],
            "author": (case["author"] or "").strip("<>")}


def token_source(draw, config):
    ids = [draw.randrange(1, min(config["vocab_size"], 60)) for _ in range(draw.randint(1, 40))]
    return {"source_tokens": ids + [config["eos_token_id"]], "max_length": 32}


def requests(model, kinds, count, seed):
    draw = random.Random(seed)
    cases, config = json.loads(CASES.read_text()), json.loads((model / "config.json").read_text())
    made = []
    for n in range(count):
        kind = kinds[n % len(kinds)]
        source = text_source(draw, cases) if has_texts(model) else token_source(draw, config)
        made.append((kind, {**source, **KINDS[kind](draw)}))
    return made


def results(model, place, made):
    device, compute = place.rsplit(":", 1)
    text = "".join(json.dumps(r) + "\n" for _, r in made)
    done = subprocess.run([ENGINE, "generate", "--model", model, "--device", device, "--compute", compute,
                           *([] if has_texts(model) else ["--tokens"])], input=text, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{place}: exit code {done.returncode}: {done.stderr[-500:]}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def is_near(a, b):
    return abs(a["score"] - b["score"]) <= 1e-4 * (len(a["token_ids"]) + 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, default=MODEL)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", default="cpu:fp32")
    parser.add_argument("--second", default="cuda:0:fp32")
    options = parser.parse_args()
    kinds = [kind for kind in KINDS if kind != "stop" or has_texts(options.model)]
    made = requests(options.model, kinds, options.requests, options.seed)
    first, second = (results(options.model, place, made) for place in (options.first, options.second))
    failed = False
    for kind in kinds:
        pairs = [(a, b) for (k, _), a, b in zip(made, first, second) if k == kind]
        ids = [[(s["token_ids"], s["finish_reason"], s.get("text")) for s in r["sequences"]] for p in pairs for r in p]
        differ = sum(a != b for a, b in zip(ids[::2], ids[1::2]))
        far = sum(not is_near(s, t) for a, b in pairs for s, t in zip(a["sequences"], b["sequences"])
                  if s["token_ids"] == t["token_ids"])
        is_bad = not pairs or differ > max(1, len(pairs) // 100) or far
        failed |= bool(is_bad)
        print(f"{kind:22} {len(pairs):5} requests {differ:3} differ {far:3} scores off  {'FAILED' if is_bad else 'ok'}")
    return failed


if __name__ == "__main__":
    sys.exit(main())

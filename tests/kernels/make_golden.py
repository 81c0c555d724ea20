#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes tests/golden/odd/PRESET for every small model of make_model.py: what Hugging Face
transformers computes from it in float32 on the CPU. Needs torch and transformers, which the tests
themselves do not:

  python3 -m venv /tmp/hf && /tmp/hf/bin/pip install torch transformers safetensors
  /tmp/hf/bin/python tests/kernels/make_golden.py

Sources are random. A case is kept only when every greedy choice is clear (the best score leads by
GAP or more), so that a difference is a defect and not a matter of rounding.
"""
import json
import pathlib
import random
import sys
import tempfile

import torch
from safetensors.torch import save_file
from transformers import LogitsProcessorList, MarianMTModel
from transformers.generation import logits_process

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import make_model  # noqa: E402

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "odd"
CASES, ENDED, TENSOR_CASES, MAX_NEW, GAP, TOP = 6, 3, 2, 20, 2e-3, 16
WARPS = [(0.8, 50, 0.9, 1.0), (1.0, 0, 0.5, 1.0), (0.3, 5, 1.0, 1.0), (2.0, 100, 0.95, 1.2)]


def generate(model, source, **options):
    """(ids, least gap of any step's processed scores); the gap is None with beams."""
    out = model.generate(torch.tensor([source]), max_new_tokens=MAX_NEW, do_sample=False,
                         return_dict_in_generate=True, output_scores=True, **options)
    if options.get("num_beams", 1) > 1:
        return out.sequences[0].tolist(), None
    least = float("inf")
    for scores in out.scores:
        best = torch.topk(scores[0], 2).values
        least = min(least, float(best[0] - best[1]))
    return out.sequences[0].tolist(), least


def warped(model, source, prefix, temperature, top_k, top_p, penalty):
    ids = torch.tensor([prefix])
    with torch.no_grad():
        out = model(input_ids=torch.tensor([source]), decoder_input_ids=ids)
    scores = out.logits[:, -1].float()
    steps = LogitsProcessorList()
    config = model.generation_config
    if penalty != 1:
        steps.append(logits_process.RepetitionPenaltyLogitsProcessor(penalty))
    if config.bad_words_ids:
        steps.append(logits_process.NoBadWordsLogitsProcessor(config.bad_words_ids,
                                                              config.eos_token_id))
    if config.suppress_tokens:
        steps.append(logits_process.SuppressTokensLogitsProcessor(config.suppress_tokens))
    steps.append(logits_process.TemperatureLogitsWarper(temperature))
    if top_k:
        steps.append(logits_process.TopKLogitsWarper(top_k))
    if top_p < 1:
        steps.append(logits_process.TopPLogitsWarper(top_p))
    probabilities = torch.softmax(steps(ids, scores)[0], -1)
    support = int((probabilities > 0).sum())
    top = torch.topk(probabilities, min(TOP, support))
    return {"prefix": prefix, "temperature": temperature, "top_k": top_k, "top_p": top_p,
            "repetition_penalty": penalty, "support": support,
            "top": [[int(i), float(p)] for p, i in zip(top.values, top.indices)]}


def case_make(model, source):
    greedy, gap = generate(model, source)
    penalised, penalised_gap = generate(model, source, repetition_penalty=1.3)
    beams, _ = generate(model, source, num_beams=4, length_penalty=1.0, early_stopping=True)
    if min(gap, penalised_gap) < GAP:
        return None
    return {"input_ids": source, "max_new_tokens": MAX_NEW, "greedy_ids": greedy,
            "greedy_rep1.3_ids": penalised, "beam4_ids": beams}


def golden_make(preset, directory):
    make_model.make_model(preset, directory)
    torch.set_num_threads(1)
    # In the type of the weights first, as the shipped model's vectors were made: computed positions
    # are rounded to it.
    model = MarianMTModel.from_pretrained(directory, dtype="auto").float().eval()
    config, draw = model.config, random.Random(preset)
    cases, tensors = [], {}
    for attempt in range(90):
        ended = sum(len(c["greedy_ids"]) <= MAX_NEW for c in cases)
        if len(cases) == CASES:
            break
        length = draw.randint(1, 30)
        source = [draw.randrange(config.vocab_size) for _ in range(length - 1)]
        case = case_make(model, source + [config.eos_token_id])
        if not case or case["greedy_ids"] in (c["greedy_ids"] for c in cases):
            continue
        ends = len(case["greedy_ids"]) <= MAX_NEW  # by EOS of its own accord
        if not ends and len(cases) - ended >= CASES - ENDED and attempt < 40:
            continue
        if len(cases) < TENSOR_CASES:
            ids = torch.tensor([case["input_ids"]])
            prefix = case["greedy_ids"][:-1]
            case["warped"] = [warped(model, case["input_ids"], prefix[:3], *w) for w in WARPS]
            with torch.no_grad():
                out = model(input_ids=ids, decoder_input_ids=torch.tensor([prefix]))
            tensors[f"case{len(cases)}.encoder"] = out.encoder_last_hidden_state[0].float()
            tensors[f"case{len(cases)}.logits"] = out.logits[0].float()
        cases.append(case)
    target = GOLDEN / preset
    target.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    (target / "cases.json").write_text(f"[{lines}]\n")
    save_file({k: v.contiguous() for k, v in tensors.items()}, target / "tensors.safetensors")
    lengths = [len(c["greedy_ids"]) for c in cases]
    tokens = len({t for c in cases for t in c["greedy_ids"]})
    print(f"{preset}: {len(cases)} cases, lengths {lengths}, {tokens} different tokens", flush=True)


if __name__ == "__main__":
    for name in sys.argv[1:] or [p for p in make_model.PRESETS if p != "opus"]:
        with tempfile.TemporaryDirectory() as scratch:
            golden_make(name, scratch)

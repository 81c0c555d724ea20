#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Copies CUDA kernels so that simt.h can run them on a CPU.

  prepare.py DIR      writes DIR/kernels/cuda/...

What is one instruction of the device is a function of its own in these headers; here it gets a body
that calls the emulation. A function that is not found, or inline assembly that is left, is an error:
then this table has to follow the kernels.
"""
import pathlib
import re
import sys

SOURCE = pathlib.Path(__file__).resolve().parents[3] / "kernels" / "cuda"

# file: {function: its body}; a struct's function is named STRUCT.FUNCTION
BODIES = {
    "format.cuh": {
        "format_f16.mma": "simt_mma<__half>(c, w, x, y);",
        "format_bf16.mma": "simt_mma<__nv_bfloat16>(c, w, x, y);",
        "format_int8.mma": "abort();",
        "weights_stream": "return weights_get<format_f16>(block, lane);",
        "weights_stream_if": "if (in) *to = weights_get<format_f16>(block, lane);",
    },
    "product_input.cuh": {
        "copy_16": "simt_copy(shared, global, in);",
        "copy_commit": "simt_copy_commit();",
        "copy_wait": "simt_copy_wait(PENDING);",
    },
    "warpgroup.cuh": {
        "warpgroup_rows_behind": "return rows + (bytes >> 4);",
        "warpgroup_fence": "",
        "warpgroup_ended": "",
        "warpgroup_commit": "",
        "warpgroup_wait": "",
        "warpgroup_publish": "",
        "warpgroup_barrier": "simt_warpgroup_barrier(group);",
        "warpgroup_multiply_shared": "simt_wgmma_shared<typename F::element, N>(c, first, second, add);",
        "warpgroup_multiply": "simt_wgmma<typename F::element, N>(c, w, rows, add);",
    },
    "cluster.cuh": {
        "cluster_rank": "return simt_rank();",
        "cluster_blocks": "return simt_cluster;",
        "cluster_sync": "simt_wait(&simt_everybody, simt_threads * simt_cluster);",
        "cluster_meet": "simt_wait(&simt_everybody, simt_threads * simt_cluster);",
        "cluster_address": "abort();",
        "mailbox_expect": "simt_box_expect(box, bytes);",
        "mailbox_open": "simt_box_open(box); simt_box_expect(box, bytes);",
        "mailbox_receive": "simt_box_receive(box, *phase); *phase ^= 1;"
                           "if (first) simt_box_expect(box, bytes);",
        "cluster_send16": "simt_box_send(to, box, rank, &v, 16);",
        "cluster_send8": "simt_box_send(to, box, rank, &v, 8);",
        "cluster_send4": "simt_box_send(to, box, rank, &v, 4);",
        "cluster_put8": "simt_put8(global, &v);",
        "cluster_publish": "simt_publish(); simt_ring_release_at(barrier, rank);",
        "cluster_await": "simt_ring_wait(barrier, turn);",
    },
    "weights_ring.cuh": {
        "ring_open": "simt_ring_open(barrier);",
        "ring_wait": "simt_ring_wait(barrier, turn);",
        "ring_fetch": "simt_ring_fetch(slot, piece.from, piece.bytes, full);",
        "ring_expect": "simt_ring_expect(full, bytes);",
        "ring_copy": "simt_ring_copy((char *)to, (const char *)from, bytes, full);",
        "ring_copy_all": "simt_ring_copy_all((char *)to, (const char *)from, bytes, full, blocks);",
        "ring_release_at": "simt_ring_release_at(barrier, rank);",
        "ring_open_shared": "simt_ring_open(barrier, shares);",
        "ring_release": "simt_ring_release(barrier, shares);",
    },
    "fused_rows_shared.cuh": {
        "here": "return value;",
        "shared_here": "return shared;",
        "base_here": "return (const char *)base;",
        "begin_apart": "",
    },
    "fused_shared.cuh": {
        "workers_sync": "simt_workers_wait(WORKERS);",
        "registers_give": "",
        "registers_take": "",
        "here": "return value;",
    },
    "choose_block.cuh": {
        "block_sync": "simt_named_wait(b->barrier, b->warps * 32);",
        "block_sync_count": "return simt_named_count(b->barrier, b->warps * 32, mine);",
    },
    "choose_draw.cuh": {"draw_put_if": "if (in) *shared = make_uint2(x, y);"},
    "fused_rows_choose.cuh": {"rows_get_if": "if (in) *to = *from;"},
    "attention_chunk.cuh": {
        "power_of_2": "return exp2f(x);",
        "cache_get16_if": "if (in) *to = *(const uint4 *)((const char *)from + OFFSET);",
        "cache_get16_all": "*to = *(const uint4 *)((const char *)from + OFFSET);",
        "cache_get16_or_any": "*to = in ? *(const uint4 *)((const char *)from + OFFSET)"
                              " : make_uint4(0x7fff7fff, 0x7fff7fff, 0x7fff7fff, 0x7fff7fff);",
        "reciprocal": "return 1.0f / x;",
        "chunk_address": "return (uint32_t)(uintptr_t)shared;",
        "shared_get16_if": "if (set >> BIT & 1) *to = *(const uint4 *)(uintptr_t)from;",
    },
    "attention_stream.cuh": {
        "attend_copy": "simt_ring_copy((char *)to, (const char *)from, bytes, full);",
        "attend_get16": "return in ? *(const uint4 *)from : make_uint4(0, 0, 0, 0);",
        "attend_used": "",
    },
    "layer_norm.cuh": {"norm_root": "return 1.0f / sqrtf(x);"},
    "fused_product.cuh": {"slot_get16": "*to = *(const uint4 *)((uintptr_t)from + OFFSET);"},
    "logsum.cuh": {"logsum_exp": "return expf(x);"},
    "product_stream.cuh": {
        "stream_registers_give": "",
        "stream_registers_take": "",
        "stream_turn_wait": "simt_turn_wait(group);",
        "stream_turn_pass": "simt_turn_pass(group);",
        "stream_mask": "return *mask;",
        "stream_bias": "return *(const float2 *)bias;",
    },
    "launch.cuh": {"launch_wait": "", "launch_next": ""},
    "attention_encoder.cu": {"tile_copy": "simt_copy(shared, global, in);"},
}
# file: [(pattern, replacement)], each to be found
LINES = {
    "format.cuh": [
        (r'asm volatile\("ldmatrix.*?"r"\(\(uint32_t\)__cvta_generic_to_shared\(rows\)(.*?)\)\s*: "memory"\);',
         r"x = simt_ldmatrix(rows\1, false);"),
    ],
    "product_hopper.cuh": [
        (r"#if PGPT_CUDA_HOPPER && __CUDA_ARCH__ >= 900", "#if 1"),
        (r"extern __shared__ __align__\(1024\) char shared\[\];", "char *shared = simt_shared;"),
    ],
    "product_parts.cuh": [
        (r"#if PGPT_CUDA_HOPPER && __CUDA_ARCH__ >= 900", "#if 1"),
        (r"extern __shared__ __align__\(1024\) char shared\[\];", "char *shared = simt_shared;"),
    ],
    "product_stream.cuh": [
        (r"#if PGPT_CUDA_HOPPER && __CUDA_ARCH__ >= 900", "#if 1"),
        (r"extern __shared__ __align__\(1024\) char shared\[\];", "char *shared = simt_shared;"),
    ],
    "product_stream_output.cuh": [(r"#if PGPT_CUDA_HOPPER && __CUDA_ARCH__ >= 900", "#if 1")],
    "cluster.cuh": [
        (r"#if __CUDA_ARCH__ >= 900", "#if 1"),
        (r"static[^\n]*shared_address\(const void \*shared\)\s*\{[^}]*\}", ""),
    ],
    "weights_ring.cuh": [(r"#if __CUDA_ARCH__ >= 900", "#if 1")],
    "fused_shared.cuh": [(r"#if __CUDA_ARCH__ >= 900 && PGPT_CUDA_HOPPER", "#if 1")],
    "fused_product.cuh": [
        (r"#if __CUDA_ARCH__ >= 900 && PGPT_CUDA_HOPPER", "#if 1"),
        (r"extern __shared__ __align__\(128\) char shared\[\];", "char *shared = simt_shared;"),
    ],
    "fused_attention.cuh": [(r"#if __CUDA_ARCH__ >= 900 && PGPT_CUDA_HOPPER", "#if 1")],
    "fused_parts.cuh": [(r"#if __CUDA_ARCH__ >= 900 && PGPT_CUDA_HOPPER", "#if 1")],
    "fused_rows_shared.cuh": [(r"#if __CUDA_ARCH__ >= 900 && PGPT_CUDA_HOPPER", "#if 1")],
    "fused_rows_product.cuh": [(r"#if __CUDA_ARCH__ >= 900 && PGPT_CUDA_HOPPER", "#if 1")],
    "fused_rows_parts.cuh": [(r"#if __CUDA_ARCH__ >= 900 && PGPT_CUDA_HOPPER", "#if 1")],
    "fused_rows_sampled.cuh": [
        (r"#if __CUDA_ARCH__ >= 900 && PGPT_CUDA_HOPPER", "#if 1"),
        (r"extern __shared__ __align__\(1024\) char shared\[\];", "char *shared = simt_shared;"),
    ],
    "fused_rows_kernel.cuh": [
        (r"#if __CUDA_ARCH__ >= 900 && PGPT_CUDA_HOPPER", "#if 1"),
        (r"extern __shared__ __align__\(1024\) char shared\[\];", "char *shared = simt_shared;"),
    ],
    "fused.cu": [
        (r"#if __CUDA_ARCH__ >= 900 && PGPT_CUDA_HOPPER", "#if 1"),
        (r"extern __shared__ __align__\(128\) char shared\[\];", "char *shared = simt_shared;"),
        (r"typedef void \(\*fused_kernel\).*", ""),
    ],
    "launch.cuh": [(r"static inline void launch_config.*(?=#endif)", "")],
    "attention.cu": [(r"template <class T>\nstatic cudaError_t many_enqueue.*", "")],
    "attention_stream.cuh": [
        (r"#if __CUDA_ARCH__ >= 900", "#if 1"),
        (r"extern __shared__ __align__\(128\) char shared\[\];", "char *shared = simt_shared;"),
    ],
    "attention_encoder.cu": [
        (r'asm volatile\("ldmatrix.*?"r"\(\(uint32_t\)__cvta_generic_to_shared\(values\)(.*?)\)\s*: "memory"\);',
         r"v = simt_ldmatrix(values\1, true);"),
        (r'asm volatile\("cp.async.commit_group;" ::: "memory"\);', "simt_copy_commit();"),
        (r'asm volatile\("cp.async.wait_group 1;" ::: "memory"\);', "simt_copy_wait(1);"),
        (r"template <class F>\nstatic cudaError_t tiles_enqueue.*", ""),
    ],
}
# as they are
PLAIN = ["fused_choose.cuh", "attention_plain.cuh", "attention_bytes.cuh", "product_norm.cuh", "product_output.cuh", "product.h", "product_hopper.h", "product_stream.h", "product_shape.h", "rows.h",
         "attention.h", "choose_few.cuh", "choose_plain.cuh", "fused.h", "fused_rows.h", "fused_model.cuh", "network.h", "check.h"]


def body_replace(text, name, body):
    start = 0
    if "." in name:
        struct, name = name.split(".")
        start = text.index("struct %s {" % struct)
    found = re.compile(r"\b%s\s*\([^;{]*\)\s*\{" % name).search(text, start)
    if not found:
        raise SystemExit("prepare.py: no function %s" % name)
    end, depth = found.end(), 1
    while depth:
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        end += 1
    return text[:found.end()] + body + "}" + text[end:]


def prepare(name):
    text = re.sub(r"/\*.*?\*/", "", (SOURCE / name).read_text(), flags=re.S)
    for function, body in BODIES.get(name, {}).items():
        text = body_replace(text, function, body)
    for pattern, replacement in LINES.get(name, []):
        text, count = re.subn(pattern, replacement, text, flags=re.S)
        if not count:
            raise SystemExit("prepare.py: %s: nothing matches %s" % (name, pattern))
    text = re.sub(r"#define WARPGROUP_MULTIPLY(?:.*\\\n)*.*\n", "", text)
    if re.search(r"\basm\b", text):
        raise SystemExit("prepare.py: %s: inline assembly is left" % name)
    return re.sub(r"#pragma unroll.*", "", text)


def main():
    target = pathlib.Path(sys.argv[1]) / "kernels" / "cuda"
    target.mkdir(parents=True, exist_ok=True)
    for name in sorted({*BODIES, *LINES, *PLAIN}):
        (target / name).write_text(prepare(name))


main()

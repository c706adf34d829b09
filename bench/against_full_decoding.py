#!/usr/bin/env python3
"""Times decoding steps of `cpnsa bench --decode --graph` against full attention's (cuDNN's, through PyTorch, also in a
CUDA graph) on the same GPU in the same run: one query per sequence over contiguous keys and values. Prints a table and
writes results.json."""

import argparse
import json
import os
import statistics
import subprocess
import sys

import full_attention

try:
    import torch
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel
except ImportError:  # the table then has only our own columns
    torch = None

FLUSH_BYTES = 512 << 20  # several times any cache


def parse_length(text):
    for suffix, factor in {"K": 1 << 10, "M": 1 << 20}.items():
        if text.upper().endswith(suffix):
            return int(text[:-1]) * factor
    return int(text)


def parse_settings(text):
    """1x64K,8x64K: batches and lengths."""
    return [(int(part.split("x")[0]), parse_length(part.split("x")[1])) for part in text.split(",")]


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--cpnsa", default="build/cuda/bin/cpnsa", help="the command")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the results; it must not exist")
    parser.add_argument(
        "--settings", type=parse_settings, default="1x64K,8x64K,32x64K,8x128K,64x16K,4x1M", help="batch x tokens, ..."
    )
    parser.add_argument("--queries", type=int, default=1, help="tokens that a step appends to each sequence")
    parser.add_argument("--heads", type=int, default=64, help="query heads")
    parser.add_argument("--kv-heads", type=int, default=4)
    parser.add_argument("--dim", type=int, default=128, help="head dimension")
    parser.add_argument("--iterations", type=int, default=30)
    return parser.parse_args()


def measure_nsa(arguments, batch, tokens):
    """The row of `cpnsa bench --decode`; from a JSON file."""
    file = os.path.join(arguments.out, f"nsa_{batch}x{tokens}.json")
    command = [arguments.cpnsa, "bench", "--decode", "--graph", "--batch", str(batch), "-b", str(tokens)]
    command += ["-e", str(tokens), "--queries", str(arguments.queries), "-n", str(arguments.iterations), "-J", file]
    command += ["--heads", str(arguments.heads), "--kv-heads", str(arguments.kv_heads)]
    command += ["--dk", str(arguments.dim), "--dv", str(arguments.dim)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return {"unavailable": done.stderr.strip().split("\n")[-1]}
    with open(file, encoding="utf-8") as report:
        return json.load(report)["rows"][0]


def measure_full(arguments, batch, tokens):
    """Seconds of one step of full attention by cuDNN, replayed from a CUDA graph with cold caches."""
    if full_attention.unavailable():
        return {"unavailable": full_attention.unavailable()}
    shape = (batch, arguments.kv_heads, tokens, arguments.dim)
    if 2 * 2 * batch * arguments.kv_heads * tokens * arguments.dim > 64 << 30:
        return {"unavailable": "keys and values of more than 64 GiB"}
    make = {"dtype": torch.bfloat16, "device": "cuda"}
    q = torch.randn(batch, arguments.heads, arguments.queries, arguments.dim, **make)
    k, v = torch.randn(shape, **make), torch.randn(shape, **make)
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")

    def step():
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    try:
        side = torch.cuda.Stream()
        with torch.cuda.stream(side), torch.no_grad():
            for _ in range(3):
                step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(graph):
            step()
    except RuntimeError as error:
        return {"unavailable": str(error).split("\n", maxsplit=1)[0]}
    seconds = []
    for _ in range(arguments.iterations):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        for _ in range(4):
            flush.zero_()
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        seconds.append(begin.elapsed_time(end) * 1e-3)
    return {"seconds": statistics.median(seconds)}


def cell(measured, key):
    return f"{1e3 * measured[key]:.4f}" if key in measured else "-"


def main():
    arguments = parse_arguments()
    os.mkdir(arguments.out)
    results = []
    print("| batch x length | NSA, ms | read limit, ms | cuDNN, full, ms | ratio |\n|---|---:|---:|---:|---:|")
    for batch, tokens in arguments.settings:
        nsa, full = measure_nsa(arguments, batch, tokens), measure_full(arguments, batch, tokens)
        results.append({"batch": batch, "tokens": tokens, "nsa": nsa, "full": full})
        both = "seconds" in nsa and "seconds" in full
        ratio = f"{full['seconds'] / nsa['seconds']:.2f}" if both else "-"
        print(
            f"| {batch} x {tokens} | {cell(nsa, 'seconds')} | {cell(nsa, 'limit_seconds')} | {cell(full, 'seconds')} "
            f"| {ratio} |",
            flush=True,
        )
        for measured in (nsa, full):
            if "unavailable" in measured:
                print(f"# {batch} x {tokens}: {measured['unavailable']}", file=sys.stderr)
    with open(os.path.join(arguments.out, "results.json"), "w", encoding="utf-8") as file:
        json.dump({"machine": full_attention.describe_machine(), "rows": results}, file, indent=2)


if __name__ == "__main__":
    main()

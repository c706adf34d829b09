#!/usr/bin/env python3
"""The cost of the Python path: host time per call, and GPU time per step against `cpnsa bench` of the same shape.

    python3 bench/python_overhead.py --cpnsa build/cuda/bin/cpnsa --tokens 8192

Host time is the time to enqueue a step right after another, as in training, while the GPU runs the one before; one rank
does not wait for the GPU. `library` is the part inside the C++ interface (validation, launches). `PyTorch` is the part
that the smallest function around the same library calls also needs: it saves its tensors, makes an output and
gradients, and has everything else prepared. `Python` is the rest. `step` is the GPU's time for one pass, between events
in the stream and after a write of 512 MiB, as in `cpnsa bench`, so that the cache holds nothing of it; the GPU is busy
before it, so that the host is ahead. `overhead` is the part of the step that `cpnsa bench` does not need. All are
medians; Python's is the median of the differences.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import torch

import cpnsa
import cpnsa.torch

dtypes = {"float64": "f64", "float32": "f32", "bfloat16": "bf16", "float16": "f16"}


def median_of(samples):
    return statistics.median(samples)


class Timed:
    """In a plan's place for the C++ layer: adds up the time spent in it."""

    def __init__(self, layer):
        self.layer, self.seconds = layer, 0.0

    def _run(self, function, *arguments):
        begin = time.perf_counter()
        function(*arguments)
        self.seconds += time.perf_counter() - begin

    def forward(self, *arguments):
        self._run(self.layer.forward, *arguments)

    def backward(self, *arguments):
        self._run(self.layer.backward, *arguments)


FLUSH_BYTES = 512 << 20
AHEAD_CYCLES = 8_000_000  # of the GPU's clock, some milliseconds


class Smallest(torch.autograd.Function):
    """The smallest function that calls the library, to compare with. It makes the calls too, because a function without
    them would run with warmer CPU caches than any that launches kernels."""

    @staticmethod
    def forward(ctx, prepared, *tensors):
        ctx.save_for_backward(*tensors)
        ctx.prepared = prepared
        out = torch.empty(prepared.out_shape, dtype=tensors[0].dtype, device=tensors[0].device)
        prepared.layer.forward(tensors, out, None, prepared.state, prepared.memory, prepared.workspace, prepared.stream,
                               prepared.indices)
        return out

    @staticmethod
    def backward(ctx, dout):
        tensors, prepared = ctx.saved_tensors, ctx.prepared
        gradients = list(map(torch.empty_like, tensors))
        prepared.layer.backward(tensors, dout, prepared.state, prepared.memory, gradients, prepared.workspace,
                                prepared.stream, prepared.indices)
        return (None, *gradients)


class Prepared:
    """Everything that a step needs but its tensors, output and gradients."""

    def __init__(self, plan, indices):
        memory = {"dtype": torch.uint8, "device": plan.device}
        self.layer, self.indices, self.out_shape = plan.steps.attention, indices, plan.steps.out_shape
        self.state, self.stream = cpnsa._core.Saved(), plan.steps._stream()
        self.memory = torch.empty(plan.saved_bytes, **memory)
        self.workspace = torch.empty(plan.workspace_bytes, **memory)


def synchronized(device):
    if device == "cuda":
        torch.cuda.synchronize()


def measure(opts):
    dtype = getattr(torch, opts.dtype)
    config = cpnsa.Config(num_q_heads=opts.heads, num_kv_heads=opts.kv_heads, head_dim_qk=opts.dk, head_dim_v=opts.dv,
                          compress_hidden_k=opts.hidden, compress_hidden_v=opts.hidden)
    plan = cpnsa.torch.Plan(config, [0, opts.tokens], dtype=dtype, device=opts.device)
    made = {"dtype": dtype, "device": opts.device}
    leaves = [torch.randn(opts.tokens, *shape, **made).requires_grad_() for shape in (
        (opts.heads, opts.dk), (opts.kv_heads, opts.dk), (opts.kv_heads, opts.dv), (opts.heads, 3))]
    sides = [cpnsa.torch.Compressor(config, dim, opts.hidden, **made).tensors() for dim in (opts.dk, opts.dv)]
    dout = torch.randn(opts.tokens, opts.heads, opts.dv, **made)

    parameters = [parameter for side in sides for parameter in side.values()]

    def forward():
        for leaf in leaves + parameters:
            leaf.grad = None  # else the GPU would also add to the last step's
        return cpnsa.torch.attention(plan, *leaves, *sides)

    for _ in range(opts.warmup):
        forward().backward(dout)
    synchronized(opts.device)
    plan.steps.attention = timed = Timed(plan.steps.attention)
    indices, tensors = cpnsa._core._numbered(dtype, *leaves, *sides)
    prepared = Prepared(plan, indices)

    def least():
        for leaf in leaves + parameters:
            leaf.grad = None
        return Smallest.apply(prepared, *tensors)

    rows = {name: {"host": [], "library": [], "PyTorch": []} for name in ("forward", "backward")}
    for _ in range(opts.iterations):
        for kind, make in (("host", forward), ("PyTorch", least)):
            synchronized(opts.device)
            make().backward(dout)  # leaves the host's caches as a step of training finds them
            out = None
            for name, row in rows.items():
                timed.seconds = 0.0
                begin = time.perf_counter()
                if name == "forward":
                    out = make()
                else:
                    out.backward(dout)
                seconds = time.perf_counter() - begin
                if kind == "host":
                    row["host"].append(seconds)
                    row["library"].append(timed.seconds)
                else:
                    row["PyTorch"].append(seconds - timed.seconds)
    result = {name: {key: median_of(samples) * 1e6 for key, samples in row.items()} for name, row in rows.items()}
    for name, row in result.items():
        # The samples alternate, so a host that slows down does so for both.
        row["Python"] = median_of([host - library - torch_alone for host, library, torch_alone in
                                   zip(*rows[name].values())]) * 1e6
        row["step_ms"] = row["host"] * 1e-3  # on the CPU a call returns when it is done
    if opts.device == "cuda":
        events = {name: [] for name in rows}
        flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
        for _ in range(opts.iterations):
            for name, samples in events.items():
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                torch.cuda._sleep(AHEAD_CYCLES)
                flush.zero_()
                begin.record()
                if name == "forward":
                    out = forward()
                else:
                    out.backward(dout)
                end.record()
                end.synchronize()
                samples.append(begin.elapsed_time(end))
        for name, samples in events.items():
            result[name]["step_ms"] = median_of(samples)
    return result


def bench(opts):
    """Milliseconds of `cpnsa bench` for the same shape."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "bench.json"
        subprocess.run([opts.cpnsa, "bench", "-b", str(opts.tokens), "-e", str(opts.tokens), "--heads", str(opts.heads),
                        "--kv-heads", str(opts.kv_heads), "--dk", str(opts.dk), "--dv", str(opts.dv),
                        "--hidden", str(opts.hidden), "--device", opts.device, "--dtype", dtypes[opts.dtype],
                        "-n", str(opts.iterations), "-w", str(opts.warmup), "-J", str(file)],
                       check=True, stdout=subprocess.DEVNULL)
        row = json.loads(file.read_text())["rows"][0]
        return {name: row[name]["seconds"] * 1e3 for name in ("forward", "backward")}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpnsa", help="the command, to compare with; without it host times alone")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--heads", type=int, default=64)
    parser.add_argument("--kv-heads", type=int, default=4)
    parser.add_argument("--dk", type=int, default=128)
    parser.add_argument("--dv", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=256, help="of the mlp compressors")
    parser.add_argument("--dtype", default="bfloat16", choices=tuple(dtypes))
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--warmup", type=int, default=5)
    opts = parser.parse_args()
    result = measure(opts)
    benched = bench(opts) if opts.cpnsa else {}
    titles = {"host": "host us", "library": "library us", "PyTorch": "PyTorch us", "Python": "Python us"}
    print(f"{'':9}", *(f"{title:>11}" for title in titles.values()), f"{'step ms':>9} {'bench ms':>9} {'overhead':>9}")
    for name, row in result.items():
        of_bench = f"{'-':>9} {'-':>9}"
        if name in benched:
            of_bench = f"{benched[name]:9.3f} {row['step_ms'] / benched[name] - 1:9.1%}"
        print(f"{name:9}", *(f"{row[key]:11.1f}" for key in titles), f"{row['step_ms']:9.3f} {of_bench}")


if __name__ == "__main__":
    sys.exit(main())

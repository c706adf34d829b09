"""Full causal attention on this GPU, through PyTorch, and the GPU's ceilings."""

import statistics
import subprocess
import warnings

try:
    import torch
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel
except ImportError:  # the table then has only our own columns
    torch = None

IMPLEMENTATIONS = {"cudnn": "CUDNN_ATTENTION", "flash2": "FLASH_ATTENTION"}
TITLES = {"cudnn": "cuDNN", "flash2": "FlashAttention-2"}
FLUSH_BYTES = 512 << 20  # several times any cache
MIN_ITERATIONS = 3


def unavailable():
    """Why nothing can be measured, or None."""
    if torch is None:
        return "PyTorch is not installed"
    if not torch.cuda.is_available():
        return "PyTorch sees no GPU"
    return None


def describe_machine():
    """The GPU and the versions that the numbers depend on."""
    if unavailable():
        return {"unavailable": unavailable()}
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.CalledProcessError) as error:
        driver = f"unknown: {error}"
    gpu = torch.cuda.get_device_properties(0)
    return {
        "gpu": gpu.name,
        "memory_bytes": gpu.total_memory,
        "multiprocessors": gpu.multi_processor_count,
        "driver": driver,
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "cudnn": str(torch.backends.cudnn.version()),
    }


class Stopwatch:
    """Medians by CUDA events. Before each timed step a buffer larger than the cache is written: nothing of the step
    before is left in it, and the host is ahead of the device, so that launching is not what is measured."""

    def __init__(self, iterations, seconds):
        self.iterations = iterations  # at most
        self.seconds = seconds  # that one measurement may take, about
        self.flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")

    def time(self, *calls):
        """The time of each of these calls, which follow one another in a step, e.g. a forward and its backward."""
        self._sample(calls, 1)  # plans, tunes and loads its kernels
        once = sum(self._sample(calls, 1)[0])
        count = max(MIN_ITERATIONS, min(self.iterations, int(self.seconds / max(once, 1e-6))))
        self._sample(calls, max(1, count // 5))
        samples = self._sample(calls, count)
        return [{"seconds": statistics.median(part), "min_seconds": min(part), "iterations": count}
                for part in zip(*samples)]

    def _sample(self, calls, count):
        steps = [[torch.cuda.Event(enable_timing=True) for _ in range(len(calls) + 1)] for _ in range(count)]
        for events in steps:
            self.flush.zero_()
            events[0].record()
            for call, event in zip(calls, events[1:]):
                call()
                event.record()
        torch.cuda.synchronize()
        return [[begin.elapsed_time(end) / 1e3 for begin, end in zip(events, events[1:])] for events in steps]


PRODUCTS = {"forward": 1, "backward": 2.5}  # the forward has two, the backward five


def full_flop(shape, tokens):
    """Operations of the forward."""
    return shape.heads * (shape.dk + shape.dv) * tokens * (tokens + 1)


def measure_full(name, shape, tokens, backward, stopwatch):
    """{"forward": ..., "backward": ...}, each with seconds or with the reason why it has none. Keys and values are
    repeated for every query head, untimed, only for a backend that does not take grouped ones."""
    if unavailable():
        return {"forward": {"failed": unavailable()}}
    result = {}
    for grouped in (True, False):
        attempt = _measure(name, shape, tokens, backward, stopwatch, grouped)
        torch.cuda.empty_cache()
        for direction, part in attempt.items():
            if "seconds" not in result.get(direction, {}):
                result[direction] = {**part, "grouped": grouped}
        if all("seconds" in part for part in result.values()):
            break
    return result


def _measure(name, shape, tokens, backward, stopwatch, grouped):
    flop = full_flop(shape, tokens)
    result = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for parts in (["forward", "backward"], ["forward"]) if backward else (["forward"],):
            try:
                step = _Step(shape, tokens, grouped, backward)
                with sdpa_kernel(getattr(SDPBackend, IMPLEMENTATIONS[name])):
                    timings = stopwatch.time(*(getattr(step, part) for part in parts))
            except (RuntimeError, TypeError, ValueError) as error:  # out of memory is a RuntimeError too
                result[parts[-1]] = {"failed": _reason(error, caught)}
                continue  # a forward may be possible without its backward
            for part, timing in zip(parts, timings):
                result[part] = _with_rate(timing, PRODUCTS[part] * flop)
            break
    return result


class _Step:
    """One layer's forward and backward, as `cpnsa bench` has them: a backward follows its own forward."""

    def __init__(self, shape, tokens, grouped, backward):
        kv_heads = shape.kv_heads if grouped else shape.heads
        self.inputs = [_normal(tokens, shape.heads, shape.dk, backward), _normal(tokens, kv_heads, shape.dk, backward),
                       _normal(tokens, kv_heads, shape.dv, backward)]
        self.grouped = kv_heads != shape.heads
        self.dout = _normal(tokens, shape.heads, shape.dv, False) if backward else None

    def forward(self):
        self.out = F.scaled_dot_product_attention(*self.inputs, is_causal=True, enable_gqa=self.grouped)

    def backward(self):
        torch.autograd.grad(self.out, self.inputs, self.dout)


def _normal(tokens, heads, channels, needs_gradient):
    tensor = torch.randn(1, tokens, heads, channels, dtype=torch.bfloat16, device="cuda").transpose(1, 2)
    return tensor.requires_grad_(needs_gradient)


def _with_rate(timing, flop):
    return {**timing, "flop": flop, "tflops_per_second": flop / timing["seconds"] * 1e-12}


def _reason(error, caught):
    """PyTorch says why a backend does not serve in warnings, one for each reason, some of them of other backends."""
    lines = [str(error).strip().split("\n")[0]]
    lines += [str(warning.message).split(" (Triggered")[0] for warning in caught]
    return " | ".join(dict.fromkeys(lines))[:600]


def measure_ceilings(stopwatch):
    """The rate of a large product and of a large copy on this GPU, through PyTorch."""
    if unavailable():
        return {}
    size, copied = 8192, 2 << 30
    try:
        a, b = (torch.randn(size, size, dtype=torch.bfloat16, device="cuda") for _ in range(2))
        [product] = stopwatch.time(lambda: torch.mm(a, b))  # noqa: F821
        source = torch.zeros(copied, dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        [copy] = stopwatch.time(lambda: target.copy_(source))  # noqa: F821
    except RuntimeError as error:
        return {"failed": str(error).split("\n")[0]}
    del a, b, source, target
    torch.cuda.empty_cache()
    return {
        "product": f"{size}^3 bf16",
        "product_tflops_per_second": 2 * size**3 / product["seconds"] * 1e-12,
        "copy": f"{copied >> 30} GiB, read and written",
        "copy_terabytes_per_second": 2 * copied / copy["seconds"] * 1e-12,
    }

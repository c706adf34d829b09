"""Floating-point operations of a training step, as model FLOPs utilization (MFU) counts them: what the algorithm needs,
masked or recomputed work not included."""

import torch

#: Dense bfloat16 rates of GPUs by a part of their names, in TFLOP/s, from the vendor's data sheets.
PEAKS = {"H200": 989.0, "H100": 989.0, "A100": 312.0}


def peak_flops(device: torch.device, given=None):
    """FLOP/s of the device, or None if nobody gave it and the GPU is not in the list."""
    if given:
        return given * 1e12
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((rate * 1e12 for part, rate in PEAKS.items() if part in name), None)


def pairs_of_document(settings, length):
    """Pairs (query, key or summary) that a head of one layer scores in a document of `length` tokens."""
    t = torch.arange(length, dtype=torch.int64)
    if settings.attention == "full":
        return int((t + 1).sum())
    summaries = ((t + 1 - settings.compress_block).div(settings.compress_stride, rounding_mode="floor") + 1).clamp(0)
    blocks = t.div(settings.select_block, rounding_mode="floor") + 1
    current = t % settings.select_block + 1  # tokens of the query's own block, which is selected
    selected = (blocks.clamp(max=settings.select_count) - 1) * settings.select_block + current
    window = (t + 1).clamp(max=settings.window)
    return int((summaries + selected + window).sum())


class FlopCounter:
    """FLOP of a forward and backward over documents of given lengths: three times the forward's."""

    def __init__(self, settings, matrix_parameters):
        self.settings, self.matrix_parameters = settings, matrix_parameters
        self._pairs = {}

    def step(self, bounds):
        settings = self.settings
        pairs = 0
        for begin, end in zip(bounds, bounds[1:]):
            length = end - begin
            if length not in self._pairs:
                self._pairs[length] = pairs_of_document(settings, length)
            pairs += self._pairs[length]
        attention = 2 * settings.layers * settings.num_q_heads * 2 * settings.head_dim * pairs
        return 3 * (2 * self.matrix_parameters * bounds[-1] + attention)


def matrix_parameters(model):
    """Parameters that multiply every token once. The embedding counts once, as the head. A compressor's matrices
    multiply a block of l tokens every s tokens, so each counts per stride."""
    total = 0
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2 or name.endswith(".pos"):
            continue
        share = 1.0
        if ".compress_" in name:
            share = 1.0 / model.settings.compress_stride
        total += parameter.numel() * share
    return total

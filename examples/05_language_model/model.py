"""A GPT: rotary embeddings, RMSNorm, gated MLP; NSA or full attention in every layer, with as many parameters."""

import math

import torch
from torch import nn

import cpnsa
import cpnsa.torch
from causal_attention import FullAttention, runs_of
from settings import Settings, SettingsError

BRANCHES = ("compressed", "selected", "window")
OFF = -1e4  # a logit whose sigmoid is 0 in every type


def config_of(settings: Settings) -> cpnsa.Config:
    """The attention's configuration; full attention uses its heads, dimensions and selection blocks for the plan."""
    d = settings.head_dim
    return cpnsa.Config(
        num_q_heads=settings.num_q_heads, num_kv_heads=settings.num_kv_heads, head_dim_qk=d, head_dim_v=d,
        compress_block=settings.compress_block, compress_stride=settings.compress_stride,
        select_block=settings.select_block, select_count=settings.select_count, init_blocks=settings.init_blocks,
        local_blocks=settings.local_blocks, window=settings.window, compressor=settings.compressor,
        compress_hidden_k=2 * d, compress_hidden_v=2 * d)


def summaries_alone(config: cpnsa.Config) -> cpnsa.Config:
    """The configuration in which only summaries reach beyond a query's own block. The gradient does not flow through
    the selection, so summaries learn only from what the compressed branch contributes."""
    return cpnsa.Config(**{**config.to_dict(), "window": 1, "select_count": 1, "init_blocks": 0, "local_blocks": 1})


class Layout:
    """Documents of one packed sequence and this rank's rows of it: a plan, and the rows' runs for full attention."""

    def __init__(self, config, bounds, group, dtype, device, backward=True):
        self.plan = cpnsa.torch.Plan(config, bounds, group=group, dtype=dtype, device=device, backward=backward)
        # On the host, unlike plan.rows, whose numbers would have to be waited for.
        rows = torch.from_dlpack(self.plan.partition.global_rows(self.plan.communicator.rank)).numpy()
        self.runs = runs_of(rows, [int(bound) for bound in bounds])

    def shard(self, array):
        """This rank's rows of a NumPy array of the whole sequence, on the plan's device. The array is moved whole:
        cut on the host, it would wait for the device, which has the rows' numbers."""
        return self.plan.shard(torch.from_numpy(array).to(self.plan.device))

    def close(self):
        self.plan.close()


class Rotary:
    """Turns pairs of channels of x [rows, heads, d] by angles that grow with the position in the document. Angles are
    cached for the newest positions, which all layers of a step share."""

    def __init__(self, base):
        self.base, self._positions = base, None

    def __call__(self, x, positions):
        if self._positions is not positions:
            half = x.shape[-1] // 2
            frequencies = self.base ** (-torch.arange(half, device=x.device, dtype=torch.float64) / half)
            angles = (positions[:, None] * frequencies)[:, None]
            # Vectors of 16-bit types are turned in float32, which costs little and loses nothing.
            kind = torch.promote_types(x.dtype, torch.float32)
            self._positions, self._cos, self._sin = positions, angles.cos().to(kind), angles.sin().to(kind)
        first, second = x.chunk(2, -1)
        turned = first * self._cos - second * self._sin, first * self._sin + second * self._cos
        return torch.cat(turned, -1).to(x.dtype)


class RMSNorm(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden))

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight


class GatedMLP(nn.Module):
    def __init__(self, hidden, inner):
        super().__init__()
        self.up, self.down = nn.Linear(hidden, 2 * inner, bias=False), nn.Linear(inner, hidden, bias=False)

    def forward(self, x):
        gate, value = self.up(x).chunk(2, -1)
        return self.down(nn.functional.silu(gate) * value)


class Block(nn.Module):
    def __init__(self, settings, inner, group, rotary):
        super().__init__()
        self.norm_attention, self.norm_mlp = RMSNorm(settings.hidden), RMSNorm(settings.hidden)
        self.is_nsa = settings.attention == "nsa"
        if self.is_nsa:
            self.attention = cpnsa.torch.NativeSparseAttention(settings.hidden, config_of(settings), group=group,
                                                               rotary=rotary)
            if settings.without:
                self.attention.gate_proj.register_forward_hook(only_branches(set(BRANCHES) - {settings.without}))
        else:
            self.attention = FullAttention(settings.hidden, settings.num_q_heads, settings.num_kv_heads,
                                           settings.head_dim, rotary)
        self.mlp = GatedMLP(settings.hidden, inner)

    def forward(self, x, layout, selected=None):
        normed = self.norm_attention(x)
        if self.is_nsa:
            x = x + self.attention(normed, plan=layout.plan, selected=selected)
        else:
            x = x + self.attention(normed, layout)
        return x + self.mlp(self.norm_mlp(x))


def only_branches(wanted):
    """A forward hook of a gate projection that switches the other branches' gates off."""
    off = torch.tensor([branch not in wanted for branch in BRANCHES])

    def hook(module, inputs, logits):
        return logits.view(-1, 3).masked_fill(off.to(logits.device), OFF).view(logits.shape)

    return hook


class GPT(nn.Module):
    """Logits [rows, vocabulary] of this rank's tokens; the head's weight is the embedding's."""

    def __init__(self, settings: Settings, vocabulary: int, group=None, inner=None):
        super().__init__()
        self.settings, self.vocabulary = settings, vocabulary
        inner = mlp_width(settings, vocabulary) if inner is None else inner
        rotary = Rotary(settings.rope_base) if settings.rope_base else None
        self.embedding = nn.Embedding(vocabulary, settings.hidden)
        self.shift = nn.Linear(settings.hidden, settings.hidden, bias=False) if settings.token_shift else None
        self.blocks = nn.ModuleList(Block(settings, inner, group, rotary) for _ in range(settings.layers))
        self.norm = RMSNorm(settings.hidden)
        self.reset_parameters()

    def reset_parameters(self):
        """Normal matrices of deviation 0.02, smaller where a layer writes to the residual stream; compressors and gates
        begin as NativeSparseAttention makes them."""
        small = 0.02 / math.sqrt(2 * self.settings.layers)
        for name, module in self.named_modules():
            if isinstance(module, nn.Embedding) or (isinstance(module, nn.Linear) and not name.endswith("gate_proj")):
                nn.init.normal_(module.weight, 0.0, small if name.endswith(("out_proj", "down")) else 0.02)

    def forward(self, tokens, layout, previous=None, selected=None):
        """tokens [rows] and, for token_shift, the tokens before them; `selected`: a tensor per layer to write to."""
        x = self.embedding(tokens)
        if self.shift is not None:
            x = x + self.shift(self.embedding(previous))
        for index, block in enumerate(self.blocks):
            x = block(x, layout, None if selected is None else selected[index])
        return nn.functional.linear(self.norm(x), self.embedding.weight)


def count_parameters(settings: Settings, vocabulary: int, inner: int) -> int:
    """Parameters of the model with this width of the MLP, by arithmetic; the test compares it with the model."""
    c, d, G, H = settings.hidden, settings.head_dim, settings.num_kv_heads, settings.num_q_heads
    layer = 2 * c + 3 * c * inner + 2 * c * H * d
    if settings.attention == "full":
        layer += 2 * c * G * d
    else:
        layer += 2 * 3 * c * G * d + (c + 1) * H * 3
        block, wide = settings.compress_block * d, 2 * d
        compressor = {"mean": 0, "linear": block * d, "mlp": block * wide + wide + wide * d + d}[settings.compressor]
        layer += 2 * G * (block + compressor)
    return vocabulary * c + (c * c if settings.token_shift else 0) + c + settings.layers * layer


def mlp_width(settings: Settings, vocabulary: int) -> int:
    """The width that brings the model to settings.parameters within 1 %: a multiple of 64, 16, 4 or 1."""
    empty = count_parameters(settings, vocabulary, 0)
    per_unit = 3 * settings.hidden * settings.layers
    for grain in (64, 16, 4, 1):
        inner = max(grain, round((settings.parameters - empty) / (per_unit * grain)) * grain)
        if abs(empty + inner * per_unit - settings.parameters) <= 0.01 * settings.parameters:
            return inner
    raise SettingsError(f"parameters: found {settings.parameters}, expected at least {empty + per_unit} for these "
                        f"layers and a vocabulary of {vocabulary}")

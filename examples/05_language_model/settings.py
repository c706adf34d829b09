"""The settings of a run: one dataclass, from which the flags, settings.json and the check of a resumed run are made."""

import argparse
import dataclasses
import json
import math
import pathlib

#: The sizes of models by name; each flag may still be given.
PRESETS = {
    "tiny": dict(parameters=150_000, hidden=64, layers=2, num_q_heads=4, num_kv_heads=2, head_dim=16, compress_block=8,
                 compress_stride=4, select_block=16, select_count=4, window=32, context=256, tokens=245_760,
                 step_tokens=2048, micro_tokens=2048, learning_rate=3e-3, warmup_steps=10, evaluate_every=40,
                 evaluation_tokens=8192),
    "50m": {},
    "120m": dict(parameters=120_000_000, hidden=768, layers=12, num_q_heads=24),
    # Random tokens at lengths that training has not seen: no position encoding; as in examples/03_needle_in_a_haystack,
    # a token also knows the one before it, and small blocks leave most of a trained length unselected.
    "retrieval": dict(parameters=8_000_000, hidden=256, layers=4, rope_base=0.0, token_shift=True, compress_block=8,
                      compress_stride=4, select_block=16, window=64, context=2048, tokens=200_000_000,
                      step_tokens=65_536, micro_tokens=65_536, learning_rate=1e-3, warmup_steps=100, weight_decay=0.01,
                      summaries_alone=2),
    "tiny-retrieval": dict(parameters=80_000, hidden=32, layers=2, num_q_heads=4, num_kv_heads=2, head_dim=8,
                           rope_base=0.0, token_shift=True, compress_block=8, compress_stride=4, select_block=16,
                           select_count=4, window=32, context=64, tokens=102_400, step_tokens=1024, micro_tokens=1024,
                           learning_rate=3e-3, warmup_steps=10, weight_decay=0.01),
}


def setting(default, meaning, choices=None):
    return dataclasses.field(default=default, metadata={"meaning": meaning, "choices": choices})


@dataclasses.dataclass
class Settings:
    """Defaults are those of the preset `50m`; NSA has the paper's settings."""

    attention: str = setting("nsa", "attention of every layer", ("nsa", "full"))
    parameters: int = setting(50_000_000, "parameters of the model: the MLP is made as wide as this requires")
    hidden: int = setting(512, "width of the residual stream")
    layers: int = setting(8, "layers")
    num_q_heads: int = setting(16, "query heads")
    num_kv_heads: int = setting(2, "KV heads")
    head_dim: int = setting(64, "dimension of a head")
    rope_base: float = setting(500000.0, "base of the rotary embedding; 0: no position encoding")
    token_shift: bool = setting(False, "adds a projection of the previous token's embedding to a token's")

    compressor: str = setting("mlp", "compressor of NSA", ("mean", "linear", "mlp"))
    compress_block: int = setting(32, "l: tokens of a summary")
    compress_stride: int = setting(16, "s: tokens between summaries")
    select_block: int = setting(64, "m: tokens of a selection block")
    select_count: int = setting(16, "n: selected blocks")
    init_blocks: int = setting(1, "first blocks that are always selected")
    local_blocks: int = setting(2, "last blocks that are always selected")
    window: int = setting(512, "w: tokens of the sliding window")
    summaries_alone: int = setting(0, "every so many steps of training NSA sees a query's own block and the summaries "
                                      "alone, so that these learn; 0: never")
    without: str = setting("", "a branch that is switched off", ("", "compressed", "selected", "window"))

    context: int = setting(8192, "tokens of a sequence")
    tokens: int = setting(80_000_000, "tokens to train on; whole steps, rounded up")
    step_tokens: int = setting(131_072, "tokens of a step, over all ranks")
    micro_tokens: int = setting(65_536, "tokens of a forward and backward, over the ranks of a CP group")
    learning_rate: float = setting(2e-3, "highest learning rate")
    final_rate: float = setting(0.1, "learning rate of the last step, as a share of the highest")
    warmup_steps: int = setting(50, "steps of linear warmup")
    weight_decay: float = setting(0.1, "of matrices")
    beta2: float = setting(0.95, "AdamW's second beta")
    clip: float = setting(1.0, "largest norm of the gradient")
    seed: int = setting(1, "seed of parameters and order of documents")
    dtype: str = setting("auto", "bfloat16: autocast; auto: bfloat16 on GPUs, float32 on CPUs",
                         ("auto", "bfloat16", "float32", "float64"))
    deterministic: bool = setting(False, "deterministic operations of PyTorch on GPUs too")

    evaluate_every: int = setting(100, "steps between evaluations")
    evaluation_tokens: int = setting(2_000_000, "tokens of held-out documents per evaluation")

    @property
    def steps(self):
        return math.ceil(self.tokens / self.step_tokens)

    def validate(self, data_parallel=1):
        positive = [field.name for field in dataclasses.fields(self) if field.type in ("int", int)
                    and field.name not in ("seed", "warmup_steps", "init_blocks", "local_blocks", "summaries_alone")]
        for name in positive:
            if getattr(self, name) < 1:
                raise SettingsError(f"{name}: found {getattr(self, name)}, expected at least 1")
        for field in dataclasses.fields(self):
            choices = field.metadata["choices"]
            if choices and getattr(self, field.name) not in choices:
                raise SettingsError(f"{field.name}: found {getattr(self, field.name)!r}, expected one of "
                                    f"{', '.join(map(repr, choices))}")
        for name, divisor in (("num_q_heads", "num_kv_heads"), ("micro_tokens", "context")):
            if getattr(self, name) % getattr(self, divisor):
                raise SettingsError(f"{name}: found {getattr(self, name)}, expected a multiple of {divisor}, "
                                    f"{getattr(self, divisor)}")
        if self.head_dim % 2:
            raise SettingsError(f"head_dim: found {self.head_dim}, expected an even number")
        if self.step_tokens % (self.micro_tokens * data_parallel):
            raise SettingsError(f"step_tokens: found {self.step_tokens}, expected a multiple of micro_tokens times the "
                                f"data-parallel groups, {self.micro_tokens} x {data_parallel}")
        if self.summaries_alone < 0:
            raise SettingsError(f"summaries_alone: found {self.summaries_alone}, expected at least 0")
        if self.attention == "full" and self.without:
            raise SettingsError(f"without: found {self.without!r} with full attention, expected nothing")

    def learning_rate_of(self, step):
        """Linear warmup, then a cosine that ends at final_rate."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - 1 - self.warmup_steps)
        return self.learning_rate * (self.final_rate + (1 - self.final_rate) * 0.5 * (1 + math.cos(math.pi * done)))

    def to_dict(self):
        return dataclasses.asdict(self)

    def save(self, path: pathlib.Path):
        path.write_text(json.dumps(self.to_dict(), indent=1) + "\n")


class SettingsError(ValueError):
    """A setting that cannot be honoured: found, expected."""


def add_flags(parser: argparse.ArgumentParser, preset="50m"):
    """A flag per setting."""
    parser.add_argument("--preset", choices=sorted(PRESETS), default=preset,
                        help=f"size of model and run; default {preset}")
    group = parser.add_argument_group("settings of the run; their defaults are those of the preset")
    for field in dataclasses.fields(Settings):
        kind = type(field.default)
        flag = "--" + field.name.replace("_", "-")
        if kind is bool:
            group.add_argument(flag, action="store_true", default=None, help=field.metadata["meaning"])
        else:
            group.add_argument(flag, type=kind, choices=field.metadata["choices"], default=None,
                               help=field.metadata["meaning"])


def settings_of(arguments) -> Settings:
    given = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(Settings)
             if getattr(arguments, field.name) is not None}
    return Settings(**{**PRESETS[arguments.preset], **given})


def differences(saved: dict, settings: Settings):
    """Settings in which a checkpoint differs from a run, as lines of text."""
    now = settings.to_dict()
    return [f"{name}: found {now.get(name)!r}, expected {saved.get(name)!r} as in the checkpoint"
            for name in sorted(saved.keys() | now.keys()) if saved.get(name) != now.get(name)]

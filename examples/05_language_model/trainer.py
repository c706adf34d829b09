"""Trains a model on packed sequences over DP x CP ranks; can be stopped at any step and resumed."""

import contextlib
import json
import pathlib
import signal
import time

import torch
from torch import nn

import checkpoint
import progress
from evaluate import evaluate
from flops import FlopCounter, matrix_parameters, peak_flops
from loading import Loader
from model import GPT, Layout, config_of, summaries_alone
from settings import Settings, SettingsError


class Trainer:
    """`source.sequence(index)` is the index-th training sequence, a Batch of settings.context tokens; `held_out` are
    the batches of evaluations. Files are written to `out` by rank 0."""

    def __init__(self, settings: Settings, world, source, held_out, vocabulary, out: pathlib.Path, *, log_every=10,
                 checkpoint_every=200, peak_tflops=None, workers=0):
        settings.validate(world.dp)
        self.settings, self.world, self.source, self.held_out, self.out = settings, world, source, held_out, out
        self.log_every, self.checkpoint_every, self.workers = log_every, checkpoint_every, workers
        name = settings.dtype
        if name == "auto":
            name = "bfloat16" if world.device.type == "cuda" else "float32"
        self.dtype = getattr(torch, name)
        if settings.deterministic and world.device.type == "cuda":
            torch.use_deterministic_algorithms(True)  # needs CUBLAS_WORKSPACE_CONFIG, which main() sets
        torch.manual_seed(settings.seed)  # the same parameters on every rank
        model = GPT(settings, vocabulary, world.cp_group)
        # In float64, as in float32, parameters have the type that is computed in; bfloat16 is autocast's.
        self.model = model.to(world.device, torch.float64 if self.dtype == torch.float64 else torch.float32)
        self.config = config_of(settings)
        self.optimizer = _optimizer(self.model, settings, world.device)
        state = checkpoint.load(out, world.device)
        self.first_step, self.seconds = 0, 0.0  # seconds of the steps so far, without evaluations
        if state is not None:
            self.first_step, self.seconds = checkpoint.restore(state, settings, self.model, self.optimizer)
        if world.sum([self.first_step]) != self.first_step * world.ranks:
            raise SettingsError(f"checkpoint: found step {self.first_step} on rank {world.rank}, expected the same on "
                                f"all ranks, which read it in {out}")
        self.wrapped = world.wrap(self.model)
        self._peak = peak_flops(world.device, peak_tflops)
        self._flops = FlopCounter(settings, matrix_parameters(self.model))
        self._layout = None
        self._stop = False

    def train(self, stop_after=None, stop_at=None):
        """Trains to the last step, or until `stop_after` seconds have passed, step `stop_at` is reached, or a signal
        asks to stop. Returns whether the run is complete."""
        settings, world = self.settings, self.world
        begin = time.monotonic()
        self._prepare_files()
        if self.first_step == settings.steps:
            return True
        log = progress.Log(self.out, self.first_step) if world.is_leader else None
        meter = progress.Meter(world.device, world.ranks, self._peak, self.first_step, settings.steps)
        end = settings.steps if stop_at is None else min(settings.steps, stop_at)
        step, pending = self.first_step, []
        with _signals(self), Loader(self.source, self._micros, step, end, self.workers) as loader:
            while step < end:
                current = loader.next()
                loss, norm = self._step(step, current)
                meter.count(settings.step_tokens, world.dp * sum(self._flops.step(batch.bounds) for batch in current))
                pending.append((step, loss, norm))
                step += 1
                evaluates = step % settings.evaluate_every == 0 or step == settings.steps
                saves = step % self.checkpoint_every == 0 or step == end
                if not (evaluates or saves or step % self.log_every == 0):
                    continue
                expired = stop_after is not None and time.monotonic() - begin >= stop_after
                if self._report(pending, meter, log, expired):
                    end, saves = step, True
                pending = []
                if evaluates:
                    self._evaluate(step)
                if saves and world.is_leader:
                    checkpoint.save(self.out, settings, self.model, self.optimizer, step, self.seconds + meter.seconds)
                meter.restart()
        self.seconds += meter.seconds
        if log:
            log.close()
        return step == settings.steps

    def _prepare_files(self):
        self._evaluations = []
        path = self.out / "evaluations.json"
        if path.exists():
            self._evaluations = [one for one in json.loads(path.read_text()) if one["step"] <= self.first_step]
        if self.world.is_leader:
            self.out.mkdir(parents=True, exist_ok=True)
            self.settings.save(self.out / "settings.json")

    def _micros(self, step):
        """Indices of the sequences of this DP group's micro-batches of a step."""
        settings, world = self.settings, self.world
        sequences = settings.step_tokens // settings.context
        count = settings.micro_tokens // settings.context
        first = step * sequences + world.dp_index * (sequences // world.dp)
        return [range(begin, begin + count) for begin in range(first, first + sequences // world.dp, count)]

    def _step(self, step, batches):
        """(this rank's share of the step's loss, norm of the gradient), on the device."""
        settings, world = self.settings, self.world
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for index, batch in enumerate(batches):
            last = index == len(batches) - 1
            alone = contextlib.nullcontext() if last or not world.distributed else self.wrapped.no_sync()
            with alone:
                loss = self._loss(step, batch)
                (loss * world.ranks).backward()  # the ranks' gradients are averaged
            losses.append(loss.detach().double())
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate_of(step)
        self.optimizer.step()
        return torch.stack(losses).sum(), norm.double()

    def _loss(self, step, batch):
        """This rank's share of a step's loss: the mean over the step's sequences of their weighted losses."""
        settings, world = self.settings, self.world
        alone = settings.attention == "nsa" and settings.summaries_alone and step % settings.summaries_alone == 0
        key = alone, batch.bounds
        if self._layout is None or self._layout[0] != key:  # a plan per documents; collective
            config = summaries_alone(self.config) if alone else self.config
            self._layout = key, Layout(config, batch.bounds, world.cp_group, self.dtype, world.device)
        layout = self._layout[1]
        shard = layout.shard
        with torch.autocast(world.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            logits = self.wrapped(shard(batch.tokens), layout, shard(batch.previous) if settings.token_shift else None)
        logits = logits.float() if self.dtype == torch.bfloat16 else logits
        sequences = settings.step_tokens // settings.context
        targets = shard(batch.targets)
        if batch.weights is None:
            return nn.functional.cross_entropy(logits, targets, reduction="sum") / (sequences * settings.context)
        losses = nn.functional.cross_entropy(logits, targets, reduction="none")
        return (losses * shard(batch.weights).to(losses.dtype)).sum() / sequences

    def _report(self, pending, meter, log, expired):
        """Writes the steps since the last report. Returns whether a rank wants to stop, the same on all ranks."""
        settings = self.settings
        losses = self.world.sum(torch.stack([loss for _, loss, _ in pending] +
                                            [pending[0][1].new_tensor(float(expired or self._stop))]))
        norms = torch.stack([norm for _, _, norm in pending]).tolist()
        *losses, stop = losses.tolist()
        rates = meter.report(pending[-1][0] + 1)
        rows = [{"step": step, "tokens": (step + 1) * settings.step_tokens, "loss": loss, "gradient_norm": norm,
                 "learning_rate": settings.learning_rate_of(step),
                 **{name: rates[name] for name in ("tokens_per_second", "mfu", "memory_bytes")}}
                for (step, _, _), loss, norm in zip(pending, losses, norms)]
        for row in rows:
            if not abs(row["loss"]) < float("inf"):
                raise RuntimeError(f"loss: found {row['loss']} in step {row['step']}, expected a finite number")
        if log:
            log.add(rows)
            last = rows[-1]
            print(progress.line(last["step"], settings.steps, last["loss"], last["learning_rate"],
                                last["gradient_norm"], rates), flush=True)
        return stop > 0

    def _evaluate(self, step):
        if not self.held_out:
            return
        found = {"step": step, **evaluate(self.model, self.held_out, self.config, self.world, self.dtype)}
        self._evaluations = [one for one in self._evaluations if one["step"] != step] + [found]
        if self.world.is_leader:
            progress.write_json(self.out / "evaluations.json", self._evaluations)
            print(f"step {step}  held-out loss {found['loss']:.4f}, by position " +
                  "  ".join(f"{one['to']}: {one['loss']:.3f}" for one in found["buckets"]), flush=True)

    @property
    def evaluations(self):
        return self._evaluations


def _optimizer(model, settings, device):
    matrices = [parameter for name, parameter in model.named_parameters()
                if parameter.dim() >= 2 and not name.endswith((".pos", ".b1", ".b2"))]
    decayed = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in model.parameters() if id(parameter) not in decayed]
    fused = {"fused": True} if device.type == "cuda" else {}
    return torch.optim.AdamW([{"params": matrices, "weight_decay": settings.weight_decay},
                              {"params": others, "weight_decay": 0.0}], lr=settings.learning_rate,
                             betas=(0.9, settings.beta2), **fused)


@contextlib.contextmanager
def _signals(trainer):
    """SIGTERM and SIGINT end the run after the next report, with a checkpoint; a second one ends it at once."""
    def stop(number, frame):
        trainer._stop = True
        signal.signal(number, previous[number])

    previous = {}
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            previous[number] = signal.signal(number, stop)
    except ValueError:  # not the main thread
        pass
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

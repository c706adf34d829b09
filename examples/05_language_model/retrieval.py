#!/usr/bin/env python3
"""Trains a model on short retrieval tasks and asks it at lengths that it has not seen.

    python3 retrieval.py --out nsa                         # one GPU; trains to 2K tokens, asks from 1K to 64K
    python3 retrieval.py --out full --attention full
    python3 retrieval.py --out small --preset tiny-retrieval --lengths 64,128,256 --samples 10      # a CPU

The answers are in answers.json, written after each cell; the same command resumes training or asking. The status is
that of train.py. bench/quality_report.py draws the heat maps.
"""

import argparse
import json
import os
import sys
import time

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for --deterministic; read when cuBLAS starts

import torch

import tasks
from model import Layout, count_parameters, mlp_width
from parallel import World
from progress import write_json
from settings import SettingsError, add_flags, settings_of
from token_files import DataError
from train import STOPPED, add_run_flags, summary_of, trainer_options
from trainer import Trainer

ASKED_SEED = "asked"  # no training sequence has it
BANDS = 10  # of depth


def right_answers(model, samples, config, world, dtype):
    """A list per sample: for each of its answers, whether the model is right. Collective in the CP group."""
    batch = tasks.batch_of(samples)
    layout = Layout(config, batch.bounds, world.cp_group, dtype, world.device, backward=False)
    shard = layout.shard
    with torch.no_grad(), torch.autocast(world.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        logits = model(shard(batch.tokens), layout, shard(batch.previous) if model.settings.token_shift else None)
        right = layout.plan.unshard((logits.argmax(-1) == shard(batch.targets)).to(torch.int32)).cpu().tolist()
    layout.close()
    return [[bool(right[begin + answer - 1]) for answer in one.answers] for begin, one in zip(batch.bounds, samples)]


def ask_cell(model, task, length, count, micro_tokens, config, world, dtype):
    """{"right", "answers", and for tasks with a depth "depths": the right share per band}; collective."""
    bands = BANDS if task in tasks.WITH_DEPTH else 1
    sums = torch.zeros(bands, 2, dtype=torch.float64)
    at_once = max(1, micro_tokens // length)
    mine = list(range(count))[world.dp_index::world.dp]
    for begin in range(0, len(mine), at_once):
        chosen = mine[begin:begin + at_once]
        samples = [tasks.sample(task, length, ASKED_SEED, index, depth=(index + 0.5) / count if bands > 1 else None)
                   for index in chosen]
        for index, answers in zip(chosen, right_answers(model, samples, config, world, dtype)):
            sums[index * bands // count, 0] += sum(answers)
            sums[index * bands // count, 1] += len(answers)
    sums = (world.sum(sums) / world.cp).tolist()  # the ranks of a CP group count the same
    cell = {"right": int(sum(row[0] for row in sums)), "answers": int(sum(row[1] for row in sums))}
    if bands > 1:
        cell["depths"] = [right / answers if answers else None for right, answers in sums]
    return cell


def table_of(answers, lengths):
    """Per cent of right answers, a row per task."""
    lines = [f"{'':18s}" + "".join(f"{length:>8d}" for length in lengths)]
    for task in tasks.TASKS:
        cells = [answers.get(task, {}).get(str(length)) for length in lengths]
        lines.append(f"{task:18s}" + "".join("       -" if cell is None else
                                             f"{100 * cell['right'] / cell['answers']:8.1f}" for cell in cells))
    return "\n".join(lines)


def ask(trainer, arguments, lengths):
    """Asks what answers.json does not have yet. Returns whether everything has been asked."""
    path, begin = arguments.out / "answers.json", time.monotonic()
    contents = json.loads(path.read_text()) if path.exists() else {}
    setting = {"samples": arguments.samples, "steps": trainer.settings.steps}
    if contents.get("setting", setting) != setting:
        raise SettingsError(f"{path}: found answers to {contents['setting']}, expected {setting}")
    contents = {"setting": setting, "settings": trainer.settings.to_dict(), "answers": contents.get("answers", {})}
    for length in lengths:
        for task in tasks.TASKS:
            cells = contents["answers"].setdefault(task, {})
            if str(length) in cells:
                continue
            if arguments.stop_after is not None and \
                    trainer.world.sum([time.monotonic() - begin >= arguments.stop_after]) > 0:
                return False
            cells[str(length)] = ask_cell(trainer.model, task, length, arguments.samples,
                                          trainer.settings.micro_tokens, trainer.config, trainer.world, trainer.dtype)
            if trainer.world.is_leader:
                write_json(path, contents)
    if trainer.world.is_leader:
        print(table_of(contents["answers"], lengths))
    return True


def lengths_of(text):
    lengths = [int(length) for length in text.split(",")]
    if min(lengths) < tasks.SHORTEST:
        raise DataError(f"--lengths: found {min(lengths)}, expected at least {tasks.SHORTEST}")
    return lengths


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_run_flags(parser)
    parser.add_argument("--lengths", default="1024,2048,4096,8192,16384,32768,65536", help="lengths to ask at")
    parser.add_argument("--samples", type=int, default=50, help="samples per task and length")
    add_flags(parser, preset="retrieval")
    arguments = parser.parse_args()
    try:
        lengths = lengths_of(arguments.lengths)
        settings, world = settings_of(arguments), World(arguments.cp, arguments.cpu)
        settings.validate(world.dp)
        total = settings.steps * (settings.step_tokens // settings.context)
        inner = mlp_width(settings, tasks.VOCABULARY)
        if world.is_leader:
            count = count_parameters(settings, tasks.VOCABULARY, inner)
            print(f"{settings.attention}: {count} parameters, MLP {inner}", flush=True)
        stream = tasks.TaskStream(settings.context, total, settings.seed)
        trainer = Trainer(settings, world, stream, [], tasks.VOCABULARY, arguments.out, **trainer_options(arguments))
        complete = trainer.train(arguments.stop_after, arguments.stop_at)
        complete = complete and ask(trainer, arguments, lengths)
    except (SettingsError, DataError, ValueError, OSError) as error:
        sys.exit(f"retrieval.py: error: {error}")
    if world.is_leader:
        write_json(arguments.out / "summary.json", summary_of(trainer, complete, {}))
    world.close()
    sys.exit(0 if complete else STOPPED)


if __name__ == "__main__":
    main()

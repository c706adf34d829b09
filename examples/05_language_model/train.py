#!/usr/bin/env python3
"""Trains a GPT on files of tokens, with NSA or full attention, over data- and context-parallel ranks.

    python3 train.py --data tokens --out run                                          # one GPU
    python3 train.py --data tokens --out full --attention full                        # full attention
    torchrun --nproc-per-node 4 train.py --data tokens --out run --cp 2               # DP 2 x CP 2
    python3 train.py --data tokens --out small --preset tiny                          # a CPU, minutes

A run that was stopped goes on where it was when the same command is given again. Status 0: complete; 3: stopped by
--stop-after, --stop-at or a signal, with a checkpoint.
"""

import argparse
import json
import os
import pathlib
import sys

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for --deterministic; read when cuBLAS starts

import torch

import cpnsa
from model import count_parameters, mlp_width
from parallel import World
from progress import write_json
from settings import SettingsError, add_flags, settings_of
from token_files import DataError, PackedStream, TokenFile, held_out_batches
from trainer import Trainer

STOPPED = 3


def add_run_flags(parser):
    """The flags that do not change a run's numbers."""
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the run")
    parser.add_argument("--cp", type=int, default=1, help="ranks that share each sequence")
    parser.add_argument("--cpu", action="store_true", help="the CPU, also where there are GPUs")
    parser.add_argument("--log-every", type=int, default=10, help="steps between reports")
    parser.add_argument("--checkpoint-every", type=int, default=200, help="steps between checkpoints")
    parser.add_argument("--stop-after", type=float, help="seconds after which the run stops with a checkpoint")
    parser.add_argument("--stop-at", type=int, help="step before which the run stops with a checkpoint")
    parser.add_argument("--workers", type=int, default=0, help="processes that make sequences; 0: a thread")
    parser.add_argument("--peak-tflops", type=float, help="bfloat16 rate of the device, for MFU")


def trainer_options(arguments):
    return {"log_every": arguments.log_every, "checkpoint_every": arguments.checkpoint_every,
            "peak_tflops": arguments.peak_tflops, "workers": arguments.workers}


def summary_of(trainer, complete, extra):
    """The results of a run: settings, versions, speed, losses."""
    settings, world = trainer.settings, trainer.world
    on_gpu = world.device.type == "cuda"
    return {"settings": settings.to_dict(), "complete": complete, "ranks": world.ranks, "cp": world.cp,
            "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
            "device": torch.cuda.get_device_name(world.device) if on_gpu else "CPU", "torch": torch.__version__,
            "cuda": torch.version.cuda if on_gpu else None, "cpnsa": cpnsa.__version__,
            "seconds": trainer.seconds, "evaluations": trainer.evaluations, **extra}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, required=True, help="folder that prepare.py made")
    add_run_flags(parser)
    add_flags(parser)
    arguments = parser.parse_args()
    try:
        settings, world = settings_of(arguments), World(arguments.cp, arguments.cpu)
        settings.validate(world.dp)
        train_file, held_out = (TokenFile(arguments.data, split) for split in ("train", "held_out"))
        inner = mlp_width(settings, train_file.vocabulary)
        if world.is_leader:
            count = count_parameters(settings, train_file.vocabulary, inner)
            print(f"{settings.attention}: {count} parameters, MLP {inner}; {settings.steps} steps of "
                  f"{settings.step_tokens} tokens on {world.device}, DP {world.dp} x CP {world.cp}", flush=True)
        stream = PackedStream(train_file, settings.context, settings.seed)
        batches = held_out_batches(held_out, settings.context, settings.evaluation_tokens, settings.micro_tokens)
        trainer = Trainer(settings, world, stream, batches, train_file.vocabulary, arguments.out,
                          **trainer_options(arguments))
    except (SettingsError, DataError, OSError) as error:
        sys.exit(f"train.py: error: {error}")
    complete = trainer.train(arguments.stop_after, arguments.stop_at)
    if world.is_leader:
        description = json.loads((arguments.data / "tokens.json").read_text())
        summary = summary_of(trainer, complete, {"data": description})
        write_json(arguments.out / "summary.json", summary)
    world.close()
    sys.exit(0 if complete else STOPPED)


if __name__ == "__main__":
    main()

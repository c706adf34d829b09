"""Starts a program on several ranks of this host."""

import sys

import torch


def torchrun(ranks):
    """The command before the program. Unlike --standalone of PyTorch before 2.0, it takes any free port, so that
    several can run at the same time."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--rdzv_backend", "c10d",
               "--rdzv_endpoint", "localhost:0", "--nproc_per_node", str(ranks)]
    if sys.version_info >= (3, 11) and torch.__version__ < "2":
        command += ["--redirects", "9:1", "--tee", "9:1"]  # that torchrun does not know its own defaults in Python 3.11
    return command

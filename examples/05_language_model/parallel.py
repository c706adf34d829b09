"""Ranks: their devices, and their groups for context parallelism (CP) and data parallelism (DP)."""

import datetime
import os

import torch
import torch.distributed as dist

import cpnsa
import cpnsa.torch
from settings import SettingsError


class World:
    """This process among those that torchrun started, or alone. Ranks c, c + 1, ... c + cp - 1 share sequences; groups
    of them are data parallel."""

    def __init__(self, cp: int = 1, force_cpu: bool = False):
        self.ranks, self.rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
        if cp < 1 or self.ranks % cp:
            raise SettingsError(f"--cp: found {cp} with {self.ranks} ranks, expected a divisor of the ranks")
        cuda = torch.cuda.is_available() and cpnsa.has_cuda and not force_cpu
        self.device = torch.device("cpu")
        if cuda:
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
            torch.cuda.set_device(self.device)
        self.cp, self.dp = cp, self.ranks // cp
        self.dp_index = self.rank // cp
        self.cp_group = None
        self.distributed = self.ranks > 1
        if self.distributed:
            dist.init_process_group("nccl" if cuda else "gloo", timeout=datetime.timedelta(minutes=10))
            if cp > 1:
                for first in range(0, self.ranks, cp):  # every rank makes every group
                    group = dist.new_group(list(range(first, first + cp)))
                    if first <= self.rank < first + cp:
                        self.cp_group = group

    @property
    def is_leader(self):
        return self.rank == 0

    def sum(self, values):
        """Sums of numbers, a list or a tensor, over all ranks: a float64 tensor on the CPU; waits for them."""
        values = torch.as_tensor(values, dtype=torch.float64, device=self.device)
        if self.distributed:
            dist.all_reduce(values)
        return values.cpu()

    def wrap(self, model):
        """The model whose backward averages gradients over all ranks."""
        if not self.distributed:
            return model
        # Without find_unused_parameters the first step, also that of a resumed run, arranges the buckets again, which
        # changes the order in which gradients are added.
        return torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)

    def close(self):
        if self.distributed:
            dist.barrier()
            cpnsa.torch.release()
            dist.destroy_process_group()

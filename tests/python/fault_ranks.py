"""One rank of test_gloo_faults.py: fault_ranks.py RANK RANKS FOLDER FAULT PLACE. Rank 1 has the fault."""

import os
import signal
import sys
import time

import torch
import torch.distributed as dist

import cpnsa
import cpnsa.torch

rank, ranks, folder, fault, place = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
config = cpnsa.Config(num_q_heads=2, num_kv_heads=1, head_dim_qk=4, head_dim_v=4, compress_block=4, compress_stride=2,
                      select_block=4, select_count=3, window=5, compressor="mean")


def at(here):
    if rank != 1 or here != place:
        return
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault == "leave":
        os._exit(0)
    else:
        raise RuntimeError("the disk is full")


def main():
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    group = dist.group.WORLD
    cpnsa.torch.communicator_of(group, "cpu", deadline=3)
    began = time.monotonic()
    try:
        at("plan")
        plan = cpnsa.torch.Plan(config, [0, 40], group=group)
        for step in range(2):
            q, k, v, gate = (torch.randn(plan.row_count, heads, 4 if heads < 3 else 3, requires_grad=True)
                             for heads in (2, 1, 1, 3))
            gate = torch.randn(plan.row_count, 2, 3, requires_grad=True)
            if step == 1:
                at("forward")
            out = cpnsa.torch.attention(plan, q, k, v, gate)
            if step == 1:
                at("backward")
            out.sum().backward()
    except cpnsa.Error as error:
        print(f"{time.monotonic() - began:.1f} {type(error).__name__}: {error}", flush=True)
        os._exit(3)
    except RuntimeError as error:
        print(f"{time.monotonic() - began:.1f} own: {error}", flush=True)
        os._exit(4)
    print("done", flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()

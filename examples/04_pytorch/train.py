"""Trains a byte-level transformer whose sequences are sharded over the ranks (context parallelism).

    torchrun --nproc-per-node 4 train.py                  # gloo on the CPU, NCCL where there are GPUs

The losses are the same at 1, 2 and 4 ranks: the model is, and so is what it sees. What distribution adds to a program
for one rank is marked (1) to (4).
"""

import argparse
import json
import os
import pathlib

import torch
import torch.distributed as dist
from torch import nn

import cpnsa
import cpnsa.torch


def rotary(x, positions, base=10000.0):
    """Turns pairs of channels of x [rows, heads, d] by angles that grow with the position in the document."""
    half = x.shape[-1] // 2
    frequencies = base ** (-torch.arange(half, device=x.device, dtype=torch.float64) / half)
    angles = (positions[:, None] * frequencies)[:, None]
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat((first * cos - second * sin, first * sin + second * cos), -1)


class Block(nn.Module):
    def __init__(self, hidden, config, group):
        super().__init__()
        self.norm_attention, self.norm_mlp = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.attention = cpnsa.torch.NativeSparseAttention(hidden, config, group=group, rotary=rotary)  # (1)
        self.mlp = nn.Sequential(nn.Linear(hidden, 4 * hidden), nn.GELU(), nn.Linear(4 * hidden, hidden))

    def forward(self, x, plan):
        x = x + self.attention(self.norm_attention(x), plan=plan)
        return x + self.mlp(self.norm_mlp(x))


class Model(nn.Module):
    def __init__(self, hidden, layers, config, group):
        super().__init__()
        self.embedding = nn.Embedding(256, hidden)
        self.blocks = nn.ModuleList(Block(hidden, config, group) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(hidden), nn.Linear(hidden, 256, bias=False)
        nn.init.normal_(self.embedding.weight, 0.0, 0.02)
        nn.init.normal_(self.head.weight, 0.0, 0.02)

    def forward(self, tokens, plan):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, plan)
        return self.head(self.norm(x))


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = pathlib.Path(__file__).resolve()
    parser.add_argument("--text", type=pathlib.Path, default=here.parents[2] / "LICENSE", help="bytes to learn")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=1024, help="of a step, over all ranks; two documents")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rate", type=float, default=3e-3, help="learning rate")
    parser.add_argument("--dtype", choices=("float64", "float32", "bfloat16"), help="float32; bfloat16 on GPUs")
    parser.add_argument("--losses", type=pathlib.Path, help="writes the losses of all steps here, as JSON")
    return parser.parse_args()


def main():
    opts = options()
    distributed = "RANK" in os.environ  # of torchrun
    cuda = torch.cuda.is_available() and cpnsa.has_cuda
    device = torch.device("cpu")
    if cuda:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
        torch.cuda.set_device(device)
    if distributed:
        dist.init_process_group("nccl" if cuda else "gloo")
    train(opts, device, dist.group.WORLD if distributed else None)
    if distributed:
        dist.barrier()
        cpnsa.torch.release()  # nothing keeps the group when it goes
        dist.destroy_process_group()


def train(opts, device, group):
    cuda = device.type == "cuda"
    rank, ranks = (group.rank(), group.size()) if group is not None else (0, 1)
    dtype = getattr(torch, opts.dtype or ("bfloat16" if cuda else "float32"))

    config = cpnsa.Config(num_q_heads=4, num_kv_heads=2, head_dim_qk=opts.hidden // 4, head_dim_v=opts.hidden // 4,
                          compress_block=16, compress_stride=8, select_block=32, select_count=6, window=64,
                          compress_hidden_k=32, compress_hidden_v=32)
    torch.manual_seed(1)  # (2) the same parameters on every rank
    model = Model(opts.hidden, opts.layers, config, group)
    # In float64, as in float32, parameters have the type that is computed in; bfloat16 is autocast's.
    model = model.to(device, torch.float32 if dtype == torch.bfloat16 else dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=opts.rate)

    # (3) who has which tokens; one plan for all layers and steps, since all steps have documents of these lengths
    cu_seqlens = [0, opts.tokens // 3, opts.tokens]
    plan = cpnsa.torch.Plan(config, cu_seqlens, group=group, dtype=dtype, device=device)

    text = torch.frombuffer(bytearray(opts.text.read_bytes()), dtype=torch.uint8).long()
    if len(text) <= opts.tokens:
        raise SystemExit(f"train.py: error: {opts.text} has {len(text)} bytes, expected more than {opts.tokens}")
    random = torch.Generator().manual_seed(2)  # every rank draws the same, and keeps its own rows
    losses = []
    for step in range(opts.steps):
        starts = torch.randint(len(text) - opts.tokens, (2,), generator=random).tolist()
        lengths = [end - begin for begin, end in zip(cu_seqlens, cu_seqlens[1:])]
        inputs = torch.cat([text[start:start + length] for start, length in zip(starts, lengths)])
        targets = torch.cat([text[start + 1:start + 1 + length] for start, length in zip(starts, lengths)])
        inputs, targets = plan.shard(inputs).to(device), plan.shard(targets).to(device)

        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = model(inputs, plan)
        # (4) a rank's share of the mean over all tokens; shares and gradients are summed over the ranks
        loss = nn.functional.cross_entropy(logits.to(torch.float64), targets, reduction="sum") / opts.tokens
        loss.backward()
        if group is not None:
            for parameter in model.parameters():
                dist.all_reduce(parameter.grad, group=group)
            loss = loss.detach()
            dist.all_reduce(loss, group=group)
        optimizer.step()
        losses.append(loss.item())
        if rank == 0 and (step % 10 == 0 or step == opts.steps - 1):
            print(f"step {step:4d}  loss {losses[-1]:.4f} nats a byte  ({ranks} ranks, {device.type})", flush=True)

    if rank == 0 and opts.losses:
        opts.losses.write_text(json.dumps(losses))


if __name__ == "__main__":
    main()

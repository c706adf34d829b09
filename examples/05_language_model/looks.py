#!/usr/bin/env python3
"""Measures what a trained model with NSA looks at, on held-out documents: looks.json in the run's folder.

    python3 looks.py --run nsa --data tokens
    python3 looks.py --run nsa --data tokens --length 65536

Per layer: the branches' gates and their shares of the output, the distances of selected blocks, and how many blocks
neighbouring queries share. bench/quality_report.py draws the picture.
"""

import argparse
import pathlib
import sys

import torch

import checkpoint
from model import BRANCHES, GPT, Layout, config_of, only_branches
from parallel import World
from progress import write_json
from settings import Settings, SettingsError
from token_files import DataError, TokenFile, held_out_batches

OFFSETS = (1, 2, 4, 8, 16, 32, 64)  # between two queries whose blocks are compared
GROUP = 16  # queries that a kernel serves together; `cpnsa bench` counts different blocks in such groups


def distance_edges(blocks):
    """0, 1, 2, 4, 8, ... up to `blocks`."""
    edges = [0, 1]
    while edges[-1] < blocks:
        edges.append(min(2 * edges[-1], blocks))
    return edges


def freely_chosen(selected, settings, length):
    """(rows, mask [rows, G, n]): the queries with more causal blocks than n, and their blocks that are not forced."""
    current = torch.arange(length) // settings.select_block
    rows = (current + 1 > settings.select_count).nonzero().flatten()
    chosen, last = selected[rows], current[rows][:, None, None]
    return rows, (chosen >= settings.init_blocks) & (chosen <= last - settings.local_blocks)


def distances(selected, settings, length):
    """Blocks between a query and the blocks that it chose freely: shares per range, and those of a uniform choice."""
    rows, free = freely_chosen(selected, settings, length)
    if not len(rows):
        return []
    current = rows // settings.select_block
    edges = distance_edges(int(current[-1]) + 1)
    away = (current[:, None, None] - selected[rows])[free]
    # A uniform choice among the candidates of each query, with as many choices as there are free ones.
    uniform = torch.zeros(edges[-1], dtype=torch.float64)
    for block, count in zip(*torch.unique(current, return_counts=True)):
        first, end = settings.local_blocks, int(block) + 1 - settings.init_blocks
        uniform[first:end] += count.double() / max(1, end - first)
    return [{"from": begin, "to": end, "share": float(((away >= begin) & (away < end)).double().mean()),
             "uniform": float(uniform[begin:end].sum() / uniform.sum())} for begin, end in zip(edges, edges[1:])]


def common_share(selected, settings, length, offset):
    """The share of a query's blocks that the query `offset` tokens later has too; None if no query has a choice."""
    rows, _ = freely_chosen(selected, settings, length)
    rows = rows[rows + offset < length]
    if not len(rows):
        return None
    same = selected[rows][:, :, :, None] == selected[rows + offset][:, :, None, :]
    return float(same.any(-1).double().mean())


def different_blocks(selected, settings, length):
    """(blocks that GROUP neighbours chose, different ones among them), means over the groups of neighbours."""
    rows, _ = freely_chosen(selected, settings, length)
    if len(rows) < GROUP:
        return None
    groups = selected[rows[:len(rows) // GROUP * GROUP]].unflatten(0, (-1, GROUP)).transpose(1, 2).flatten(2)
    ordered = groups.sort(-1).values
    different = (ordered[..., 1:] != ordered[..., :-1]).sum(-1) + 1
    return GROUP * settings.select_count, float(different.double().mean())


class Looks:
    """Means over documents of one length of what each layer looks at."""

    def __init__(self, model, settings, device, dtype):
        self.model, self.settings, self.device, self.dtype = model, settings, device, dtype
        self.config, self.documents = config_of(settings), []

    def add(self, batch):
        """A packed sequence of one document."""
        settings, length = self.settings, len(batch.tokens)
        layout = Layout(self.config, batch.bounds, None, self.dtype, self.device, backward=False)
        selected = [torch.empty(length, settings.num_kv_heads, settings.select_count, dtype=torch.int32,
                                device=self.device) for _ in self.model.blocks]
        normed, gates, hooks = {}, {}, []
        for index, block in enumerate(self.model.blocks):
            hooks.append(block.norm_attention.register_forward_hook(
                lambda module, inputs, output, index=index: normed.__setitem__(index, output)))
            hooks.append(block.attention.gate_proj.register_forward_hook(
                lambda module, inputs, output, index=index: gates.__setitem__(index, output)))
        tokens = torch.from_numpy(batch.tokens).to(self.device)
        previous = torch.from_numpy(batch.previous).to(self.device) if settings.token_shift else None
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            self.model(tokens, layout, previous, selected)
            for hook in hooks:
                hook.remove()
            self.documents.append([self._layer(block, layout, normed[index], gates[index], selected[index].cpu().long())
                                   for index, block in enumerate(self.model.blocks)])
        layout.close()

    def _layer(self, block, layout, normed, gates, selected):
        settings, length = self.settings, normed.shape[0]
        opened = gates.view(-1, settings.num_q_heads, 3).double().sigmoid().mean((0, 1)).tolist()
        norms = torch.stack([self._branch(block, layout, normed, branch) for branch in BRANCHES])  # [3, rows, H]
        shares = (norms / norms.sum(0).clamp_min(1e-30)).mean((1, 2)).tolist()
        return {"gates": dict(zip(BRANCHES, opened)), "shares": dict(zip(BRANCHES, shares)),
                "distances": distances(selected, settings, length),
                "common": {str(offset): common_share(selected, settings, length, offset) for offset in OFFSETS},
                "different": different_blocks(selected, settings, length)}

    def _branch(self, block, layout, normed, branch):
        """Norms [rows, H] of what one branch adds to the heads' outputs, its gate included."""
        found = []
        hooks = [block.attention.gate_proj.register_forward_hook(only_branches({branch})),
                 block.attention.out_proj.register_forward_pre_hook(lambda module, inputs: found.append(inputs[0]))]
        block.attention(normed, plan=layout.plan)
        for hook in hooks:
            hook.remove()
        return found[0].view(normed.shape[0], self.settings.num_q_heads, -1).double().norm(dim=-1)

    def means(self):
        """A dictionary per layer; the documents have one length, and so the same ranges of distances."""
        return [_mean([document[layer] for document in self.documents]) for layer in range(len(self.model.blocks))]


def _mean(values):
    """The mean of numbers, or of each part of equally built structures; None counts as nothing."""
    values = [value for value in values if value is not None]
    if not values:
        return None
    if isinstance(values[0], dict):
        return {key: _mean([value[key] for value in values]) for key in values[0]}
    if isinstance(values[0], (list, tuple)):
        return [_mean(list(parts)) for parts in zip(*values)]
    return sum(values) / len(values)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=pathlib.Path, required=True, help="folder of a run of train.py")
    parser.add_argument("--data", type=pathlib.Path, required=True, help="folder that prepare.py made")
    parser.add_argument("--length", type=int, help="tokens of a document; default: the run's context")
    parser.add_argument("--documents", type=int, default=4, help="documents; the longest come first")
    parser.add_argument("--cpu", action="store_true", help="the CPU, also where there are GPUs")
    arguments = parser.parse_args()
    try:
        world = World(force_cpu=arguments.cpu)
        if world.distributed:
            raise SettingsError(f"ranks: found {world.ranks}, expected 1")
        state = checkpoint.load(arguments.run, world.device)
        if state is None:
            raise DataError(f"--run: found no {checkpoint.NAME} in {arguments.run}, expected a run of train.py")
        settings = Settings(**state["settings"])
        if settings.attention != "nsa":
            raise SettingsError(f"attention: found {settings.attention!r}, expected 'nsa'")
        length = arguments.length or settings.context
        batches = held_out_batches(TokenFile(arguments.data, "held_out"), length, arguments.documents * length, 1)
        batches = [batch for batch in batches if len(batch.tokens) == length][:arguments.documents]
        if not batches:
            raise DataError(f"--length: found no held-out document of {length} tokens or more, expected some")
    except (SettingsError, DataError, OSError) as error:
        sys.exit(f"looks.py: error: {error}")
    dtype = torch.bfloat16 if world.device.type == "cuda" else torch.float32
    model = GPT(settings, state["vocabulary"]).to(world.device)
    model.load_state_dict(state["model"])
    looks = Looks(model, settings, world.device, dtype)
    for batch in batches:
        looks.add(batch)
    result = {"settings": settings.to_dict(), "length": length, "group": GROUP, "documents": len(batches),
              "layers": looks.means()}
    write_json(arguments.run / "looks.json", result)
    for index, layer in enumerate(result["layers"]):
        shares = "  ".join(f"{branch} {100 * share:.0f} %" for branch, share in layer["shares"].items())
        different = ""
        if layer["different"] is not None:
            chosen, distinct = layer["different"]
            different = f"  different blocks of {GROUP} neighbours: {distinct:.0f} of {chosen:.0f}"
        print(f"layer {index}: {shares}{different}")


if __name__ == "__main__":
    main()

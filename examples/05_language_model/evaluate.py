"""Loss on held-out documents, in all and by position in the context."""

import torch
from torch import nn

from model import Layout
from token_files import Batch


def bucket_edges(context):
    """0, 64, 128, 256, ... up to the context: losses of positions are averaged between them."""
    edges = [0, min(64, context)]
    while edges[-1] < context:
        edges.append(min(2 * edges[-1], context))
    return edges


def losses_of(model, batch: Batch, config, world, dtype):
    """(losses, positions) of this rank's rows."""
    layout = Layout(config, batch.bounds, world.cp_group, dtype, world.device, backward=False)
    shard = layout.shard
    previous = shard(batch.previous) if model.settings.token_shift else None
    with torch.no_grad(), torch.autocast(world.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        logits = model(shard(batch.tokens), layout, previous)
    losses = nn.functional.cross_entropy(logits.float() if dtype == torch.bfloat16 else logits, shard(batch.targets),
                                         reduction="none")
    positions = layout.plan.positions
    layout.close()
    return losses, positions


def evaluate(model, batches, config, world, dtype):
    """{"loss", "tokens", "buckets": [{"from", "to", "loss", "tokens"}]}, in nats per token; collective."""
    edges = bucket_edges(model.settings.context)
    sums = torch.zeros(len(edges) - 1, 2, dtype=torch.float64, device=world.device)
    inner = torch.tensor(edges[1:-1], device=world.device)
    for batch in batches[world.dp_index::world.dp]:
        losses, positions = losses_of(model, batch, config, world, dtype)
        bucket = torch.bucketize(positions, inner, right=True)
        for index in range(len(edges) - 1):  # sums in a fixed order, unlike index_add on GPUs
            inside = bucket == index
            sums[index, 0] += torch.where(inside, losses, 0.0).sum(dtype=torch.float64)
            sums[index, 1] += inside.sum()
    sums = world.sum(sums).tolist()
    total, tokens = sum(row[0] for row in sums), sum(row[1] for row in sums)
    buckets = [{"from": begin, "to": end, "loss": loss / count, "tokens": int(count)}
               for begin, end, (loss, count) in zip(edges, edges[1:], sums) if count]
    return {"loss": total / tokens, "tokens": int(tokens), "buckets": buckets}

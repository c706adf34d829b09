"""What each process of test_megatron.py does: megatron_ranks.py RANK RANKS FOLDER."""

import json
import os
import pathlib
import sys
import warnings

import torch
import torch.distributed as dist

warnings.filterwarnings("ignore")
from megatron.core import parallel_state  # noqa: E402
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec  # noqa: E402
from megatron.core.packed_seq_params import PackedSeqParams  # noqa: E402
from megatron.core.process_groups_config import ProcessGroupCollection  # noqa: E402
from megatron.core.transformer.spec_utils import build_module  # noqa: E402
from megatron.core.transformer.transformer_config import TransformerConfig  # noqa: E402

import cpnsa  # noqa: E402
import cpnsa.torch  # noqa: E402
from cpnsa.torch.megatron import native_sparse, release  # noqa: E402

options = dict(compress_block=4, compress_stride=2, select_block=4, select_count=3, local_blocks=1, window=5)
hidden, heads, groups = 32, 4, 2


def attention_of(tp, cp):
    config = TransformerConfig(
        num_layers=1, hidden_size=hidden, num_attention_heads=heads, num_query_groups=groups, attention_dropout=0.0,
        hidden_dropout=0.0, use_cpu_initialization=True, params_dtype=torch.float64, add_bias_linear=False,
        tensor_model_parallel_size=tp.size(), context_parallel_size=cp.size())
    spec = native_sparse(get_gpt_layer_local_spec(), **options)
    torch.manual_seed(4)
    return build_module(spec.submodules.self_attention, config=config, layer_number=1,
                        pg_collection=ProcessGroupCollection(tp=tp, cp=cp))


def zigzag(x, rank, ranks):
    """Megatron's own layout of a sequence over context-parallel ranks, along dimension 0."""
    chunks = x.chunk(2 * ranks)
    return torch.cat([chunks[rank], chunks[2 * ranks - 1 - rank]])


def run(layer, x, packed=None):
    layer.zero_grad()
    x = x.detach().clone().requires_grad_()
    out, _ = layer(x, attention_mask=None, packed_seq_params=packed)
    out.square().sum().backward()
    return out.detach(), x.grad, {name: parameter.grad.clone() for name, parameter in layer.named_parameters()}


def error_of(found, expected):
    return ((found - expected).norm() / expected.norm().clamp(min=1e-2)).item()


def compare(cp, layer, alone, x, lengths):
    """Largest relative error against one rank, of a batch of sequences, or of documents packed in one."""
    rank, ranks = cp.rank(), cp.size()
    packed = None
    shard = lambda tensor: zigzag(tensor, rank, ranks)
    if lengths:
        bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
        packed = PackedSeqParams(qkv_format="thd", cu_seqlens_q=bounds, cu_seqlens_kv=bounds,
                                 max_seqlen_q=max(lengths), max_seqlen_kv=max(lengths))
        shard = lambda tensor: torch.cat([zigzag(part, rank, ranks) for part in tensor.split(lengths)])
    out, dx, gradients = run(layer, shard(x), packed)
    expected_out, expected_dx, expected = run(alone, x, packed)
    errors = [error_of(out, shard(expected_out)), error_of(dx, shard(expected_dx))]
    for name, gradient in gradients.items():
        dist.all_reduce(gradient, group=cp)
        errors.append(error_of(gradient, expected[name]))
    return max(errors), sorted(gradients)


def main():
    rank, ranks, folder = int(sys.argv[1]), int(sys.argv[2]), pathlib.Path(sys.argv[3])
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank))
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    parallel_state.initialize_model_parallel(context_parallel_size=ranks)
    ones = [dist.new_group([one]) for one in range(ranks)][rank]
    cp = parallel_state.get_context_parallel_group()
    layer, alone = attention_of(ones, cp), attention_of(ones, ones)
    alone.load_state_dict(layer.state_dict())
    torch.manual_seed(7)
    results = {}
    results["batch"], results["names"] = compare(cp, layer, alone, torch.randn(64, 3, hidden, dtype=torch.float64), [])
    results["packed"], _ = compare(cp, layer, alone, torch.randn(112, 1, hidden, dtype=torch.float64), [32, 16, 64])
    try:
        bounds = torch.tensor([0, 24])
        layer(torch.randn(12, 1, hidden, dtype=torch.float64), attention_mask=None,
              packed_seq_params=PackedSeqParams(qkv_format="thd", cu_seqlens_q=bounds, cu_seqlens_kv=bounds))
    except cpnsa.ArgumentError as error:
        results["uneven"] = str(error)
    results["sharded"] = sorted(layer.core_attention.sharded_state_dict(prefix="core."))
    (folder / f"{rank}.json").write_text(json.dumps(results))
    dist.barrier()
    release()
    cpnsa.torch.release()
    os._exit(0)  # gloo groups that outlive the interpreter can end the process


if __name__ == "__main__":
    main()

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
torch.cuda.current_device = lambda: torch.device("cpu")  # where Megatron allocates buffers of its own


def attention_of(tp, cp, kv_heads=groups, **more):
    config = TransformerConfig(
        num_layers=1, hidden_size=hidden, num_attention_heads=heads, num_query_groups=kv_heads, attention_dropout=0.0,
        hidden_dropout=0.0, use_cpu_initialization=True, params_dtype=torch.float64, add_bias_linear=False,
        tensor_model_parallel_size=tp.size(), context_parallel_size=cp.size())
    spec = native_sparse(get_gpt_layer_local_spec(), **options, **more)
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


def split(tensor, dim, rank, ranks):
    return tensor.chunk(ranks, dim)[rank]


def over_tensor_ranks(tp, ones, kv_heads):
    """Largest relative error of a layer whose heads are split over two ranks against the same layer on one, made from
    the same seed; and whether the checkpoints hold the same whole."""
    rank, ranks = tp.rank(), tp.size()
    layer, alone = attention_of(tp, ones, kv_heads), attention_of(ones, ones, kv_heads)
    whole = dict(alone.named_parameters())
    for name, parameter in layer.named_parameters():
        expected = whole[name].detach()
        if parameter.shape != expected.shape:
            dim = next(i for i, (a, b) in enumerate(zip(parameter.shape, expected.shape)) if a != b)
            expected = split(expected, dim, rank, ranks)
        assert torch.equal(parameter, expected), name
    errors = []
    x = torch.randn(64, 2, hidden, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    out, dx, gradients = run(layer, x)
    expected_out, expected_dx, expected = run(alone, x)
    errors += [error_of(out, expected_out), error_of(dx, expected_dx)]
    for name, gradient in gradients.items():
        if gradient.shape != expected[name].shape:
            dim = next(i for i, (a, b) in enumerate(zip(gradient.shape, expected[name].shape)) if a != b)
            expected[name] = split(expected[name], dim, rank, ranks)
        errors.append(error_of(gradient, expected[name]))
    state, expected_state = layer.sharded_state_dict(prefix=""), alone.sharded_state_dict(prefix="")
    same = set(state) == set(expected_state)
    counts = {}
    for name, tensor in state.items():
        if not hasattr(tensor, "local_shape"):
            continue
        at = tuple(slice(offset, offset + size) for offset, size in zip(tensor.global_offset, tensor.local_shape))
        same = same and tensor.global_shape == expected_state[name].global_shape
        same = same and torch.equal(tensor.data, expected_state[name].data[at])
        counts[name] = [list(tensor.global_offset), list(tensor.replica_id)]
    return max(errors), same, counts


def refusal(layer, x, mask=None):
    try:
        layer(x, attention_mask=mask)
    except cpnsa.ArgumentError as error:
        return str(error)
    return "nothing"


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
    results["any lengths"], _ = compare(cp, layer, alone, torch.randn(60, 1, hidden, dtype=torch.float64), [20, 4, 36])
    results["any length of a batch"], _ = compare(cp, layer, alone, torch.randn(20, 3, hidden, dtype=torch.float64), [])
    branched, one = attention_of(ones, cp, branch_kv=True), attention_of(ones, ones, branch_kv=True)
    results["branches"], results["names"] = compare(
        cp, branched, one, torch.randn(112, 1, hidden, dtype=torch.float64), [32, 16, 64])
    results["mask"] = refusal(layer, torch.randn(32, 1, hidden, dtype=torch.float64), torch.zeros(1, 1, 32, 64).bool())
    causal = torch.ones(64, 64, dtype=torch.bool).triu(1)
    x = torch.randn(64, 1, hidden, dtype=torch.float64)
    mask = zigzag(causal, rank, ranks)[None, None]
    results["causal mask"] = torch.equal(layer(zigzag(x, rank, ranks), attention_mask=mask)[0],
                                         layer(zigzag(x, rank, ranks), attention_mask=None)[0])
    # Tensor parallelism over a group that is not Megatron's global one, which has one rank here.
    results["other groups"] = over_tensor_ranks(cp, ones, groups)
    try:
        bounds = torch.tensor([0, 22])
        layer(torch.randn(11, 1, hidden, dtype=torch.float64), attention_mask=None,
              packed_seq_params=PackedSeqParams(qkv_format="thd", cu_seqlens_q=bounds, cu_seqlens_kv=bounds))
    except cpnsa.ArgumentError as error:
        results["uneven"] = str(error)
    results["sharded"] = sorted(layer.core_attention.sharded_state_dict(prefix="core."))
    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=ranks)
    tp = parallel_state.get_tensor_model_parallel_group()
    results["heads split"] = over_tensor_ranks(tp, ones, groups)
    results["one KV head"] = over_tensor_ranks(tp, ones, 1)
    (folder / f"{rank}.json").write_text(json.dumps(results))
    dist.barrier()
    release()
    cpnsa.torch.release()
    os._exit(0)  # gloo groups that outlive the interpreter can end the process


if __name__ == "__main__":
    main()

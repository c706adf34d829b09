"""Tensor parallelism of the layer: heads over the ranks of a DeviceMesh, parameters as DTensors."""

from torch import nn

from .. import _core
from ..errors import ArgumentError
from .module import NativeSparseAttention

__all__ = ["tensor_parallel"]


def tensor_parallel(layer: NativeSparseAttention, mesh) -> NativeSparseAttention:
    """Gives each rank of the one-dimensional `mesh` its share of the layer's KV heads, in place; returns the layer.

    Every parameter becomes a DTensor: projections of q, k, v and the gates, the compressors and the sinks are cut by
    heads, the output projection by its inputs. Every rank of the mesh calls the layer with the same x and gets the
    whole output. Context parallelism stays the layer's `group`, of ranks with the same heads. state_dict() has the
    names and, as full_tensor(), the values of the layer before. PyTorch 2.4 and later.
    """
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    if not isinstance(layer, NativeSparseAttention):
        raise ArgumentError(f"layer: found {type(layer).__name__}, expected a cpnsa.torch.NativeSparseAttention")
    if mesh.ndim != 1:
        raise ArgumentError(f"mesh: found {mesh.ndim} dimensions, expected 1")
    if isinstance(layer.q_proj.weight, DTensor):
        raise ArgumentError("layer: found one whose parameters are DTensors, expected one before parallelism")
    parts, config = mesh.size(), layer.config
    if config.num_kv_heads % parts:
        raise ArgumentError(f"num_kv_heads: found {config.num_kv_heads} on {parts} tensor-parallel ranks, expected a "
                            f"multiple of {parts}")
    columns = {name: ColwiseParallel() for name in ("q_proj", "k_proj", "v_proj", "gate_proj")}
    parallelize_module(layer, mesh, {**columns, "out_proj": RowwiseParallel()})
    for owner in (layer, layer.compress_k, layer.compress_v):
        for name, parameter in list(owner.named_parameters(recurse=False)):
            cut = distribute_tensor(parameter.detach(), mesh, [Shard(0)])
            setattr(owner, name, nn.Parameter(cut, requires_grad=parameter.requires_grad))
    layer.config = _core.Config(**{**config.to_dict(), "num_q_heads": config.num_q_heads // parts,
                                   "num_kv_heads": config.num_kv_heads // parts})
    layer.num_q_heads, layer.num_kv_heads = layer.config.num_q_heads, layer.config.num_kv_heads
    return layer

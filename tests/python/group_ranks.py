"""What each process of test_groups.py does: group_ranks.py RANK RANKS FOLDER. Its results go to FOLDER/RANK.json."""

import copy
import datetime
import json
import os
import pathlib
import pickle
import signal
import sys
import threading
import time

import torch
import torch.distributed as dist

import cpnsa
import cpnsa.torch

keys = dict(num_q_heads=4, num_kv_heads=2, head_dim_qk=4, head_dim_v=3, compress_block=4, compress_stride=2,
            select_block=4, select_count=3, init_blocks=1, local_blocks=1, window=5, compress_hidden_k=6,
            compress_hidden_v=6)
cu_seqlens = [0, 7, 60, 91]
T = cu_seqlens[-1]


def layer_of(group=None, **options):
    torch.manual_seed(5)
    return cpnsa.torch.NativeSparseAttention(16, cpnsa.Config(**keys), group=group, dtype=torch.float64, **options)


def sequence():
    return torch.randn(T, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(6))


def step(layer, run):
    layer.zero_grad()
    x = sequence().requires_grad_()
    plan = layer.plan(cu_seqlens)
    out = run(plan.shard(x))
    (out * plan.shard(torch.linspace(1, 2, T, dtype=torch.float64))[:, None]).sum().backward()
    return plan, out.detach(), x.grad, {name: parameter.grad.clone() for name, parameter in layer.named_parameters()
                                        if parameter.grad is not None}


def summed(tensor, group):
    tensor = tensor.clone()
    dist.all_reduce(tensor, group=group)
    return tensor


def error_of(found, expected):
    return ((found - expected).norm() / expected.norm().clamp(min=1e-2)).item()


def against_one_rank(group, **options):
    """Largest relative error of output and gradients, summed over the group, against one rank's."""
    layer = layer_of(group, **options)
    plan, out, dx, gradients = step(layer, lambda x: layer(x, cu_seqlens))
    whole = torch.zeros(T, 16, dtype=torch.float64)
    whole[plan.rows] = out
    alone = layer_of(**{name: options[name] for name in ("attention", "sinks") if name in options})
    _, expected, expected_dx, expected_gradients = step(alone, lambda x: alone(x, cu_seqlens))
    errors = [error_of(summed(whole, group), expected), error_of(summed(dx, group), expected_dx)]
    errors += [error_of(summed(gradients[name], group), expected_gradients[name]) for name in gradients]
    assert all(torch.isfinite(tensor).all() for tensor in gradients.values())
    return max(errors)


def unsharded(rank, group):
    """The whole on every rank, and its gradient: each rank weighs the whole otherwise, and a row gets the sum."""
    plan = layer_of(group, partition="contiguous").plan(cu_seqlens)
    whole = sequence().requires_grad_()
    found = plan.unshard(plan.shard(whole))
    turned = plan.unshard(plan.shard(whole).T, dim=1)
    (found * (rank + 1)).sum().backward()
    expected = torch.zeros_like(whole)
    expected[plan.rows] = 10.0  # 1 + 2 + 3 + 4
    return [torch.equal(found, whole), torch.equal(turned, whole.T), torch.equal(whole.grad, expected)]


def tensor_parallel(rank):
    """Heads over two ranks of a DeviceMesh, and tokens over two: output and gradients are those of one rank."""
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import DTensor
    except ImportError:
        return {}
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("cp", "tp"))
    layer = cpnsa.torch.tensor_parallel(layer_of(mesh["cp"].get_group(), sinks=True), mesh["tp"])
    assert all(isinstance(parameter, DTensor) for parameter in layer.parameters())
    plan, out, dx, gradients = step(layer, lambda x: layer(x, cu_seqlens))
    whole = torch.zeros(T, 16, dtype=torch.float64)
    whole[plan.rows] = out
    alone = layer_of(sinks=True)
    _, expected, expected_dx, expected_gradients = step(alone, lambda x: alone(x, cu_seqlens))
    cp = mesh["cp"].get_group()
    errors = [error_of(summed(whole, cp), expected), error_of(summed(dx, cp), expected_dx)]
    errors += [error_of(summed(gradients[name].full_tensor(), cp), expected_gradients[name]) for name in gradients]
    same = all(torch.equal(parameter.full_tensor(), expected)
               for parameter, expected in zip(layer.parameters(), alone.parameters()))
    refused = raised(lambda: cpnsa.torch.tensor_parallel(layer, mesh["tp"]))
    return {"tensor parallel": max(errors), "tensor parallel parameters": same, "tensor parallel twice": refused}


def raised(body):
    try:
        body()
    except (cpnsa.Error, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def checks(rank, ranks):
    world = dist.group.WORLD
    results = {}
    for partition in ("zigzag", "contiguous", "zigzag_per_document"):
        results[f"world {partition}"] = against_one_rank(world, partition=partition)
    results["gather"] = against_one_rank(world, exchange="gather")

    # Context parallelism inside other parallelisms: neighbours, and every second one; all groups at work at once.
    halves = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    strided = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    alone = [dist.new_group([one]) for one in range(ranks)]
    results["halves"] = against_one_rank(halves[rank // 2])
    results["strided"] = against_one_rank(strided[rank % 2])
    results["alone"] = against_one_rank(alone[rank])
    results["not a member"] = raised(lambda: cpnsa.torch.communicator_of(halves[1 - rank // 2], "cpu"))

    # Sums inside the library are the all-reduce of what each rank has.
    tensors = {}
    for sums in (False, True):
        layer = layer_of(world)
        plan = cpnsa.torch.Plan(layer.config, cu_seqlens, group=world, dtype=torch.float64,
                                sum_parameter_gradients=sums)
        layer(plan.shard(sequence()), plan=plan).sum().backward()
        gradient = layer.compress_v.w1.grad
        tensors[sums] = gradient if sums else summed(gradient, world)
    results["sums"] = error_of(tensors[True], tensors[False])

    results["unshard"] = unsharded(rank, world)
    if hasattr(torch.nn.functional, "scaled_dot_product_attention"):  # PyTorch 2.0
        results["full attention"] = against_one_rank(world, attention="full")
    results["sinks"] = against_one_rank(world, sinks=True)
    results.update(tensor_parallel(rank))

    layer = layer_of(world)
    from torch.utils.checkpoint import checkpoint

    expected = step(layer, lambda x: layer(x, cu_seqlens))[3]
    found = step(layer, lambda x: checkpoint(layer, x, cu_seqlens, use_reentrant=False))[3]
    results["checkpoint"] = all(torch.equal(found[name], expected[name]) for name in expected)

    # Mistakes: every rank learns of them, and the group and the layer go on.
    other = cpnsa.Config(**{**keys, "window": 5 + rank // 3})
    results["configurations differ"] = raised(lambda: cpnsa.torch.Plan(other, cu_seqlens, group=world))
    results["documents differ"] = raised(
        lambda: cpnsa.torch.Plan(cpnsa.Config(**keys), [0, 90 + rank], group=world))
    plan = layer.plan(cu_seqlens)
    x = plan.shard(sequence())
    results["wrong type on rank 2"] = raised(lambda: cpnsa.torch.attention(
        plan, *(tensor.float() if rank == 2 and i == 0 else tensor for i, tensor in enumerate(layer_tensors(plan)))))
    results.update(mistakes_found_in_python(rank, world, plan))
    results.update(mistakes_without_a_plan(rank, layer, x))
    results.update(copies(layer))
    results.update(fsdp2())
    results.update(few_rows(world, ranks))
    results["goes on"] = bool(torch.isfinite(layer(x, plan=plan)).all())
    results["own messages"] = own_messages(rank, ranks)

    plan.close()
    results["closed"] = raised(lambda: layer(x, plan=plan))

    # A rank that does not come; the last, since it ends the communicator.
    communicator = cpnsa.torch.communicator_of(world, "cpu", deadline=2.0)
    begin = time.monotonic()
    if rank == 0:
        time.sleep(4)
    else:
        results["late"] = raised(lambda: cpnsa.torch.Plan(cpnsa.Config(**keys), cu_seqlens, group=world))
        results["late again"] = raised(communicator.barrier)
        results["seconds"] = time.monotonic() - begin
    results.update(interrupted(rank, ranks))
    return results


def interrupted(rank, ranks):
    """Ctrl-C while a rank waits for another."""
    group = dist.new_group(list(range(ranks)))
    plan = cpnsa.torch.Plan(cpnsa.Config(**keys), cu_seqlens, group=group, dtype=torch.float64)
    if rank == 0:
        time.sleep(3)
        return {}
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    begin = time.monotonic()
    try:
        cpnsa.torch.attention(plan, *layer_tensors(plan))
    except KeyboardInterrupt:
        return {"interrupted after": time.monotonic() - begin}
    return {}


def mistakes_found_in_python(rank, world, plan):
    """Of rank 2, before it calls the library: the others are told, and none waits."""
    results = {}
    config = cpnsa.Config(**keys)
    q, k, v, gate, *sides = layer_tensors(plan)
    odd = rank == 2
    results["no tensor on rank 2"] = raised(
        lambda: cpnsa.torch.attention(plan, q, k, v, gate.numpy() if odd else gate, *sides))
    results["two branches on rank 2"] = raised(
        lambda: cpnsa.torch.attention(plan, q, [k, k] if odd else k, v, gate, *sides))
    for name, wrong in (("dtype", torch.int8), ("exchange", "maybe"), ("partition", "diagonal"), ("device", "meta"),
                        ("deadline", -1)):
        results[f"{name} on rank 2"] = raised(
            lambda: cpnsa.torch.Plan(config, cu_seqlens, group=world, **({name: wrong} if odd else {})))
    results["config on rank 2"] = raised(lambda: cpnsa.torch.Plan({} if odd else config, cu_seqlens, group=world))
    results["cu_seqlens on rank 2"] = raised(lambda: cpnsa.torch.Plan(config, "x" if odd else cu_seqlens, group=world))

    written = q.clone().requires_grad_() * 1
    out = cpnsa.torch.attention(plan, written, k, v, gate, *sides).sum()
    if odd:
        written.add_(1)
    results["written to on rank 2"] = raised(out.backward)

    other = cpnsa.torch.Plan(config, [0, 400], group=world, dtype=torch.float64)
    called = other if odd else plan
    layer = layer_of(world)
    x = torch.zeros(plan.row_count, 15 if odd else 16, dtype=torch.float64)
    results["x on rank 2"] = raised(lambda: layer(x, plan=plan))
    twin = layer_of(world)
    assert twin.number == layer.number + 1
    x = plan.shard(sequence())
    results["order of layers with one plan"] = raised(lambda: (twin if odd else layer)(x, plan=plan))
    both = [one(x, plan=plan).sum() for one in (layer, twin)]
    results["order of backwards with one plan"] = raised(lambda: (both[1] if odd else both[0]).backward())
    duplicate = copy.deepcopy(layer)
    assert duplicate.number == twin.number + 1
    results["order of copies with one plan"] = raised(lambda: (duplicate if odd else layer)(x, plan=plan))
    results.update(plans_of_several_layers(odd, world, config))
    torch.manual_seed(rank)
    seeded = cpnsa.torch.NativeSparseAttention(16, config, group=world, dtype=torch.float64)
    results["parameters differ"] = raised(lambda: seeded(x, plan=plan))
    equal = cpnsa.torch.Plan(config, cu_seqlens, group=world, dtype=torch.float64)
    results["order of equal plans"] = raised(
        lambda: cpnsa.torch.attention(equal if odd else plan, *layer_tensors(plan)))
    results["order of layers"] = raised(lambda: cpnsa.torch.attention(called, *layer_tensors(called)))
    return results


def plans_of_several_layers(odd, world, config):
    """What attention() can tell of its layer: a plan of its own, a number, or neither. Other orders on one rank are an
    error, also of backwards, and the right order has the results that it had."""
    plans = [cpnsa.torch.Plan(config, cu_seqlens, group=world, dtype=torch.float64) for _ in range(2)]
    data = [layer_tensors(plans[0]) for _ in range(2)]
    for tensors in data:
        for tensor in tensors[:4]:
            tensor.requires_grad_()
    results, same = {}, True
    for name, calls in {"two plans": [(plan, {}) for plan in plans],
                        "one plan, numbers": [(plans[0], {"layer": number}) for number in (1, 2)]}.items():
        run = lambda i: cpnsa.torch.attention(calls[i][0], *data[i], **calls[i][1])
        results[f"order of forwards, {name}"] = raised(lambda: run(1 if odd else 0))
        right = [run(0), run(1)]
        for first, last in ((0, 1), (1, 0)):  # the error has left none out of step
            results[f"order of backwards {first}, {name}"] = raised(
                lambda: right[last if odd else first].sum().backward(retain_graph=True))
        expected = [torch.autograd.grad(right[i].sum(), data[i][:4]) for i in (1, 0)]
        again = [run(0), run(1)]
        found = [torch.autograd.grad(again[i].sum(), data[i][:4]) for i in (1, 0)]
        same = same and all(torch.equal(a, b) for a, b in zip(right, again))
        same = same and all(torch.equal(a, b) for one, other in zip(expected, found) for a, b in zip(one, other))
    for number, call in enumerate((lambda: cpnsa.torch.attention(plans[1], *data[0]),
                                   lambda: cpnsa.torch.attention(plans[1], *data[0], operator=True))):
        if number == 1 and not hasattr(torch.library, "custom_op"):
            break
        for _ in range(2):  # each forward has its backward: there may be one layer
            call().sum().backward()
        with torch.no_grad():
            call()
        results[f"one plan, no numbers {number}"] = raised(lambda: cpnsa.torch.attention(plans[1], *data[1]))
        cpnsa.torch.attention(plans[1], *data[0], layer=1).sum().backward()
        plans[1].steps.expect_backward(0)
    communicator = cpnsa.torch.communicator_of(world, "cpu")
    numbers = [layer_of(communicator).number for _ in range(2)]
    return {**results, "right again": same, "numbers over a communicator": numbers}


def mistakes_without_a_plan(rank, layer, x):
    """Of rank 2 in layer(x, cu_seqlens), where the others know the plan."""
    odd = rank == 2
    return {f"{name} on rank 2": raised(lambda given=given: layer(*given) if odd else layer(x, cu_seqlens))
            for name, given in {"narrow x": (x[:, :15], cu_seqlens), "neither": (x, None), "a batch": (x[None], None),
                                "whole x": (sequence(), cu_seqlens), "few rows": (x[1:], cu_seqlens),
                                "bounds": (x, [0, "a"]), "a tensor for a plan": (x, cu_seqlens, x)}.items()}


def copies(layer):
    return {"copy has the group": copy.deepcopy(torch.nn.Sequential(layer))[0].group is layer.group,
            "pickle": raised(lambda: pickle.dumps(layer))}


def few_rows(world, ranks):
    """Everything is rank 0's: the others have no rows, and gradients of zero."""
    layer = layer_of(world)
    partition = cpnsa.Partition.custom(cu_seqlens, 4, [[(0, T)]] + [[] for _ in range(ranks - 1)])
    plan = cpnsa.torch.Plan(layer.config, cu_seqlens, group=world, dtype=torch.float64, partition=partition)
    layer(plan.shard(sequence()), plan=plan).sum().backward()
    found, expected = summed(layer.compress_k.w1.grad, world), layer_of()
    expected(sequence(), cu_seqlens).sum().backward()
    return {"no rows": error_of(found, expected.compress_k.w1.grad)}


def fsdp2():
    """Parameters sharded over dp x cp, as docs/pytorch.md has it: the gradients are those of one rank, also once a
    layer was initialised sharded."""
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
    except ImportError:
        return {}
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "cp"))
    both = mesh[("dp", "cp")]._flatten("dp_cp")
    layer, alone = layer_of(mesh["cp"].get_group()), layer_of()
    fully_shard(layer, mesh=both)
    plan = layer.plan(cu_seqlens, torch.float64, torch.device("cpu"))
    (layer(plan.shard(sequence()), plan=plan).sum() * 2).backward()  # averaged over four, of two halves twice
    alone(sequence(), cu_seqlens).sum().backward()
    errors = [error_of(found.grad.full_tensor(), expected.grad)
              for found, expected in zip(layer.parameters(), alone.parameters())]
    config = cpnsa.Config(**{**keys, "compressor": "linear"})
    made, expected = (cpnsa.torch.Compressor(config, 4, position=False) for _ in range(2))
    with torch.no_grad():
        made.weight.zero_()
    fully_shard(made, mesh=both)
    made.reset_parameters()
    results = {"fsdp2": max(errors), "fsdp2 initialises": torch.equal(made.weight.full_tensor(), expected.weight)}

    # Each submodule by itself, so that its parameters are whole inside its forward() alone.
    layer = layer_of(mesh["cp"].get_group())
    for module in [*layer.children(), layer]:
        fully_shard(module, mesh=both, reshard_after_forward=True)
    plan = layer.plan(cu_seqlens, torch.float64, torch.device("cpu"))
    (layer(plan.shard(sequence()), plan=plan).sum() * 2).backward()
    results["fsdp2 of submodules"] = max(error_of(found.grad.full_tensor(), expected.grad)
                                         for found, expected in zip(layer.parameters(), alone.parameters()))
    results.update(fsdp1(alone, mesh["cp"].get_group(), both.get_group()))
    return results


def fsdp1(alone, group, both):
    """Wrapped module by module; and from the meta device, where the wrapper resets each module."""
    import functools

    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    cpu = functools.partial(FullyShardedDataParallel, process_group=both, device_id=torch.device("cpu"),
                            use_orig_params=True)
    layer = layer_of(group)
    plan = layer.plan(cu_seqlens, torch.float64, torch.device("cpu"))
    kinds = {type(module) for module in layer.children()}
    wrapped = cpu(layer, auto_wrap_policy=ModuleWrapPolicy(kinds))
    (wrapped(plan.shard(sequence()), plan=plan).sum() * 2).backward()
    with FullyShardedDataParallel.summon_full_params(wrapped, with_grads=True):
        errors = [error_of(found.grad, expected.grad)
                  for found, expected in zip(layer.parameters(), alone.parameters())]
    with torch.device("meta"):
        meta = layer_of(group, bias=True)
    with FullyShardedDataParallel.summon_full_params(cpu(meta)):
        sizes = {name: parameter.detach().std().item() for name, parameter in meta.named_parameters()}
        expected = {name: parameter.detach().std().item() for name, parameter in layer_of(bias=True).named_parameters()}
    return {"fsdp1": max(errors), "fsdp1 sizes": [[name, sizes[name], expected[name]] for name in expected]}


def layer_tensors(plan):
    rows = plan.row_count
    shapes = ((rows, 4, 4), (rows, 2, 4), (rows, 2, 3), (rows, 4, 3))
    tensors = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    torch.manual_seed(11)  # compressors are the same on every rank
    sides = [dict(cpnsa.torch.Compressor(plan.config, dim, 6, dtype=torch.float64).tensors()) for dim in (4, 3)]
    return tensors + sides


def own_messages(rank, ranks):
    """The caller's own sends on the group are not mixed up with the library's."""
    mine, theirs = torch.full((3,), float(rank)), torch.empty(3)
    works = [dist.isend(mine, (rank + 1) % ranks), dist.irecv(theirs, (rank - 1) % ranks)]
    layer = layer_of(dist.group.WORLD)
    layer(layer.plan(cu_seqlens).shard(sequence()), cu_seqlens)
    for work in works:
        work.wait()
    return theirs.tolist() == [float((rank - 1) % ranks)] * 3


def main():
    rank, ranks, folder = int(sys.argv[1]), int(sys.argv[2]), pathlib.Path(sys.argv[3])
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks,
                            timeout=datetime.timedelta(seconds=60))
    results = checks(rank, ranks)
    (folder / f"{rank}.json").write_text(json.dumps(results))
    cpnsa.torch.release()
    os._exit(0)  # a wait that was interrupted goes on in PyTorch until its deadline


if __name__ == "__main__":
    main()

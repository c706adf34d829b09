"""CUDA tensors: values against the CPU in float64, streams, torch.compile, and NCCL groups."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
import cpnsa  # noqa: E402
import cpnsa.torch  # noqa: E402

if not (cpnsa.has_cuda and torch.cuda.is_available()):
    pytest.skip("found no GPU, or a cpnsa built without CUDA", allow_module_level=True)

root = pathlib.Path(__file__).resolve().parents[2]
config = cpnsa.Config(num_q_heads=8, num_kv_heads=2, head_dim_qk=32, head_dim_v=16, select_count=4, window=96,
                      compress_hidden_k=32, compress_hidden_v=32)
cu_seqlens = [0, 300, 1000]


def layer_and_input():
    torch.manual_seed(0)
    return cpnsa.torch.NativeSparseAttention(64, config), torch.randn(1000, 64)


def gradients_of(layer, run):
    layer.zero_grad()
    out = run()
    out.float().square().sum().backward()
    return [out.detach().double().cpu()] + [parameter.grad.double().cpu() for parameter in layer.parameters()]


def errors(found, expected):
    assert all(torch.isfinite(tensor).all() for tensor in found)
    scale = max(tensor.norm() for tensor in expected)
    return [((a - b).norm() / max(b.norm(), 1e-3 * scale)).item() for a, b in zip(found, expected)]


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 8e-2), (torch.float16, 1e-2)])
def test_against_the_cpu(dtype, tolerance):
    """With forced selection alone, so that both see the same blocks."""
    full = cpnsa.Config(**{**config.to_dict(), "select_count": 16})
    plans = [cpnsa.torch.Plan(full, cu_seqlens, dtype=torch.float64),
             cpnsa.torch.Plan(full, cu_seqlens, dtype=dtype, device="cuda")]
    torch.manual_seed(0)
    rounded = [torch.randn(shape).to(dtype) for shape in ((1000, 8, 32), (1000, 2, 32), (1000, 2, 16), (1000, 8, 3))]
    sides = [{name: tensor.detach().to(dtype)
              for name, tensor in cpnsa.torch.Compressor(full, dim, 32).tensors().items()} for dim in (32, 16)]
    results = []
    for plan in plans:
        leaves = [tensor.to(plan.device, plan.dtype).requires_grad_() for tensor in rounded]
        parameters = [{name: tensor.to(plan.device, plan.dtype).requires_grad_() for name, tensor in side.items()}
                      for side in sides]
        out = cpnsa.torch.attention(plan, *leaves, *parameters)
        out.square().sum().backward()
        tensors = [out.detach(), *(leaf.grad for leaf in leaves),
                   *(p.grad for side in parameters for p in side.values())]
        results.append([tensor.double().cpu() for tensor in tensors])
    assert max(errors(results[1], results[0])) < tolerance


def test_autocast_compile_and_streams():
    layer, x = layer_and_input()
    layer, x = layer.cuda(), x.cuda()
    plan = layer.plan(cu_seqlens, torch.bfloat16)

    def run(module):
        with torch.autocast("cuda", torch.bfloat16):
            return module(x, plan=plan)

    expected = gradients_of(layer, lambda: run(layer))
    again = gradients_of(layer, lambda: run(layer))
    assert all(torch.equal(a, b) for a, b in zip(expected, again))
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        on_side = gradients_of(layer, lambda: run(layer))
    assert all(torch.equal(a, b) for a, b in zip(expected, on_side))
    if hasattr(torch.library, "custom_op"):
        compiled = torch.compile(layer, fullgraph=True)
        assert max(errors(gradients_of(layer, lambda: run(compiled)), expected)) < 3e-2


def test_wrong_device_is_refused():
    plan = cpnsa.torch.Plan(config, cu_seqlens, dtype=torch.bfloat16, device="cuda")
    layer, _ = layer_and_input()
    shapes = ((1000, 8, 32), (1000, 2, 32), (1000, 2, 16), (1000, 8, 3))
    tensors = [torch.zeros(shape, dtype=torch.bfloat16, device="cuda") for shape in shapes]
    sides = [{name: p.detach().cuda() for name, p in side.tensors().items()}
             for side in (layer.compress_k, layer.compress_v)]
    with pytest.raises(cpnsa.ArgumentError, match="k_cmp: found a tensor on cpu, expected one on cuda"):
        cpnsa.torch.attention(plan, tensors[0], tensors[1].cpu(), *tensors[2:], *sides)
    assert torch.isfinite(cpnsa.torch.attention(plan, *tensors, *sides)).all()


@pytest.mark.parametrize("ranks", [2, 4])
def test_nccl_groups(ranks, tmp_path):
    """Ranks that share a GPU say that they are on hosts of their own; the losses are those of one rank, to rounding."""
    train = root / "examples" / "04_pytorch" / "train.py"
    wrapper = tmp_path / "rank.sh"
    wrapper.write_text("#!/bin/sh\nexport NCCL_HOSTID=host$RANK NCCL_SOCKET_IFNAME=lo NCCL_P2P_DISABLE=1 "
                       f"NCCL_SHM_DISABLE=1 NCCL_NVLS_ENABLE=0\nexec {sys.executable} {train} \"$@\"\n")
    wrapper.chmod(0o755)
    files = [tmp_path / "one.json", tmp_path / "ranks.json"]
    arguments = ["--steps", "12", "--tokens", "600", "--losses"]
    environment = {**os.environ, "MASTER_ADDR": "localhost", "MASTER_PORT": str(29510 + ranks)}
    subprocess.run([sys.executable, str(train), *arguments, str(files[0])], check=True, timeout=120)
    processes = [subprocess.Popen([str(wrapper), *arguments, str(files[1])],
                                  env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank),
                                       "WORLD_SIZE": str(ranks)})
                 for rank in range(ranks)]
    try:
        assert [process.wait(timeout=120) for process in processes] == [0] * ranks
    finally:
        for process in processes:
            process.kill()
    one, many = (json.loads(file.read_text()) for file in files)
    assert len(one) == len(many) == 12
    assert max(abs(a - b) for a, b in zip(one, many)) < 2e-2

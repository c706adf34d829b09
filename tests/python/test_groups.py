"""torch.distributed process groups on the CPU: four processes over gloo, against one rank alone."""

import json
import pathlib
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
if not torch.distributed.is_available():
    pytest.skip("this PyTorch has no torch.distributed", allow_module_level=True)

ranks = 4


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("groups")
    script = pathlib.Path(__file__).parent / "group_ranks.py"
    processes = [subprocess.Popen([sys.executable, str(script), str(rank), str(ranks), str(folder)],
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for rank in range(ranks)]
    try:
        texts = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for rank, process in enumerate(processes):
        assert process.returncode == 0, f"rank {rank}:\n{texts[rank]}"
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]


@pytest.mark.parametrize("name", ["world zigzag", "world contiguous", "world zigzag_per_document", "gather", "halves",
                                  "strided", "alone", "sums", "no rows", "sinks"])
def test_same_as_one_rank(results, name):
    assert all(result[name] < 1e-12 for result in results)


def test_full_attention(results):
    if "full attention" not in results[0]:
        pytest.skip(f"PyTorch {torch.__version__} has no scaled_dot_product_attention")
    assert all(result["full attention"] < 1e-12 for result in results)


def test_tensor_parallelism(results):
    if "tensor parallel" not in results[0]:
        pytest.skip(f"PyTorch {torch.__version__} has no torch.distributed.tensor")
    for result in results:
        assert result["tensor parallel"] < 1e-12 and result["tensor parallel parameters"]
        assert "expected one before parallelism" in result["tensor parallel twice"]


def test_fsdp2(results):
    if "fsdp2" not in results[0]:
        pytest.skip(f"PyTorch {torch.__version__} has no torch.distributed.fsdp.fully_shard")
    assert all(result["fsdp2"] < 1e-12 and result["fsdp2 initialises"] for result in results)
    assert all(result["fsdp2 of submodules"] < 1e-12 and result["fsdp1"] < 1e-12 for result in results)


def test_a_start_from_the_meta_device_is_initialised_as_on_the_cpu(results):
    if "fsdp1 sizes" not in results[0]:
        pytest.skip(f"PyTorch {torch.__version__} has no torch.distributed.fsdp.fully_shard")
    for name, found, expected in results[0]["fsdp1 sizes"]:
        assert abs(found - expected) <= 0.25 * expected, name  # zeros stay zeros


def test_ctrl_c_ends_a_wait(results):
    assert all(result["interrupted after"] < 2 for result in results[1:])


def test_unshard(results):
    assert all(result["unshard"] == [True] * 3 for result in results)


@pytest.mark.parametrize("name", ["checkpoint", "goes on", "own messages", "copy has the group"])
def test_holds(results, name):
    assert all(result[name] is True for result in results)


@pytest.mark.parametrize("name, message", [
    ("configurations differ", "MismatchError: rank 3: found \"window=6\", expected \"window=5\""),
    ("documents differ", "MismatchError: rank 1: found \"tokens=91\""),
    ("wrong type on rank 2", "ArgumentError: "),
    ("closed", "ArgumentError: attention: found one that was closed"),
    ("not a member", "ArgumentError: group: found"),
    ("no tensor on rank 2", "gate: found ndarray, expected a torch.Tensor"),
    ("two branches on rank 2", "k: found 2 tensors"),
    ("dtype on rank 2", "dtype: found torch.int8"),
    ("exchange on rank 2", "exchange: found 'maybe'"),
    ("partition on rank 2", "partition: found 'diagonal'"),
    ("device on rank 2", "device: found meta"),
    ("deadline on rank 2", "deadline: found -1"),
    ("config on rank 2", "config: found dict"),
    ("cu_seqlens on rank 2", "cu_seqlens: found 'x'"),
    ("written to on rank 2", "modified by an inplace operation"),
    ("x on rank 2", "x: found ["),
    ("narrow x on rank 2", "x: found ["),
    ("neither on rank 2", "cu_seqlens: found neither it nor a plan"),
    ("a batch on rank 2", "x: found [batch, length, hidden] with a group"),
    ("whole x on rank 2", "did you forget plan.shard(x)?"),
    ("few rows on rank 2", "this rank's part of the 91 tokens of cu_seqlens"),
    ("bounds on rank 2", "cu_seqlens: found [0, 'a'], expected integers"),
    ("a tensor for a plan on rank 2", "plan: found Tensor, expected a cpnsa.torch.Plan"),
    ("order of layers", "MismatchError: rank 2: found \"layer="),
    ("order of layers with one plan", "MismatchError"),
    ("order of backwards with one plan", "MismatchError"),
    ("order of copies with one plan", "MismatchError"),
    ("order of forwards, two plans", "MismatchError: rank 2: found \"layer="),
    ("order of backwards 0, two plans", "MismatchError: rank 2: found \"layer="),
    ("order of backwards 1, two plans", "MismatchError: rank 2: found \"layer="),
    ("order of forwards, one plan, numbers", "MismatchError: rank 2: found \"callers_layer=2"),
    ("order of backwards 0, one plan, numbers", "MismatchError: rank 2: found \"callers_layer=2"),
    ("order of backwards 1, one plan, numbers", "MismatchError: rank 2: found \"callers_layer=1"),
    ("one plan, no numbers 0", "ArgumentError: layer: found none in the second forward of a plan over 4 ranks"),
    ("parameters differ", "MismatchError"),
    ("order of equal plans", "MismatchError"),
    ("pickle", "ArgumentError: pickle: found a layer with a group"),
])
def test_mistakes_reach_every_rank(results, name, message):
    assert all(message in result[name] for result in results), [result[name] for result in results]


def test_layers_have_numbers_of_their_own(results):
    for result in results:
        assert result["right again"]
        assert result["numbers over a communicator"] == [1, 2]
        assert "layer: found none" in result.get("one plan, no numbers 1", "layer: found none")


def test_the_rank_at_fault_is_named(results):
    assert all("q: found f32" in result["wrong type on rank 2"] for result in results)
    for name in (name for name in results[0] if name.endswith("on rank 2")):
        assert all("ArgumentError: rank 2: " in result[name] for rank, result in enumerate(results) if rank != 2), name


def test_deadline(results):
    for result in results[1:]:
        assert "DeadlineError" in result["late"] and "waited 2 s" in result["late"], result["late"]
        assert "waited 2 s" in result["late again"]  # it stays ended, with its reason
        assert result["seconds"] < 20

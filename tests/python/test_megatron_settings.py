"""The adapter for Megatron-core in one process: specifications, settings, documents, initialisation and checkpoints."""

import ast
import contextlib
import copy
import dataclasses
import inspect
import warnings

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("megatron.core", reason="megatron-core is not installed (it needs a newer PyTorch than Debian's)")
warnings.filterwarnings("ignore")
import torch.distributed as dist  # noqa: E402
from megatron.core import parallel_state  # noqa: E402
from megatron.core.models.backends import LocalSpecProvider  # noqa: E402
from megatron.core.models.gpt import gpt_layer_specs  # noqa: E402
from megatron.core.packed_seq_params import PackedSeqParams  # noqa: E402
from megatron.core.process_groups_config import ProcessGroupCollection  # noqa: E402
from megatron.core.tensor_parallel.layers import ColumnParallelLinear  # noqa: E402
from megatron.core.transformer import attention as megatron_attention  # noqa: E402
from megatron.core.transformer.dot_product_attention import DotProductAttention  # noqa: E402
from megatron.core.transformer.enums import AttnMaskType  # noqa: E402
from megatron.core.transformer.heterogeneous.heterogeneous_config import HeterogeneousTransformerConfig  # noqa: E402
from megatron.core.transformer.identity_op import IdentityOp  # noqa: E402
from megatron.core.transformer.spec_utils import ModuleSpec, build_module  # noqa: E402
from megatron.core.transformer.torch_norm import WrappedTorchNorm  # noqa: E402
from megatron.core.transformer.transformer_config import TransformerConfig  # noqa: E402

import cpnsa  # noqa: E402
import cpnsa.torch  # noqa: E402
from cpnsa.torch import megatron as adapter  # noqa: E402
from cpnsa.torch import megatron_settings as settings  # noqa: E402

blocks = dict(compress_block=4, compress_stride=2, select_block=4, select_count=3, local_blocks=1, window=5)
T, hidden, heads, groups = 48, 32, 4, 2


@pytest.fixture(scope="module", autouse=True)
def one_rank(tmp_path_factory):
    store = tmp_path_factory.mktemp("store") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    yield
    adapter.release()
    cpnsa.torch.release()
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


def config_of(**change):
    return TransformerConfig(**{**dict(
        num_layers=1, hidden_size=hidden, num_attention_heads=heads, num_query_groups=groups, attention_dropout=0.0,
        hidden_dropout=0.0, use_cpu_initialization=True, params_dtype=torch.float64, add_bias_linear=False), **change})


def attention_of(spec=None, config=None, options=None, **change):
    spec = adapter.native_sparse(spec or gpt_layer_specs.get_gpt_layer_local_spec(), **blocks, **(options or {}))
    torch.manual_seed(4)
    group = dist.group.WORLD
    return build_module(spec.submodules.self_attention, config=config or config_of(**change), layer_number=1,
                        pg_collection=ProcessGroupCollection(tp=group, cp=group))


def input_of(length=T, batch=1):
    return torch.randn(length, batch, hidden, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def packed_of(*bounds, **change):
    bounds = torch.tensor(bounds, dtype=torch.int32)
    return PackedSeqParams(**{**dict(qkv_format="thd", cu_seqlens_q=bounds, cu_seqlens_kv=bounds), **change})


def out_of(layer, x, mask=None, **options):
    return layer(x, attention_mask=mask, **options)[0].detach()


# --- specifications ------------------------------------------------------------------------------------------------


class NormAndLinear(ColumnParallelLinear):
    """The stand-in for Transformer Engine's layer, which has the norm's parameters itself."""

    def __init__(self, input_size, *args, config, **kwargs):
        super().__init__(input_size, *args, config=config, **kwargs)
        self.layer_norm_weight = torch.nn.Parameter(torch.ones(input_size, dtype=config.params_dtype))
        self.layer_norm_bias = torch.nn.Parameter(torch.zeros(input_size, dtype=config.params_dtype))

    def forward(self, x, *args, **kwargs):
        normed = torch.nn.functional.layer_norm(x, x.shape[-1:], self.layer_norm_weight, self.layer_norm_bias)
        return super().forward(normed, *args, **kwargs)


class NormInside(ColumnParallelLinear):
    """A norm that is a submodule of the projection."""

    def __init__(self, input_size, *args, config, **kwargs):
        super().__init__(input_size, *args, config=config, **kwargs)
        self.norm = torch.nn.LayerNorm(input_size, dtype=config.params_dtype)

    def forward(self, x, *args, **kwargs):
        return super().forward(self.norm(x), *args, **kwargs)


class FusedProvider(LocalSpecProvider):
    """Transformer Engine's choice of modules: the norm is a part of the projection after it."""

    def __init__(self, *_, **__):
        super().__init__()

    def fuse_layernorm_and_linear(self):
        return True

    def column_parallel_layer_norm_linear(self):
        return NormAndLinear

    def layer_norm(self, rms_norm=False, for_qk=False):
        return WrappedTorchNorm


@contextlib.contextmanager
def transformer_engine():
    patch = pytest.MonkeyPatch()
    with patch.context() as patched:
        for name, value in (("HAVE_TE", True), ("TESpecProvider", FusedProvider), ("TENorm", WrappedTorchNorm),
                            ("InferenceSpecProvider", FusedProvider)):
            patched.setattr(gpt_layer_specs, name, value, raising=False)
        yield


local, fused = gpt_layer_specs.get_gpt_layer_local_spec, gpt_layer_specs.get_gpt_layer_with_transformer_engine_spec
#: By name, each specification that megatron.core.models.gpt offers, and whether its norm is fused into linear_qkv.
specifications = {
    "local": (False, local),
    "local, norms of q and k": (False, lambda: local(qk_layernorm=True)),
    "local, L2 norms": (False, lambda: local(qk_l2_norm=True)),
    "local, experts": (False, lambda: local(num_experts=2)),
    "local, RMSNorm": (False, lambda: local(normalization="RMSNorm")),
    "Transformer Engine": (True, fused),
    "Transformer Engine, norms of q and k": (True, lambda: fused(qk_layernorm=True)),
    "Transformer Engine, L2 norms": (True, lambda: fused(qk_l2_norm=True)),
    "Transformer Engine, experts": (True, lambda: fused(num_experts=2)),
    "inference": (True, lambda: gpt_layer_specs.get_gpt_layer_with_inference_spec()),
    "layers": (False, lambda: gpt_layer_specs.get_gpt_decoder_layer_specs(config_of(), False)),
    "block": (False, lambda: gpt_layer_specs.get_gpt_decoder_block_spec(config_of(), False)),
    "block, Transformer Engine": (True, lambda: gpt_layer_specs.get_gpt_decoder_block_spec(config_of(), True)),
}


def layers_of(spec):
    if isinstance(spec, list):
        return spec
    return spec.layer_specs if hasattr(spec, "layer_specs") else [spec]


@pytest.mark.parametrize("name", specifications)
def test_gates_see_what_queries_see(name):
    fused, make = specifications[name]
    with transformer_engine():
        spec = make()
    layer = layers_of(adapter.native_sparse(spec, **blocks))[0]
    torch.manual_seed(4)
    attention = build_module(layer.submodules.self_attention, config=config_of(), layer_number=1,
                             pg_collection=ProcessGroupCollection(tp=dist.group.WORLD, cp=dist.group.WORLD)).double()
    seen = 30 * input_of() + 2
    if fused:
        with torch.no_grad():
            attention.linear_qkv.layer_norm_weight.uniform_(0.5, 2)
            attention.linear_qkv.layer_norm_bias.uniform_(-1, 1)
        normed = torch.nn.functional.layer_norm(seen, (hidden,)) * attention.linear_qkv.layer_norm_weight
        expected = normed + attention.linear_qkv.layer_norm_bias
    else:
        expected = seen
    gates = []
    attention.gate_projection.register_forward_hook(lambda module, given, got: gates.append(got[0]))
    assert torch.isfinite(out_of(attention, seen)).all()
    expected = expected @ attention.gate_projection.weight.T + attention.gate_projection.bias
    assert (gates[0] - expected).norm() < 1e-12 * expected.norm()


@pytest.mark.parametrize("kind", [NormAndLinear, NormInside])
@pytest.mark.parametrize("branch_kv", [False, True])
def test_a_fused_norm_is_that_before_the_attention(kind, branch_kv):
    """Outputs and gradients are those of a norm apart, also of the norm itself; checkpoints hold the norm once."""
    spec = copy.deepcopy(gpt_layer_specs.get_gpt_layer_local_spec())
    apart = attention_of(spec, options=dict(branch_kv=branch_kv))
    spec.submodules.input_layernorm = IdentityOp
    spec.submodules.self_attention.submodules.linear_qkv = kind
    fused = attention_of(spec, options=dict(branch_kv=branch_kv))
    norm = torch.nn.LayerNorm(hidden, dtype=torch.float64)
    inside = fused.linear_qkv.norm if kind is NormInside else fused.linear_qkv
    weight, bias = (inside.weight, inside.bias) if kind is NormInside else (inside.layer_norm_weight,
                                                                            inside.layer_norm_bias)
    with torch.no_grad():
        for parameter in (norm.weight, norm.bias):
            parameter.uniform_(0.5, 1.5)
        weight.copy_(norm.weight)
        bias.copy_(norm.bias)
    x = 30 * input_of()
    a, b = apart(norm(x), attention_mask=None)[0], fused(x, attention_mask=None)[0]
    a.square().sum().backward()
    b.square().sum().backward()
    assert torch.allclose(a, b, rtol=1e-12)
    assert torch.allclose(norm.weight.grad, weight.grad, rtol=1e-9)
    assert torch.allclose(norm.bias.grad, bias.grad, rtol=1e-9)
    assert torch.allclose(apart.gate_projection.weight.grad, fused.gate_projection.weight.grad, rtol=1e-9)

    names = [name for name in fused.state_dict() if "norm" in name]
    assert names and all(name.startswith("linear_qkv.") for name in names)
    assert [name for name in fused.sharded_state_dict(prefix="") if "norm" in name] == names
    other = attention_of(spec, options=dict(branch_kv=branch_kv))
    other.load_state_dict(fused.state_dict())
    assert torch.equal(out_of(other, x), b)


def test_stacks_are_walked_through():
    spec = gpt_layer_specs.get_gpt_layer_local_spec()
    with transformer_engine():
        prediction = gpt_layer_specs.get_gpt_mtp_block_spec(config_of(mtp_num_layers=1), spec, False)
    found = adapter.native_sparse(prediction, **blocks)
    inner = next(value for value in vars(found.layer_specs[0].submodules).values()
                 if isinstance(value, ModuleSpec) and hasattr(value.submodules, "self_attention"))
    assert inner.submodules.self_attention.module is adapter.NativeSparseSelfAttention
    assert spec.submodules.self_attention.module is megatron_attention.SelfAttention  # the copy was changed
    try:
        from megatron.core.models.mamba.mamba_layer_specs import mamba_stack_spec
    except Exception as problem:  # it needs Transformer Engine in some versions
        pytest.skip(f"megatron-core's hybrid stack is not importable here ({type(problem).__name__})")
    attention = adapter.native_sparse(mamba_stack_spec, **blocks).submodules.attention_layer.submodules.self_attention
    assert attention.module is adapter.NativeSparseSelfAttention


def test_other_attention_is_refused_by_name():
    with pytest.raises(cpnsa.ArgumentError, match="self_attention: found MLASelfAttention, expected SelfAttention"):
        adapter.native_sparse(gpt_layer_specs.get_gpt_layer_local_spec(multi_latent_attention=True), **blocks)
    with pytest.raises(cpnsa.ArgumentError, match="spec: found no SelfAttention"):
        adapter.native_sparse(ModuleSpec(module=IdentityOp), **blocks)


# --- settings ------------------------------------------------------------------------------------------------------


def test_every_setting_is_in_one_list():
    lists = {"honoured": settings.honoured, "unrelated": settings.unrelated, "refused": settings.refused.keys()}
    for field in dataclasses.fields(HeterogeneousTransformerConfig):  # TransformerConfig's and three more
        assert sum(field.name in names for names in lists.values()) == 1, f"TransformerConfig.{field.name}"
    for field in dataclasses.fields(PackedSeqParams):
        assert (field.name in settings.packed_honoured) != (field.name in settings.packed_unrelated), field.name


def arguments_of_transformer_engine():
    import megatron.core

    source = (megatron.core.__path__[0] + "/extensions/transformer_engine.py")
    for node in ast.walk(ast.parse(open(source).read())):
        if isinstance(node, ast.ClassDef) and node.name == "TEDotProductAttention":
            forward = next(one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "forward")
            return {argument.arg for argument in forward.args.args + forward.args.kwonlyargs}
    raise AssertionError("found no TEDotProductAttention")


def test_every_argument_of_forward_is_in_a_list():
    names = set(inspect.signature(DotProductAttention.forward).parameters) | arguments_of_transformer_engine()
    assert names - {"self"} <= settings.core_arguments.keys()
    own = inspect.signature(adapter.NativeSparseCoreAttention.forward).parameters
    assert settings.core_arguments.keys() <= set(own)
    taken = {"self", "hidden_states", "attention_mask", "rotary_pos_emb", "packed_seq_params", "inference_context",
             "inference_params"}
    names = set(inspect.signature(megatron_attention.SelfAttention.forward).parameters)
    assert names == taken | adapter._refused_in_forward.keys()


wrong = dict(
    attention_dropout=0.1, softmax_type="off-by-one", window_size=(3, 0), window_attn_skip_freq=2, qk_clip=True,
    log_max_attention_logit=True, multi_latent_attention=True, experimental_attention_variant="gated_delta_net",
    fp8_dot_product_attention=True, fp8_multi_head_attention=True, use_kitchen_attention=True,
    batch_invariant_mode=True, cp_comm_type="a2a", hierarchical_context_parallel_sizes=[2, 2],
    recompute_granularity="selective",
    recompute_modules=["core_attn"], fine_grained_activation_offloading=True, offload_modules=["core_attn"],
    cuda_graph_impl="local", cuda_graph_scope=["attn"])
together = [{"recompute_granularity", "recompute_modules"}, {"fine_grained_activation_offloading", "offload_modules"},
            {"cuda_graph_impl", "cuda_graph_scope"}]


def test_each_refused_setting_is_refused_by_name():
    assert wrong.keys() == settings.refused.keys()
    for name in wrong:
        config = config_of()  # megatron-core's own checks come first where the value is given at once
        names = next((both for both in together if name in both), {name})
        for one in names:
            setattr(config, one, wrong[one])
        with pytest.raises(cpnsa.ArgumentError, match="|".join(f"{one}: found" for one in names)):
            settings.check(config)
        with pytest.raises(Exception, match="|".join(f"{one}: found" for one in names)):
            attention_of(config=config)


@pytest.mark.parametrize("given, match", [
    (dict(attention_bias=torch.zeros(1)), "attention_bias: found"),
    (dict(key_value_states=torch.zeros(1)), "key_value_states: found"),
    (dict(inference_context=object()), "inference_context: found a object, expected a StaticInferenceContext"),
    (dict(sequence_len_offset=torch.zeros(1)), "sequence_len_offset: found"),
    (dict(rotary_pos_cos_sin=torch.zeros(1)), "rotary_pos_cos_sin: found"),
    (dict(packed_seq_params=packed_of(0, T, qkv_format="bshd")), "qkv_format: found 'bshd'"),
    (dict(packed_seq_params=packed_of(0, T, qkv_format="sbhd")), "cu_seqlens_q: found one with qkv_format 'sbhd'"),
    (dict(packed_seq_params=packed_of(0, T, cu_seqlens_kv=torch.tensor([0, 8, T]))), "cu_seqlens_kv: found"),
    (dict(packed_seq_params=packed_of(0, T, local_cp_size=2)), "local_cp_size: found 2"),
    (dict(packed_seq_params=packed_of(0, T), attention_mask=torch.ones(1, 1, T, T).bool()),
     "attention_mask: found one beside"),
])
def test_arguments_that_change_attention_are_refused(given, match):
    with pytest.raises(cpnsa.ArgumentError, match=match):
        attention_of()(input_of(), **{"attention_mask": None, **given})


def test_what_the_core_attention_refuses():
    layer = attention_of()
    q = torch.zeros(T, 1, heads, 8, dtype=torch.float64)
    core = layer.core_attention
    for given, match in ((dict(attention_bias=q), "attention_bias"), (dict(num_splits=2), "num_splits"),
                         (dict(attn_mask_type=AttnMaskType.no_mask), "attn_mask_type"), ({}, "gate: found none")):
        with pytest.raises(cpnsa.ArgumentError, match=match):
            core(q, q, q, None, **given)


# --- documents -----------------------------------------------------------------------------------------------------


def causal(length=T):
    return torch.ones(1, 1, length, length, dtype=torch.bool).triu(1)


def test_bounds_that_are_refilled_in_place():
    layer, x = attention_of(), input_of()
    buffer = torch.tensor([0, 16, T], dtype=torch.int32)
    packed = PackedSeqParams(qkv_format="thd", cu_seqlens_q=buffer, cu_seqlens_kv=buffer)
    first = out_of(layer, x, packed_seq_params=packed)
    buffer.copy_(torch.tensor([0, 32, T]))
    second = out_of(layer, x, packed_seq_params=packed)
    assert torch.equal(first, out_of(layer, x, packed_seq_params=packed_of(0, 16, T)))
    assert torch.equal(second, out_of(layer, x, packed_seq_params=packed_of(0, 32, T)))
    assert not torch.equal(first, second)


def test_a_causal_mask_is_none():
    layer, x = attention_of(), input_of(batch=2)
    assert torch.equal(out_of(layer, x, causal()), out_of(layer, x))
    assert torch.equal(out_of(layer, x, causal().expand(2, 1, T, T)), out_of(layer, x))


def test_a_mask_of_documents():
    """Of each sequence of a batch its own, as --reset-attention-mask makes it."""
    layer, x = attention_of(), input_of(batch=2)
    mask = causal().repeat(2, 1, 1, 1)
    mask[0, 0, 16:, :16] = True
    mask[1, 0, 29:, :29] = True
    found = out_of(layer, x, mask)
    for sequence, bounds in enumerate(((0, 16, T), (0, 29, T))):
        one = x[:, sequence:sequence + 1]
        expected = out_of(layer, one, packed_seq_params=packed_of(*bounds))
        assert (found[:, sequence] - expected[:, 0]).norm() < 1e-12 * expected.norm()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("rows", [1, T])
def test_padding(side, rows):
    """Tokens that are no padding get what they get in a sequence without it."""
    layer, x, padding = attention_of(), input_of(), 9
    hidden_keys = torch.zeros(1, 1, 1, T, dtype=torch.bool)
    real = slice(padding, T) if side == "left" else slice(0, T - padding)
    hidden_keys[..., :padding] = side == "left"
    hidden_keys[..., T - padding:] |= side == "right"
    mask = hidden_keys if rows == 1 else hidden_keys | causal()
    expected = out_of(layer, x[real])
    assert (out_of(layer, x, mask)[real] - expected).norm() < 1e-12 * expected.norm()


def test_other_masks_are_refused():
    layer, x = attention_of(), input_of()
    hole = causal()
    hole[..., 20:, 10] = True
    middle = torch.zeros(1, 1, 1, T, dtype=torch.bool)
    middle[..., 10:20] = True
    for mask, match in ((hole, "not causal within documents"), (torch.zeros(1, 1, T, T).bool(), "not causal within"),
                        (middle, "not causal within"), (causal().double(), "expected bool"),
                        (causal(T - 1), "expected \\[")):
        with pytest.raises(cpnsa.ArgumentError, match="attention_mask: found .*" + match):
            out_of(layer, x, mask)


def test_a_group_of_one_by_local_cp_size():
    layer, x = attention_of(), input_of()
    assert torch.equal(out_of(layer, x, packed_seq_params=packed_of(0, T, local_cp_size=1)),
                       out_of(layer, x, packed_seq_params=packed_of(0, T)))


# --- keys and values, initialisation --------------------------------------------------------------------------------


def test_keys_and_values_of_each_branch():
    """Against cpnsa.torch.attention on projections made here."""
    layer, x = attention_of(options=dict(branch_kv=True)), input_of()
    mixed = (x[:, 0] @ layer.linear_qkv.weight.T).view(T, groups, heads // groups + 2, 8)
    q = mixed[:, :, :heads // groups].reshape(T, heads, 8)
    further = (x[:, 0] @ layer.linear_branch_kv.weight.T).view(T, groups, 2, 2, 8)
    k = [mixed[:, :, -2], further[:, :, 0, 0], further[:, :, 1, 0]]
    v = [mixed[:, :, -1], further[:, :, 0, 1], further[:, :, 1, 1]]
    gate = (x[:, 0] @ layer.gate_projection.weight.T + layer.gate_projection.bias).view(T, heads, 3)
    core = layer.core_attention
    plan = cpnsa.torch.Plan(core.nsa, [0, T], dtype=torch.float64)
    expected = cpnsa.torch.attention(plan, q, k, v, gate, core.compress_k.tensors(), core.compress_v.tensors())
    expected = expected.flatten(1) @ layer.linear_proj.weight.T
    assert (out_of(layer, x)[:, 0] - expected).norm() < 1e-12 * expected.norm()


def test_parameters_are_used_inside_their_modules_forward():
    """Where Megatron's overlapped parameter gathering, and other wrappers, have them ready."""
    layer = attention_of()
    inside = []
    for name in ("compress_k", "compress_v"):
        module = getattr(layer.core_attention, name)
        module.register_forward_pre_hook(lambda module, given, name=name: inside.append(f"into {name}"))
        module.register_forward_hook(lambda module, given, got, name=name: inside.append(f"out of {name}"))
    out_of(layer, input_of())
    assert inside == ["into compress_k", "into compress_v", "out of compress_v", "out of compress_k"]


@pytest.mark.parametrize("compressor", ["mlp", "linear"])
def test_parts_of_a_compressor_are_those_of_the_whole(compressor):
    keys = dict(num_q_heads=4, head_dim_qk=4, head_dim_v=4, compressor=compressor, compress_hidden_k=6,
                compress_hidden_v=6)

    def made(part, parts):
        torch.manual_seed(9)
        config = cpnsa.Config(**keys, num_kv_heads=4 // parts)
        both = [cpnsa.torch.Compressor(config, 4, 6, part=(part, parts)) for _ in range(2)]
        return [parameter.detach() for one in both for parameter in one.parameters()]

    whole = made(0, 1)
    assert len(whole) == (10 if compressor == "mlp" else 4)
    for parts in (2, 4):
        split = [made(part, parts) for part in range(parts)]
        for index, expected in enumerate(whole):
            assert torch.equal(torch.cat([one[index] for one in split]), expected)

"""Megatron-core's static inference with native sparse attention: steps give the rows of the whole sequence."""

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("megatron.core", reason="megatron-core is not installed (it needs a newer PyTorch than Debian's)")
from megatron.core.inference.contexts import StaticInferenceContext  # noqa: E402
from megatron.core.models.gpt import GPTModel, gpt_layer_specs  # noqa: E402

import cpnsa  # noqa: E402
from cpnsa.torch import megatron as adapter  # noqa: E402
from test_megatron_settings import T, attention_of, blocks, config_of, input_of, one_rank, out_of  # noqa: E402, F401


def rotary():
    """Angles [T, 1, 1, d], as RotaryEmbedding makes them, which asks for a GPU."""
    angles = torch.outer(torch.arange(T), 10000.0 ** (-torch.arange(0, 8, 2) / 8))
    return torch.cat([angles, angles], -1)[:, None, None]


def decode(layer, x, context, chunks, embedding=None):
    """The outputs of consecutive chunks of x [s, b, h]."""
    outs = []
    for count in chunks:
        begin = context.sequence_len_offset
        options = dict(inference_context=context, rotary_pos_emb=embedding)
        outs.append(out_of(layer, x[begin:begin + count], **options))
        context.sequence_len_offset += count
    return torch.cat(outs)


@pytest.mark.parametrize("branch_kv", [False, True])
@pytest.mark.parametrize("with_rotary", [False, True])
def test_prefill_and_decoding_give_the_rows_of_the_whole_sequence(branch_kv, with_rotary):
    layer = attention_of(options=dict(branch_kv=branch_kv)).eval()
    embedding = rotary() if with_rotary else None
    x = input_of(T, 2)
    expected = out_of(layer, x, rotary_pos_emb=embedding)
    context = StaticInferenceContext(max_batch_size=2, max_sequence_length=T)
    chunks = [20, 3] + [1] * (T - 23)
    found = decode(layer, x, context, chunks, embedding)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)
    context.reset()  # a new batch
    again = decode(layer, x.flip(1), context, [T], embedding)
    torch.testing.assert_close(again, expected.flip(1), rtol=1e-10, atol=1e-11)


def test_micro_batches_have_sequences_of_their_own():
    layer = attention_of().eval()
    x = input_of(T, 3)
    expected = out_of(layer, x)
    context = StaticInferenceContext(max_batch_size=3, max_sequence_length=T)
    found = torch.empty_like(expected)
    for begin, end in ((0, 31), (31, 32), (32, T)):
        context.sequence_len_offset = begin
        for first, last in ((0, 2), (2, 3)):
            context.batch_size_offset = first
            found[begin:end, first:last] = out_of(layer, x[begin:end, first:last], inference_context=context)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)


def test_a_whole_model_generates_the_text_of_whole_forwards():
    torch.manual_seed(6)
    spec = adapter.native_sparse(gpt_layer_specs.get_gpt_layer_local_spec(), **blocks)
    model = GPTModel(config_of(num_layers=2), spec, vocab_size=40, max_sequence_length=T, parallel_output=False,
                     share_embeddings_and_output_weights=True).double().eval()
    with torch.no_grad():  # so that the next token is not always the same
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    context = StaticInferenceContext(max_batch_size=2, max_sequence_length=T)
    tokens = torch.randint(40, (2, 11))

    def logits(begin, context=None):
        positions = torch.arange(begin, tokens.shape[1]).expand(2, -1)
        with torch.no_grad():
            return model(tokens[:, begin:], positions, None, inference_context=context,
                         runtime_gather_output=True)[:, -1]

    begin = 0
    for _ in range(20):
        found = logits(begin, context)
        torch.testing.assert_close(found, logits(0), rtol=1e-9, atol=1e-9)
        context.sequence_len_offset = begin = tokens.shape[1]
        context.enable_decode_mode()
        tokens = torch.cat([tokens, found.argmax(-1, keepdim=True)], 1)
    assert len(set(tokens[:, 11:].flatten().tolist())) > 2


def test_errors():
    layer = attention_of()
    context = StaticInferenceContext(max_batch_size=1, max_sequence_length=T)
    with pytest.raises(cpnsa.ArgumentError, match=r"found one in training mode, expected eval"):
        layer(input_of(), attention_mask=None, inference_context=context)
    layer.eval()
    context.sequence_len_offset = 3
    with pytest.raises(cpnsa.ArgumentError, match="sequence_len_offset: found 3, expected at most 0"):
        layer(input_of(4), attention_mask=None, inference_context=context)
    context.reset()
    with pytest.raises(cpnsa.ArgumentError, match="found sequences 0 to 1, expected less than max_batch_size 1"):
        layer(input_of(4, 2), attention_mask=None, inference_context=context)

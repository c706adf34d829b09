"""Hugging Face Transformers: generation with the paged cache gives the tokens of generation without one."""

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("transformers", reason="Transformers is not installed")

import cpnsa  # noqa: E402
import cpnsa.transformers  # noqa: E402

attention = dict(num_q_heads=4, num_kv_heads=2, head_dim_qk=8, head_dim_v=8, compress_block=4, compress_stride=2,
                 select_block=4, select_count=3, init_blocks=1, local_blocks=1, window=6, compress_hidden_k=6,
                 compress_hidden_v=6)


def model_of(seed=0, layers=2, **options):
    torch.manual_seed(seed)
    config = cpnsa.transformers.NsaConfig(vocab_size=61, hidden_size=32, num_hidden_layers=layers, attention=attention,
                                          bos_token_id=1, eos_token_id=None, pad_token_id=0, **options)
    model = cpnsa.transformers.NsaForCausalLM(config).double().eval()
    with torch.no_grad():  # so that the next token is not always the same
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def prompt(batch=2, length=13):
    torch.manual_seed(7)
    return torch.randint(2, 61, (batch, length))


def generate(model, ids, use_cache=True, **options):
    """The tokens; with a cache no token is computed twice, but for those of rejected drafts."""
    torch.manual_seed(11)
    rows = []
    hook = model.embed_tokens.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    try:
        found = model.generate(ids, max_new_tokens=24, use_cache=use_cache, **options)
    finally:
        hook.remove()
    beams = options.get("num_beams", 1)
    if use_cache and "assistant_model" not in options and "attention_mask" not in options:
        assert sum(rows) == beams * ids.shape[0] * (found.shape[1] - 1)
    return found


@pytest.mark.parametrize("branch_kv", [False, True])
@pytest.mark.parametrize("options", [{"do_sample": False}, {"do_sample": True, "top_k": 20},
                                     {"num_beams": 3, "do_sample": False}], ids=["greedy", "sampling", "beams"])
def test_the_cache_does_not_change_what_is_generated(options, branch_kv):
    model = model_of(branch_kv=branch_kv)
    found = generate(model, prompt(), **options)
    assert found.shape == (2, 37)
    assert len(set(found[0, 13:].tolist())) > 2
    assert torch.equal(found, generate(model, prompt(), False, **options))


def test_assisted_decoding_gives_the_greedy_text():
    model, assistant = model_of(), model_of(layers=1)
    ids = prompt(1)
    expected = generate(model, ids, do_sample=False)
    assert torch.equal(generate(model, ids, do_sample=False, assistant_model=assistant), expected)
    assert torch.equal(generate(model, ids, do_sample=False, assistant_model=model), expected)


def test_padding_on_the_left_changes_nothing():
    model = model_of()
    short, long = prompt(1, 9), prompt(1, 14)
    ids = torch.cat([torch.cat([torch.zeros(1, 5, dtype=torch.long), short], 1), long])
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    found = generate(model, ids, do_sample=False, attention_mask=mask)
    assert torch.equal(found[0, 14:], generate(model, short, do_sample=False)[0, 9:])
    assert torch.equal(found[1, 14:], generate(model, long, do_sample=False)[0, 14:])


def test_a_saved_model_generates_the_same(tmp_path):
    model = model_of()
    model.save_pretrained(tmp_path)
    again = cpnsa.transformers.NsaForCausalLM.from_pretrained(tmp_path, torch_dtype=torch.float64).eval()
    assert torch.equal(generate(again, prompt(), do_sample=False), generate(model, prompt(), do_sample=False))


def test_logits_and_loss_by_pieces():
    model = model_of()
    ids = prompt(2, 21)
    with torch.no_grad():
        whole = model(ids, labels=ids)
        cache = model.make_cache(21)
        pieces = [model(ids[:, begin:end], past_key_values=cache).logits for begin, end in ((0, 8), (8, 9), (9, 21))]
    assert whole.loss > 0
    torch.testing.assert_close(torch.cat(pieces, 1), whole.logits, rtol=1e-9, atol=1e-9)
    assert cache.get_seq_length() == 21
    with pytest.raises(cpnsa.ArgumentError, match="expected an NsaCache"):
        model(ids, past_key_values=object())


def test_settings_of_other_models_attention_are_refused():
    for name, value in (("attn_logit_softcapping", 30.0), ("attention_dropout", 0.1), ("sliding_window", 128),
                        ("num_attention_heads", 4), ("rope_scaling", {"type": "linear", "factor": 2})):
        with pytest.raises(cpnsa.ArgumentError, match=f"{name}: found"):
            cpnsa.transformers.NsaConfig(**{name: value})
    config = cpnsa.transformers.NsaConfig(attention_dropout=0.0, sliding_window=None, attention=attention)
    assert cpnsa.transformers.NsaConfig(**config.to_dict()).nsa() == config.nsa()

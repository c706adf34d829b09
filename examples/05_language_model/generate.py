#!/usr/bin/env python3
"""Continues a text with a trained model, over a paged KV cache that is sharded over the ranks.

    python3 generate.py --model nsa --prompt "The licence" --tokens 200
    torchrun --nproc-per-node 4 generate.py --model nsa --data tokens --prompt-tokens 1000
    mpirun -n 2 python3 generate.py --model nsa --prompt "The licence"

The text is the same at every number of ranks. With --temperature 0, the default, each token is the most likely one.
The prompt is read in chunks, then a token a step.
"""

import argparse
import json
import os
import pathlib
import sys
import time

import torch

import checkpoint
import cpnsa
import cpnsa.torch
from model import GPT, config_of
from parallel import World
from settings import Settings, SettingsError
from token_files import BOUNDARY, DataError, TokenFile


def use_launcher():
    """mpirun's ranks as torchrun names them."""
    for name, variable in (("RANK", "OMPI_COMM_WORLD_RANK"), ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"),
                           ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK")):
        if variable in os.environ:
            os.environ.setdefault(name, os.environ[variable])
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29411")


class Coder:
    """Text to tokens and back: bytes, or the byte pairs of a folder of tokens."""

    def __init__(self, data):
        self._tokenizer = None
        if data is not None and (data / "tokenizer.json").exists():
            import tokenizers

            self._tokenizer = tokenizers.Tokenizer.from_file(str(data / "tokenizer.json"))

    def encode(self, text):
        if self._tokenizer is not None:
            return self._tokenizer.encode(text).ids
        return [value + 1 for value in text.encode()]

    def decode(self, tokens):
        tokens = [token for token in tokens if token != BOUNDARY]
        if self._tokenizer is not None:
            return self._tokenizer.decode(tokens)
        return bytes(token - 1 for token in tokens).decode(errors="replace")


class Generator:
    """A model with a cache of one sequence of up to `length` tokens."""

    def __init__(self, model, length, group, device, page):
        self.model = model
        self.cache = cpnsa.torch.KvCache(config_of(model.settings), 1, length, layers=len(model.blocks), group=group,
                                         dtype=model.embedding.weight.dtype, device=device, page=page)
        self._before = BOUNDARY  # the token before the next one, for token_shift

    @torch.no_grad()
    def append(self, tokens):
        """Logits [vocabulary] after these tokens."""
        model, device = self.model, self.cache.device
        now = torch.tensor(tokens, device=device)
        x = model.embedding(now)
        if model.shift is not None:
            x = x + model.shift(model.embedding(torch.tensor([self._before, *tokens[:-1]], device=device)))
        with self.cache.step(len(tokens)) as step:
            for index, block in enumerate(model.blocks):
                x = x + block.attention(block.norm_attention(x), cache=step[index])
                x = x + block.mlp(block.norm_mlp(x))
        self._before = tokens[-1]
        return torch.nn.functional.linear(model.norm(x[-1]), model.embedding.weight)


def read_bytes(model, length):
    """Bytes of the cache that one query at this length reads in all layers, and those with full attention."""
    config, element = config_of(model.settings), model.embedding.weight.element_size()
    summaries = max(0, (length - config.compress_block) // config.compress_stride + 1)
    rows = summaries + min(length, config.select_count * config.select_block) + min(length, config.window)
    width = config.num_kv_heads * (config.head_dim_qk + config.head_dim_v)
    return len(model.blocks) * rows * width * element, len(model.blocks) * length * width * element


def load_model(run, device, dtype):
    state = checkpoint.load(run, device)
    if state is None:
        raise SettingsError(f"--model: found no {checkpoint.NAME} in {run}, expected the folder of a run of train.py")
    settings = Settings(**state["settings"])
    if settings.attention != "nsa":
        raise SettingsError(f"--model: found a model with {settings.attention} attention, expected nsa")
    model = GPT(settings, state["vocabulary"])
    model.load_state_dict(state["model"])
    return model.to(device, dtype).eval()


def next_token(logits, temperature, random):
    if temperature == 0:
        return int(logits.argmax())
    chances = torch.softmax(logits.double().cpu() / temperature, -1)
    return int(torch.multinomial(chances, 1, generator=random))


def prompt_of(arguments, coder):
    if arguments.prompt is not None:
        return [BOUNDARY, *coder.encode(arguments.prompt)]
    if arguments.data is None:
        raise DataError("--prompt: found neither it nor --data, expected one of them")
    held_out = TokenFile(arguments.data, "held_out").tokens
    if len(held_out) < arguments.prompt_tokens:
        raise DataError(f"--prompt-tokens: found {arguments.prompt_tokens}, expected at most {len(held_out)}, those of "
                        "held_out.bin")
    return [int(token) for token in held_out[:arguments.prompt_tokens]]


def run(arguments, world):
    dtype = getattr(torch, arguments.dtype)
    coder = Coder(arguments.data)
    prompt = prompt_of(arguments, coder)
    model = load_model(arguments.model, world.device, dtype)
    if max(prompt) >= model.vocabulary:
        raise DataError(f"--prompt: found token {max(prompt)}, expected less than {model.vocabulary}, the vocabulary")
    generator = Generator(model, len(prompt) + arguments.tokens, world.cp_group, world.device, arguments.page)
    random = torch.Generator().manual_seed(arguments.seed)

    begin = time.perf_counter()
    for first in range(0, len(prompt), arguments.chunk):
        logits = generator.append(prompt[first:first + arguments.chunk])
    tokens = []
    prefilled = time.perf_counter()
    for _ in range(arguments.tokens):
        tokens.append(next_token(logits, arguments.temperature, random))
        if len(tokens) < arguments.tokens:
            logits = generator.append(tokens[-1:])
    end = time.perf_counter()

    sparse, full = read_bytes(model, len(prompt) + arguments.tokens)
    received = sum(generator.cache.statistics()["bytes_received"].values())
    report = {"ranks": world.ranks, "prompt_tokens": len(prompt), "tokens": tokens,
              "prefill_tokens_per_second": len(prompt) / max(prefilled - begin, 1e-9),
              "tokens_per_second": arguments.tokens / max(end - prefilled, 1e-9),
              "bytes_read_per_token": sparse, "bytes_read_per_token_full_attention": full,
              "cache_bytes_of_rank_0": generator.cache.bytes, "bytes_received_by_rank_0": received}
    return report, coder.decode(prompt), coder.decode(tokens)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True, help="folder of a run of train.py")
    parser.add_argument("--prompt", help="text to continue")
    parser.add_argument("--data", type=pathlib.Path, help="folder of tokens: its byte pairs, and --prompt-tokens")
    parser.add_argument("--prompt-tokens", type=int, default=256, help="continue so many held-out tokens; default 256")
    parser.add_argument("--tokens", type=int, default=200, help="tokens to generate; default 200")
    parser.add_argument("--chunk", type=int, default=512, help="tokens of a chunk of the prompt; default 512")
    parser.add_argument("--page", type=int, default=0, help="tokens of a page of the cache; default the smallest")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: the most likely token; default 0")
    parser.add_argument("--seed", type=int, default=1, help="of the drawn tokens; default 1")
    parser.add_argument("--dtype", choices=("float64", "float32", "bfloat16"), default="float64",
                        help="of the model; in float64, the default, all numbers of ranks give one text")
    parser.add_argument("--cpu", action="store_true", help="no GPU")
    parser.add_argument("--json", type=pathlib.Path, help="write the tokens and the measurements there")
    arguments = parser.parse_args()
    if min(arguments.tokens, arguments.chunk, arguments.prompt_tokens) < 1:
        parser.error("--tokens, --chunk, --prompt-tokens: expected at least 1")

    use_launcher()
    world = World(cp=int(os.environ.get("WORLD_SIZE", 1)), force_cpu=arguments.cpu)
    try:
        report, prompt, text = run(arguments, world)
    except (SettingsError, DataError, cpnsa.Error) as problem:
        sys.exit(f"generate.py: error: {problem}")
    if world.is_leader:
        print(prompt + "|" + text)
        print(f"# {report['ranks']} ranks, prompt {report['prompt_tokens']} tokens at "
              f"{report['prefill_tokens_per_second']:.0f} tokens/s, then {report['tokens_per_second']:.1f} tokens/s; a "
              f"token reads {report['bytes_read_per_token']} bytes of the cache, with full attention "
              f"{report['bytes_read_per_token_full_attention']}; rank 0 received {report['bytes_received_by_rank_0']} "
              f"bytes and holds {report['cache_bytes_of_rank_0']}", file=sys.stderr)
        if arguments.json:
            arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    world.close()


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Makes files of tokens from folders of text.

    python3 prepare.py --text text --out tokens                       # bytes are the tokens
    python3 prepare.py --text text --out tokens --vocabulary 16384    # byte pairs; needs `pip install tokenizers`

Every text file below the folders is a document. With --join, files of a folder follow one another in one document
until it has that many bytes: long documents whose parts belong together, as a model of source code reads them. Which
documents are held out is decided by their names.
"""

import argparse
import hashlib
import json
import pathlib
import shutil
import sys

import numpy as np

from token_files import BOUNDARY, SPLITS, DataError

BYTE_VOCABULARY = 257  # the boundary and 256 bytes
SOURCES = "sources.json"  # written by fetch_text.py beside the text
PIECE = 1 << 18  # characters of text that are encoded as one
BATCH = 1 << 25  # characters of text that are encoded at a time


class Bytes:
    """A token per byte: its value plus one."""

    vocabulary = BYTE_VOCABULARY

    def encode(self, texts):
        return [np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint16) + 1 for text in texts]

    def save(self, folder):
        return "bytes"


class BytePairs:
    """Byte-level byte-pair encoding by the package `tokenizers`, trained on the text or read from a file."""

    def __init__(self, size, documents, sample_bytes, file=None):
        try:
            import tokenizers
        except ImportError:
            raise DataError("--vocabulary: found no package `tokenizers`, expected it installed "
                            "(pip install tokenizers), or no --vocabulary, for bytes") from None
        if file is not None:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(file))
        else:
            self._tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
            self._tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
            self._tokenizer.decoder = tokenizers.decoders.ByteLevel()
            trainer = tokenizers.trainers.BpeTrainer(
                vocab_size=size, special_tokens=["<|boundary|>"], show_progress=False,
                initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet())
            self._tokenizer.train_from_iterator(_sample(documents, sample_bytes), trainer)
        self.vocabulary = self._tokenizer.get_vocab_size()

    def encode(self, texts):
        # A document that spells the boundary's name must not become one.
        encoded = self._tokenizer.encode_batch([text.replace("<|boundary|>", "<|boundary |>") for text in texts])
        return [np.array(one.ids, dtype=np.uint32) for one in encoded]

    def save(self, folder):
        self._tokenizer.save(str(folder / "tokenizer.json"))
        return "byte pairs"


def text_of(path):
    """The file's text, or None where it is no text: not UTF-8, or with a zero byte."""
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in text or not text.strip() else text


def documents_of(folders, join_bytes, limit):
    """(name, [files]) of all documents, sorted by name; files of one folder are joined up to `join_bytes`."""
    documents = []
    for folder in folders:
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
        current, size, parent = [], 0, None
        for path in files:
            length = path.stat().st_size
            if not length or length > limit or path == folder / SOURCES:
                continue
            if current and (path.parent != parent or size + length > join_bytes):
                documents.append((str(current[0].relative_to(folder)), current))
                current, size = [], 0
            current.append(path)
            size, parent = size + length, path.parent
        if current:
            documents.append((str(current[0].relative_to(folder)), current))
    return documents


def texts_of(documents):
    """(name, text) of the documents that have any."""
    for name, files in documents:
        texts = [text for text in map(text_of, files) if text is not None]
        if texts:
            yield name, "\n\n".join(texts)


def batches_of(texts):
    """Lists of (name, pieces of its text), of about BATCH characters."""
    batch, size = [], 0
    for name, text in texts:
        batch.append((name, [text[i:i + PIECE] for i in range(0, len(text), PIECE)]))
        size += len(text)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _sample(documents, wanted):
    """Texts of evenly spread documents, about `wanted` bytes in all."""
    total = sum(path.stat().st_size for _, files in documents for path in files)
    every = max(1, total // max(1, wanted))
    for _, text in texts_of(documents[::every]):
        yield text


def is_held_out(name, share):
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") < share * 2**64


class Writer:
    """One split's files."""

    def __init__(self, folder, split, dtype):
        self._path, self._bounds, self._dtype = folder / split, [0], dtype
        self._file = open(f"{self._path}.bin", "wb")

    def add(self, pieces):
        tokens = np.concatenate([[BOUNDARY], *pieces]).astype(self._dtype)
        tokens.tofile(self._file)
        self._bounds.append(self._bounds[-1] + len(tokens))

    def close(self):
        self._file.close()
        np.save(f"{self._path}.npy", np.array(self._bounds, dtype=np.int64))
        return {"documents": len(self._bounds) - 1, "tokens": self._bounds[-1]}


def prepare(arguments):
    documents = documents_of(arguments.text, arguments.join, arguments.largest)
    if arguments.vocabulary or arguments.tokenizer:
        tokenizer = BytePairs(arguments.vocabulary, documents, arguments.sample << 20, arguments.tokenizer)
    else:
        tokenizer = Bytes()
    dtype = "uint16" if tokenizer.vocabulary <= 1 << 16 else "uint32"
    partial = arguments.out.with_name(arguments.out.name + ".partial")  # --out appears whole or not at all
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    writers = {split: Writer(partial, split, dtype) for split in SPLITS}
    text_bytes = 0
    for batch in batches_of(texts_of(documents)):
        encoded = iter(tokenizer.encode([piece for _, pieces in batch for piece in pieces]))  # on all cores
        for name, pieces in batch:
            split = "held_out" if is_held_out(name, arguments.held_out) else "train"
            writers[split].add([next(encoded) for _ in pieces])
            text_bytes += sum(len(piece.encode()) for piece in pieces)
    counts = {split: writer.close() for split, writer in writers.items()}
    for split, count in counts.items():
        if not count["documents"]:
            raise DataError(f"found no {split} document below {', '.join(map(str, arguments.text))}, expected some; "
                            "text files are UTF-8, and --held-out is the share that is held out")
    description = {"dtype": dtype, "vocabulary": tokenizer.vocabulary, "tokenizer": tokenizer.save(partial),
                   "text_bytes": text_bytes, "bytes_per_token": text_bytes / sum(c["tokens"] for c in counts.values()),
                   "join": arguments.join, "folders": [folder.name for folder in arguments.text], **counts}
    description["sources"] = [{name: value for name, value in source.items() if name != "copyright"}
                              for folder in arguments.text if (folder / SOURCES).exists()
                              for source in json.loads((folder / SOURCES).read_text())]
    (partial / "tokens.json").write_text(json.dumps(description, indent=1) + "\n")
    partial.rename(arguments.out)
    return description


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=pathlib.Path, nargs="+", required=True, help="folders of text files")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to make")
    parser.add_argument("--vocabulary", type=int, default=0, help="size of a byte-pair vocabulary; 0: bytes")
    parser.add_argument("--tokenizer", type=pathlib.Path, help="tokenizer.json of an earlier run, instead of training")
    parser.add_argument("--sample", type=int, default=64, help="MiB of text to train the vocabulary on; default 64")
    parser.add_argument("--join", type=int, default=0, help="bytes up to which files of a folder are one document")
    parser.add_argument("--largest", type=int, default=8 << 20, help="files of more bytes are left out; default 8 MiB")
    parser.add_argument("--held-out", type=float, default=0.02, help="share of held-out documents; default 0.02")
    arguments = parser.parse_args()
    try:
        for folder in arguments.text:
            if not folder.is_dir():
                raise DataError(f"--text: found no folder {folder}, expected one with text files")
        if arguments.out.exists():
            raise DataError(f"--out: found {arguments.out}, expected a folder that does not exist yet")
        description = prepare(arguments)
    except DataError as error:
        sys.exit(f"prepare.py: error: {error}")
    for split in SPLITS:
        print(f"{split}: {description[split]['documents']} documents, {description[split]['tokens']} tokens")
    print(f"{description['bytes_per_token']:.2f} bytes per token, vocabulary {description['vocabulary']}")


if __name__ == "__main__":
    main()

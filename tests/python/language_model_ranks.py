"""A rank of test_language_model.py: EXAMPLE DATA SETTINGS OUT; trains 4 steps of both attentions as DP 2 x CP 2."""

import dataclasses
import json
import pathlib
import sys

example, data, settings, out = map(pathlib.Path, sys.argv[1:])
sys.path.insert(0, str(example))

from parallel import World  # noqa: E402
from settings import Settings  # noqa: E402
from token_files import PackedStream, TokenFile  # noqa: E402
from trainer import Trainer  # noqa: E402

world = World(cp=2, force_cpu=True)
given = Settings(**json.loads(settings.read_text()))
stream = PackedStream(TokenFile(data, "train"), given.context, given.seed)
for attention in ("nsa", "full"):
    Trainer(dataclasses.replace(given, attention=attention), world, stream, [], 257, out / attention).train(stop_at=4)
world.close()

"""A driver in a process of its own: searching.py SPACE FOLDER TRAINING."""

import sys
from pathlib import Path

import fake_training

from raypot.tune.search import _search
from raypot.tune.space import SearchSpace

if __name__ == "__main__":
    space, folder, training = sys.argv[1:]
    _search(
        SearchSpace.read(Path(space)), Path(folder), "local", None, getattr(fake_training, training)
    )

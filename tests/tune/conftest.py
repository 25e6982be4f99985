"""A small search space and studies over it; no Ray, no training."""

from pathlib import Path

import pytest

from raypot.tune.space import SearchSpace

SMALL = """
[tune]
n_trials = 6
grace_epochs = 2
concurrency = 2

[model]
name = { choice = ["painn", "schnet"] }

[model.painn]
n_channels = { choice = [16, 32] }
n_layers = { integers = [1, 3] }

[model.schnet]
n_channels = { choice = [16, 48] }

[loss.forces]
weight = { start = { log_uniform = [1.0, 100.0] }, end = 0.5, by = "epoch" }

[training]
n_epochs = 6
batch_size = { choice = [8, 16] }

[training.optimizer.adamw]
learning_rate = { log_uniform = [1e-4, 1e-2] }
"""


@pytest.fixture
def space_file(tmp_path: Path) -> Path:
    path = tmp_path / "space.toml"
    path.write_text(SMALL)
    return path


@pytest.fixture
def space(space_file: Path) -> SearchSpace:
    return SearchSpace.read(space_file)

"""A study folder as a search leaves it, made in a second and without training."""

import json
from pathlib import Path

import numpy as np
import torch
from optuna.trial import TrialState

from raypot.config import build, to_toml
from raypot.data.cards import Card
from raypot.data.splits import SplitConfig, make_split
from raypot.data.store import Store, write_store
from raypot.data.targets import TargetsConfig, fit_targets
from raypot.models import build_model
from raypot.nn.derivatives import model_state
from raypot.train.model_file import Member, ModelFile, provenance, write_model
from raypot.train.settings import RunConfig
from raypot.tune.space import SearchSpace
from raypot.tune.study import Study

SPACE = """
[model]
name = "schnet"
[model.schnet]
n_channels = { choice = [8, 16] }
[training.optimizer.adamw]
learning_rate = { log_uniform = [1e-4, 1e-2] }
[training]
n_epochs = 30
[tune]
n_trials = 6
"""
SPLIT = SplitConfig(train=0.4, val=0.2, cal=0.2, test=None)


def make_store(folder: Path, structures) -> Store:
    return write_store(
        folder, structures, Card(name="ethanol", description="Ethanol & <b>more</b>")
    )


def make_member(name: str, store: Store, rows, seed: int, config: RunConfig) -> Member:
    block = store.read(rows, labels=("energy", "forces"))
    targets = fit_targets(block, TargetsConfig())
    elements, outputs = store.elements, ("energy",)
    model = build_model(
        config.model.name, config.model.settings, elements=elements, outputs=outputs,
        scale=targets.scale, seed=seed, dtype=torch.float64,
    )  # fmt: skip
    tree = config.tree()["model"]
    return Member(name, tree, elements, outputs, model_state(model), targets, weight=0.5)


def write_run(folder: Path, config: RunConfig, store: Store, n_epochs: int, seed: int) -> float:
    """Write what a run leaves but its model; return its best score."""
    folder.mkdir(parents=True, exist_ok=True)
    tree = config.tree()
    tree["data"]["store"] = str(store.path)
    (folder / "run.toml").write_text(to_toml(tree))
    make_split(store, SPLIT).save(folder / "split.json")
    generator = np.random.default_rng(seed)
    rows, level = [], generator.uniform(0.03, 0.1)
    for epoch in range(1, n_epochs + 1):
        score = level + np.exp(-epoch / 6) * generator.uniform(0.9, 1.1)
        rows.append(metrics_row(epoch, score))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return min(row["val/score"] for row in rows)


def metrics_row(epoch: int, score: float) -> dict[str, float]:
    return {
        "epoch": epoch, "step": 10 * epoch, "learning_rate": 1e-3 * 0.97**epoch,
        "train/loss": 3 * score**2, "train/energy": score**2, "weight/energy": 1.0,
        "val/loss": 4 * score**2, "val/score": score, "val/energy/rmse": 0.1 * score,
        "val/energy_per_atom/rmse": 0.01 * score, "val/energy_per_atom/mae": 0.007 * score,
        "val/forces/rmse": score, "val/forces/mae": 0.7 * score, "gradient_norm": 1.0,
        "structures_per_second": 900.0, "loader_wait_s": 0.01, "epoch_s": 0.5,
    }  # fmt: skip


def make_study(folder: Path, store: Store, n_trials: int = 6) -> Study:
    """Make a study with finished, pruned, failed and running trials, and an ensemble of two."""
    folder.mkdir(parents=True)
    (folder.parent / "space.toml").write_text(SPACE)
    space = SearchSpace.read(folder.parent / "space.toml", store=str(store.path))
    study = Study.start(folder, space)
    for number in range(n_trials):
        attempt = study.journal.propose(space)
        config = build(RunConfig, attempt.config, "trial")
        n_epochs = 5 if number % 3 == 1 else 30
        score = write_run(attempt.folder, config, store, n_epochs, number)
        study.journal.report(attempt.attempt, n_epochs, score)
        result = {"epochs": n_epochs, "wall_s": 12.5, "metrics": metrics_row(n_epochs, score)}
        state, reason = TrialState.COMPLETE, ""
        if number % 3 == 1:
            state, reason = TrialState.PRUNED, "asha"
        if number == n_trials - 2:
            state, reason = TrialState.FAIL, "DivergedError: <script>alert(1)</script>"
        if number != n_trials - 1:
            study.journal.finish(attempt.attempt, state, result, reason, score)
    study.journal.note_wall(75.0)
    write_ensemble(folder / "ensemble.safetensors", store, config)
    (folder / "inference_instructions.txt").write_text("raypot predict ensemble.safetensors <IN>\n")
    return study


def write_ensemble(path: Path, store: Store, config: RunConfig) -> None:
    rows = make_split(store, SPLIT).train
    members = tuple(make_member(f"{n}.0", store, rows, n, config) for n in range(2))
    row = {"a": 1.5, "b": 0.01, "factor": 1.7, "constant": 0.2, "n_structures": 9, "n_values": 99}
    calibration = {"properties": {"energy_per_atom": row, "forces": row}}
    facts = {"fingerprint": store.fingerprint, "level": "reference"}
    write_model(path, ModelFile(members, calibration, provenance(data=facts)))

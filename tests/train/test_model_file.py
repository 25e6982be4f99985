"""A model file gives back exactly what was written, and refuses everything else."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raypot.batch import Batch, collate
from raypot.config import build
from raypot.data.targets import Targets
from raypot.errors import CheckpointError
from raypot.models import build_model
from raypot.neighbors import find_edges
from raypot.nn.derivatives import model_state, predict
from raypot.structures import Block, Structure
from raypot.train.model_file import (
    Member,
    ModelFile,
    ModelSection,
    build_member,
    provenance,
    read_model,
    write_model,
)
from raypot.train.tensor_file import TensorFile, pack, unpack

TARGETS = Targets({1: -13.6, 6: -1030.0, 8: -2040.0}, scale=1.7, rank=1, spread={"forces": 1.7})


def a_member(name: str = "trial-3.seed_0", seed: int = 0) -> Member:
    tree = {"name": "schnet", "schnet": {"n_channels": 8, "n_layers": 1, "n_radial": 6}}
    choice = build(ModelSection, {"model": tree}, "test").model
    model = build_model(
        choice.name,
        choice.settings,
        elements=(1, 6, 8),
        outputs=("energy", "charges"),
        scale=TARGETS.scale,
        seed=seed,
        dtype=torch.float64,
    )
    metrics = {"forces/rmse": 0.1, "stress/rmse": float("nan")}
    return Member(
        name, tree, (1, 6, 8), ("energy", "charges"), model_state(model), TARGETS, 0.5, metrics
    )


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, ModelFile]:
    members = (a_member(), a_member("trial-4.seed_1", seed=1))
    file = ModelFile(members, {"energy": {"a": 1.5, "b": 0.0}}, provenance(store="ethanol.zarr"))
    path = tmp_path / "ensemble.safetensors"
    write_model(path, file)
    return path, file


def a_batch(structures: list[Structure]) -> Batch:
    block = Block.from_structures(structures[:3])
    return collate(block, find_edges(block, 5.0), torch.float64)


def test_round_trip_predicts_the_same(
    written: tuple[Path, ModelFile], ethanol: list[Structure]
) -> None:
    path, file = written
    read = read_model(path)
    assert read.calibration == file.calibration
    assert read.provenance == file.provenance
    assert {"raypot", "created", "store"} <= read.provenance.keys()
    batch = a_batch(ethanol)
    for before, after in zip(file.members, read.members, strict=True):
        assert replace(after, state={}, metrics={}) == replace(before, state={}, metrics={})
        assert after.metrics == {"forces/rmse": 0.1}
        model = build_member(after)
        old = predict(build_member(before), before.state, batch, ("energy", "forces"))
        new = predict(model, model_state(model), batch, ("energy", "forces"))
        assert all(torch.equal(old[name], new[name]) for name in old)


def test_a_member_can_be_built_in_another_precision(written: tuple[Path, ModelFile]) -> None:
    member = read_model(written[0]).members[0]
    assert build_member(member).scale.dtype == torch.float64
    single = build_member(member, torch.float32)
    assert {p.dtype for p in single.parameters()} == {torch.float32}


def alter(path: Path, tree: dict[str, Any], tensors: dict[str, torch.Tensor] | None = None) -> None:
    """Write a file with a right checksum and other content."""
    content = unpack(path, "raypot-model", 1)
    new = TensorFile({**content.tree, **tree}, content.tensors if tensors is None else tensors)
    path.write_bytes(pack("raypot-model", 1, new))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../../x"}, "member name '../../x' is not words"),
        ({"name": "trial-4.seed_1"}, "two members have the same name"),
        ({"elements": []}, "described wrongly"),
        ({"elements": [1, 6, 500]}, "described wrongly"),
        ({"outputs": ["energy", "magic"]}, r"outputs .* are not some of energy"),
        ({"weight": -1.0}, "described wrongly"),
        ({"weight": "1"}, None),
        ({"targets": {}}, "described wrongly"),
        ({"metrics": {"forces/rmse": "x"}}, "described wrongly"),
        ({"surprise": 1}, "described wrongly"),
    ],
)
def test_odd_headers_are_refused(
    written: tuple[Path, ModelFile], change: dict[str, Any], message: str | None
) -> None:
    path, _ = written
    members = unpack(path, "raypot-model", 1).tree["members"]
    alter(path, {"members": [{**members[0], **change}, members[1]]})
    if message is None:
        assert read_model(path).members[0].weight == 1.0
        return
    with pytest.raises(CheckpointError, match=message):
        read_model(path)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"members": []}, "lists no members"),
        ({"members": {}}, "lists no members"),
        ({"calibration": [1]}, "calibration is not a table"),
        ({"provenance": None}, "provenance is not a table"),
    ],
)
def test_odd_trees_are_refused(
    written: tuple[Path, ModelFile], tree: dict[str, Any], message: str
) -> None:
    alter(written[0], tree)
    with pytest.raises(CheckpointError, match=message):
        read_model(written[0])


def test_tensors_that_do_not_belong_are_refused(written: tuple[Path, ModelFile]) -> None:
    path, _ = written
    tensors = unpack(path, "raypot-model", 1).tensors
    alter(path, {}, {**tensors, "7.weight": torch.ones(2)})
    with pytest.raises(CheckpointError, match="tensors that belong to no member"):
        read_model(path)
    alter(path, {}, {**tensors, "0.scale": torch.tensor(np.nan)})
    with pytest.raises(CheckpointError, match="missing or not finite"):
        read_model(path)
    alter(path, {}, {name: x for name, x in tensors.items() if name.startswith("1.")})
    with pytest.raises(CheckpointError, match="missing or not finite"):
        read_model(path)


def test_a_state_that_does_not_fit_is_refused() -> None:
    member = a_member()
    name = next(n for n, x in member.state.items() if x.dim() == 2)
    with pytest.raises(CheckpointError, match=r"missing or belong to another model"):
        build_member(replace(member, state={k: v for k, v in member.state.items() if k != name}))
    with pytest.raises(CheckpointError, match=rf"{name} is torch.float64 \(2, 2\), expected"):
        build_member(replace(member, state={**member.state, name: torch.ones(2, 2).double()}))
    with pytest.raises(CheckpointError, match="does not fit the elements"):
        build_member(replace(member, elements=(1, 6, 9)))


def test_hostile_settings_are_refused() -> None:
    tree = {"name": "schnet", "schnet": {"n_layers": 10**9}}
    with pytest.raises(CheckpointError, match=r"n_layers.*does not fit this raypot"):
        build_member(replace(a_member(), model=tree))
    with pytest.raises(CheckpointError, match=r"transformer.*does not fit this raypot"):
        build_member(replace(a_member(), model={"name": "transformer"}))


def test_names_are_checked_before_writing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not words and dots"):
        write_model(tmp_path / "m.safetensors", ModelFile((a_member("a/b"),)))
    with pytest.raises(CheckpointError, match="at least one member"):
        write_model(tmp_path / "m.safetensors", ModelFile(()))
    assert not list(tmp_path.iterdir())

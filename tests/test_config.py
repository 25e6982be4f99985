"""Strict configuration: what is allowed, and what the messages say."""

from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field

from raypot.config import (
    Choice,
    Config,
    OneOf,
    apply_overrides,
    build,
    differences,
    fingerprint,
    read_toml,
    to_toml,
)
from raypot.errors import ConfigError, MissingInput


class Wide(Config):
    n_channels: int = Field(64, ge=1)


class Deep(Config):
    n_layers: int = 3
    name: str = "deep"


class Run(Config):
    seed: int = 0
    model: Annotated[Choice, OneOf({"wide": Wide, "deep": Deep}, "wide")] = Choice(
        name="wide", settings=Wide()
    )
    loss: dict[str, Wide] = Field({})


def test_choice_takes_the_named_member() -> None:
    run = build(Run, {"model": {"name": "deep", "deep": {"n_layers": 5}}}, "run.toml")
    assert run.model == Choice(name="deep", settings=Deep(n_layers=5))


def test_the_resolved_tree_builds_the_same_run_again() -> None:
    run = build(Run, {"model": {"name": "deep"}, "loss": {"energy": {"n_channels": 2}}}, "run.toml")
    assert build(Run, run.model_dump(mode="json"), "again") == run


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"seeed": 1}, r"run.toml: seeed: unknown key; did you mean seed\?"),
        (
            {"model": {"wide": {"n_chanels": 1}}},
            r"\[model.wide\] n_chanels: unknown key; did you mean n_channels\?",
        ),
        ({"model": {"name": "wyde"}}, r"'wyde' is unknown; did you mean wide\?"),
        ({"model": {"name": "wide", "deep": {}}}, r"\[deep\] is set but the name is 'wide'"),
        ({"model": {"wide": {"n_channels": 0}}}, r"\[model.wide\] n_channels: .*equal to 1, got 0"),
        ({"loss": {"energy": {"n": 1}}}, r"\[loss.energy\] n: unknown key"),
        ({"seed": "one"}, r"seed: input should be a valid integer.*got 'one'"),
    ],
)
def test_a_wrong_tree_names_place_value_and_suggestion(
    tree: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(Run, tree, "run.toml")


def test_overrides_are_read_as_toml() -> None:
    tree = {"training": {"n_epochs": 3}}
    result = apply_overrides(
        tree, ("training.n_epochs=5", "model.name=deep", "loss.forces.weight={start=1,end=2}")
    )
    assert result["training"]["n_epochs"] == 5
    assert result["model"]["name"] == "deep"
    assert result["loss"]["forces"]["weight"] == {"start": 1, "end": 2}
    assert tree == {"training": {"n_epochs": 3}}


def test_an_override_needs_an_equals_sign() -> None:
    with pytest.raises(ConfigError, match="expected key=value"):
        apply_overrides({}, ("seed",))


def test_toml_round_trip(tmp_path: Path) -> None:
    tree = {
        "seed": 3,
        "name": 'a "quoted" name',
        "empty": {},
        "data": {"store": "x.zarr", "files": {"test": ["a*.xyz"]}, "odd key": 1e-7},
        "loss": {"forces": {"weight": {"start": 1.0, "end": 0.5}}},
        "flags": [True, False],
    }
    path = tmp_path / "run.toml"
    path.write_text(to_toml(tree), encoding="utf-8")
    assert read_toml(path) == tree


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="run.toml: no such file"):
        read_toml(tmp_path / "run.toml")
    (tmp_path / "broken.toml").write_text("a = [", encoding="utf-8")
    with pytest.raises(ConfigError, match="broken.toml: not valid TOML"):
        read_toml(tmp_path / "broken.toml")


def test_fingerprint_ignores_order_and_sees_values() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_differences_name_the_leaves() -> None:
    old = {"seed": 0, "training": {"n_epochs": 3}}
    new = {"seed": 0, "training": {"n_epochs": 4}}
    assert differences(old, new) == ["training.n_epochs: 3 -> 4"]

import math
from pathlib import Path

import optuna
import pytest

from raypot.config import read_toml
from raypot.errors import ConfigError, MissingInput
from raypot.tune.ranges import IntegerRange, LogUniformRange, UniformRange
from raypot.tune.space import SearchSpace

SPACES = sorted((Path(__file__).parents[2] / "search_spaces").glob("*.toml"))
RATE = "training.optimizer.adamw.learning_rate"
WEIGHT = "loss.forces.weight.start"


def test_only_the_chosen_branch_is_asked(space: SearchSpace) -> None:
    painn = {
        "model.name": "painn",
        "model.painn.n_channels": 16,
        "model.painn.n_layers": 2,
        "training.batch_size": 8,
        RATE: 1e-3,
        WEIGHT: 3.0,
    }
    trial = optuna.trial.FixedTrial(painn)
    tree = space.sample(trial)
    assert trial.params == painn
    assert tree["model"]["painn"]["n_channels"] == 16
    assert "schnet" not in tree["model"]
    assert tree["loss"]["forces"]["weight"]["start"] == 3.0
    assert tree["loss"]["forces"]["weight"]["end"] == 0.5
    assert tree["training"]["n_epochs"] == 6


def test_branches_and_size(space: SearchSpace) -> None:
    painn, schnet = space.branches()
    assert "model.painn.n_layers" in painn
    assert "model.painn.n_layers" not in schnet
    assert space.size() == math.inf
    assert space.max_epochs() == 6


def test_size_of_a_finite_space(space_file: Path) -> None:
    space = SearchSpace.read(
        space_file, (f"{RATE}=1e-3", "loss.forces.weight={choice=[1.0, 10.0]}")
    )
    assert space.size() == 2 * 3 * 2 * 2 + 2 * 2 * 2


def test_defaults_are_moved_into_the_ranges(space_file: Path) -> None:
    space = SearchSpace.read(
        space_file,
        (
            "model.painn.n_channels={choice=[16, 24]}",
            "model.painn.n_layers={integers=[1, 9], default=7}",
        ),
    )
    painn, schnet = space.defaults()
    assert painn["model.name"] == "painn"  # the model that a run file without a name gets
    assert painn["model.painn.n_channels"] == 24
    assert painn["model.painn.n_layers"] == 7
    assert schnet["model.schnet.n_channels"] == 48
    assert not [name for name in schnet if "painn" in name]


def test_choices_may_be_tables(space_file: Path) -> None:
    override = 'loss.forces.weight={choice=[1.0, {start=10.0, end=1.0, by="epoch"}]}'
    space = SearchSpace.read(space_file, (override,))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = [space.sample(study.ask())["loss"]["forces"]["weight"] for _ in range(12)]
    assert 1.0 in seen
    assert any(isinstance(weight, dict) and weight["start"] == 10.0 for weight in seen)


def test_a_space_survives_its_file(space: SearchSpace, tmp_path: Path) -> None:
    again = tmp_path / "again.toml"
    again.write_text(space.to_toml())
    read = SearchSpace.read(again)
    assert space.changes(read) == []
    assert read.fingerprint == space.fingerprint
    assert read.defaults() == space.defaults()


def test_changes_that_matter(space: SearchSpace, space_file: Path) -> None:
    more = SearchSpace.read(space_file, ("tune.n_trials=99", "tune.time_limit=3.0"))
    assert space.changes(more) == []
    other = SearchSpace.read(space_file, ("model.painn.n_layers={integers=[1, 4]}", "tune.seed=1"))
    assert space.changes(other) == [
        "model.painn.n_layers.integers: [1, 3] -> [1, 4]",
        "tune.seed: 0 -> 1",
    ]


def test_the_store_becomes_absolute(space_file: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = SearchSpace.read(space_file, (), "ethanol.zarr").written["data"]["store"]
    assert store == str(tmp_path / "ethanol.zarr")
    url = SearchSpace.read(space_file, (), "s3://bucket/ethanol.zarr")
    assert url.written["data"]["store"] == "s3://bucket/ethanol.zarr"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.painn.n_chanels=3", r"\[model.painn\] n_chanels: unknown key; .* n_channels\?"),
        (
            "model.painn.n_channels={choice=[0, 16]}",
            r"space.toml: \[model.painn\] n_channels: .* greater than or equal to \d+, got 0",
        ),
        (
            "model.painn.n_layers={integer=[1, 2]}",
            r"\[model.painn\] n_layers: integer: unknown kind of range; did you mean integers\?",
        ),
        ("model.painn.n_layers={integers=[3, 1]}", r"n_layers: .* 3 is above .* 1; swap them"),
        ("model.painn.n_layers={integers=[1, 'a']}", r"n_layers: .*valid integer, got 'a'"),
        ("model.painn.n_layers={integers=[1, 4], step=2}", r"step 2 does not lead from 1 to 4"),
        ("model.painn.n_layers={integers=[1, 4], stepp=2}", r"stepp: unknown key; .* step\?"),
        ("model.painn.n_layers={integers=[1, 4], log=true, step=3}", r"step and log do not go"),
        ("model.painn.n_layers={integers=[1, 4], default=5}", r"default 5 is outside"),
        ("model.painn.n_layers={integers=[1, 4], choice=[1]}", r"integers and choice in one"),
        (f"{RATE}={{log_uniform=[0.0, 1.0]}}", r"learning_rate: .* lower end above 0, got 0.0"),
        (f"{RATE}={{uniform=[0.0, 1.0], step=0.3}}", r"step 0.3 does not lead from 0.0 to 1.0"),
        (f"{RATE}={{uniform=[-1.0, 1.0]}}", r"learning_rate: .* greater than .*, got -1.0"),
        ("training.batch_size={choice=[8, 8]}", r"batch_size: choice holds 8 twice; remove one"),
        ("training.batch_size={choice=[]}", r"\[training\] batch_size: choice: .*at least 1"),
        ("model.name={choice=['painn', 'schnett']}", r"\[model.schnet\] is never used"),
        ("model.mace.n_layers=1", r"\[model.mace\] is never used, .* painn, schnet"),
        ("tune.sampler='tpee'", r"\[tune\] sampler: .*'tpee' is unknown; did you mean tpe\?"),
        ("tune.scheduler='ahsa'", r"\[tune\] scheduler: .*'asha', 'median' or 'none', got 'ahsa'"),
        ("tune.n_trial=3", r"\[tune\] n_trial: unknown key; did you mean n_trials\?"),
        ("tune=3", r"tune: .*dictionary"),
    ],
)
def test_errors_name_place_value_and_remedy(space_file: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SearchSpace.read(space_file, (override,))


def test_too_many_branches_are_refused(space_file: Path, monkeypatch) -> None:
    monkeypatch.setattr("raypot.tune.space.MAX_BRANCHES", 1)
    with pytest.raises(ConfigError, match="more than 1 combinations of names; split"):
        SearchSpace.read(space_file)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match=r"nothing.toml: no such file"):
        SearchSpace.read(tmp_path / "nothing.toml")


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_shipped_spaces_are_valid(path: Path) -> None:
    space = SearchSpace.read(path)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for params in space.defaults():
        study.enqueue_trial(params)
    for _ in range(8):
        assert space.sample(study.ask())["training"]["n_epochs"] <= space.max_epochs()
    assert read_toml(path)["tune"]["n_trials"] >= 12


def test_nearest_values() -> None:
    assert IntegerRange(integers=(2, 10), step=4).nearest(9) == 6
    assert IntegerRange(integers=(1, 100), log=True).nearest(None) == 10
    assert UniformRange(uniform=(0.0, 1.0), step=0.25).nearest(0.6) == 0.5
    assert LogUniformRange(log_uniform=(1e-4, 1e-2)).nearest("x") == pytest.approx(1e-3)

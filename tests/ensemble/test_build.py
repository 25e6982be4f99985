"""From a study to a model file and its honest evaluation, in a world whose truth is known."""

from dataclasses import replace

import numpy as np
import pytest
from conftest_ensemble import World, make_member, many_ethanols

from raypot.data.cards import Card
from raypot.data.splits import SplitConfig, make_split
from raypot.data.store import write_store
from raypot.ensemble.build import build_ensemble, calibration_warnings
from raypot.ensemble.calibrate import Calibration
from raypot.ensemble.candidates import choose_trials
from raypot.ensemble.evaluate import evaluate
from raypot.ensemble.output import predict_file
from raypot.ensemble.predictor import Predictor
from raypot.errors import (
    LabelError,
    MissingInput,
    OutputError,
    SearchError,
    StoreError,
    UnknownElement,
    UsageError,
)
from raypot.train.folder import RunFolder
from raypot.train.model_file import ModelFile, read_model, write_model


@pytest.fixture(autouse=True)
def study_of_the_world(world, monkeypatch):
    monkeypatch.setattr("raypot.ensemble.candidates.Study.open", world.open_study)


@pytest.fixture(scope="module")
def built(world):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raypot.ensemble.candidates.Study.open", world.open_study)
        output = world.root / "ensemble.safetensors"
        return build_ensemble(world.study, output, n_members=4), Predictor.load(output)


def test_the_ensemble_beats_its_members_where_nothing_was_chosen(built, world):
    result = evaluate(built[1], world.store.path)
    assert result["split"] == "test"
    assert result["n_structures"] == 100
    assert result["n_atoms"] == 900
    for name in ("energy_per_atom", "forces"):
        singles = [member[name]["rmse"] for member in result["members"]]
        assert result[name]["rmse"] < 0.97 * min(singles)
    assert 0 < result["gain"]["measured"] < 0.9
    assert 0 < result["rho"] < 1
    assert sum(member["weight"] for member in result["members"]) == pytest.approx(1)


def test_its_error_bars_are_honest_on_rows_that_nothing_has_seen(built, world):
    marks = evaluate(built[1], world.store.path)["uncertainty"]
    assert set(marks) == {"energy_per_atom", "forces", "charges"}
    for name in ("energy_per_atom", "forces", "charges"):
        assert marks[name]["coverage_90"] == pytest.approx(0.9, abs=0.08)
        assert marks[name]["miscalibration_area"] < 0.15
    assert marks["forces"]["coverage_90"] == pytest.approx(0.9, abs=0.03)
    assert marks["forces"]["miscalibration_area"] < 0.06
    assert marks["forces"]["nll"] < marks["forces"]["nll_constant"]
    assert marks["forces"]["spearman"] > 0.7 * marks["forces"]["spearman_ceiling"] > 0.1


def test_the_report_has_the_shape_of_the_command_line(built):
    report, predictor = built
    tree = report.to_json()
    assert tree["model"].endswith("ensemble.safetensors")
    assert {row["trial"] for row in tree["members"]} <= set(World.sizes)
    assert all(row["seed"] == 100 + row["trial"] for row in tree["members"])
    weights = [row["weight"] for row in tree["members"]]
    assert weights == sorted(weights, reverse=True)
    assert sum(weights) == pytest.approx(1.0)
    assert list(tree["val"]) == ["best_single", "uniform", "ensemble"]
    for row in tree["val"].values():
        assert row["forces"]["unit"] == "eV/Å"
        assert row["energy_per_atom"]["unit"] == "eV/atom"
    assert tree["val"]["ensemble"]["score"] < tree["val"]["best_single"]["score"]
    assert 0 < tree["rho"] < 1
    assert any("100 cal structures, 200 are wanted" in line for line in tree["warnings"])
    assert [member.name for member in predictor.members] == [
        f"trial_{row}" for row in sorted(row["trial"] for row in tree["members"])
    ]


def test_the_file_tells_where_it_comes_from(built, world):
    file = built[1].file
    assert file.provenance["kind"] == "ensemble"
    assert file.provenance["data"]["fingerprint"] == world.store.fingerprint
    assert file.provenance["selection"]["selector"] == "greedy"
    text = (world.root / "inference_instructions.txt").read_text()
    assert f"raypot evaluate {built[0].model} {world.store.path}" in text
    assert "raypot predict" in text
    assert f"raypot.load('{built[0].model}')" in text


def test_roles_of_the_own_store_are_found_again(built, world):
    drawn = make_split(world.store, World.split)
    for role in ("train", "val", "cal", "test"):
        result = evaluate(built[1], world.store.path, split=role)
        assert result["n_structures"] == len(drawn.rows(role))
    assert evaluate(built[1], world.store.path, split="all")["n_structures"] == 400
    val = evaluate(built[1], world.store.path, split="val")["forces"]["rmse"]
    assert val == pytest.approx(built[0].val["ensemble"]["forces"]["rmse"], rel=1e-9)


def test_a_structure_file_is_judged_as_a_whole(built, world, tmp_path):
    truth = Predictor(ModelFile((make_member("painn", 1, outputs=("energy", "charges")),)))
    store = write_store(tmp_path / "new.zarr", world.structures[:12], Card())
    predict_file(truth, store.path, tmp_path / "new.xyz")
    result = evaluate(built[1], tmp_path / "new.xyz")
    assert result["split"] == "all"
    assert result["n_structures"] == 12
    direct = evaluate(built[1], store.path)
    assert result["forces"]["rmse"] == pytest.approx(direct["forces"]["rmse"], rel=1e-4)
    assert "charges" in direct


def test_only_labelled_rows_count(built, world, tmp_path):
    bare = [replace(s, labels={}) for s in world.structures[:4]]
    half = [replace(s, labels={"energy": s.labels["energy"]}) for s in world.structures[4:7]]
    store = write_store(tmp_path / "half.zarr", [*bare, *half, *world.structures[7:9]], Card())
    result = evaluate(built[1], store.path)
    assert result["n_structures"] == 5
    assert result["energy"]["count"] == 5
    assert result["forces"]["count"] == 2 * 27
    with pytest.raises(LabelError, match="no structure has a label"):
        evaluate(built[1], write_store(tmp_path / "bare.zarr", bare, Card()).path)


def test_questions_that_make_no_sense_are_refused(built, world, tmp_path):
    foreign = write_store(tmp_path / "foreign.zarr", world.structures[:3], Card())
    with pytest.raises(UsageError, match="another store .* has no role 'test'"):
        evaluate(built[1], foreign.path, split="test")
    with pytest.raises(UsageError, match="split 'tset': expected train"):
        evaluate(built[1], foreign.path, split="tset")
    with pytest.raises(UsageError, match="split 'tset': expected train"):
        evaluate(built[1], world.store.path, split="tset")
    with pytest.raises(MissingInput, match=r"none\.xyz"):
        evaluate(built[1], tmp_path / "none.xyz")
    with pytest.raises(MissingInput, match=r"none\.zarr"):
        evaluate(built[1], tmp_path / "none.zarr")


@pytest.mark.parametrize(("selector", "n_members", "trials"), [("best", 3, 1), ("top", 2, 2)])
def test_other_selectors(world, tmp_path, selector, n_members, trials):
    report = build_ensemble(
        world.study, tmp_path / "e.safetensors", n_members=n_members, selector=selector
    )
    assert len(report.members) == trials
    assert {row["weight"] for row in report.members} == {1 / trials}
    if trials == 1:
        assert report.rho is None
        assert any("is a single model, which has no spread" in line for line in report.warnings)
        assert {row.a for row in report.calibration.values()} == {0.0}
        result = evaluate(Predictor.load(report.model), world.store.path)
        assert result["uncertainty"]["forces"]["coverage_90"] == pytest.approx(0.9, abs=0.04)
        assert "rho" not in result


def test_pruned_trials_come_in_where_complete_ones_are_too_few(world):
    ranked = world.open_study(None).leaderboard()
    assert [row.number for row in choose_trials(ranked, 5)] == [0, 1, 2, 3, 4]
    assert [row.number for row in choose_trials(ranked, 6)] == [0, 1, 2, 3, 5, 4]


def test_a_candidate_that_explodes_is_left_out(world, tmp_path, monkeypatch):
    row = world.rows[1]
    member = read_model(RunFolder(row.folder).model).members[0]
    state = dict(member.state, scale=member.state["scale"] * 1e308)
    broken = RunFolder(tmp_path / "broken")
    broken.path.mkdir()
    write_model(broken.model, ModelFile((replace(member, state=state),)))
    broken.split.write_bytes(RunFolder(row.folder).split.read_bytes())
    rows = [world.rows[0], replace(row, folder=broken.path), world.rows[2]]
    monkeypatch.setattr(world, "rows", rows)
    report = build_ensemble(world.study, tmp_path / "e.safetensors")
    assert "trial 1 was left out" in report.warnings[0]
    assert {row["trial"] for row in report.members} == {0, 2}


def test_studies_that_cannot_become_an_ensemble(world, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"'greedi' is unknown; did you mean greedy\?"):
        build_ensemble(world.study, tmp_path / "e.safetensors", selector="greedi")
    with pytest.raises(UsageError, match="0 members"):
        build_ensemble(world.study, tmp_path / "e.safetensors", n_members=0)
    with pytest.raises(OutputError, match="cannot be created"):
        build_ensemble(world.study, tmp_path / "none" / "e.safetensors")
    monkeypatch.setattr(world, "rows", world.rows[6:])
    with pytest.raises(SearchError, match="no trial left a model"):
        build_ensemble(world.study, tmp_path / "e.safetensors")
    assert not list(tmp_path.iterdir())


def test_trials_on_other_rows_or_a_changed_store_are_refused(world, tmp_path, monkeypatch):
    row = world.rows[1]
    other = RunFolder(tmp_path / "other")
    other.path.mkdir()
    other.model.write_bytes(RunFolder(row.folder).model.read_bytes())
    make_split(world.store, SplitConfig(seed=9)).save(other.split)
    monkeypatch.setattr(world, "rows", [world.rows[0], replace(row, folder=other.path)])
    with pytest.raises(UsageError, match="trials 0 and 1 were trained on different rows"):
        build_ensemble(world.study, tmp_path / "e.safetensors")
    changed = write_store(tmp_path / "changed.zarr", world.structures[:300], Card())
    config = {**row.config, "data": {**row.config["data"], "store": changed.path}}
    monkeypatch.setattr(world, "rows", [replace(row, config=config)])
    with pytest.raises(StoreError, match="changed since the study"):
        build_ensemble(world.study, tmp_path / "e.safetensors")


def test_without_cal_rows_there_are_no_error_bars(world, tmp_path, monkeypatch):
    drawn = make_split(world.store, SplitConfig(train=0.5, val=0.3, cal=0, test="rest"))
    rows = []
    for row in world.rows[:2]:
        folder = RunFolder(tmp_path / str(row.number))
        folder.path.mkdir()
        folder.model.write_bytes(RunFolder(row.folder).model.read_bytes())
        drawn.save(folder.split)
        rows.append(replace(row, folder=folder.path))
    monkeypatch.setattr(world, "rows", rows)
    report = build_ensemble(world.study, tmp_path / "e.safetensors")
    assert report.warnings == [
        "no calibration: the split has no cal rows, so there are no error bars"
    ]
    assert Predictor.load(report.model).predict(many_ethanols(2)).stds == {}


def test_a_single_model_can_be_evaluated(world):
    predictor = Predictor.load(RunFolder(world.rows[0].folder).model)
    result = evaluate(predictor, world.store.path)
    assert result["uncertainty"] == {}
    assert result["members"][0]["forces"] == result["forces"]


def test_an_unknown_element_in_the_data_is_named(built, silicon, tmp_path):
    sodium = replace(silicon, numbers=np.full(8, 11), labels={"energy": np.array(1.0)})
    store = write_store(tmp_path / "na.zarr", [sodium], Card())
    with pytest.raises(UnknownElement, match=r"na\.zarr, structure 0 \(Na8\): Na is unknown"):
        evaluate(built[1], store.path)


def test_warnings_of_the_calibration():
    row = Calibration(a=1, b=1, factor=1, constant=1, n_structures=50, n_values=50)
    assert "may hold 82 to 98 %" in calibration_warnings({"forces": row}, 3)[0]
    enough = row.model_copy(update={"n_structures": 200})
    assert calibration_warnings({"forces": enough}, 3) == []

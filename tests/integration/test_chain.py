"""The whole chain as a user runs it, on a small piece of the shipped sample."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.io import read, write

SPACE = """
[tune]
n_trials = 3
grace_epochs = 1
seed = 1

[model]
name = { choice = ["painn", "schnet"] }

[model.painn]
n_channels = 8
n_layers = 1
n_radial = 8
cutoff = 3.0

[model.schnet]
n_channels = 8
n_layers = 1
n_radial = 8
cutoff = 3.0

[data.split]
train = 40
val = 20
cal = 20
test = 20

[training]
n_epochs = 3
batch_size = 5

[training.optimizer]
name = "adamw"

[training.optimizer.adamw]
learning_rate = { log_uniform = [1e-3, 1e-2] }

[loss.energy]
weight = 1.0

[loss.forces]
weight = { log_uniform = [1.0, 100.0] }
"""


def raypot(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "raypot.cli", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == code, f"{command}\n{result.stdout}\n{result.stderr}"
    return result


def answer(*arguments: object) -> Any:
    return json.loads(raypot(*arguments, "--json").stdout)


@pytest.mark.ray
@pytest.mark.slow
def test_from_a_raw_file_to_predictions_with_error_bars(sample: Path, tmp_path: Path) -> None:
    frames = read(sample / "ethanol_gfn2.xyz.gz", index=":100")
    raw, store, study = tmp_path / "raw.xyz", tmp_path / "store.zarr", tmp_path / "study"
    write(raw, frames)
    space = tmp_path / "space.toml"
    space.write_text(SPACE, encoding="utf-8")

    imported = answer("data", "import", raw, store)
    assert imported["n_structures"] == 100
    assert imported["labels"]["reference"]["forces"]["missing"] == 0
    raypot("data", "verify", store)

    found = answer("tune", space, "--data", store, "--out", study)
    assert found["n_trials"] == 3
    assert found["n_failed"] == 0
    again = answer("tune", space, "--data", store, "--out", study)
    assert again["n_trials"] == 3, "a finished search has nothing left to do"
    assert again["epochs_total"] == found["epochs_total"]

    built = answer("ensemble", study)
    assert sum(member["weight"] for member in built["members"]) == pytest.approx(1.0)
    model = Path(built["model"])

    judged = answer("evaluate", model, store)
    assert judged["n_structures"] == 20, "the test rows, which nothing has seen"
    assert judged["forces"]["rmse"] > 0
    assert 0 <= judged["uncertainty"]["forces"]["coverage_90"] <= 1

    raypot("predict", model, raw, tmp_path / "predicted.xyz")
    predicted = read(tmp_path / "predicted.xyz", index=":")
    assert len(predicted) == 100
    assert np.isfinite(predicted[0].info["raypot_energy"])
    assert predicted[0].arrays["raypot_forces_std"].shape == (9, 3)
    assert (predicted[0].arrays["raypot_forces_std"] > 0).all()

    report = Path(raypot("report", study).stdout.strip())
    assert report.stat().st_size > 10_000
    text = report.read_text(encoding="utf-8")
    assert "http://" not in text.replace("http://www.w3.org", "")

    best = answer("train", study / "best.toml", "--out", tmp_path / "run")
    assert best["epochs"] == 3
    assert best["test"]["forces"]["rmse"] > 0
    assert best["val"]["forces"]["unit"] == "eV/Å"
    assert Path(best["model"]).is_file()

"""What a user sees when she is wrong: one clear line and the right exit code."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ase.build import molecule
from ase.io import write

from raypot.structures import Structure

EASY = "-otraining.n_epochs=1 -omodel.painn.n_channels=4 -omodel.painn.n_layers=1".split()
EASY += "-odata.split.train=12 -odata.split.val=4 -odata.split.cal=4 -odata.split.test=4".split()


def raypot(*arguments: object) -> tuple[int, str]:
    """Run the command; return its exit code and the last line of stderr."""
    command = [sys.executable, "-m", "raypot.cli", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert "Traceback" not in result.stderr, result.stderr
    return result.returncode, result.stderr.strip().splitlines()[-1] if result.stderr else ""


def write_frames(path: Path, structures: list[Structure], *, forces: bool = True) -> Path:
    frames = []
    for structure in structures:
        atoms = molecule("CH3CH2OH")
        atoms.positions = structure.positions
        atoms.info["REF_energy"] = float(structure.labels["energy"])
        if forces:
            atoms.arrays["REF_forces"] = structure.labels["forces"].copy()
        frames.append(atoms)
    write(path, frames)
    return path


@pytest.fixture
def store(tmp_path: Path, ethanol: list[Structure]) -> Path:
    path = tmp_path / "store.zarr"
    raw = write_frames(tmp_path / "raw.xyz", ethanol)
    assert raypot("data", "import", raw, path)[0] == 0
    return path


def test_an_unknown_key_gets_a_suggestion(tmp_path: Path, store: Path) -> None:
    run = tmp_path / "run.toml"
    run.write_text('[model]\nname = "painn"\n[model.painn]\nn_chanels = 3\n', encoding="utf-8")
    code, line = raypot("train", run, "--data", store, "--out", tmp_path / "run")
    assert code == 78
    assert line.endswith("[model.painn] n_chanels: unknown key; did you mean n_channels?")


def test_a_wrong_key_in_a_space_stops_before_ray_starts(tmp_path: Path, store: Path) -> None:
    space = tmp_path / "space.toml"
    space.write_text("[training]\nn_epoch = { integers = [1, 3] }\n", encoding="utf-8")
    code, line = raypot("tune", space, "--data", store, "--out", tmp_path / "study")
    assert code == 78
    assert "n_epoch: unknown key; did you mean n_epochs?" in line


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    code, line = raypot("data", "import", tmp_path / "absent.xyz", tmp_path / "store.zarr")
    assert code == 66
    assert "absent.xyz" in line
    assert not (tmp_path / "store.zarr").exists()


def test_forces_that_are_weighted_must_exist(tmp_path: Path, ethanol: list[Structure]) -> None:
    raw = write_frames(tmp_path / "raw.xyz", ethanol, forces=False)
    assert raypot("data", "import", raw, tmp_path / "store.zarr")[0] == 0
    code, line = raypot(
        "train", "--data", tmp_path / "store.zarr", "--out", tmp_path / "run", *EASY
    )
    assert code == 65
    assert "forces" in line
    assert "weight" in line


def test_a_nan_label_is_refused_or_set_aside(tmp_path: Path, ethanol: list[Structure]) -> None:
    raw = write_frames(tmp_path / "raw.xyz", ethanol[:3])
    text = raw.read_text(encoding="utf-8").splitlines()
    numbers = text[3].split()
    text[3] = " ".join([*numbers[:-1], "nan"])
    raw.write_text("\n".join(text) + "\n", encoding="utf-8")
    code, line = raypot("data", "import", raw, tmp_path / "a.zarr", "--on-bad", "error")
    assert code == 65
    assert "raw.xyz" in line
    assert "forces" in line
    code, line = raypot("data", "import", raw, tmp_path / "b.zarr")
    assert code == 0
    assert "2 structures imported, 1 left out" in line


def test_a_truncated_shard_is_named(tmp_path: Path, store: Path) -> None:
    shards = [path for path in (store / "atoms").rglob("*") if "c" in path.parts and path.is_file()]
    shards[0].write_bytes(shards[0].read_bytes()[:-10])
    code, line = raypot("train", "--data", store, "--out", tmp_path / "run", *EASY)
    assert code == 65
    assert shards[0].parent.parent.name in line
    assert raypot("data", "verify", store)[0] == 65


def test_an_unknown_element_at_predict_is_named(tmp_path: Path, store: Path) -> None:
    assert raypot("train", "--data", store, "--out", tmp_path / "run", *EASY)[0] == 0
    write(tmp_path / "water.xyz", [molecule("H2O"), molecule("NH3")])
    model = tmp_path / "run" / "model.safetensors"
    code, line = raypot("predict", model, tmp_path / "water.xyz", tmp_path / "out.xyz")
    assert code == 65
    assert "N" in line
    assert "structure 1" in line
    assert not (tmp_path / "out.xyz").exists()


def test_an_output_that_cannot_be_created_is_named(tmp_path: Path, store: Path) -> None:
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    code, line = raypot("train", "--data", store, "--out", tmp_path / "file" / "run", *EASY)
    assert code == 73
    assert "file" in line


@pytest.mark.parametrize("output", [[], ["--json"]], ids=["words", "json"])
def test_a_run_that_is_terminated_says_so(tmp_path: Path, store: Path, output: list[str]) -> None:
    """Also in its first epoch, when there is no model to judge."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "raypot.cli", "train", "--data", store, "--out", out]
    command += [*EASY, "-otraining.n_epochs=100000", "-otraining.patience=100000"]
    command += ["-oruntime.compile=never", *output]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (out / "targets.json").exists() and process.poll() is None:
        time.sleep(0.005)
    time.sleep(0.1)  # the first step is on its way
    process.terminate()
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 143, stderr
    assert "error" not in stderr
    if output:
        answer = json.loads(stdout)
        assert (answer["stopped"], answer["test"]) == ("interrupted", None)
    else:
        assert "interrupted" in stderr

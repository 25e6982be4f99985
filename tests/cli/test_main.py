"""The face of the command line: help, doctor, schema, template, and exit codes."""

import json
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from raypot.cli import main
from raypot.errors import ConfigError, StorageError


@pytest.fixture
def run() -> CliRunner:
    return CliRunner()


def commands() -> list[list[str]]:
    found = [["data", name] for name in main.commands["data"].commands]  # type: ignore[attr-defined]
    return found + [[name] for name in main.commands if name != "data"]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_explains_itself(run: CliRunner, command: list[str]) -> None:
    result = run.invoke(main, [*command, "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_doctor_reports_as_json(run: CliRunner) -> None:
    result = run.invoke(main, ["doctor", "--json"])
    findings = json.loads(result.stdout)
    assert findings["torch"]["ok"]
    assert {"cores", "memory", "gpu", "C++ compiler"} <= findings.keys()


@pytest.mark.parametrize("kind", ["run", "card"])
def test_schema_is_json_schema(run: CliRunner, kind: str) -> None:
    schema = json.loads(run.invoke(main, ["schema", kind]).stdout)
    assert schema["additionalProperties"] is False
    assert schema["properties"]


def test_the_run_template_is_a_valid_run_with_every_key_explained(
    run: CliRunner, tmp_path: Path
) -> None:
    from raypot.train.run import RunConfig, read_run

    text = run.invoke(main, ["template", "run", "--model", "schnet"]).stdout
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    assert read_run(path) == RunConfig.model_validate({"model": {"name": "schnet"}})
    bare = [
        line
        for line in text.splitlines()
        if "=" in line and "#" not in line and not line.startswith("[")
    ]
    assert not bare, "keys without a description"


def test_the_other_templates_are_toml(run: CliRunner) -> None:
    assert tomllib.loads(run.invoke(main, ["template", "space"]).stdout)
    tomllib.loads(run.invoke(main, ["template", "card"]).stdout)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ConfigError("run.toml: seed: wrong"), 78, "error: run.toml: seed: wrong"),
        (StorageError("x: disk full"), 74, "error: x: disk full"),
        (OSError(28, "No space left on device", "run/model"), 74, "run/model: No space left"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ZeroDivisionError("division"), 70, "this is a bug"),
    ],
)
def test_errors_become_one_line_and_a_code(
    run: CliRunner, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("raypot.cli.inspect.examine", fail)
    result = run.invoke(main, ["doctor"])
    assert result.exit_code == code
    assert message in result.stderr


def test_wrong_usage_is_2(run: CliRunner) -> None:
    assert run.invoke(main, ["train", "--workers", "none"]).exit_code == 2
    assert run.invoke(main, ["nothing"]).exit_code == 2

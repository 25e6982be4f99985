"""`raypot tune` and `raypot ensemble`: from a search space to a calibrated ensemble."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from raypot.cli.console import json_option, override_option, print_json, print_table, say
from raypot.cli.progress import StatusLine, describe_search, errors_of

if TYPE_CHECKING:
    from raypot.tune.study import Study, TrialRow

FILE = click.Path(path_type=Path)


@click.command("tune")
@click.argument("space_file", type=FILE)
@click.option("--data", "store", help="Store to train on; overrides [data] store.")
@click.option(
    "--out",
    "folder",
    type=FILE,
    default=Path("study"),
    show_default=True,
    help="Study folder; the same command in the same folder continues.",
)
@click.option(
    "--trials",
    "n_trials",
    type=click.IntRange(min=1),
    help="Number of trials, pruned ones included.  [default: as the space says]",
)
@click.option("--time-limit", type=click.FloatRange(min=0.1), help="Stop after this many minutes.")
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    help="Trials at the same time.  [default: one for each core]",
)
@click.option(
    "--address",
    default="local",
    show_default=True,
    help="Ray cluster: local starts one here, auto or HOST:PORT joins a running one.",
)
@override_option
@json_option
def tune_command(
    space_file: Path,
    store: str | None,
    folder: Path,
    n_trials: int | None,
    time_limit: float | None,
    concurrency: int | None,
    address: str,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Search the ranges of SPACE_FILE and print the best trials."""
    from raypot.tune.space import SearchSpace

    space = SearchSpace.read(
        space_file, overrides, store
    )  # wrong keys stop here, before Ray starts
    from raypot.tune.search import search  # imports Ray: late

    with StatusLine("tune") as line:
        study = search(
            space,
            folder,
            n_trials=n_trials,
            time_limit=time_limit,
            concurrency=concurrency,
            address=address,
            on_event=lambda event: line.show(describe_search(event)),
        )
    if as_json:
        print_json(study.summary())
    else:
        print_leaderboard(study)
        click.echo(f"next: raypot ensemble {folder}")


def print_leaderboard(study: "Study") -> None:
    """Print the ten best trials."""
    columns = ("trial", "state", "score", "epochs", "energy_per_atom", "forces", "model", "wall s")
    rows = [_row(trial) for trial in study.leaderboard(top=10)]
    print_table(f"{study.folder}: best trials on val", columns, rows)


def _row(trial: "TrialRow") -> tuple[Any, ...]:
    errors = errors_of(trial.metrics, "val/")
    return (
        trial.number,
        trial.state,
        trial.value,
        trial.epochs,
        errors.get("energy_per_atom"),
        errors.get("forces"),
        trial.config["model"]["name"],
        trial.wall_s,
    )


@click.command("ensemble")
@click.argument("study", type=FILE)
@click.option(
    "-o", "--output", type=FILE, help="Model file to write.  [default: STUDY/ensemble.safetensors]"
)
@click.option(
    "--members",
    "n_members",
    default=5,
    show_default=True,
    type=click.IntRange(min=1),
    help="Largest number of different members.",
)
@click.option(
    "--select",
    "selector",
    default="greedy",
    show_default=True,
    type=click.Choice(["greedy", "top", "best"]),
    help="How members are chosen on val.",
)
@json_option
def ensemble_command(
    study: Path, output: Path | None, n_members: int, selector: str, as_json: bool
) -> None:
    """Select members among the trials of STUDY, calibrate them, and write one model file."""
    from raypot.ensemble.build import build_ensemble

    output = output or study / "ensemble.safetensors"
    report = build_ensemble(study, output, n_members=n_members, selector=selector)
    for warning in report.warnings:
        say(f"warning: {warning}")
    if as_json:
        print_json(report.to_json())
        return
    rows = [(m["trial"], m["seed"], m["weight"]) for m in report.to_json()["members"]]
    print_table("members", ("trial", "seed", "weight"), rows)
    print_choices(report.to_json()["val"])
    click.echo(f"model: {output}")
    click.echo(f"next: raypot evaluate {output} STORE")


def print_choices(val: dict[str, Any]) -> None:
    """Print how the alternatives do on the validation rows."""
    rows = []
    for name, metrics in val.items():
        errors = errors_of(
            {
                f"{key}/rmse": value["rmse"]
                for key, value in metrics.items()
                if isinstance(value, dict) and "rmse" in value
            }
        )
        rows.append((name, errors.get("energy_per_atom"), errors.get("forces")))
    print_table("on val", ("choice", "energy_per_atom", "forces"), rows)

"""`raypot train`: one potential from one run file."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from raypot.cli.console import json_option, override_option, print_json, say
from raypot.cli.progress import StatusLine, describe_epoch, errors_of

if TYPE_CHECKING:
    from raypot.train.run import RunConfig, TrainResult

FILE = click.Path(path_type=Path)
EXIT_INTERRUPTED, EXIT_TERMINATED = 130, 143


@click.command("train")
@click.argument("run_file", type=FILE, required=False)
@click.option("--data", "store", help="Store to train on; overrides [data] store.")
@click.option(
    "--out", "folder", type=FILE, default=Path("run"), show_default=True, help="Run folder."
)
@click.option(
    "--workers",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    help="Processes that share every batch (Ray Train); 1 trains here, without Ray.",
)
@click.option("--gpu", is_flag=True, help="Train on GPUs, one for each worker.")
@click.option("--dry-run", is_flag=True, help="Do everything up to the first step, and print it.")
@click.option("--new", is_flag=True, help="Start over where the folder holds another run.")
@override_option
@json_option
def train_command(
    run_file: Path | None,
    store: str | None,
    folder: Path,
    workers: int,
    gpu: bool,
    dry_run: bool,
    new: bool,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Train one potential as RUN_FILE says (defaults without one).

    The same command in the same folder continues where it stopped.
    """
    from raypot.train.run import describe, read_run, train

    if gpu:
        overrides = (*overrides, "runtime.device=cuda")
    config = read_run(run_file, overrides, store)
    if dry_run:
        _print_dry_run(describe(config), as_json)
        return
    with StatusLine("train") as line:

        def show(row: dict[str, float]) -> bool:
            line.show(describe_epoch(row, config.training.n_epochs))
            return False

        if workers == 1:
            result = train(config, folder, on_epoch=show, new=new)
        else:
            from raypot.train.worker import train_workers  # imports Ray

            result = train_workers(config, folder, workers, on_epoch=show, new=new)
    _print_result(result, config, as_json)
    if result.stopped == "interrupted":
        raise SystemExit(EXIT_TERMINATED if result.signal == "SIGTERM" else EXIT_INTERRUPTED)


def _print_dry_run(description: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(description)
        return
    for key, value in description.items():
        click.echo(f"{key}: {value}")


def _print_result(result: "TrainResult", config: "RunConfig", as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "model": str(result.model),
                "epochs": result.epochs,
                "stopped": result.stopped,
                "structures_per_second": result.structures_per_second,
                "val": nested(result.val),
                "test": judge_test_rows(result, config),
                "wall_s": result.wall_s,
            }
        )
        return
    if not result.epochs:
        say(f"{result.stopped} in the first epoch; repeat the command to go on")
        return
    errors = ", ".join(f"{name} {text}" for name, text in errors_of(dict(result.val)).items())
    say(f"{result.stopped} after {result.epochs} epochs; best on val: {errors}")
    click.echo(f"model: {result.model}")
    click.echo(f"next: raypot evaluate {result.model} {config.data.store}")


def nested(metrics: Mapping[str, float]) -> dict[str, Any]:
    """Turn `forces/rmse` into `forces: {rmse, unit}`, as `raypot evaluate` writes it."""
    from raypot.properties import PROPERTIES

    tree: dict[str, Any] = {}
    for key, value in metrics.items():
        name, slash, kind = key.partition("/")
        if not slash:
            branch = tree.setdefault("terms", {}) if name in PROPERTIES else tree
            branch[name] = value
            continue
        per_atom = name.endswith("_per_atom")
        unit = PROPERTIES[name.removesuffix("_per_atom")].unit + ("/atom" if per_atom else "")
        tree.setdefault(name, {"unit": unit})[kind] = value
    return tree


def judge_test_rows(result: "TrainResult", config: "RunConfig") -> dict[str, Any] | None:
    """Evaluate the model on its test rows; None where there are none, or training goes on."""
    from raypot.data.splits import Split
    from raypot.ensemble.evaluate import METRICS, evaluate
    from raypot.ensemble.predictor import Predictor

    if result.stopped == "interrupted" or not len(Split.load(result.folder / "split.json").test):
        return None
    found = evaluate(Predictor.load(result.model), config.data.store, split="test")
    return {name: found[name] for name in METRICS if name in found}

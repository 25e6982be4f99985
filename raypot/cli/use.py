"""`raypot evaluate`, `predict` and `report`: use a model file and look at results."""

from pathlib import Path
from typing import Any

import click

from raypot.cli.console import json_option, print_json, print_table, say
from raypot.properties import PROPERTIES

FILE = click.Path(path_type=Path)


@click.command("evaluate")
@click.argument("model", type=FILE)
@click.argument("data", type=FILE)
@click.option(
    "--split",
    type=click.Choice(["train", "val", "cal", "test", "all"]),
    help="Rows to judge.  [default: test on the model's own store, all elsewhere]",
)
@json_option
def evaluate_command(model: Path, data: Path, split: str | None, as_json: bool) -> None:
    """Compare MODEL with the labels of DATA, a store or any readable structure file."""
    from raypot.ensemble.evaluate import evaluate
    from raypot.ensemble.predictor import Predictor

    result = evaluate(Predictor.load(model), data, split=split)
    if as_json:
        print_json(result)
    else:
        print_evaluation(result)


def print_evaluation(result: dict[str, Any]) -> None:
    """Print errors of the ensemble and of each member, and how good the error bars are."""
    names = [name for name, value in result.items() if isinstance(value, dict) and "rmse" in value]
    title = f"{result['n_structures']} structures, {result['n_atoms']} atoms"
    rows = []
    for name in names:
        row = PROPERTIES[name.removesuffix("_per_atom")]
        unit = row.report_unit + ("/atom" if name.endswith("_per_atom") else "")
        factor = row.report_factor
        uncertainty = result.get("uncertainty", {}).get(name, {})
        rows.append(
            (
                name,
                unit,
                result[name]["rmse"] * factor,
                result[name]["mae"] * factor,
                uncertainty.get("coverage_90"),
                uncertainty.get("miscalibration_area"),
                uncertainty.get("spearman"),
            )
        )
    columns = ("property", "unit", "RMSE", "MAE", "90 % coverage", "miscalibration", "Spearman")
    print_table(title, columns, rows)
    members = result.get("members", [])
    if len(members) > 1:
        shown = [name for name in ("energy_per_atom", "forces") if name in names]
        print_table(
            "members (RMSE in meV/atom, meV/Å)",
            ("member", "weight", *shown),
            [(m["name"], m["weight"], *[1e3 * m[name]["rmse"] for name in shown]) for m in members],
        )


@click.command("predict")
@click.argument("model", type=FILE)
@click.argument("source", type=FILE)
@click.argument("output", type=FILE)
@click.option(
    "--properties",
    default="energy,forces",
    show_default=True,
    help="Properties to predict, separated by commas.",
)
def predict_command(model: Path, source: Path, output: Path, properties: str) -> None:
    """Predict the structures of SOURCE with MODEL and write OUTPUT (.xyz, .parquet or .arrow)."""
    from raypot.ensemble.output import predict_file
    from raypot.ensemble.predictor import Predictor

    names = tuple(name.strip() for name in properties.split(","))
    count = predict_file(Predictor.load(model), source, output, names)
    say(f"{count} structures predicted")
    click.echo(str(output))


@click.command("report")
@click.argument("folder", type=FILE)
def report_command(folder: Path) -> None:
    """Write FOLDER/report.html for a study or a run, one self-contained page."""
    from raypot.report import write_report

    click.echo(str(write_report(folder)))

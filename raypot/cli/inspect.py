"""`raypot doctor`, `schema` and `template`: the machine, the keys, and files to start from."""

import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from raypot.cli.console import json_option, print_json, print_table

if TYPE_CHECKING:
    from pydantic import BaseModel

    from raypot.config import Config

PACKAGES = (
    "raypot",
    "torch",
    "ray",
    "optuna",
    "zarr",
    "numpy",
    "pyarrow",
    "ase",
    "vesin",
    "pydantic",
)
EXTRAS = {"label": "tblite", "report": "matplotlib"}
KINDS, SCHEMAS = ("run", "space", "card"), ("run", "card")
SAFE_RAY = (2, 52)  # older versions have no token authentication


@click.command("doctor")
@json_option
def doctor_command(as_json: bool) -> None:
    """Check this machine: packages, cores, memory, GPU, compiler, shared memory."""
    findings = examine()
    if as_json:
        print_json(
            {
                name: {"value": value, "ok": not advice, "advice": advice}
                for name, value, advice in findings
            }
        )
    else:
        rows = [(name, value, advice or "ok") for name, value, advice in findings]
        print_table("doctor", ("what", "found", "advice"), rows)


def examine() -> list[tuple[str, str, str]]:
    """Return name, what was found, and advice (empty where all is well)."""
    import torch

    findings = [("python", platform.python_version(), "")]
    findings += [(name, *_package(name)) for name in PACKAGES]
    findings += [(f"extra [{extra}]", *_extra(extra, package)) for extra, package in EXTRAS.items()]
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    compiler = shutil.which(os.environ.get("CXX", "g++")) or ""
    findings += [
        (
            "cores",
            str(len(os.sched_getaffinity(0)))
            if hasattr(os, "sched_getaffinity")
            else str(os.cpu_count()),
            "",
        ),
        ("memory", *_memory()),
        ("gpu", gpu, ""),
        (
            "C++ compiler",
            compiler or "none",
            "" if compiler else "install g++: without it runtime.compile stays off on CPUs",
        ),
        ("shared memory", *_shared_memory()),
    ]
    return findings


def _package(name: str) -> tuple[str, str]:
    try:
        found = version(name)
    except PackageNotFoundError:
        return "not installed", f"pip install {name}"
    if name == "ray" and tuple(int(part) for part in found.split(".")[:2]) < SAFE_RAY:
        return found, "upgrade: versions before 2.52 have no token authentication"
    return found, ""


def _extra(extra: str, package: str) -> tuple[str, str]:
    found, advice = _package(package)
    return found, advice and f"pip install 'raypot[{extra}]'"


def _memory() -> tuple[str, str]:
    if not hasattr(os, "sysconf"):
        return "unknown", ""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{total:.1f} GiB", "" if total >= 4 else "searches need about 4 GiB"


def _shared_memory() -> tuple[str, str]:
    if not Path("/dev/shm").is_dir():
        return "none", "Ray keeps its objects on disk, which is slow; mount /dev/shm"
    free = shutil.disk_usage("/dev/shm").free / 2**30
    return f"{free:.1f} GiB free", "" if free >= 0.25 else "Ray needs 0.25 GiB; enlarge /dev/shm"


@click.command("schema")
@click.argument("kind", type=click.Choice(SCHEMAS), default="run")
def schema_command(kind: str) -> None:
    """Print the JSON Schema of a run file or a dataset card, for editors."""
    print_json(_config_class(kind).model_json_schema())


@click.command("template")
@click.argument("kind", type=click.Choice(KINDS))
@click.option("--model", default="painn", show_default=True, help="Architecture of the template.")
def template_command(kind: str, model: str) -> None:
    """Print a complete file to start from: a run, a search space or a dataset card.

    Every key stands there with its default and what it means.
    """
    click.echo(template(kind, model), nl=False)


def template(kind: str, model: str) -> str:
    """Return the text of a template."""
    from raypot.config import build

    if kind == "space":
        return _space_template(model)
    kind_class = _config_class(kind)
    tree = {"model": {"name": model}} if kind == "run" else {}
    return annotated(build(kind_class, tree, f"--model {model}"))


def _space_template(model: str) -> str:
    """Return the shipped search space of `model`, which is the best thing to start from."""
    from raypot.errors import MissingInput

    folder = Path(__file__).parents[2] / "search_spaces"
    places = [folder, Path(sys.prefix) / "share" / "raypot" / "search_spaces"]
    for place in places:
        if (place / f"{model}.toml").is_file():
            return (place / f"{model}.toml").read_text(encoding="utf-8")
    raise MissingInput(
        f"--model {model}: no search space {model}.toml in {places[0]} or {places[1]}"
    )


def _config_class(kind: str) -> "type[Config]":
    if kind == "card":
        from raypot.data.cards import Card

        return Card
    from raypot.train.run import RunConfig

    return RunConfig


def annotated(config: "BaseModel", path: tuple[str, ...] = ()) -> str:
    """Write a configuration as TOML, with the description of every key as a comment."""
    from pydantic import BaseModel

    from raypot.config import Choice

    values: list[str] = []
    sections: list[str] = []
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        comment = f"  # {field.description}" if field.description else ""
        if isinstance(value, Choice):
            head = f'\n[{".".join((*path, name))}]\nname = "{value.name}"{comment}\n'
            sections.append(head + annotated(value.settings, (*path, name, value.name)))
        elif isinstance(value, BaseModel):
            sections.append(annotated(value, (*path, name)))
        elif (
            isinstance(value, dict) and value and isinstance(next(iter(value.values())), BaseModel)
        ):
            sections += [annotated(item, (*path, name, key)) for key, item in value.items()]
        else:
            values.append(_line(name, value, comment))
    head = f"\n[{'.'.join(path)}]\n" if path and values else ""
    return head + "".join(values) + "".join(sections)


def _line(name: str, value: Any, comment: str) -> str:
    from raypot.config import to_toml

    if value is None:
        return f"# {name} ={comment or '  # not set'}\n"
    plain = value.model_dump(mode="json") if hasattr(value, "model_dump") else value
    plain = list(plain) if isinstance(plain, tuple) else plain
    if isinstance(plain, dict) and not plain:
        return f"# {name} = {{}}{comment}\n"
    text = to_toml({"x": [plain]}).removeprefix("x = [").rstrip().removesuffix("]")
    return f"{name} = {text}{comment}\n"

"""The model file: one potential, or the weighted members of an ensemble.

It is a `.safetensors` file: the tensors of all members, and one JSON tree with their
architectures, targets, calibration and provenance. It holds no code and no pickle; a foreign file
can at worst be refused.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from raypot.config import Choice, Config, OneOf, build
from raypot.constants import MAX_ATOMIC_NUMBER
from raypot.data.targets import Targets
from raypot.durable import write_whole
from raypot.errors import CheckpointError, ConfigError, RaypotError
from raypot.models import MODELS, AtomisticModel, build_model
from raypot.models.base import OUTPUTS
from raypot.train.tensor_file import TensorFile, is_word, pack, unpack

KIND, VERSION = "raypot-model", 1

ModelChoice = Annotated[
    Choice, OneOf({name: model.Config for name, model in MODELS.items()}, default="painn")
]


class ModelSection(Config):
    """The model section of a run file, on its own."""

    model: ModelChoice


class _Header(Config):
    """What the file says of a member beside its tensors; checks what a stranger may have written.

    Args:
        name: words joined by dots.
        model: the `[model]` section.
        elements: atomic numbers, ascending.
        outputs: heads.
        targets: as `Targets.to_json` gives them.
        weight: share in the ensemble.
        metrics: errors on validation rows.
    """

    name: str
    model: dict[str, Any]
    elements: tuple[Annotated[int, Field(ge=1, le=MAX_ATOMIC_NUMBER)], ...] = Field(min_length=1)
    outputs: tuple[str, ...]
    targets: dict[str, Any]
    weight: float = Field(ge=0)
    metrics: dict[str, float]


@dataclass(frozen=True)
class Member:
    """One trained model with everything that its predictions need.

    Args:
        name: words joined by dots.
        model: the `[model]` section of its run file.
        elements: atomic numbers that it knows, ascending.
        outputs: its heads, some of energy, charges, dipole.
        state: parameters and buffers.
        targets: self energies and scale, fitted on its training rows.
        weight: share in the ensemble; 1 for a single model.
        metrics: errors on its validation rows, in raypot's units.
    """

    name: str
    model: dict[str, Any]
    elements: tuple[int, ...]
    outputs: tuple[str, ...]
    state: dict[str, Tensor]
    targets: Targets
    weight: float = 1.0
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelFile:
    """What a model file holds.

    Args:
        members: at least one.
        calibration: how spreads become uncertainties; empty for a single model.
        provenance: versions, data and runs that the members come from.
    """

    members: tuple[Member, ...]
    calibration: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)


def provenance(**facts: Any) -> dict[str, Any]:
    """Return the version of raypot, the time, and the given facts."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"raypot": installed_version("raypot"), "created": now, **facts}


def write_model(path: Path, model: ModelFile) -> None:
    """Write a model file, whole or not at all.

    Raises:
        CheckpointError: no members, or a name that is not words joined by dots.
        OutputError: the file cannot be created there.
        StorageError: the disk is full or failed.
    """
    if not model.members:
        raise CheckpointError(f"{path}: a model file needs at least one member")
    tensors: dict[str, Tensor] = {}
    for index, member in enumerate(model.members):
        if not is_word(member.name):
            raise CheckpointError(f"{path}: member name {member.name!r} is not words and dots")
        tensors |= {f"{index}.{name}": tensor for name, tensor in member.state.items()}
    tree = {
        "members": [_describe(member) for member in model.members],
        "calibration": model.calibration,
        "provenance": model.provenance,
    }
    write_whole(path, pack(KIND, VERSION, TensorFile(tree, tensors)))


def read_model(path: Path) -> ModelFile:
    """Read a model file and check everything that it says.

    Raises:
        MissingInput: no such file.
        NewerFormat: written by a newer raypot.
        CheckpointError: anything else than a whole model file.
    """
    content = unpack(path, KIND, VERSION)
    tree = content.tree
    headers = tree.get("members")
    if not isinstance(headers, list) or not headers:
        raise _odd(path, "it lists no members")
    for key in ("calibration", "provenance"):
        if not isinstance(tree.get(key), dict):
            raise _odd(path, f"{key} is not a table")
    members = tuple(
        _read_member(path, header, _state_of(index, content.tensors))
        for index, header in enumerate(headers)
    )
    if sum(len(member.state) for member in members) != len(content.tensors):
        raise _odd(path, "it holds tensors that belong to no member")
    if len({member.name for member in members}) != len(members):
        raise _odd(path, "two members have the same name")
    return ModelFile(members, tree["calibration"], tree["provenance"])


def build_member(member: Member, dtype: torch.dtype | None = None) -> AtomisticModel:
    """Build the model of a member and put its state in place.

    Args:
        member: as `read_model` gives it.
        dtype: of the model; by default that of the state.

    Raises:
        CheckpointError: architecture and state do not fit each other.
    """
    where = f"member {member.name}"
    own = next(x.dtype for x in member.state.values() if x.is_floating_point())
    try:
        choice = build(ModelSection, {"model": member.model}, where).model
        model = build_model(
            choice.name,
            choice.settings,
            elements=member.elements,
            outputs=member.outputs,
            scale=member.targets.scale,
            dtype=dtype or own,
        )
    except ConfigError as error:
        raise CheckpointError(f"{error}; the model file does not fit this raypot") from error
    _check_state(where, dict(model.state_dict()), member.state)
    model.load_state_dict(member.state)
    return model


def _describe(member: Member) -> dict[str, Any]:
    """Return the header of a member; metrics without a value are left out."""
    return {
        "name": member.name,
        "model": member.model,
        "elements": list(member.elements),
        "outputs": list(member.outputs),
        "targets": member.targets.to_json(),
        "weight": member.weight,
        "metrics": {k: v for k, v in member.metrics.items() if math.isfinite(v)},
    }


def _read_member(path: Path, tree: Any, state: dict[str, Tensor]) -> Member:
    try:
        header = _Header.model_validate(tree)
        targets = Targets.from_json(header.targets)
    except (ValidationError, RaypotError, KeyError, TypeError, ValueError) as error:
        raise _odd(path, f"a member is described wrongly ({error})") from error
    if not is_word(header.name):
        raise _odd(path, f"member name {header.name[:80]!r} is not words joined by dots")
    if not header.outputs or not set(header.outputs) <= set(OUTPUTS):
        raise _odd(path, f"outputs {header.outputs} are not some of {', '.join(OUTPUTS)}")
    floats = [tensor for tensor in state.values() if tensor.is_floating_point()]
    if not floats or not all(bool(tensor.isfinite().all()) for tensor in floats):
        raise _odd(path, f"member {header.name!r} has parameters that are missing or not finite")
    return Member(
        header.name,
        header.model,
        header.elements,
        header.outputs,
        state,
        targets,
        header.weight,
        header.metrics,
    )


def _state_of(index: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of one member under their own names."""
    start = f"{index}."
    return {
        name.removeprefix(start): tensor
        for name, tensor in tensors.items()
        if name.startswith(start)
    }


def _check_state(where: str, built: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Check names, shapes and kinds; tables of integers must be those that the model builds."""
    odd = sorted(built.keys() ^ state.keys())
    if odd:
        raise CheckpointError(f"{where}: tensors {odd[:5]} are missing or belong to another model")
    for name, tensor in built.items():
        other = state[name]
        if other.shape != tensor.shape or (other.is_floating_point() != tensor.is_floating_point()):
            raise CheckpointError(
                f"{where}: {name} is {other.dtype} {tuple(other.shape)}, expected "
                f"{tensor.dtype} {tuple(tensor.shape)}",
                name=name,
            )
        if not tensor.is_floating_point() and not torch.equal(other, tensor):
            raise CheckpointError(f"{where}: table {name} does not fit the elements", name=name)


def _odd(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: {reason}; the file is damaged or was not written by raypot", path=str(path)
    )

"""From where a run starts: rows, targets and elements, new or as the folder holds them."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from raypot.config import build
from raypot.constants import SYMBOLS
from raypot.data.splits import Split, make_split
from raypot.data.store import Store
from raypot.data.targets import Targets, fit_targets
from raypot.errors import CheckpointError, ConfigError, LabelError
from raypot.losses.weighting import TotalLoss
from raypot.structures import Block, Integers
from raypot.train.folder import RunFolder
from raypot.train.settings import RunConfig
from raypot.train.tensor_file import TensorFile


@dataclass(frozen=True)
class Start:
    """What is settled before the first step.

    Args:
        split: rows of every role.
        targets: fitted on the training rows.
        elements: atomic numbers of the training rows, ascending.
        checkpoint: from which the run goes on; None for a new one.
    """

    split: Split
    targets: Targets
    elements: tuple[int, ...]
    checkpoint: TensorFile | None = None

    def facts(self, config: RunConfig) -> dict[str, Any]:
        """Return what a checkpoint must hold to be recognized."""
        return {
            "config": config.tree(),
            "store": self.split.store,
            "split": self.split.fingerprint,
            "targets": self.targets.to_json(),
            "elements": list(self.elements),
        }


def fresh_start(config: RunConfig, store: Store) -> Start:
    """Draw the split, check the labels, and fit the targets.

    Raises:
        LabelError: a term of the loss has nothing to learn from, or validation rows hold an element
            that no training row has.
        ConfigError: a split that cannot be drawn.
    """
    loss, level = TotalLoss(config.loss), config.data.level
    split = make_split(store, config.data.split)
    training = store.read(split.train, labels=loss.names, level=level)
    validation = store.read(split.val, labels=loss.names, level=level)
    for role, block in (("training", training), ("validation", validation)):
        loss.check_labels(_count_labels(block), f"{store.path}, {role} rows")
    elements = np.unique(training.numbers)
    _check_elements(store, elements, validation)
    isolated = None
    if len(split.isolated):
        isolated = store.read(split.isolated, labels=("energy",), level=level)
    targets = fit_targets(training, config.data.targets, isolated)
    return Start(split, targets, tuple(elements.tolist()))


def resumed_start(
    config: RunConfig, store: Store, place: RunFolder, checkpoint: TensorFile
) -> Start:
    """Take everything from the folder, after checking that the run is still the same.

    Raises:
        ConfigError: settings or store differ from those of the run.
        CheckpointError: the files of the folder do not belong together.
    """
    facts = checkpoint.tree
    where = str(place.checkpoints)
    place.check(config.tree(), build(RunConfig, facts["config"], where).tree())
    if store.fingerprint != facts["store"]:
        raise ConfigError(
            f"data.store: {store.path} is not the store that this run began with (fingerprint "
            f"{store.fingerprint[:12]}, expected {facts['store'][:12]}); name that one, choose "
            "another folder, or start over with --new",
            path=store.path,
        )
    split = (
        Split.load(place.split) if place.split.exists() else make_split(store, config.data.split)
    )
    if split.fingerprint != facts["split"]:
        raise CheckpointError(
            f"{place.split}: not the split that this run began with; restore the file, or start "
            "over with --new",
            path=str(place.split),
        )
    targets = Targets.from_json(facts["targets"], where)
    return Start(split, targets, tuple(facts["elements"]), checkpoint)


def _count_labels(block: Block) -> dict[str, int]:
    """Count the values of each label."""
    return {name: int(np.isfinite(values).sum()) for name, values in block.labels.items()}


def _check_elements(store: Store, elements: Integers, block: Block) -> None:
    """Refuse validation rows with an element that the model would know nothing about."""
    unknown = np.setdiff1d(block.numbers, elements)
    if len(unknown):
        names = ", ".join(SYMBOLS[number] for number in unknown)
        raise LabelError(
            f"{store.path}, validation rows: hold {names}, which no training row has; take another "
            "data.split.seed or strategy, or leave these structures out",
            elements=names,
        )

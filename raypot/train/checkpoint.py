"""Checkpoints of a run: the newest and the one before it.

A checkpoint holds tensors (parameters, averages, optimizer) and facts (epoch, step, schedule,
history). It is a `.safetensors` file with a checksum, written beside, flushed and renamed, so that
a crash or a full disk never costs more than the epoch that was running.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from raypot.durable import commit, write_aside
from raypot.errors import CheckpointError
from raypot.train.tensor_file import TensorFile, pack, unpack

KIND, VERSION = "raypot-checkpoint", 1
LAST, PREVIOUS = "last.safetensors", "previous.safetensors"

log = logging.getLogger(__name__)


def save_checkpoint(folder: Path, content: TensorFile, *, keep: bool = True) -> None:
    """Write the newest checkpoint and keep the one before it.

    Args:
        folder: exists.
        content: tensors and facts.
        keep: keep the newest one of before as the previous one; else it is replaced, and the
            previous one stays.

    Raises:
        OutputError: the folder cannot be written to.
        StorageError: the disk is full or failed; what was there before is intact.
    """
    last = folder / LAST
    write_aside(last, pack(KIND, VERSION, content))
    commit(last, previous=folder / PREVIOUS if keep else None)


def load_checkpoint(
    folder: Path, fits: Callable[[TensorFile], bool] = lambda _: True
) -> TensorFile | None:
    """Read the newest checkpoint that is whole.

    Args:
        folder: where they are.
        fits: says whether a whole one is of the wanted kind.

    Returns:
        None where there is no checkpoint, or none that fits.

    Raises:
        NewerFormat: written by a newer raypot.
        CheckpointError: there are checkpoints, and none of them is whole.
    """
    damages = []
    for path in (folder / LAST, folder / PREVIOUS):
        if not path.exists():
            continue
        try:
            content = unpack(path, KIND, VERSION)
        except CheckpointError as error:
            damages.append(str(error))
            continue
        if not fits(content):
            continue
        if damages:
            log.warning("%s; going on from the checkpoint before it", damages[0])
        return content
    if damages:
        raise CheckpointError(
            f"{folder}: no checkpoint is whole ({'; '.join(damages)}); start over with --new",
            folder=str(folder),
        )
    return None

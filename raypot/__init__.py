"""raypot: from quantum-chemistry data to a calibrated ensemble of interatomic potentials.

import raypot

ensemble = raypot.load("study/ensemble.safetensors")
result = ensemble.predict(structures, properties=("energy", "forces"))
atoms.calc = ensemble.calculator()
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from os import PathLike

    from raypot.ensemble.predictor import Predictor

__version__ = "0.1.0"


def load(path: "str | PathLike[str]") -> "Predictor":
    """Load a model file: a single potential or an ensemble.

    Args:
        path: a `.safetensors` file written by `raypot train` or `raypot ensemble`.

    Raises:
        MissingInput: no such file.
        CheckpointError: not a model file of raypot, or a damaged one.
    """
    from pathlib import Path

    from raypot.ensemble.predictor import (
        Predictor,
    )  # imports torch: late, so `import raypot` is fast

    return Predictor.load(Path(path))

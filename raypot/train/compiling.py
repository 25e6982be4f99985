"""When and how the step is compiled, and the memory allocator that it runs on.

Compiling pays when the eager time that it saves is longer than it takes. Measured with 3BPA (27
atoms, float32, one CPU thread):

| model, 64 channels, 3 layers | eager | compiled | saved | compile, cold |
| --- | --- | --- | --- | --- |
| PaiNN | 10.8 ms a structure | 3.5 ms | 7.3 ms | 58 s |
| SchNet | 3.4 ms a structure | 2.1 ms | 1.3 ms | 37 s |

`runtime.compile = "auto"` takes the smaller saving and the longer compilation, and asks that the
saving be twice the cost, because early stop and pruning end most runs before their last epoch:
it compiles from 93,000 structures passed through the step on, which is 186 epochs of 500.
"""

import ctypes
import functools
import logging
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, ParamSpec, TypeVar

import torch
from torch import Tensor

from raypot.batch import Batch
from raypot.errors import ConfigError
from raypot.properties import PROPERTIES

P = ParamSpec("P")
R = TypeVar("R")

SAVED_PER_STRUCTURE = 1.3e-3  # s
COMPILE_TIME = 60.0  # s
MARGIN = 2.0
# glibc's numbers of the options of mallopt, and their values in bytes
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
NEVER, MIB = -1, 1024 * 1024
PROBE = "#include <Python.h>\n#include <vector>\nint main_(){std::vector<int> v(1);return v[0];}\n"

log = logging.getLogger(__name__)


def compile_is_worth_it(
    n_structures: int,
    n_epochs: int,
    mode: Literal["auto", "always", "never"],
    device: str = "cpu",
) -> bool:
    """Decide whether to compile the step.

    Args:
        n_structures: of the training set.
        n_epochs: of the whole run.
        mode: `runtime.compile`.
        device: where the step runs; the CPU needs a C++ compiler, a GPU needs Triton.

    Raises:
        ConfigError: "always", and there is nothing to compile with.
    """
    saved = SAVED_PER_STRUCTURE * n_structures * n_epochs
    if mode == "never" or (mode == "auto" and saved <= MARGIN * COMPILE_TIME):
        return False
    missing = _what_is_missing(device)
    if missing and mode == "always":
        raise ConfigError(
            f'runtime.compile = "always": {missing}; install it or set runtime.compile="never"'
        )
    if missing:
        log.warning("the step runs eager, which is slower: %s", missing)
    return not missing


def _what_is_missing(device: str) -> str:
    """Say what compiling for `device` lacks; empty where nothing does."""
    if not device.startswith("cpu"):
        return "" if find_spec("triton") else f"compiling for {device} needs the package triton"
    return "" if cpp_compiler() else "no working C++ compiler with Python's headers was found"


@functools.cache
def cpp_compiler() -> str | None:
    """Return the C++ compiler that builds a small extension module, or None.

    `CXX` is tried first, then `g++` and `clang++`. Finding the program is not enough: headers of
    the standard library or of Python are often absent where it is there.
    """
    for name in (os.environ.get("CXX", ""), "g++", "clang++"):
        path = shutil.which(name) if name else None
        if path and _builds(path):
            return path
    return None


def _builds(compiler: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text(PROBE, encoding="utf-8")
        command = [compiler, "-shared", "-fPIC", f"-I{sysconfig.get_paths()['include']}"]
        command += [str(source), "-o", str(source.with_suffix(".so"))]
        try:
            done = subprocess.run(command, capture_output=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return False
    return done.returncode == 0


def compile_step(step: Callable[P, R]) -> Callable[P, R]:
    """Compile a step once for all batch sizes; code is kept for later runs of the same user.

    A process that trains one model after the other keeps only the last step compiled, because the
    compiler allows a few variants of one function and no more.
    """
    share_compiled_code()
    torch._dynamo.reset()
    return torch.compile(step, dynamic=True, fullgraph=True)


def mark_sizes(constant: Iterable[Tensor], batch: Batch) -> None:
    """Tell the compiler which sizes are constants and which are free.

    Left alone it takes two sizes that happen to be equal in the first batch (atoms and channels,
    say) for one, and picks kernels by comparing a size with a bound; either compiles again later,
    which takes as long as the first time. Sizes that are marked unbacked are never looked at.

    Args:
        constant: parameters, buffers and scales, whose sizes never change.
        batch: N atoms and E edges vary; S structures vary and are at least 2.
    """
    # This import takes a second, which who only imports this module does not pay.
    from torch._dynamo.decorators import mark_static, mark_unbacked

    for tensor in constant:
        mark_static(tensor)
    per_atom = [x for name, x in batch.labels.items() if PROPERTIES[name].level == "atom"]
    groups = {
        "atoms": [batch.numbers, batch.structure, batch.positions, *per_atom],
        "edges": [batch.source, batch.target, batch.shift],
    }
    for size, tensors in groups.items():
        for tensor in tensors:
            mark_unbacked(tensor, 0, shape_id=size)


def share_compiled_code() -> Path:
    """Name the folder of compiled code, unless `TORCHINDUCTOR_CACHE_DIR` does, and return it.

    Runs and trials of the same model on one node then compile once. The folder belongs to the
    user, because what lies in it is executed.
    """
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(home) / "raypot" / "inductor"))
    )


def tune_allocator() -> bool:
    """Make glibc keep the memory that a step frees, for the next step.

    By default it gives pages back after every step and asks for them again. Blocks up to 32 MiB
    come from the heap, which is never trimmed and grows by 256 MiB at a time.
    `benchmarks/step.py --no-allocator` shows what it is worth.

    Returns:
        Whether the allocator was set; False where it is not glibc's.
    """
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((MMAP_THRESHOLD, 32 * MIB), (TRIM_THRESHOLD, NEVER), (TOP_PAD, 256 * MIB))
    return all(mallopt(option, value) == 1 for option, value in settings)

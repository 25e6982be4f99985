"""Time of one training step, eager and compiled, as JSON on stdout.

    OMP_NUM_THREADS=1 python benchmarks/step.py [FILE] [--models painn schnet] [--structures 5]

FILE is anything that ASE reads with energies and forces; by default the shipped ethanol sample. The
step is energy and forces, float32, without the optimizer. Eager and compiled steps take turns, so
that a busy machine slows both; the median and the smallest time are given. `difference` is the
largest error of a compiled gradient over the largest gradient.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import torch

from raypot.batch import Batch, collate
from raypot.config import Choice
from raypot.losses.terms import TermConfig
from raypot.losses.weighting import Progress, TotalLoss
from raypot.models import MODELS, build_model
from raypot.neighbors import find_edges
from raypot.nn.derivatives import model_state, n_parameters
from raypot.structures import Block, Structure
from raypot.train.compiling import tune_allocator
from raypot.train.optim import OPTIMIZERS, build_optimizer
from raypot.train.step import Step, StepResult, make_step, trainable_names

SAMPLE = Path(__file__).parent.parent / "datasets" / "ethanol_gfn2" / "ethanol_gfn2.xyz.gz"
CUTOFF = 5.0  # Å


def read_batch(path: Path, n_structures: int) -> Batch:
    """Read the first structures of a file; the energy label is zero, which costs the same."""
    structures = [
        Structure(
            frame.numbers,
            frame.positions,
            cell=frame.cell.array,
            pbc=frame.pbc,
            labels={"energy": np.array(0.0), "forces": frame.get_forces()},
        )
        for frame in ase.io.read(path, index=f":{n_structures}")
    ]
    block = Block.from_structures(structures)
    return collate(block, find_edges(block, CUTOFF))


def milliseconds(call: Callable[[], object]) -> float:
    """Time one call, the work of a GPU included."""
    begin = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - begin)


def difference(one: StepResult, other: StepResult) -> float:
    """Return the largest error of a gradient over the largest gradient."""
    largest = max(float(gradient.abs().max()) for gradient in other.gradients.values())
    errors = (
        float((gradient - other.gradients[name]).abs().max())
        for name, gradient in one.gradients.items()
    )
    return max(errors) / largest


def measure(name: str, batch: Batch, n_repeats: int, with_compile: bool) -> dict[str, Any]:
    """Time the steps of one model of 64 channels and 3 layers."""
    elements = tuple(sorted({int(number) for number in batch.numbers}))
    settings = MODELS[name].Config(n_channels=64, n_layers=3, cutoff=CUTOFF)
    model = build_model(name, settings, elements=elements, outputs=("energy",)).to(
        batch.positions.device
    )
    loss = TotalLoss({"energy": TermConfig(), "forces": TermConfig(weight=10.0)})
    state = model_state(model)
    scales = loss.scales(Progress(0, 1, 0, 1e-3, 1e-3), loss.counts(batch))
    steps: dict[str, Step] = {"eager": make_step(model, loss)}
    row: dict[str, Any] = {"model": name, "parameters": n_parameters(model)}
    if with_compile:
        steps["compiled"] = make_step(model, loss, compile=True)
        begin = time.perf_counter()
        first = steps["compiled"](state, batch, scales)
        row["compile_s"] = round(time.perf_counter() - begin, 2)
        row["difference"] = difference(first, steps["eager"](state, batch, scales))
    times: dict[str, list[float]] = {kind: [] for kind in steps}
    for _ in range(n_repeats):
        for kind, step in steps.items():
            times[kind].append(milliseconds(lambda step=step: step(state, batch, scales)))
    for kind, values in times.items():
        row[kind] = {
            "ms_per_step": round(statistics.median(values[3:]), 3),
            "smallest_ms": round(min(values), 3),
            "structures_per_second": round(1e3 * len(batch.cell) / statistics.median(values[3:])),
        }
    row["optimizer_ms"] = round(time_optimizer(trainable_names(model), state), 3)
    return row


def time_optimizer(names: tuple[str, ...], state: dict[str, torch.Tensor]) -> float:
    """Time clipping and AdamW, median in ms."""
    parameters = {name: state[name].clone() for name in names}
    choice = Choice(name="adamw", settings=OPTIMIZERS["adamw"]())
    optimizer = build_optimizer(choice, parameters, clip_grad=10.0)
    gradients = {name: torch.ones_like(tensor) for name, tensor in parameters.items()}
    return statistics.median(milliseconds(lambda: optimizer.apply(gradients)) for _ in range(30))


def main() -> None:
    """Read the options, measure, print JSON."""
    parser = argparse.ArgumentParser(description="Time one training step.")
    parser.add_argument("file", type=Path, nargs="?", default=SAMPLE)
    parser.add_argument("--models", nargs="+", default=["painn", "schnet"], choices=list(MODELS))
    parser.add_argument("--structures", type=int, default=5, help="structures of the batch")
    parser.add_argument("--repeats", type=int, default=30, help="timed steps of each kind")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--no-allocator", action="store_true", help="leave glibc's allocator")
    options = parser.parse_args()
    is_tuned = not options.no_allocator and tune_allocator()
    batch = read_batch(options.file, options.structures).to(options.device)
    rows = [
        measure(name, batch, options.repeats + 3, not options.no_compile) for name in options.models
    ]
    result = {
        "file": options.file.name,
        "structures": len(batch.cell),
        "atoms": len(batch.numbers),
        "edges": len(batch.source),
        "threads": torch.get_num_threads(),
        "device": options.device,
        "allocator": is_tuned,
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "rows": rows,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

"""The run file: every setting of one training, from the store to the machine.

`[data]` says what to learn from, `[model]` and `[loss]` what to learn, `[training]` how, and
`[runtime]` where. Only `[runtime]` may change while a run goes on.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from raypot.config import Choice, Config, OneOf, apply_overrides, build, read_toml
from raypot.data.loader import LoaderConfig
from raypot.data.splits import SplitConfig
from raypot.data.targets import TargetsConfig
from raypot.losses.terms import LossConfig
from raypot.train.model_file import ModelChoice
from raypot.train.optim import LR_SCHEDULES, OPTIMIZERS

DEFAULT_LOSS: dict[str, dict[str, float]] = {"energy": {"weight": 1.0}, "forces": {"weight": 1.0}}


def with_default_terms(given: Any) -> Any:
    """Add energy and forces to the terms of a run file that does not speak of them.

    A term is switched off by `weight = 0`, never by leaving it out.
    """
    if not isinstance(given, dict):
        return given
    terms = dict(given)
    for name, defaults in DEFAULT_LOSS.items():
        own = terms.get(name, {})
        terms[name] = {**defaults, **own} if isinstance(own, dict) else own
    return terms


class DataConfig(Config):
    """What a run learns from."""

    store: str = Field("", description="Store to train on: a folder or an fsspec URL.")
    level: str = Field("reference", description="Level of theory of the labels in the store.")
    split: SplitConfig = Field(default_factory=SplitConfig, description="Roles of the rows.")
    targets: TargetsConfig = Field(
        default_factory=TargetsConfig, description="What is fitted before training starts."
    )
    loader: LoaderConfig = Field(default_factory=LoaderConfig, description="Reading and packing.")


class TrainingConfig(Config):
    """How the parameters are found."""

    n_epochs: int = Field(200, ge=1, le=1_000_000, description="Epochs at most.")
    batch_size: int = Field(16, ge=1, le=100_000, description="Structures per optimizer step.")
    optimizer: Annotated[Choice, OneOf(OPTIMIZERS, default="adamw")] = Field(
        default={}, validate_default=True, description="Optimizer and its settings."
    )
    lr_schedule: Annotated[Choice, OneOf(LR_SCHEDULES, default="plateau")] = Field(
        default={}, validate_default=True, description="How the learning rate changes."
    )
    ema_decay: float = Field(
        0.99, ge=0, lt=1, description="Memory of the averaged weights per step; 0: no average."
    )
    clip_grad: float = Field(
        10.0, ge=0, description="Largest norm of the gradient of all parameters; 0: no clipping."
    )
    patience: int = Field(
        50, ge=1, description="Stop after this many epochs without a better validation score."
    )
    min_learning_rate: float = Field(
        1e-6, ge=0, description="Stop when the learning rate falls below this."
    )


class RuntimeConfig(Config):
    """The machine. These settings may change when a run goes on."""

    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="auto (a GPU where there is one), cpu, cuda, cuda:1.",
    )
    dtype: Literal["float32", "float64"] = Field("float32", description="Of model and batches.")
    compile: Literal["auto", "always", "never"] = Field(
        "auto", description="Compile the step; auto does where it pays over the whole run."
    )
    n_threads: int = Field(
        1,
        ge=1,
        le=1024,
        description="Threads of one process; micro-batches are too small for more to pay.",
    )
    checkpoint_minutes: float = Field(
        10.0, gt=0, description="Save also within an epoch, after this many minutes."
    )


class RunConfig(Config):
    """One training."""

    seed: int = Field(0, ge=0, lt=2**31, description="Of initial parameters and row order.")
    data: DataConfig = Field(default_factory=DataConfig, description="What to learn from.")
    model: ModelChoice = Field(
        default={}, validate_default=True, description="Architecture and its settings."
    )
    loss: Annotated[LossConfig, BeforeValidator(with_default_terms)] = Field(
        default={},
        validate_default=True,
        description="Terms by property; energy (1) and forces (1) unless their weight is 0.",
    )
    training: TrainingConfig = Field(default_factory=TrainingConfig, description="How to learn.")
    runtime: RuntimeConfig = Field(default_factory=RuntimeConfig, description="Where to learn.")

    def tree(self) -> dict[str, Any]:
        """Return the resolved settings as plain values, as a run file holds them."""
        return self.model_dump(mode="json")


def read_run(
    path: Path | None, overrides: tuple[str, ...] = (), store: str | None = None
) -> RunConfig:
    """Read a run file; without one every setting has its default.

    Args:
        path: a TOML file, or None.
        overrides: `dotted.key=value` texts that win over the file.
        store: wins over `data.store`.

    Raises:
        MissingInput: no such file.
        ConfigError: a key, type or value that is not allowed.
    """
    tree = read_toml(path) if path is not None else {}
    tree = apply_overrides(tree, overrides)
    if store is not None:
        tree.setdefault("data", {})["store"] = store
    where = str(path) if path is not None else "run settings"
    return build(RunConfig, tree, where)

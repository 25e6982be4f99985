"""Where data, model and loss meet: everything that the loop drives, built from the settings."""

import torch

from raypot.data.loader import Loader
from raypot.data.store import Store
from raypot.errors import ConfigError
from raypot.losses.weighting import TotalLoss
from raypot.models import AtomisticModel, build_model, outputs_for
from raypot.structures import Integers
from raypot.train.learner import Learner
from raypot.train.parts import Parts
from raypot.train.ranks import Ranks
from raypot.train.settings import RunConfig, RuntimeConfig
from raypot.train.start import Start
from raypot.train.step import compile_is_worth_it, make_step

VAL_BATCH = 64  # structures; only the speed depends on it


def assemble(config: RunConfig, store: Store, start: Start, ranks: Ranks) -> Parts:
    """Build model, loss, step and loaders of one rank."""
    device = pick_device(config.runtime)
    loss, model = TotalLoss(config.loss), _build_model(config, start).to(device)
    train = _loader(config, store, start, ranks, start.split.train, device)
    val = _loader(config, store, start, ranks, start.split.val, device, is_val=True)
    return Parts(
        model=model,
        learner=Learner(model, config.training, train.n_steps),
        loss=loss,
        step=make_step(model, loss, compile=is_compiled(config, train.n_structures, device)),
        train=train,
        val=val,
        spread=start.targets.spread,
        ranks=ranks,
    )


def pick_device(runtime: RuntimeConfig) -> torch.device:
    """Return the device of a run.

    Raises:
        ConfigError: a GPU is asked for and there is none.
    """
    has_gpu = torch.cuda.is_available()
    if runtime.device == "auto":
        return torch.device("cuda" if has_gpu else "cpu")
    if runtime.device.startswith("cuda") and not has_gpu:
        raise ConfigError(
            f'runtime.device: {runtime.device!r}, but torch finds no GPU here; use "auto" or "cpu"',
            device=runtime.device,
        )
    return torch.device(runtime.device)


def _build_model(config: RunConfig, start: Start) -> AtomisticModel:
    return build_model(
        config.model.name,
        config.model.settings,
        elements=start.elements,
        outputs=outputs_for(TotalLoss(config.loss).wanted),
        scale=start.targets.scale,
        seed=config.seed,
        dtype=_dtype(config),
    )


def _loader(
    config: RunConfig,
    store: Store,
    start: Start,
    ranks: Ranks,
    rows: Integers,
    device: torch.device,
    *,
    is_val: bool = False,
) -> Loader:
    """Build the loader of the training or validation rows."""
    settings = config.data.loader
    if device.type != "cpu" and settings.micro_batch_atoms is None:
        settings = settings.model_copy(update={"micro_batch_atoms": 0})
    return Loader(
        store,
        rows,
        labels=TotalLoss(config.loss).names,
        targets=start.targets,
        cutoff=config.model.settings.cutoff,  # type: ignore[attr-defined]
        batch_size=max(config.training.batch_size, VAL_BATCH)
        if is_val
        else config.training.batch_size,
        dtype=_dtype(config),
        seed=config.seed,
        shuffle=not is_val,
        rank=ranks.rank,
        world=ranks.world,
        level=config.data.level,
        config=settings,
    )


def _dtype(config: RunConfig) -> torch.dtype:
    return torch.float64 if config.runtime.dtype == "float64" else torch.float32


def is_compiled(config: RunConfig, n_structures: int, device: torch.device) -> bool:
    """Decide whether the step of a run is compiled."""
    mode, n_epochs = config.runtime.compile, config.training.n_epochs
    return compile_is_worth_it(n_structures, n_epochs, mode, device.type)

"""What the first rank writes into the folder of a run."""

from collections.abc import Callable, Mapping

from torch import Tensor

from raypot.config import fingerprint
from raypot.data.store import Store
from raypot.durable import write_json
from raypot.errors import CheckpointError
from raypot.models import outputs_for
from raypot.train.checkpoint import load_checkpoint, save_checkpoint
from raypot.train.folder import RunFolder
from raypot.train.model_file import Member, ModelFile, provenance, write_model
from raypot.train.recorder import Recorder
from raypot.train.settings import RunConfig
from raypot.train.start import Start
from raypot.train.tensor_file import TensorFile


class Writer:
    """Write checkpoints, rows and the best model.

    Nothing is opened before the first call, so that every rank may have one.

    Args:
        config: of the run.
        place: its folder.
        store: it learns from.
        start: from where it starts.
        on_epoch: the caller's part in every epoch; True ends the run.
    """

    def __init__(
        self,
        config: RunConfig,
        place: RunFolder,
        store: Store,
        start: Start,
        on_epoch: Callable[[dict[str, float]], bool] | None = None,
    ) -> None:
        self.config, self.place, self.store, self.start = config, place, store, start
        self.on_epoch = on_epoch or (lambda _: False)
        self._is_within = start.checkpoint is not None and not _is_whole_epoch(start.checkpoint)
        self._facts = start.facts(config)
        self._recorder: Recorder | None = None

    def begin(self) -> None:
        """Write what is settled before the first step; a run that goes on may have new settings."""
        self.place.sweep()
        tree = self.config.tree()
        if self.start.checkpoint is None:
            self.start.split.save(self.place.split)
            write_json(self.place.targets, self.start.targets.to_json())
        if self.start.checkpoint is None or self.start.checkpoint.tree["config"] != tree:
            self.place.write_config(tree)

    def save(self, content: TensorFile, is_within: bool) -> None:
        """Write a checkpoint; one within an epoch replaces another one within an epoch."""
        whole = TensorFile({**content.tree, **self._facts}, content.tensors)
        save_checkpoint(self.place.checkpoints, whole, keep=not (is_within and self._is_within))
        self._is_within = is_within

    def reload(self) -> TensorFile:
        """Return the newest checkpoint at the end of an epoch.

        Raises:
            CheckpointError: there is none any more.
        """
        content = load_checkpoint(self.place.checkpoints, _is_whole_epoch)
        if content is None:
            raise CheckpointError(
                f"{self.place.checkpoints}: the checkpoint to go back to is gone; start over with "
                "--new"
            )
        return content

    def improved(
        self, state: Mapping[str, Tensor], metrics: Mapping[str, float], epoch: int
    ) -> None:
        """Write the best model so far."""
        config, choice = self.config, self.config.model
        tree = config.tree()
        member = Member(
            name=f"{choice.name}.seed-{config.seed}",
            model=tree["model"],
            elements=self.start.elements,
            outputs=outputs_for(name for name, term in config.loss.items() if term.weight != 0),
            state=dict(state),
            targets=self.start.targets,
            metrics=dict(metrics),
        )
        data = {
            "store": self.store.path,
            "fingerprint": self.store.fingerprint,
            "level": config.data.level,
            "split": tree["data"]["split"],
            "split_fingerprint": self.start.split.fingerprint,
            "card": self.store.card.model_dump(mode="json"),
        }
        facts = provenance(data=data, run={"fingerprint": fingerprint(tree), "epoch": epoch})
        write_model(self.place.model, ModelFile((member,), {}, facts))

    def record(self, row: dict[str, float]) -> None:
        """Append the row of an epoch."""
        if self._recorder is None:
            place, epochs_done = self.place, int(row["epoch"]) - 1
            self._recorder = Recorder(place.metrics, place.tensorboard, epochs_done)
        self._recorder.add(row)

    def close(self) -> None:
        """Close what was opened."""
        if self._recorder is not None:
            self._recorder.close()


def _is_whole_epoch(content: TensorFile) -> bool:
    return bool(content.tree["position"]["start"] == 0)

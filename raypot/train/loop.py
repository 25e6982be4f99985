"""The loop: epochs of steps, validation, and what follows from it. It knows no model and no Ray.

A step never waits for the device: sums stay there and come over once per epoch. Labels are counted
on the CPU, where the wish to stop travels with the counts from rank to rank.

**Shapes** T terms.
"""

import logging
import time
from contextlib import closing
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from raypot.batch import Batch
from raypot.errors import DivergedError
from raypot.losses.weighting import Progress
from raypot.train.divergence import MAX_ROLLBACKS, has_diverged, lowest_terms
from raypot.train.parts import Hooks, Parts, Row
from raypot.train.progress import EpochSums, Position
from raypot.train.tensor_file import TensorFile
from raypot.train.validation import as_row, move, steps_of, validate

Stopped = Literal["finished", "early_stop", "pruned", "interrupted"]

log = logging.getLogger(__name__)


class _Now(NamedTuple):
    """A moment in an epoch, to measure from."""

    seconds: float
    waited: float
    n_structures: float


class _Agreed(NamedTuple):
    """What all ranks know before a step.

    Args:
        counts: labels of each term (T,) on the CPU.
        n_structures: () on the CPU.
        stop: whether any rank wants to stop.
        save: whether a checkpoint is due.
    """

    counts: Tensor
    n_structures: Tensor
    stop: bool
    save: bool


class Loop:
    """Train a model, epoch by epoch.

    Args:
        parts: what is driven.
        hooks: what happens to results.
    """

    def __init__(self, parts: Parts, hooks: Hooks) -> None:
        self.parts, self.hooks = parts, hooks
        self.learner, self.ranks = parts.learner, parts.ranks
        self.position = Position()
        self.sums = self._no_sums()
        self._saved_at = time.monotonic()

    def run(self) -> Stopped:
        """Train until something ends it; the state is then on the disk.

        Raises:
            DivergedError: the loss did not come back after several rollbacks.
        """
        while self.position.epoch < self.learner.settings.n_epochs:
            if self.learner.is_exhausted(self.position):
                return "early_stop"
            began = self._now()
            if not self._train_epoch():
                return "interrupted"
            row = self._judge(began)
            if self._has_diverged(row):
                self._roll_back(row)
            elif self._accept(row):
                return "pruned"
        return "finished"

    def content(self) -> TensorFile:
        """Return all that a checkpoint must hold to go on bit by bit."""
        learned = self.learner.content()
        sums = {f"sums.{name}": tensor for name, tensor in self.sums.tensors().items()}
        facts = {**learned.tree, "position": self.position.to_json()}
        return TensorFile(facts, {**learned.tensors, **sums})

    def load(self, content: TensorFile) -> None:
        """Go on where `content` was taken."""
        self.learner.load(content)
        self.position = Position.from_json(content.tree["position"])
        self.sums = self._no_sums()
        self.sums.load(content.tensors, "sums.", self.ranks.is_first)

    def _no_sums(self) -> EpochSums:
        return EpochSums(self.parts.loss.names, self.learner.device)

    def _progress(self) -> Progress:
        """Return where the run stands, as weight schedules see it."""
        position, n_epochs = self.position, self.learner.settings.n_epochs
        initial = self.learner.optimizer.initial_learning_rate
        rate = self.learner.plain_rate(position)
        return Progress(position.epoch, n_epochs, position.step, rate, initial)

    def _train_epoch(self) -> bool:
        """Take the steps that are left of the epoch; False if a wish to stop ended it."""
        position = self.position
        with closing(steps_of(self.parts.train, position.epoch, position.start)) as steps:
            for batches in steps:
                agreed = self._agree(batches)
                if agreed.save or agreed.stop:
                    self._save_within()
                if agreed.stop:
                    return False
                self._step(batches, agreed)
        if self._agree(()).stop:
            self._save_within()
            return False
        return True

    def _agree(self, batches: tuple[Batch, ...]) -> _Agreed:
        """Sum over ranks what they must know of each other before a step."""
        n_terms = len(self.parts.loss.names)
        counts = torch.zeros(n_terms, dtype=torch.float64)
        for batch in batches:
            counts += self.parts.loss.counts(batch)
        is_due = time.monotonic() - self._saved_at > self.hooks.save_after_s
        n_structures = sum(batch.cell.shape[0] for batch in batches)
        wishes = [n_structures, self.hooks.should_stop(), is_due and self.ranks.is_first]
        own = torch.cat([counts, torch.tensor(wishes, dtype=torch.float64)])
        summed = self.ranks.sum(own)
        stop, save = summed[n_terms + 1 :].tolist()
        return _Agreed(summed[:n_terms], summed[n_terms], stop > 0, save > 0)

    def _step(self, batches: tuple[Batch, ...], agreed: _Agreed) -> None:
        """Take one optimizer step over the micro-batches of all ranks."""
        scales = self.parts.loss.scales(self._progress(), agreed.counts).to(self.learner.device)
        gradients = self._gradients(batches, scales)
        norm = self.learner.update(self.ranks.sum_all(gradients), self.position)
        self.sums.add(agreed.counts, agreed.n_structures, norm)
        self.position.step += 1
        self.position.start += 1

    def _gradients(self, batches: tuple[Batch, ...], scales: Tensor) -> dict[str, Tensor]:
        """Sum the gradients of the micro-batches of this rank, and note their totals."""
        gradients: dict[str, Tensor] = {}
        for batch in batches:
            result = self.parts.step(self.learner.state, move(batch, self.learner.device), scales)
            self.sums.add_totals(result.totals)
            if gradients:
                sums, more = list(gradients.values()), [result.gradients[n] for n in gradients]
                torch._foreach_add_(sums, more)
            else:
                gradients = {name: result.gradients[name] for name in self.learner.names}
        return gradients or self.learner.no_gradients()

    def _now(self) -> _Now:
        waited = self.parts.train.wait_seconds
        return _Now(time.monotonic(), waited, float(self.sums.n_structures))

    def _judge(self, began: _Now) -> Row:
        """Return the row of the epoch that was just trained."""
        names, loss = self.parts.loss.names, self.parts.loss
        weights = loss.weights(self._progress())
        means = self.ranks.sum(self.sums.totals).cpu() / self.sums.counts
        trained = self._now()  # the line above waited for the device
        averaged = self.learner.averaged()
        judged = validate(self.parts.model, averaged, loss, self.parts.val, self.ranks)
        row = {
            "epoch": self.position.epoch + 1,
            "step": self.position.step,
            "learning_rate": self.learner.optimizer.learning_rate,
            "train/loss": float((weights * means).sum()),
            "gradient_norm": float(self.sums.norm) / self.parts.train.n_steps,
            "structures_per_second": (trained.n_structures - began.n_structures)
            / max(trained.seconds - began.seconds, 1e-9),
            "loader_wait_s": trained.waited - began.waited,
            "epoch_s": time.monotonic() - began.seconds,
        }
        row |= {f"train/{name}": mean for name, mean in zip(names, means.tolist(), strict=True)}
        row |= {f"weight/{name}": w for name, w in zip(names, weights.tolist(), strict=True)}
        return row | as_row(names, judged[0], weights, judged[1], self.parts.spread)

    def _has_diverged(self, row: Row) -> bool:
        position = self.position
        return has_diverged(row, row["val/score"], position.best_monitored, position.lowest)

    def _accept(self, row: Row) -> bool:
        """Take an epoch into the record and put it on the disk; True if the caller ends the run."""
        position, monitored = self.position, row["val/score"]
        is_best = position.best_monitored is None or monitored < position.best_monitored
        position.epoch += 1
        position.start = 0
        position.monitored.append(monitored)
        position.lowest = lowest_terms(self.parts.loss.names, row, position.lowest)
        if is_best:
            position.best_epoch = position.epoch
            position.best = _of_val(row)
        self.learner.end_epoch(monitored)
        self.sums = self._no_sums()
        return self.ranks.first(lambda: self._write(row, is_best))

    def _write(self, row: Row, is_best: bool) -> bool:
        if is_best:
            self.hooks.improved(self.learner.averaged(), self.position.best, self.position.epoch)
        self.hooks.record(row)
        self.hooks.save(self.content(), False)
        self._saved_at = time.monotonic()
        return self.hooks.on_epoch(row)

    def _save_within(self) -> None:
        """Write a checkpoint in the middle of an epoch; never one of a run gone astray."""
        totals = self.ranks.sum(self.sums.totals)
        self._saved_at = time.monotonic()
        if not bool(totals.isfinite().all()):
            return
        own, self.sums.totals = self.sums.totals, totals
        self.ranks.first(lambda: self.hooks.save(self.content(), True))
        self.sums.totals = own

    def _roll_back(self, row: Row) -> None:
        """Go back to the end of the last good epoch with half the learning rate.

        Raises:
            DivergedError: it was tried too often.
        """
        epoch, rollbacks = self.position.epoch + 1, self.position.rollbacks + 1
        losses = f"train loss {row['train/loss']:.4g}, val loss {row['val/loss']:.4g}"
        if rollbacks > MAX_ROLLBACKS:
            raise DivergedError(
                f"epoch {epoch}: {losses} after {MAX_ROLLBACKS} rollbacks; lower "
                "training.optimizer's learning_rate or training.clip_grad, or look at the labels",
                epoch=epoch,
            )
        self.load(self.ranks.first(self.hooks.reload))
        self.position.rollbacks = rollbacks
        self.learner.averager.reset()
        log.warning(
            "epoch %d: %s; back to the end of epoch %d with half the learning rate",
            epoch, losses, self.position.epoch,
        )  # fmt: skip


def _of_val(row: Row) -> Row:
    """Return what a row says of the validation rows, under the names of the metrics."""
    return {k.removeprefix("val/"): v for k, v in row.items() if k.startswith("val/")}

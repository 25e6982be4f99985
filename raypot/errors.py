"""The exceptions that a user may meet, each with its exit code.

A message says: where, what came, what was expected, what to do. The command line catches
`RaypotError` once, prints the message as one line and exits with `exit_code`.
"""

from typing import Any


class RaypotError(Exception):
    """A failure with a cause that the user can act on.

    Args:
        message: where: what came, what was expected; what to do.
        facts: the values behind the message, kept as attributes and through pickling.
    """

    exit_code = 70

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.facts = facts

    def __getattr__(self, name: str) -> Any:
        facts = self.__dict__.get("facts", {})
        if name in facts:
            return facts[name]
        raise AttributeError(f"{type(self).__name__} has no fact {name!r}")

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), str(self), self.facts)


def _rebuild(kind: type[RaypotError], message: str, facts: dict[str, Any]) -> RaypotError:
    return kind(message, **facts)


class UsageError(RaypotError):
    """The command was called with arguments that do not go together."""

    exit_code = 2


class FormatError(RaypotError):
    """Raw data that cannot be believed or understood."""

    exit_code = 65


class StoreError(RaypotError):
    """A Zarr store that is damaged or incomplete."""

    exit_code = 65


class LabelError(RaypotError):
    """Labels that a run needs are missing or unusable."""

    exit_code = 65


class UnknownElement(RaypotError):
    """A structure holds an element that the model was not trained on."""

    exit_code = 65


class MissingInput(RaypotError):
    """A file or folder that was named does not exist."""

    exit_code = 66


class ShapeMismatch(RaypotError):
    """Two arrays that must have the same shape do not."""

    exit_code = 65


class MissingExtra(RaypotError):
    """An optional package is needed and not installed; the message names the extra."""

    exit_code = 78


class OutputError(RaypotError):
    """The output cannot be created where it was asked for."""

    exit_code = 73


class StorageError(RaypotError):
    """Reading or writing failed on the way: disk full, I/O error."""

    exit_code = 74


class Busy(RaypotError):
    """Another process holds what is needed; trying again later may work."""

    exit_code = 75


class ConfigError(RaypotError):
    """A run file, a search space or an override that is not valid."""

    exit_code = 78


class NewerFormat(ConfigError):
    """A file was written by a newer version of raypot."""


class CheckpointError(RaypotError):
    """A checkpoint or model file that cannot be read or does not belong here."""

    exit_code = 65


class DivergedError(RaypotError):
    """Training ended in NaN, infinity or a loss that does not come back."""

    exit_code = 1


class SearchError(RaypotError):
    """A search that could not go on, or in which too many trials failed."""

    exit_code = 1

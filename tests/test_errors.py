"""Errors keep their facts, survive pickling and carry an exit code."""

import pickle

import pytest

from raypot import errors


def test_facts_are_attributes_and_survive_pickling() -> None:
    error = errors.ConfigError("run.toml: seed: wrong", path="run.toml", line=3)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is errors.ConfigError
    assert str(copy) == str(error)
    assert (copy.path, copy.line) == ("run.toml", 3)
    with pytest.raises(AttributeError, match="no fact 'column'"):
        _ = copy.column


def test_every_error_has_a_documented_exit_code() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    ours = [kind for kind in kinds if issubclass(kind, errors.RaypotError)]
    assert len(ours) > 10
    assert {kind.exit_code for kind in ours} <= {1, 2, 65, 66, 70, 73, 74, 75, 78}
    assert all(kind.__doc__ for kind in ours)

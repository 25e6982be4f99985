"""What the tests of the loader share."""

import torch

CUTOFF = 3.5  # Å
TINY = 1e-12  # GB: no set fits


def rows_of(steps):
    """Row numbers of each step, in order."""
    return [[row for batch in step for row in batch.row.tolist()] for step in steps]


def assert_same_steps(left, right):
    left, right = list(left), list(right)
    assert [len(step) for step in left] == [len(step) for step in right]
    for one, other in zip(left, right, strict=True):
        for a, b in zip(one, other, strict=True):
            for x, y in zip(
                [*a[:-1], *a.labels.values()], [*b[:-1], *b.labels.values()], strict=True
            ):
                torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)

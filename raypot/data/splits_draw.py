"""How rows fall to the roles: pure functions of columns, sizes and seeds.

**Shapes** R rows that may be drawn. All results are positions among them, 0 to R - 1.
"""

import fnmatch
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from pathlib import PurePath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from raypot.errors import ConfigError
from raypot.structures import Integers

ROLES = ("train", "val", "cal", "test")
Size = int | float | Literal["rest"]
# The small roles are drawn first: a smaller training set is then a subset of a larger one.
ORDER_DRAWN = ("test", "cal", "val", "train")
Drawn = dict[str, Integers]


def draw(
    records: NDArray[Any],
    files: NDArray[Any],
    *,
    strategy: str,
    sizes: Mapping[str, Size],
    patterns: Mapping[str, Sequence[str]],
    seeds: tuple[int, int],
) -> Drawn:
    """Divide R rows into roles.

    Args:
        records: the record of each row (R,); empty where it belongs to none.
        files: the source file of each row (R,).
        strategy: as in the configuration.
        sizes: role to fraction, count or "rest".
        patterns: role to patterns of files, for `from_files`.
        seeds: `seed` and `test_seed`; the test set depends on the second alone.

    Returns:
        Positions of every role; disjoint.

    Raises:
        ConfigError: the sizes cannot be met.
    """
    if strategy == "from_files":
        return _draw_from_files(records, files, sizes=sizes, patterns=patterns, seeds=seeds)
    counts = count_roles(sizes, len(records))
    if strategy == "first_come":
        return _slices(np.arange(len(records)), counts, ROLES)
    groups = group_records(records)
    n_groups = int(groups.max(initial=-1)) + 1
    belongs = strategy == "auto" and n_groups < len(records) and n_groups > 1
    if strategy == "by_record" or belongs:
        return _draw_records(groups, counts, seeds)
    return _draw_rows(len(records), counts, seeds)


def count_roles(sizes: Mapping[str, Size], n_rows: int) -> dict[str, int]:
    """Turn fractions, counts and "rest" into counts.

    A fraction gets its floor; what the floors leave of the asked total is dealt one by one, to
    roles that would be empty first.

    Raises:
        ConfigError: more is asked than there is, or a role that is asked would be empty.
    """
    fractions = {role: size for role, size in sizes.items() if isinstance(size, float) and size}
    counts = {role: size if isinstance(size, int) else 0 for role, size in sizes.items()}
    for role, fraction in fractions.items():
        counts[role] = int(fraction * n_rows + 1e-9)
    left = int(sum(fractions.values()) * n_rows + 1e-9) - sum(counts[role] for role in fractions)
    for role in islice(cycle(sorted(fractions, key=lambda role: counts[role] > 0)), left):
        counts[role] += 1
    for role, size in sizes.items():
        if size == "rest":
            counts[role] = n_rows - sum(counts.values())
    asked = ", ".join(f"{role} {counts[role]} ({sizes[role]})" for role in ROLES)
    if min(counts.values()) < 0 or sum(counts.values()) > n_rows:
        raise ConfigError(
            f"split: {asked} do not fit into {n_rows} structures; ask for less", counts=counts
        )
    empty = [role for role in ROLES if sizes[role] != 0 and counts[role] == 0]
    if empty:
        raise ConfigError(
            f"split: {' and '.join(empty)} would be empty: {asked} of {n_rows} structures; "
            "ask for a larger size, or for 0 to do without",
            counts=counts,
        )
    return counts


def group_records(records: NDArray[Any]) -> Integers:
    """Number the records (R,); a row without a record is one of its own."""
    names, groups = np.unique(records, return_inverse=True)
    groups = groups.astype(np.int64).reshape(-1)
    nameless = np.isin(groups, np.flatnonzero(names == ""))
    groups[nameless] = len(names) + np.arange(np.count_nonzero(nameless))
    return np.unique(groups, return_inverse=True)[1].astype(np.int64).reshape(-1)


def _generator(seed: int, purpose: int) -> np.random.Generator:
    """Return the stream of one seed and one purpose; equal seeds do not mean equal streams."""
    return np.random.Generator(np.random.PCG64([seed, purpose]))


def _slices(order: Integers, counts: Mapping[str, int], roles: Sequence[str]) -> Drawn:
    """Cut `order` into consecutive pieces, one a role."""
    ends = np.cumsum([counts[role] for role in roles])
    return {role: order[end - counts[role] : end] for role, end in zip(roles, ends, strict=True)}


def _draw_rows(n_rows: int, counts: Mapping[str, int], seeds: tuple[int, int]) -> Drawn:
    """Draw single rows: test with its own seed, then the others from what is left."""
    seed, test_seed = seeds
    first = _generator(test_seed, 0).permutation(n_rows)
    left = np.sort(first[counts["test"] :])
    others = _slices(_generator(seed, 1).permutation(left), counts, ORDER_DRAWN[1:])
    return {"test": first[: counts["test"]], **others}


def _draw_records(groups: Integers, counts: Mapping[str, int], seeds: tuple[int, int]) -> Drawn:
    """Draw whole records, to within half a record of the counts.

    Args:
        groups: number of the record of each row (R,).
        counts: rows that each role shall get. `train` takes what is left if all rows are asked.
        seeds: `seed` and `test_seed`.
    """
    sizes = np.bincount(groups)
    asked = [role for role in ORDER_DRAWN if counts[role]]
    if len(sizes) < len(asked):
        raise ConfigError(
            f"split: {len(sizes)} records cannot fill {len(asked)} roles ({', '.join(asked)}); "
            "set strategy = 'random' or ask for fewer roles",
            n_records=len(sizes),
        )
    left = np.arange(len(sizes))
    chosen = dict.fromkeys(ROLES, left[:0])
    for role in asked:
        order = _generator(seeds[role == "test"], int(role != "test")).permutation(left)
        later = len(asked) - 1 - asked.index(role)
        everything = later == 0 and sum(counts.values()) == len(groups)
        target = len(groups) if everything else counts[role]
        chosen[role] = _fill(order, sizes, target, len(left) - later)
        left = np.setdiff1d(left, chosen[role])
    return {role: np.flatnonzero(np.isin(groups, picked)) for role, picked in chosen.items()}


def _fill(order: Integers, sizes: Integers, target: int, most: int) -> Integers:
    """Take records in order while each brings the sum nearer to `target`; one at least.

    Args:
        order: the records that are left, as drawn.
        sizes: rows of every record.
        target: rows wanted.
        most: largest number of records that may be taken.
    """
    taken: list[int] = []
    missing = target
    for record in order.tolist():
        if len(taken) == most or missing <= 0:
            break
        if sizes[record] < 2 * missing:
            taken.append(record)
            missing -= int(sizes[record])
    if not taken:
        taken = [int(order[np.argmin(sizes[order])])]
    return np.array(taken, dtype=np.int64)


def _draw_from_files(
    records: NDArray[Any],
    files: NDArray[Any],
    *,
    sizes: Mapping[str, Size],
    patterns: Mapping[str, Sequence[str]],
    seeds: tuple[int, int],
) -> Drawn:
    """Give a role the rows of its files; the roles without files draw from those of `train`.

    Without files of its own, `train` owns every row that no other role claims.
    """
    owner = match_files(files, patterns)
    fixed = {role: np.flatnonzero(owner == role) for role in patterns if role != "train"}
    pool = np.flatnonzero(owner == ("train" if "train" in patterns else ""))
    asked: dict[str, Size] = {role: 0 if role in fixed else sizes[role] for role in ROLES}
    drawn = draw(records[pool], files[pool], strategy="auto", sizes=asked, patterns={}, seeds=seeds)
    return {role: pool[picked] for role, picked in drawn.items()} | fixed


def match_files(files: NDArray[Any], patterns: Mapping[str, Sequence[str]]) -> NDArray[np.str_]:
    """Return the role that claims the file of each row (R,); empty where none does.

    Raises:
        ConfigError: a pattern matches no file, or a file falls to two roles.
    """
    names, which = np.unique(files, return_inverse=True)
    owner = {str(name): "" for name in names}
    for role, wanted in patterns.items():
        for pattern in wanted:
            matches = [name for name in owner if _matches(name, pattern)]
            if not matches:
                raise ConfigError(
                    f"split: files.{role}: {pattern!r} matches none of {', '.join(owner)}"
                )
            for name in matches:
                if owner[name] not in ("", role):
                    raise ConfigError(
                        f"split: files: {name} falls to {owner[name]} and to {role}; "
                        "make the patterns disjoint"
                    )
                owner[name] = role
    return np.array(list(owner.values()), dtype=np.str_)[which.reshape(-1)]


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(PurePath(name).name, pattern)

"""Trees with ranges: reading them, filling them with values, listing their branches.

A *branch* is what remains after every name that is a choice has been picked.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from raypot.errors import ConfigError
from raypot.tune.ranges import ChoiceRange, Range, read_range

Tree = dict[str, Any]
Branch = dict[str, Range]
Pick = Callable[[str, Range], Any]


def read_ranges(node: Mapping[str, Any], where: str, place: tuple[str, ...] = ()) -> Tree:
    """Return `node` with an object in the place of every table that is a range.

    Args:
        node: plain values of a space file.
        where: the file, for messages.
        place: sections above `node`.

    Raises:
        ConfigError: a range that is not valid, or a table of a name that is not among the choices.
    """
    result: Tree = {}
    for key, value in node.items():
        section = f"[{'.'.join(place)}] " if place else ""
        one = read_range(value, f"{where}: {section}{key}")
        if one is not None:
            result[key] = one
        elif isinstance(value, Mapping):
            result[key] = read_ranges(value, where, (*place, key))
        else:
            result[key] = value
    _refuse_tables_never_used(result, where, place)
    return result


def _refuse_tables_never_used(node: Tree, where: str, place: tuple[str, ...]) -> None:
    """Refuse the settings of a name that cannot be picked."""
    names = node.get("name")
    if not isinstance(names, ChoiceRange):
        return
    for key, value in node.items():
        if isinstance(value, dict) and key not in names.choice:
            raise ConfigError(
                f"{where}: [{'.'.join((*place, key))}] is never used, because name is one of "
                f"{', '.join(map(str, names.choice))}; add {key} there or remove the table"
            )


def fill(node: Mapping[str, Any], pick: Pick, place: str = "") -> Tree:
    """Return `node` with a value for every range.

    Where `name` is a choice, the tables of the names that were not picked are left out, and
    their ranges are not asked.

    Args:
        node: a tree with `Range` objects.
        pick: gives the value of a range, from its dotted path and the range.
        place: dotted path of `node`, with a dot at its end.
    """
    name = node.get("name")
    result: Tree = {}
    left_out: list[Any] = []
    if isinstance(name, ChoiceRange):
        result["name"] = pick(f"{place}name", name)
        left_out = [other for other in name.choice if other != result["name"]]
    for key, value in node.items():
        if key in left_out or key in result:
            continue
        if isinstance(value, Range):
            result[key] = pick(place + key, value)
        elif isinstance(value, Mapping):
            result[key] = fill(value, pick, f"{place}{key}.")
        else:
            result[key] = value
    return result


def walk(ranges: Tree, picked: Mapping[str, Any] | None = None) -> Iterator[Branch]:
    """Yield the ranges of every branch by path; a picked name appears as a choice of one.

    Args:
        ranges: a tree with `Range` objects.
        picked: names that are settled already, by path.
    """
    picked = picked or {}
    branch: Branch = {}
    unsettled: list[tuple[str, ChoiceRange]] = []

    def pick(path: str, one: Range) -> Any:
        if path in picked:
            one = ChoiceRange(choice=[picked[path]])
        elif isinstance(one, ChoiceRange) and path.rpartition(".")[2] == "name":
            unsettled.append((path, one))
        branch[path] = one
        return one.corners()[0]

    fill(ranges, pick)
    if not unsettled:
        yield branch
        return
    path, names = unsettled[0]
    for name in names.choice:
        yield from walk(ranges, {**picked, path: name})


def corner(ranges: Tree, branch: Branch, index: int) -> Tree:
    """Return the tree of `branch` in which every range has its value number `index`.

    Number 0 is the smallest corner and number 1 the largest; choices go on from there and
    begin again at their end.
    """

    def pick(path: str, _: Range) -> Any:
        values = branch[path].corners()
        return values[index % len(values)]

    return fill(ranges, pick)


def n_corners(branch: Branch) -> int:
    """Return how many corners show every choice of `branch` at least once."""
    return max((len(one.corners()) for one in branch.values()), default=1)


def at(tree: Any, path: str) -> Any:
    """Return the leaf of `tree` at a dotted path, or None."""
    for key in path.split("."):
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree

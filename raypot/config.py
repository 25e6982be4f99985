"""TOML files to frozen pydantic models, strictly, and back.

Every configurable class carries its own `Config`. A family of classes (models, optimizers, ...) is
chosen by name: `[model] name = "painn"` with the settings in `[model.painn]`. `Choice` with a
`OneOf` annotation gives a field that shape.
"""

import difflib
import hashlib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError, create_model
from pydantic_core import core_schema

from raypot.errors import ConfigError, MissingInput

T = TypeVar("T", bound=BaseModel)
V = TypeVar("V")


class Config(BaseModel):
    """The base of every settings class: frozen, unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Choice(Config):
    """The chosen member of a family and its settings.

    Args:
        name: key of the family's table.
        settings: the `Config` of that member.
    """

    name: str
    settings: Config


class OneOf:
    """Annotation that validates `{name = "x", x = {...}}` into a `Choice`.

    Settings of a member that was not chosen are an error, because they would be ignored.

    Args:
        table: name to `Config` class of each member.
        default: the member taken when no name is given.
    """

    def __init__(self, table: Mapping[str, type[Config]], default: str) -> None:
        self.table = dict(table)
        self.default = default

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        """Build the schema of the written form and convert its result."""
        sections: dict[str, Any] = {key: (kind | None, None) for key, kind in self.table.items()}
        written = create_model("Chosen", __base__=Config, name=(str, self.default), **sections)
        return core_schema.no_info_before_validator_function(
            _as_written,
            core_schema.no_info_after_validator_function(
                self._choose, handler.generate_schema(written)
            ),
            serialization=core_schema.plain_serializer_function_ser_schema(_as_written),
        )

    def _choose(self, written: Any) -> Choice:
        name = written.name
        lookup(name, self.table, "name")
        for other in self.table:
            if other != name and getattr(written, other) is not None:
                raise ValueError(f"[{other}] is set but the name is {name!r}; remove one of them")
        return Choice(name=name, settings=getattr(written, name) or self.table[name]())


def _as_written(value: Any) -> Any:
    """Return the TOML form of a `Choice`; leave everything else alone."""
    if isinstance(value, Choice):
        return {"name": value.name, value.name: value.settings.model_dump(mode="json")}
    return value


def lookup(name: str, table: Mapping[str, V], what: str) -> V:
    """Return `table[name]`, or say what the table holds.

    Raises:
        ValueError: there is no such name (pydantic turns it into a `ConfigError` with its place).
    """
    if name not in table:
        raise ValueError(f"{what} {name!r} is unknown{did_you_mean(name, table)}")
    return table[name]


def did_you_mean(name: str, known: Mapping[str, Any] | list[str]) -> str:
    """Return `; did you mean x?` for a near miss, else the list of what is known."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file into a tree of plain values.

    Raises:
        MissingInput: no such file.
        ConfigError: not valid TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingInput(f"{path}: no such file", path=str(path)) from error
    except IsADirectoryError as error:
        raise MissingInput(f"{path}: is a folder, a TOML file is expected") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}", path=str(path)) from error


def apply_overrides(tree: dict[str, Any], overrides: tuple[str, ...]) -> dict[str, Any]:
    """Return a copy of `tree` with every `dotted.key=value` of `overrides` set.

    The value is read as TOML (`1e-3`, `true`, `[1, 2]`, `{start = 1}`), else as a string.

    Raises:
        ConfigError: an override has no `=` or walks through a value.
    """
    result: dict[str, Any] = json.loads(json.dumps(tree))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"override {override!r}: expected key=value", override=override)
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        *parents, last = key.strip().split(".")
        branch = result
        for parent in parents:
            branch = branch.setdefault(parent, {})
            if not isinstance(branch, dict):
                raise ConfigError(f"override {override!r}: {parent!r} is a value, not a section")
        branch[last] = value
    return result


def build(kind: type[T], tree: Mapping[str, Any], where: str) -> T:
    """Validate `tree` as `kind`.

    Args:
        kind: the settings class.
        tree: plain values, as TOML gives them.
        where: the file or call, for the error message.

    Raises:
        ConfigError: naming place, key, value, what was expected and a suggestion.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(kind, entry, where) for entry in error.errors()]
        raise ConfigError("\n".join(lines), errors=lines) from error


def _explain(kind: type[BaseModel], entry: Any, where: str) -> str:
    """Turn one pydantic error into `file: [section] key: what; what to do`."""
    place = [str(part) for part in entry["loc"] if not str(part).startswith("function-")]
    section, key = place[:-1], place[-1] if place else ""
    head = f"{where}: " + (f"[{'.'.join(section)}] " if section else "") + (f"{key}: " * bool(key))
    if entry["type"] == "extra_forbidden":
        known = _known_keys(kind, section)
        return f"{head}unknown key{did_you_mean(key, known) if known else ''}"
    message = entry["msg"].removeprefix("Value error, ")
    came = "" if entry["type"] in ("missing", "value_error") else f", got {entry['input']!r}"
    return f"{head}{message[0].lower()}{message[1:]}{came}"


def _known_keys(kind: type[BaseModel], section: list[str]) -> list[str]:
    """Return the keys allowed in `section` below `kind`."""
    schema = kind.model_json_schema(mode="validation")
    node: dict[str, Any] = schema
    for part in section:
        node = _resolve(node, schema)
        node = node.get("properties", {}).get(part) or node.get("additionalProperties") or {}
        if not isinstance(node, dict):
            return []
    return list(_resolve(node, schema).get("properties", {}))


def _resolve(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Follow `$ref`, and in a union take the branch that is an object."""
    for _ in range(8):
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
        elif "anyOf" in node:
            node = next((b for b in node["anyOf"] if "$ref" in b or "properties" in b), {})
        else:
            break
    return node


def fingerprint(tree: Any) -> str:
    """Return the SHA-256 of a tree of plain values, independent of key order."""
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(old: Any, new: Any, at: str = "") -> list[str]:
    """List `key: old -> new` for every leaf in which two trees differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [
            line
            for key in keys
            for line in differences(old.get(key), new.get(key), f"{at}.{key}" if at else key)
        ]
    return [] if old == new else [f"{at}: {old!r} -> {new!r}"]


def to_toml(tree: Mapping[str, Any]) -> str:
    """Write a tree of plain values as TOML; keys whose value is None are left out."""
    lines: list[str] = []
    _write_section(tree, [], lines)
    return "\n".join(lines).strip() + "\n"


def _write_section(tree: Mapping[str, Any], path: list[str], lines: list[str]) -> None:
    leaves = {k: v for k, v in tree.items() if v is not None and not isinstance(v, dict)}
    branches = {k: v for k, v in tree.items() if isinstance(v, dict)}
    if path and (leaves or not branches):
        lines += ["", f"[{'.'.join(_key(part) for part in path)}]"]
    lines += [f"{_key(key)} = {_value(value)}" for key, value in leaves.items()]
    for key, branch in branches.items():
        _write_section(branch, [*path, key], lines)


def _key(key: str) -> str:
    bare = key.replace("_", "").replace("-", "")
    return key if bare.isascii() and bare.isalnum() else json.dumps(key)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items() if v is not None)
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_value(item) for item in value)}]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)

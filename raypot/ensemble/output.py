"""Predictions as files: extended XYZ, Parquet or Arrow, by the ending of the name.

Every value stands under `raypot_<property>`, its calibrated standard deviation under
`raypot_<property>_std`; labels of the input come along as `REF_<property>`. The file is written
aside in pieces of bounded size and gets its name when it is whole.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from raypot.data.store import Store
from raypot.durable import PARTIAL, failed
from raypot.ensemble.predictor import DEFAULT, Predictor
from raypot.ensemble.sources import blocks, chunks, columns, open_source
from raypot.errors import UsageError
from raypot.properties import PROPERTIES
from raypot.structures import Floats, Structure

Row = tuple[Structure, dict[str, Floats]]  # a structure and what was predicted for it


class Writer(Protocol):
    """Writes rows into a file that is open."""

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows."""

    def close(self) -> None:
        """Finish the file."""


def predict_file(
    predictor: Predictor,
    source: str | Path,
    destination: Path,
    properties: Sequence[str] = DEFAULT,
) -> int:
    """Predict the structures of a file or store and write them into another file.

    Args:
        predictor: the model.
        source: a store, or any readable structure file.
        destination: ending in .xyz, .extxyz, .parquet, .arrow or .feather.
        properties: some of energy, forces, stress, charges, dipole.

    Returns:
        The number of structures.

    Raises:
        UsageError: another ending, or a property that the model does not predict.
        OutputError: the file cannot be created there.
        StorageError: the disk is full.
    """
    make = writer_for(destination)
    names = predictor.models.check(properties)
    rows = _predicted(predictor, source, names)
    aside = destination.with_name(destination.name + PARTIAL)
    try:
        n_structures = _write_all(make(aside), rows)
        aside.replace(destination)
    except OSError as error:
        raise failed(destination, error, "nothing was kept") from error
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
    return n_structures


def writer_for(destination: Path) -> Callable[[Path], Writer]:
    """Return what makes a writer for the ending of a file name.

    Raises:
        UsageError: the ending is not known.
    """
    ending = destination.suffix.lower()
    if ending not in WRITERS:
        raise UsageError(
            f"{destination}: the ending {ending!r} is unknown; use one of {', '.join(WRITERS)}"
        )
    return WRITERS[ending]


def _predicted(
    predictor: Predictor, source: str | Path, names: Sequence[str]
) -> Iterator[list[Row]]:
    """Yield structures with their predictions, a bounded number at a time."""
    for start, structures in chunks(_structures(source, names)):
        found: list[dict[str, Floats]] = []
        block = columns(start, structures)
        for _, part in predictor.predict_batches(block, names, where=str(source)):
            found += part
        yield list(zip(structures, found, strict=True))


def _structures(source: str | Path, names: Sequence[str]) -> Iterator[Structure]:
    opened = open_source(source, needs_labels=False)
    if not isinstance(opened, Store):
        yield from opened
        return
    for block in blocks(opened, names):
        yield from (block.structure(k) for k in range(len(block)))


def _write_all(writer: Writer, rows: Iterator[list[Row]]) -> int:
    n_structures = 0
    with closing(writer):
        for part in rows:
            writer.write(part)
            n_structures += len(part)
    return n_structures


class XyzWriter:
    """Extended XYZ.

    Args:
        path: the file to create.
    """

    def __init__(self, path: Path) -> None:
        self.file = path.open("w", encoding="utf-8")

    def write(self, rows: Sequence[Row]) -> None:
        """Append frames."""
        from ase.io.extxyz import write_xyz

        write_xyz(self.file, [_to_atoms(*row) for row in rows])

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class TableWriter:
    """Parquet, or the Arrow file format; one row per structure, arrays flat.

    Args:
        path: the file to create.
        parquet: Parquet instead of Arrow.
    """

    def __init__(self, path: Path, *, parquet: bool) -> None:
        self.file = path.open("wb")
        self.parquet = parquet
        self.writer: Any = None

    def write(self, rows: Sequence[Row]) -> None:
        """Append a group of rows."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.Table.from_pylist([_to_columns(*row) for row in rows], self._schema(rows[0]))
        if self.writer is None:
            make = pq.ParquetWriter if self.parquet else pa.ipc.new_file
            self.writer = make(self.file, table.schema)
        self.writer.write_table(table)

    def close(self) -> None:
        """Write the end of the file."""
        if self.writer is not None:
            self.writer.close()
        self.file.close()

    def _schema(self, row: Row) -> Any:
        import pyarrow as pa

        kinds = {
            name: pa.float64() if np.ndim(value) == 0 else pa.list_(pa.float64())
            for name, value in row[1].items()
        }
        return pa.schema(
            [
                ("structure", pa.int64()),
                ("file", pa.string()),
                ("numbers", pa.list_(pa.int64())),
                *((name, pa.list_(pa.float64())) for name in ("positions", "cell")),
                ("pbc", pa.list_(pa.bool_())),
                ("total_charge", pa.float64()),
                *((f"raypot_{name}", kind) for name, kind in kinds.items()),
            ]
        )


WRITERS: dict[str, Callable[[Path], Writer]] = {
    ".xyz": XyzWriter,
    ".extxyz": XyzWriter,
    ".parquet": lambda path: TableWriter(path, parquet=True),
    ".arrow": lambda path: TableWriter(path, parquet=False),
    ".feather": lambda path: TableWriter(path, parquet=False),
}


def _to_atoms(structure: Structure, predicted: dict[str, Floats]) -> Any:
    """Return an `ase.Atoms` with labels and predictions in `info` and `arrays`."""
    from ase import Atoms

    atoms = Atoms(structure.numbers, structure.positions, cell=structure.cell, pbc=structure.pbc)
    facts = {
        "total_charge": structure.total_charge or None,
        "spin": structure.spin if structure.spin != 1.0 else None,
        "config_type": structure.config_type or None,
    }
    atoms.info.update({key: value for key, value in facts.items() if value is not None})
    named = {f"REF_{name}": value for name, value in structure.labels.items()}
    named |= {f"raypot_{name}": value for name, value in predicted.items()}
    for key, value in named.items():
        if np.isnan(value).any():
            continue  # the stress of what does not repeat in all directions
        if _is_of_atoms(key):
            atoms.arrays[key] = np.asarray(value)
        else:
            atoms.info[key] = float(value) if value.ndim == 0 else np.asarray(value)
    return atoms


def _to_columns(structure: Structure, predicted: dict[str, Floats]) -> dict[str, Any]:
    """Return one row of a table; arrays are flat, in C order."""
    file, index = structure.source
    return {
        "structure": index,
        "file": file,
        "numbers": structure.numbers.tolist(),
        "positions": structure.positions.ravel().tolist(),
        "cell": structure.cell.ravel().tolist(),
        "pbc": structure.pbc.tolist(),
        "total_charge": structure.total_charge,
        **{f"raypot_{name}": _plain(value) for name, value in predicted.items()},
    }


def _is_of_atoms(key: str) -> bool:
    name = key.removeprefix("REF_").removeprefix("raypot_").removesuffix("_std")
    return PROPERTIES[name].level == "atom"


def _plain(value: Floats) -> float | list[float] | None:
    """Return a number or a flat list; nothing for the stress of what has none."""
    if np.isnan(value).any():
        return None
    return float(value) if value.ndim == 0 else value.ravel().tolist()

"""The floors of the architecture: a file imports from lower floors and from its own part only."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "raypot"
FLOORS = (
    ("constants", "errors"),
    ("properties", "config", "durable"),
    ("structures", "batch"),
    ("nn", "neighbors", "losses"),
    ("models", "data"),
    ("train",),
    ("tune",),
    ("ensemble",),
    ("report",),
    ("cli",),
)
FLOOR = {part: floor for floor, parts in enumerate(FLOORS) for part in parts}
OWN_PARTS = {"structures", "batch", "constants", "errors", "properties", "config", "durable"}
RESTRICTED = {
    "ray": {"train/worker.py", "tune/search", "data/label.py", "ensemble/predictor.py"},
    "optuna": {"tune/"},
    "zarr": {"data/store"},
    "torch.utils.data": set(),
}
FORBIDDEN_NAMES = {"utils", "common", "helpers", "tools", "misc"}


def files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py"))


def imports(path: Path) -> list[str]:
    """Every module that a file imports, anywhere in it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.append(node.module or "")
    return found


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_come_from_lower_floors(path: Path) -> None:
    part = part_of(path)
    if part == "__init__":
        return
    for name in imports(path):
        if not name.startswith("raypot"):
            continue
        assert name != "raypot", f"{path}: imports the package face"
        other = name.split(".")[1]
        same = other == part or (FLOOR[other] == FLOOR[part] and {other, part} <= OWN_PARTS)
        assert same or FLOOR[other] < FLOOR[part], (
            f"{path}: imports {name} from the same or a higher floor"
        )


@pytest.mark.parametrize("library", RESTRICTED)
def test_libraries_stay_in_their_files(library: str) -> None:
    allowed = RESTRICTED[library]
    for path in files():
        relative = str(path.relative_to(PACKAGE))
        uses = any(name == library or name.startswith(library + ".") for name in imports(path))
        assert not uses or any(relative.startswith(place) for place in allowed), relative


def test_no_file_has_a_name_without_a_job() -> None:
    assert not [path for path in files() if path.stem in FORBIDDEN_NAMES]


def test_no_import_circles() -> None:
    graph = {}
    for path in files():
        name = ".".join(("raypot", *path.relative_to(PACKAGE).with_suffix("").parts))
        graph[name.removesuffix(".__init__")] = top_level_imports(path)
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name in done or name not in graph:
            return
        for other in graph[name]:
            visit(other, (*trail, name))
        done.add(name)

    for name in graph:
        visit(name, ())


def top_level_imports(path: Path) -> list[str]:
    """The modules of raypot that are imported when this one is."""
    found = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("raypot."):
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [name for name in inner if is_module(name)]
            found += modules or [node.module or ""]
    return found


def is_module(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_file_outgrows_its_limit(path: Path) -> None:
    limit = 400 if path.stem in {"mace", "gap", "so3"} else 300
    assert len(path.read_text(encoding="utf-8").splitlines()) <= limit


def test_the_command_line_starts_without_torch_and_ray() -> None:
    code = (
        "import sys; from raypot.cli import main; main(['--help'], standalone_mode=False); "
        "print([m for m in ('torch', 'ray', 'numpy', 'optuna', 'zarr') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip().endswith("[]")

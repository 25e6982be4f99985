"""The dataset card."""

from pathlib import Path

import pytest

from raypot.config import build
from raypot.constants import BOHR, COULOMB_CONSTANT, HARTREE
from raypot.data.cards import Card
from raypot.errors import ConfigError, MissingInput

WRITTEN = """
name = "water"
level_of_theory = "PBE"
total_charge = 1.0
pbc = [true, true, false]
record = "{formula}"
precise = ["forces"]

[keys]
energy = "total_energy"
stress = "virial"

[units]
length = "bohr"
energy = "hartree"

[signs]
forces = -1
"""


def test_card_is_read_from_file_or_folder(tmp_path: Path) -> None:
    file = tmp_path / "dataset.toml"
    file.write_text(WRITTEN)
    card = Card.read(file)
    assert card == Card.read(tmp_path)
    assert card.keys == {"energy": "total_energy", "stress": "virial"}
    assert card.pbc == (True, True, False)
    assert card.unit("energy") == HARTREE
    assert card.unit("length") == BOHR
    assert card.unit("forces") == 1.0


def test_card_survives_the_manifest() -> None:
    card = build(Card, {"pbc": [True, True, False], "precise": ["forces"]}, "card")
    assert build(Card, card.model_dump(mode="json"), "manifest") == card


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"keys": {"enrgy": "E"}}, r"card: keys: 'enrgy' is unknown; did you mean energy\?"),
        ({"units": {"energy": "furlong"}}, "'furlong' is not known"),
        ({"units": {"spin": "eV"}}, "'spin' is unknown"),
        ({"signs": {"forces": 2}}, "every sign is 1 or -1"),
        ({"precise": ["x"]}, "'x' is unknown"),
        ({"licence": "MIT"}, r"licence: unknown key; did you mean license\?"),
    ],
)
def test_slips_are_errors(tree: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(Card, tree, "card")


def test_missing_card(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match=r"dataset\.toml: no such file"):
        Card.read(tmp_path)


@pytest.mark.parametrize(
    ("unit", "factor"),
    [
        ("e*angstrom^2/v", COULOMB_CONSTANT),
        ("e^2*bohr^2/hartree", BOHR**3),
        ("bohr^3", BOHR**3),
        ("angstrom^3", 1.0),
    ],
)
def test_polarizability_becomes_a_volume(unit: str, factor: float) -> None:
    card = Card(units={"polarizability": unit})
    assert card.unit("polarizability") == pytest.approx(factor, rel=1e-12)

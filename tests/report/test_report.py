"""The report page: complete, self-contained, escaped, small, and honest about what is missing."""

import re
import shutil
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from fake_study import make_store, make_study, write_ensemble

from raypot.config import build
from raypot.errors import MissingExtra, MissingInput
from raypot.report import write_report
from raypot.report.judged import MAX_STRUCTURES, Judged, pick_rows
from raypot.report.model_sections import uncertainty_section
from raypot.report.page import Page, Section, Table, render, significant
from raypot.report.plots import draw_svg, parity, thin
from raypot.report.plots_uncertainty import binned, observed_coverage
from raypot.structures import Structure
from raypot.train.settings import RunConfig

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:optuna")


class Reader(HTMLParser):
    """Collects text, and every address that a browser would load."""

    def __init__(self):
        super().__init__()
        self.text, self.addresses, self.tags = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        keys = ("src", "href", "xlink:href", "data", "action")
        self.addresses += [value for key, value in attrs if key in keys]

    def handle_data(self, data):
        self.text.append(data)


def read(page):
    reader = Reader()
    reader.feed(page.read_text(encoding="utf-8"))
    return reader, " ".join(" ".join(reader.text).split())


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    from ase.build import molecule

    rng, atoms = np.random.default_rng(3), molecule("CH3CH2OH")
    structures = [
        Structure(
            atoms.numbers,
            atoms.positions + 0.05 * rng.standard_normal((9, 3)),
            labels={"energy": -300.0 + rng.normal(), "forces": rng.standard_normal((9, 3))},
            config_type="<script>alert(2)</script>" if k % 2 else "300K",
        )
        for k in range(30)
    ]
    return make_store(tmp_path_factory.mktemp("data") / "store", structures)


@pytest.fixture(scope="module")
def study(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("work") / "<b>my study"
    make_study(folder, store)
    return folder


@pytest.fixture(scope="module")
def page(study):
    return write_report(study)


def test_study_page_is_complete(study, page):
    assert page == study / "report.html"
    reader, text = read(page)
    for title in ("Errors", "Error bars", "Predictions on test", "Search", "Data", "Provenance"):
        assert title in text
    assert "6 trials (3 complete, 1 pruned, 1 failed, 1 running)" in text
    assert "raypot predict ensemble.safetensors" in text
    assert "raw spread" in text
    assert "calibrated" in text
    assert reader.tags.count("svg") == 10
    assert page.stat().st_size < 1_000_000


def test_page_loads_nothing_from_elsewhere(page):
    reader, _ = read(page)
    assert all(address.startswith(("#", "data:image/png")) for address in reader.addresses)
    assert not {"script", "link", "iframe", "object"} & set(reader.tags)
    assert "url(http" not in page.read_text(encoding="utf-8")


def test_words_of_the_user_are_escaped(page):
    source = page.read_text(encoding="utf-8")
    assert "<script>" not in source
    assert "<b>" not in source
    for word in ("&lt;script&gt;alert(1)", "&lt;script&gt;alert(2)", "&lt;b&gt;my study"):
        assert word in source


def test_figures_are_well_formed_and_escape_their_words():
    def draw(axes):
        axes.plot([0, 1], [0, 1])
        axes.set_title("<script>a $ b $ c</script>")

    source = draw_svg('<script> "quoted" & more', draw)
    root = ElementTree.fromstring(source)
    assert root.attrib["aria-label"] == '<script> "quoted" & more'
    assert "<script>" not in source


def test_the_same_study_gives_the_same_page(study, page):
    first = page.read_bytes()
    assert write_report(study).read_bytes() == first


def test_matplotlib_is_left_as_it_was():
    import matplotlib as mpl
    from matplotlib import pyplot

    before = {key: mpl.rcParams[key] for key in mpl.rcParams}
    parity("forces", np.arange(9.0), np.arange(9.0), "test")
    assert {key: mpl.rcParams[key] for key in mpl.rcParams} == before
    assert pyplot.get_fignums() == []


def test_study_without_ensemble_says_what_is_next(study, tmp_path):
    folder = tmp_path / "study"
    shutil.copytree(study, folder)
    (folder / "ensemble.safetensors").unlink()
    _, text = read(write_report(folder))
    assert f"Not built yet. Next: raypot ensemble {folder}" in text
    assert "30 structures" in text


def test_lost_store_is_said(study, store, tmp_path):
    folder = tmp_path / "study"
    shutil.copytree(study, folder)
    for run in (folder / "trials").iterdir():
        settings = run / "run.toml"
        settings.write_text(settings.read_text().replace(str(store.path), "/nowhere/store"))
    _, text = read(write_report(folder))
    assert "No predictions are shown: /nowhere/store" in text
    assert "Search" in text


def test_run_page(study, store):
    run = study / "trials" / "0"
    _, text = read(write_report(run))
    assert "schnet, 30 of 30 epochs" in text
    assert "forces RMSE on val" in text
    assert "Errors" not in text
    write_ensemble(run / "model.safetensors", store, build(RunConfig, {"model": {}}, "run"))
    _, text = read(write_report(run))
    assert "Predictions on val" in text


def test_run_that_has_just_begun(study, tmp_path):
    shutil.copy(study / "trials" / "0" / "run.toml", tmp_path / "run.toml")
    _, text = read(write_report(tmp_path))
    assert "No epoch has ended yet." in text


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(MissingInput, match="neither a study"):
        write_report(tmp_path)


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_the_missing_package_is_named(package, study, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=r"pip install raypot\[report\]"):
        write_report(study / "trials" / "2")


def test_many_points_stay_small():
    values = np.random.default_rng(0).standard_normal(200_000)
    assert len(parity("forces", values, values + 0.01, "test")) < 200_000


def test_large_roles_are_sampled_the_same_way():
    rows = np.arange(10_000)
    assert len(pick_rows(rows)) == MAX_STRUCTURES
    np.testing.assert_array_equal(pick_rows(rows), pick_rows(rows))
    np.testing.assert_array_equal(pick_rows(rows[:5]), rows[:5])


def test_thin_keeps_the_ends():
    assert thin(range(7)) == list(range(7))
    assert thin(range(1000), 5) == [0, 250, 500, 749, 999]


def test_coverage_of_honest_error_bars_is_what_they_promise():
    rng = np.random.default_rng(1)
    std = rng.uniform(0.5, 2.0, 20_000)
    errors = std * rng.standard_normal(20_000)
    honest = observed_coverage(std, errors)
    expected = np.linspace(0.02, 0.98, 49)
    np.testing.assert_allclose(honest, expected, atol=0.015)
    assert (observed_coverage(std / 2, errors) < expected).all()
    x, y = binned(std, errors)
    np.testing.assert_allclose(x, y, rtol=0.1)


def test_measures_of_a_property():
    one = Judged("forces", np.array([1.0, 2.0]), np.array([1.5, 1.5]), np.array([[1.0, 2.0]]))
    assert one.measures() == {"rmse": 0.5, "mae": 0.5}
    np.testing.assert_array_equal(one.member_rmse(), [0.0])
    assert not one.has_own_bars


@pytest.mark.parametrize(("std", "is_own"), [([0.2, 0.2], False), ([0.2, 0.3], True)])
def test_equal_error_bars_are_not_plotted_but_said(std, is_own):
    labels = np.array([1.0, 2.0])
    one = Judged("forces", labels, labels + 0.1, labels[None], std=np.array(std), factor=1.6)
    (section,) = uncertainty_section({"test": [one]})
    assert one.has_own_bars is is_own
    assert len(section.pictures) == 1 + is_own
    assert ("one error bar for all" in " ".join(section.text)) is not is_own


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.00"), (0.012345, "0.0123"), (51.04, "51.0"), (1234.5, "1,234"), (1e-7, "1.00e-07")],
)
def test_numbers_have_three_digits(value, text):
    assert significant(value) == text


def test_missing_cells_are_dashes():
    table = Table(("a", "b"), [(None, float("nan")), (True, 1200)])
    page = render(Page("p", "s", sections=[Section("t", tables=[table])]))
    assert re.findall(r"<td[^>]*>(.*?)</td>", page) == ["–", "–", "True", "1,200"]

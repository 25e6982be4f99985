"""The figures of a report, as SVG text to put inside a page.

Figures are made without pyplot, so that nothing global changes and nothing stays open. Clouds of
points are drawn as pixels inside the SVG, so that a figure stays small however many there are.
Colors are those of Okabe and Ito, which color-blind readers tell apart; markers differ as well.
"""

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from raypot.errors import MissingExtra
from raypot.properties import PROPERTIES
from raypot.structures import Floats

BLUE, ORANGE, GREEN, RED, GRAY = "#0072b2", "#d55e00", "#009e73", "#cc3311", "#9aa0a6"
SKY = "#56b4e9"
DENSITY = ("#b5d4ea", BLUE, "#03204a")  # from few to many points
PANEL = (3.3, 2.9)  # inches
MAX_POINTS = 3000  # more are shown as a density
MAX_CURVE = 120  # points of one learning curve

STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e8eb",
    "axes.edgecolor": "#5f6368",
    "legend.edgecolor": "none",
    "legend.framealpha": 0.8,
    "legend.fontsize": 8,
    "svg.fonttype": "none",  # letters stay letters: small, and found by a search in the page
    "text.parse_math": False,  # names of the user may hold a dollar sign
}


def draw_svg(title: str, draw: Callable[..., None], n_rows: int = 1) -> str:
    """Return a figure as an `<svg>` element.

    Args:
        title: what it shows, for readers who do not see it.
        draw: fills the axes, one argument for each row.
        n_rows: panels below each other.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtra(
            "report: matplotlib is not installed; install it with `pip install raypot[report]`"
        ) from error

    with mpl.rc_context({**STYLE, "svg.hashsalt": title}):
        size = (PANEL[0], PANEL[1] * n_rows)
        figure = Figure(figsize=size, layout="constrained")
        draw(*figure.subplots(n_rows, 1, squeeze=False)[:, 0])
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", dpi=140, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    width = f"{size[0] * 96:.0f}px"
    label = html.escape(title, quote=True)
    return text.replace(
        "<svg ", f'<svg role="img" aria-label="{label}" style="max-width:{width}" ', 1
    )


def unit_of(name: str) -> tuple[float, str]:
    """Return the factor to and the name of the unit in which a property is shown."""
    row = PROPERTIES[name.removesuffix("_per_atom")]
    return row.report_factor, row.report_unit + ("/atom" if name.endswith("_per_atom") else "")


def label_of(name: str) -> str:
    """Return the words for a property."""
    return name.replace("_", " ")


def thin(values: Sequence[Any], most: int = MAX_CURVE) -> list[Any]:
    """Return at most `most` of `values`, evenly chosen, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    return [values[k] for k in np.linspace(0, len(values) - 1, most).round().astype(int)]


def cloud(axes: Any, x: Floats, y: Floats, *, log: bool = False) -> None:
    """Draw points, or where there are many their density with a logarithmic color."""
    if len(x) <= MAX_POINTS:
        axes.scatter(x, y, s=7, color=BLUE, alpha=0.45, linewidths=0, rasterized=True)
        return
    from matplotlib.colors import LinearSegmentedColormap

    scale = "log" if log else "linear"
    density = LinearSegmentedColormap.from_list("density", DENSITY)
    axes.hexbin(
        x, y, gridsize=70, bins="log", cmap=density, xscale=scale, yscale=scale,
        mincnt=1, linewidths=0.1, rasterized=True,
    )  # fmt: skip


def log_scale(axes: Any, *directions: str) -> None:
    """Make the `x` or `y` axis logarithmic, with plain numbers at its ticks."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for direction in directions:
        axes.set(**{f"{direction}scale": "log"})
        axis = getattr(axes, f"{direction}axis")
        low, high = axis.get_view_interval()
        subs = (1.0,) if high > 1e3 * low else (1.0, 2.0, 5.0)
        axis.set_major_locator(LogLocator(subs=subs))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def count_along(axes: Any, name: str) -> None:
    """Name the x axis after what it counts, with whole numbers at its ticks."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(name)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def learning_curves(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """Plot loss, validation errors and learning rate of one run over its epochs."""
    names = [key.split("/")[1] for key in rows[-1] if re.fullmatch(r"val/\w+/rmse", key)]
    loss = [("train/loss", "train", ORANGE), ("val/loss", "val", BLUE)]
    figures = [_lines(rows, "loss", loss)]
    for name in names:
        if name != "energy":
            factor, unit = unit_of(name)
            lines = [(f"val/{name}/rmse", "RMSE", BLUE), (f"val/{name}/mae", "MAE", SKY)]
            label = f"{label_of(name)} on val, {unit}"
            figures.append(_lines(rows, label, lines, factor))
    figures.append(_lines(rows, "learning rate", [("learning_rate", "", GREEN)]))
    return figures


def _lines(
    rows: Sequence[Mapping[str, float]],
    label: str,
    lines: Sequence[tuple[str, str, str]],
    factor: float = 1.0,
) -> str:
    """Plot keys of metrics rows (key, label, color) over epochs."""
    shown = thin(rows)

    def draw(axes: Any) -> None:
        for key, name, color in lines:
            points = [(row["epoch"], row[key] * factor) for row in shown if row.get(key, 0.0) > 0]
            if points:
                marker = "." if len(points) == 1 else ""
                x, y = zip(*points, strict=True)
                axes.plot(x, y, color=color, label=name, linewidth=1.3, marker=marker)
        axes.set(ylabel=label)
        count_along(axes, "epoch")
        log_scale(axes, "y")
        if len(lines) > 1:
            axes.legend()

    return draw_svg(f"{label} over epochs", draw)


def parity(name: str, reference: Floats, predicted: Floats, role: str) -> str:
    """Plot predictions and their errors over labels.

    Args:
        name: the property.
        reference: labels (n,), in raypot's units.
        predicted: (n,).
        role: the rows.
    """
    factor, unit = unit_of(name)
    x, y = reference * factor, predicted * factor

    def draw(above: Any, below: Any) -> None:
        cloud(above, x, y)
        ends = [min(x.min(), y.min()), max(x.max(), y.max())]
        above.plot(ends, ends, color=GRAY, linewidth=0.9, zorder=1)
        above.set(ylabel=f"predicted, {unit}")
        above.set_title(label_of(name), fontsize=9)
        cloud(below, x, y - x)
        below.axhline(0.0, color=GRAY, linewidth=0.9, zorder=1)
        for panel in (above, below):
            panel.locator_params(axis="x", nbins=5)
        below.set(xlabel=f"label, {unit}", ylabel=f"predicted - label, {unit}")

    return draw_svg(f"{label_of(name)} on {role}: predictions over labels", draw, 2)

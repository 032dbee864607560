"""The plots of a report as SVG texts: one look, readable on light and dark pages, the same bytes for the same numbers.

Text and axes are drawn in the colour of the page (currentColor); series in the colour-blind safe colours of Okabe and
Ito (2008), and in different line styles too.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
INK = "#010203"  # stands for the page's own colour until the text is made
COLOURS = ("#0080c4", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8a8a8a")
STYLES = ("solid", "dashed", "dashdot", "dotted")
BINS, FEWEST_BINS = 40, 12
# The same kind of passage looks the same in every plot: its place in COLOURS and STYLES.
LOOKS = {
    "positives": 0,
    "negatives, mined": 1,
    "judged relevant": 2,
    "dropped before judging": 3,
    "negatives, synthetic": 4,
    "judged, not kept": 5,
    "pool": 1,
    "corpus": 6,
}
LABEL = 40


class Plot(NamedTuple):
    """alt: what the picture says, in words."""

    title: str
    svg: str
    alt: str


class Line(NamedTuple):
    """x, y: float64[n]. low, high: bounds of y, or None."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def histogram(title: str, groups: Mapping[str, Array], x_label: str, log: bool = False) -> Plot | None:
    """The share of each group's values in each bin; None where no group has a value. NaN is left out.

    log: bins of equal ratio, for values above 0.
    """
    known = {name: values[np.isfinite(values)] for name, values in groups.items()}
    known = {name: values for name, values in known.items() if len(values)}
    if not known:
        return None
    fewest = min(map(len, known.values()))
    edges = _edges(np.concatenate(list(known.values())), log, int(np.clip(2 * fewest**0.5, FEWEST_BINS, BINS)))
    figure, axes = _figure(title)
    for number, (name, values) in enumerate(known.items()):
        counts = np.histogram(values, edges)[0] / len(values)
        colour, style = _look(name, number)
        if len(known) <= 3:
            axes.stairs(counts, edges, color=colour, fill=True, alpha=0.15)
        axes.stairs(
            counts, edges, color=colour, linestyle=style, linewidth=1.6, label=f"{plain(name)} ({len(values):,})"
        )
    axes.set_ylabel("share")
    if log:
        _log_scale(axes)
    medians = "; ".join(f"{name} {np.median(values):.4g}" for name, values in known.items())
    return _done(figure, axes, title, x_label, f"{title}. Medians: {medians}.", legend=True)


def _edges(values: Array, log: bool, bins: int) -> Array:
    if log:
        return np.geomspace(max(1.0, float(values.min())), max(2.0, float(values.max()) + 1), bins + 1)
    low, high = float(values.min()), float(values.max())
    if low == high:
        low, high = low - 0.5, high + 0.5
    if high - low < BINS and (np.mod(values, 1) == 0).all():  # counts: a bin each
        return np.arange(np.floor(low) - 0.5, np.ceil(high) + 1)
    return np.linspace(low, high, bins + 1)


def _log_scale(axes: Any) -> None:
    """With plain numbers: matplotlib's own are formulas."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def bars(title: str, labels: Sequence[str], series: Mapping[str, Sequence[float]], x_label: str) -> Plot | None:
    """Lying bars, the first label on top, the series stacked; None where there is nothing to show."""
    if not labels or not series:
        return None
    figure, axes = _figure(title, 0.8 + 0.27 * len(labels))
    place, left = np.arange(len(labels)), np.zeros(len(labels))
    for number, (name, values) in enumerate(series.items()):
        axes.barh(place, values, left=left, height=0.7, color=COLOURS[number % len(COLOURS)], label=plain(name))
        left += np.asarray(values, float)
    axes.set_yticks(place, [plain(label) for label in labels])
    axes.invert_yaxis()
    told = "; ".join(f"{label} {total:,.4g}" for label, total in zip(labels, left.tolist(), strict=True))
    return _done(figure, axes, title, x_label, f"{title}. {told}.", legend=len(series) > 1)


def lines(
    title: str, found: Sequence[Line], x_label: str, y_label: str, alt: str, diagonal: bool = False
) -> Plot | None:
    """Lines with their bounds as bands. diagonal: draw where y would equal x."""
    found = [line for line in found if len(line.x)]
    if not found:
        return None
    figure, axes = _figure(title)
    for number, line in enumerate(found):
        colour, style = _look(line.label, number)
        mark = "o" if len(line.x) <= BINS else ""
        axes.plot(line.x, line.y, color=colour, linestyle=style, marker=mark, markersize=4, label=plain(line.label))
        if line.low is not None and line.high is not None:
            axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.2, linewidth=0)
    if diagonal:
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle="dotted")
    axes.set_ylabel(y_label)
    return _done(figure, axes, title, x_label, alt, legend=len(found) > 1)


# ---------------------------------------------------------------- how they look


def plain(label: str) -> str:
    """A label that any font can draw: other letters would be measured wrongly, and control characters are no XML."""
    shown = "".join(c if " " <= c <= "~" else "?" for c in label)
    return shown if len(shown) <= LABEL else shown[: LABEL - 3] + "..."


def _look(name: str, number: int) -> tuple[str, str]:
    """Colour and line style of a series, by its name, else by its place among the others."""
    place = LOOKS.get(name, number)
    return COLOURS[place % len(COLOURS)], STYLES[place % len(STYLES)]


def _style(title: str) -> dict[str, Any]:
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "legend.labelcolor")
    return {
        **dict.fromkeys(inked, INK),
        "svg.fonttype": "none",
        "svg.hashsalt": title,
        "text.parse_math": False,
        "font.size": 9,
        "font.family": "DejaVu Sans",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.formatter.useoffset": False,
        "axes.unicode_minus": False,
    }


def _figure(title: str, height: float | None = None) -> tuple[Any, Any]:
    """height: in inches, of a plot whose labels are long texts: then room is made for them, which takes a second
    drawing."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: Any = _style(title)
    with mpl.rc_context(style):
        figure = Figure(figsize=(6.4, height or 2.9), layout="constrained" if height else None)
        axes = figure.add_subplot()
    if not height:
        figure.subplots_adjust(left=0.13, right=0.985, top=0.97, bottom=0.17)
    axes.grid(visible=True, color=INK, alpha=0.12, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _done(figure: Any, axes: Any, title: str, x_label: str, alt: str, legend: bool) -> Plot:
    import matplotlib as mpl

    style: Any = _style(title)
    with mpl.rc_context(style):
        axes.set_xlabel(x_label)
        if legend:
            _legend(figure, axes)
        out = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    return Plot(title, _inlined(out.getvalue()), alt)


def _legend(figure: Any, axes: Any) -> None:
    """Among the series where they are few; else above them, where it hides none."""
    if len(axes.get_legend_handles_labels()[0]) <= 3 or figure.get_layout_engine() is not None:
        axes.legend(frameon=False, fontsize=8)
        return
    figure.subplots_adjust(top=0.84)
    place = {"loc": "lower left", "bbox_to_anchor": (-0.02, 1.0), "ncols": 3}
    axes.legend(frameon=False, fontsize=8, handlelength=2.4, columnspacing=1.2, **place)


def _inlined(svg: str) -> str:
    """The svg element alone, in the page's own colour and letters, with no id that another picture may have too.

    No style element and no style attribute: a page may forbid both.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = svg.replace("<svg", '<svg stroke-linejoin="round" stroke-linecap="butt"', 1)
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: m.group(0) if m.group(1) in used else "", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "sans-serif", svg)
    svg = re.sub(r'style="([^"]*)"', lambda m: _attributes(m.group(1)), svg)
    return svg.replace(INK, "currentColor")


def _attributes(style: str) -> str:
    """CSS declarations as attributes of their own."""
    pairs = (declaration.partition(":") for declaration in style.split(";") if declaration.strip())
    return " ".join(f'{name.strip()}="{value.strip()}"' for name, _, value in pairs)

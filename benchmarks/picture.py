"""Line charts as SVG, written by hand: a few panels side by side, each with lines over steps of its own. No library is needed."""

import math
from collections.abc import Mapping, Sequence
from html import escape

import msgspec

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 66, 16, 42, 46
COLORS = ("#1f5fa8", "#d0662a", "#3d8f4f", "#7a4fa3")
_INK, _FAINT, _PAPER = "#222222", "#dddddd", "#ffffff"


class Panel(msgspec.Struct, frozen=True):
    """One chart. `steps` are the labels below; each line has one value a step. With `is_log` the scale goes by powers of ten."""

    title: str
    below: str
    beside: str
    steps: Sequence[str]
    lines: Mapping[str, Sequence[float]]
    is_log: bool = False


def draw(panels: Sequence[Panel], title: str, columns: int = 2) -> str:
    """The whole picture."""
    rows = math.ceil(len(panels) / columns)
    width, height = WIDTH * columns, HEIGHT * rows + 66
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    colors = {name: COLORS[number % len(COLORS)] for number, name in enumerate(names)}
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        f' font-family="sans-serif" font-size="12" fill="{_INK}" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="{_PAPER}"/>',
        _text(width / 2, 24, title, size=15, anchor="middle"),
        *_legend(colors, width),
    ]
    for number, panel in enumerate(panels):
        x, y = number % columns * WIDTH, number // columns * HEIGHT + 58
        out += [f'<g transform="translate({x} {y})">', *_panel(panel, colors), "</g>"]
    return "\n".join([*out, "</svg>", ""])


def _text(x: float, y: float, words: str, *, size: int = 12, anchor: str = "start", turned: bool = False) -> str:
    turn = f' transform="rotate(-90 {x:.0f} {y:.0f})"' if turned else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"{turn}>{escape(words)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, color: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}"/>'


def _legend(colors: Mapping[str, str], width: float) -> list[str]:
    out = []
    x = width / 2 - 60 * len(colors)
    for name, color in colors.items():
        out.append(f'<rect x="{x:.1f}" y="38" width="18" height="4" fill="{color}"/>')
        out.append(_text(x + 24, 45, name))
        x += 120
    return out


def _panel(panel: Panel, colors: Mapping[str, str]) -> list[str]:
    values = [value for line in panel.lines.values() for value in line]
    marks = _log_marks(values) if panel.is_log else _even_marks(max(values, default=1))
    plot_width, plot_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def height_of(value: float) -> float:
        low, high = marks[0], marks[-1]
        if panel.is_log:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, low))
        return TOP + plot_height * (1 - (value - low) / (high - low))

    gap = plot_width / max(len(panel.steps), 1)
    places = [LEFT + gap * (number + 0.5) for number in range(len(panel.steps))]
    out = [_text(LEFT, TOP - 14, panel.title, size=13)]
    out.append(_text(16, TOP + plot_height / 2, panel.beside, anchor="middle", turned=True))
    out.append(_text(LEFT + plot_width / 2, HEIGHT - 8, panel.below, anchor="middle"))
    for mark in marks:
        y = height_of(mark)
        out += [_line(LEFT, y, WIDTH - RIGHT, y, _FAINT), _text(LEFT - 6, y + 4, f"{mark:,.0f}", anchor="end")]
    for x, step in zip(places, panel.steps, strict=True):
        out.append(_text(x, HEIGHT - BOTTOM + 16, step, anchor="middle"))
    out.append(_line(LEFT, TOP + plot_height, WIDTH - RIGHT, TOP + plot_height, _INK))
    for name, line in panel.lines.items():
        points = [(x, height_of(value)) for x, value in zip(places, line, strict=True)]
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        out.append(f'<polyline points="{joined}" fill="none" stroke="{colors[name]}" stroke-width="2"/>')
        for (x, y), value in zip(points, line, strict=True):
            out.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colors[name]}"><title>{value:,.0f}</title></circle>'
            )
    return out


def _even_marks(most: float) -> list[float]:
    """From nothing to beyond the highest value, in round steps."""
    step = 10 ** math.floor(math.log10(most or 1))
    for part in (0.2, 0.5, 1, 2):
        if most / (step * part) <= 5:
            step *= part
            break
    return [step * number for number in range(math.ceil(most / step) + 1)]


def _log_marks(values: Sequence[float]) -> list[float]:
    """The powers of ten around all values."""
    low = math.floor(math.log10(min(values)))
    high = max(math.ceil(math.log10(max(values))), low + 1)
    return [10.0**power for power in range(low, high + 1)]

"""Three kinds of charts as SVG, side by side in one picture, by the standard library alone."""

import math
import textwrap
from xml.sax.saxutils import escape

COLOURS = ("#4e79a7", "#f28e2b", "#e15759", "#76b7b2", "#59a14f", "#edc948", "#b07aa1", "#9c755f")
WIDTH, HEIGHT = 460, 380  # of one panel
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 34, 48
LEGEND = 24


def _text(x, y, content, anchor="middle", more=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{escape(content)}</text>'


def _line(x1, y1, x2, y2, colour="#ddd", dashes=None):
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{dashed}/>'


def _tick(highest):
    """The distance of the ticks of an axis from 0 to `highest` > 0: 3 to 6 of them."""
    step = 10 ** math.floor(math.log10(highest))
    return step / 5 if highest < 2 * step else step / 2 if highest < 5 * step else step


def _frame(title, x_label, y_label):
    middle = (LEFT + WIDTH - RIGHT) / 2
    return [
        _text(middle, 20, title, more='font-weight="bold"'),
        _text(middle, HEIGHT - 10, x_label),
        _text(0, 0, y_label, more=f'transform="translate(14,{(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)"'),
        _line(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM, "#333"),
        _line(LEFT, TOP, LEFT, HEIGHT - BOTTOM, "#333"),
    ]


class Lines:
    """series: {name: [(x, y), ...]}; the x axis is logarithmic and marked by x_names, the y axis is logarithmic,
    starts at 0, or (`from_zero` false) at the tick below the lowest y. ideals: {name: [(x, y), ...]}, dashed in the
    colour of the series of that name. level: (y, text), a dashed horizontal line."""

    def __init__(self, title, x_label, y_label, series, x_names, log_y=True, ideals=None, level=None, from_zero=True):
        self.title, self.x_label, self.y_label, self.series, self.x_names = title, x_label, y_label, series, x_names
        self.log_y, self.ideals, self.level, self.from_zero = log_y, ideals or {}, level, from_zero

    def names(self):
        return list(self.series)

    def draw(self, colours):
        points = [point for line in self.series.values() for point in line]
        shapes = _frame(self.title, self.x_label, self.y_label)
        if not points:
            return shapes
        xs, ys = [math.log2(x) for x, _ in points], [y for _, y in points]
        x_low, x_high = min(xs) - 0.3, max(xs) + 0.3
        place_x = lambda x: LEFT + (math.log2(x) - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        if self.log_y:
            y_low = math.floor(math.log10(min(ys)))
            y_high = max(math.ceil(math.log10(max(ys))), y_low + 1)
            scale, ticks = math.log10, [10.0**power for power in range(y_low, y_high + 1)]
        else:
            step = _tick(max(ys) if self.from_zero else max(max(ys) - min(ys), 1e-6))
            y_low = 0 if self.from_zero else step * math.floor(min(ys) / step)
            y_high = max(step * math.ceil(max(ys) / step), y_low + step)
            scale, ticks = float, [y_low + step * i for i in range(round((y_high - y_low) / step) + 1)]
        place_y = lambda y: HEIGHT - BOTTOM - (scale(y) - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)
        for tick in ticks:
            y = place_y(tick)
            shapes += [_line(LEFT, y, WIDTH - RIGHT, y), _text(LEFT - 6, y + 4, f"{tick:g}", "end")]
        for x, name in self.x_names.items():
            shapes.append(_text(place_x(x), HEIGHT - BOTTOM + 18, name))
        if self.level:
            y = place_y(self.level[0])
            shapes.append(_line(LEFT, y, WIDTH - RIGHT, y, "#555", dashes="7 5"))
            shapes.append(_text(WIDTH - RIGHT - 4, y - 6, self.level[1], "end", 'fill="#555"'))
        path_of = lambda line: " ".join(f"{place_x(x):.1f},{place_y(y):.1f}" for x, y in line)
        for name, line in self.ideals.items():
            stroke = f'stroke="{colours[name]}" stroke-dasharray="3 3"'
            shapes.append(f'<polyline points="{path_of(line)}" fill="none" {stroke}/>')
        for name, line in self.series.items():
            shapes.append(f'<polyline points="{path_of(line)}" fill="none" stroke="{colours[name]}" stroke-width="2"/>')
            shapes += [
                f'<circle cx="{place_x(x):.1f}" cy="{place_y(y):.1f}" r="3.2" fill="{colours[name]}"/>' for x, y in line
            ]
        return shapes


class StackedBars:
    """bars: {label: {part: height}}."""

    def __init__(self, title, x_label, y_label, bars):
        self.title, self.x_label, self.y_label, self.bars = title, x_label, y_label, bars

    def names(self):
        return list(dict.fromkeys(part for bar in self.bars.values() for part in bar))

    def draw(self, colours):
        shapes = _frame(self.title, self.x_label, self.y_label)
        highest = max((sum(bar.values()) for bar in self.bars.values()), default=0)
        if highest <= 0:
            return shapes
        step = _tick(highest)
        top = step * math.ceil(highest / step)
        per_unit = (HEIGHT - TOP - BOTTOM) / top
        for i in range(round(top / step) + 1):
            y = HEIGHT - BOTTOM - i * step * per_unit
            shapes += [_line(LEFT, y, WIDTH - RIGHT, y), _text(LEFT - 6, y + 4, f"{i * step:.4g}", "end")]
        slot = (WIDTH - LEFT - RIGHT) / len(self.bars)
        for i, (label, bar) in enumerate(self.bars.items()):
            x, y = LEFT + (i + 0.2) * slot, HEIGHT - BOTTOM
            for part, value in bar.items():
                height = value * per_unit
                y -= height
                shapes.append(
                    f'<rect x="{x:.1f}" y="{y:.1f}" width="{0.6 * slot:.1f}" height="{height:.1f}" '
                    f'fill="{colours[part]}"/>'
                )
            shapes.append(_text(LEFT + (i + 0.5) * slot, HEIGHT - BOTTOM + 18, label))
        return shapes


class HeatMap:
    """cells: {row: {column: share in [0, 1] or None}}, a rectangle per cell with its per cent, from red to green."""

    SCALE = ((200, 60, 60), (246, 218, 120), (70, 160, 95))  # of the shares 0, 1/2 and 1
    ROW_NAMES = 150  # pixels

    def __init__(self, title, x_label, cells):
        self.title, self.x_label, self.cells = title, x_label, cells

    def names(self):
        return []

    def draw(self, colours):
        columns = list(dict.fromkeys(column for row in self.cells.values() for column in row))
        shapes = [_text(WIDTH / 2, 20, self.title, more='font-weight="bold"'),
                  _text((self.ROW_NAMES + WIDTH) / 2, HEIGHT - 10, self.x_label)]
        if not columns:
            return shapes
        wide = (WIDTH - RIGHT - self.ROW_NAMES) / len(columns)
        high = (HEIGHT - TOP - BOTTOM) / len(self.cells)
        for y, (row, cells) in enumerate(self.cells.items()):
            shapes.append(_text(self.ROW_NAMES - 8, TOP + (y + 0.5) * high + 4, row, "end"))
            for x, column in enumerate(columns):
                share = cells.get(column)
                left, top = self.ROW_NAMES + x * wide, TOP + y * high
                fill = "#eee" if share is None else self._colour(share)
                shapes.append(f'<rect x="{left:.1f}" y="{top:.1f}" width="{wide:.1f}" height="{high:.1f}" '
                              f'fill="{fill}" stroke="white"/>')
                shapes.append(_text(left + wide / 2, top + high / 2 + 4, "" if share is None else f"{100 * share:.0f}"))
        for x, column in enumerate(columns):
            shapes.append(_text(self.ROW_NAMES + (x + 0.5) * wide, HEIGHT - BOTTOM + 18, str(column)))
        return shapes

    def _colour(self, share):
        place = min(max(share, 0.0), 1.0) * (len(self.SCALE) - 1)
        below = min(int(place), len(self.SCALE) - 2)
        mixed = (round(a + (b - a) * (place - below)) for a, b in zip(self.SCALE[below], self.SCALE[below + 1]))
        return "#" + "".join(f"{part:02x}" for part in mixed)


def picture(panels, title="", setting=""):
    """The panels beside each other, two to a row, under the title and the setting, and one legend below them."""
    names = list(dict.fromkeys(name for panel in panels for name in panel.names()))
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    columns = min(2, len(panels))
    settings = textwrap.wrap(setting, columns * WIDTH // 7)  # characters of 12 pixels
    top = 24 * bool(title) + 16 * len(settings) + 6
    legend = top + (len(panels) + 1) // 2 * HEIGHT
    width, height = columns * WIDTH, legend + LEGEND * ((len(names) + 3) // 4) + 8
    shapes = [_text(width / 2, 20, title, more='font-weight="bold" font-size="15"')] if title else []
    for i, line in enumerate(settings):
        shapes.append(_text(width / 2, 24 * bool(title) + 14 + 16 * i, line, more='fill="#555"'))
    for i, panel in enumerate(panels):
        shapes.append(f'<g transform="translate({i % 2 * WIDTH},{top + i // 2 * HEIGHT})">')
        shapes += panel.draw(colours) + ["</g>"]
    for i, name in enumerate(names):
        x, y = LEFT + i % 4 * (width - LEFT) / 4, legend + LEGEND * (i // 4) + 14
        shapes.append(f'<rect x="{x:.1f}" y="{y - 10:.1f}" width="12" height="12" fill="{colours[name]}"/>')
        shapes.append(_text(x + 18, y, name, "start"))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return "\n".join([f'{head} font-family="sans-serif" font-size="12">', '<rect width="100%" height="100%" '
                      'fill="white"/>', *shapes, "</svg>\n"])

# SPDX-License-Identifier: Apache-2.0
"""Plots of a page, as SVG in the text. They are as wide as there is room: what lies along x is a percentage, letters and
strokes keep their size, and whatever may be long (names) is HTML beside them, which wraps."""
import html
import math
import statistics

import figures

PARTS = 7  # colours that the style sheet has for the parts of a timeline


def text(value):
    return html.escape(str(value))


def percent(value):
    return f"{min(max(100 * value, 0), 100):.2f}%"


def svg(height, *inside, label):
    return (f'<svg width="100%" height="{height}" role="img" aria-label="{text(label)}">' + "".join(inside) + "</svg>")


def row(label, plot, value):
    return (f'<div class="row"><div class="label">{text(label)}</div><div class="plot">{plot}</div>'
            f'<div class="value">{text(value)}</div></div>')


def nice_ticks(most):
    """Round numbers from 0 to at least `most`, some four of them."""
    if most <= 0:
        return [0, 1]
    power = 10 ** math.floor(math.log10(most))
    step = next(power * part for part in (0.1, 0.2, 0.25, 0.5, 1, 2, 2.5, 5) if most / (power * part) <= 5)
    return [step * i for i in range(math.ceil(most / step - 1e-9) + 1)]


def tick_text(tick, unit, last):
    """Bytes have their prefix at each, others their unit at the last."""
    if unit == "B":
        return f"{tick / 1e9:g} GB" if tick >= 1e9 else f"{tick / 1e6:g} MB" if tick >= 1e6 else f"{tick / 1e3:g} kB" if tick else "0"
    return f"{tick:.6g}{' ' + unit if last and unit else ''}"


def axis(ticks, unit):
    """The line of numbers below rows."""
    top = ticks[-1]
    marks = []
    for i, tick in enumerate(ticks):
        anchor = "start" if i == 0 else "end" if i == len(ticks) - 1 else "middle"
        near = ' class="near"' if i == len(ticks) - 2 else ""  # it and the last, with its unit, need room
        marks.append(f'<text{near} x="{percent(tick / top)}" y="12" text-anchor="{anchor}">{text(tick_text(tick, unit, i == len(ticks) - 1))}</text>')
    return row("", svg(16, *marks, label="scale"), "")


def grid(ticks, height):
    return "".join(f'<line class="grid" x1="{percent(tick / ticks[-1])}" x2="{percent(tick / ticks[-1])}" y1="0" y2="{height}"/>'
                   for tick in ticks)


def dots(samples, top, y, who):
    return "".join(f'<circle class="dot {who}" cx="{percent(sample / top)}" cy="{y}" r="3.5"><title>{text(figures.show(sample))}'
                   f'</title></circle>' for sample in samples)


def bars(ratios):
    """Medians of ratios as bars, their rounds as dots, and a line where both are alike."""
    medians = [statistics.median(ratio["samples"]) for _, ratio in ratios]
    ticks = nice_ticks(max(1.0, *medians, *(figures.percentile(sorted(r["samples"]), 90) for _, r in ratios)))
    found = []
    for (label, ratio), middle in zip(ratios, medians):
        good = (middle >= 1) == (ratio["better"] == "higher")
        plot = svg(22, grid(ticks, 22),
                   f'<rect class="bar {"good" if good else "plain"}" x="0" y="4" height="14" width="{percent(middle / ticks[-1])}" rx="2"/>',
                   dots(ratio["samples"], ticks[-1], 11, "ours"),
                   f'<line class="parity" x1="{percent(1 / ticks[-1])}" x2="{percent(1 / ticks[-1])}" y1="0" y2="22"/>',
                   label=f"{label}: {figures.show(middle)}")
        found.append(row(label, plot, figures.show(middle)))
    return "".join(found) + axis(ticks, "")


def strips(rows, unit):
    """Samples of figures of one unit as dots on one scale, with a stroke at each median."""
    ticks = nice_ticks(max(max(figure["samples"]) for _, figure in rows))
    found = []
    for label, figure in rows:
        middle = statistics.median(figure["samples"])
        plot = svg(22, grid(ticks, 22), '<line class="base" x1="0" x2="100%" y1="11" y2="11"/>',
                   dots(figure["samples"], ticks[-1], 11, figure["who"]),
                   f'<line class="median {figure["who"]}" x1="{percent(middle / ticks[-1])}" x2="{percent(middle / ticks[-1])}" y1="2" y2="20"/>',
                   label=f"{label}: median {figures.show(middle, unit)} of {len(figure['samples'])}")
        found.append(row(label, plot, figures.show(middle, unit)))
    return "".join(found) + axis(ticks, unit)


def curves(rows, unit):
    """Medians over x, a line for each who; a stroke from least to most at each point."""
    height, pad = 200, 8
    ticks = nice_ticks(max(max(figure["samples"]) for figure in rows))
    places = sorted({figure["x"] for figure in rows})
    across = {x: 0.06 + 0.88 * (i / (len(places) - 1) if len(places) > 1 else 0.5) for i, x in enumerate(places)}

    def up(value):
        return pad + (height - 2 * pad) * (1 - value / ticks[-1])
    inside = []
    for tick in ticks:
        inside.append(f'<line class="grid" x1="0" x2="100%" y1="{up(tick):.1f}" y2="{up(tick):.1f}"/>'
                      f'<text x="0" y="{up(tick) - 3:.1f}">{text(tick_text(tick, unit, tick == ticks[-1]))}</text>')
    for who in dict.fromkeys(figure["who"] for figure in rows):
        points = sorted(((f["x"], f["samples"]) for f in rows if f["who"] == who))
        middles = [(percent(across[x]), up(statistics.median(samples)), x, samples) for x, samples in points]
        inside += [f'<line class="curve {who}" x1="{a[0]}" y1="{a[1]:.1f}" x2="{b[0]}" y2="{b[1]:.1f}"/>'
                   for a, b in zip(middles, middles[1:])]
        inside += [f'<line class="span {who}" x1="{x}" x2="{x}" y1="{up(min(s)):.1f}" y2="{up(max(s)):.1f}"/>'
                   f'<circle class="point {who}" cx="{x}" cy="{y:.1f}" r="4"><title>{text(figures.show(statistics.median(s), unit))} at {at}</title></circle>'
                   for x, y, at, s in middles]
    inside += [f'<text x="{percent(across[x])}" y="{height + 14}" text-anchor="middle">{x:g}</text>' for x in places]
    return svg(height + 20, *inside, label="curves")


def columns(one):
    """A histogram over a logarithmic scale, with its percentiles."""
    height = 90
    tops = [top for top, _ in one["buckets"] if top > 0] or [1.0]
    low, high = math.log(min(tops) / 1.1), math.log(max(tops) * 1.1)
    cells = max(12, min(60, len(tops)))
    counts = [0] * cells
    for top, count in one["buckets"]:
        place = (math.log(top) - low) / (high - low) if top > 0 else 0
        counts[min(int(place * cells), cells - 1)] += count
    most = max(counts)
    inside = [f'<rect class="column" x="{percent(i / cells)}" width="{percent(0.92 / cells)}" y="{height - height * c / most:.1f}" '
              f'height="{height * c / most:.1f}"><title>{c} of {one["count"]}</title></rect>' for i, c in enumerate(counts) if c]
    marks = [((math.log(one[key]) - low) / (high - low) if one[key] > 0 else 0, key) for key in ("p50", "p90", "p99")]
    inside += [f'<line class="parity" x1="{percent(place)}" x2="{percent(place)}" y1="0" y2="{height + 4 + 13 * i}"/>'
               for i, (place, _) in enumerate(marks)]
    for i, (place, key) in enumerate(marks):
        anchor = "end" if place > 0.8 else "start"
        inside.append(f'<text class="mark" x="{percent(place)}" dx="{-3 if anchor == "end" else 3}" y="{height + 13 + 13 * i}" '
                      f'text-anchor="{anchor}">{key} {text(figures.show(one[key], one["unit"]))}</text>')
    return svg(height + 46, *inside, label=f"{one['title']}: distribution")


def timelines(timeline):
    """What came after what: a bar of parts for each row, and what the colours mean."""
    names = list(dict.fromkeys(part["name"] for line in timeline["rows"] for part in line["parts"]))
    lengths = [sum(part["length"] for part in line["parts"]) for line in timeline["rows"]]
    ticks = nice_ticks(max(lengths))
    found = ['<div class="legend">' + "".join(f'<span><i class="key part{names.index(name) % PARTS}"></i>{text(name)}</span>'
                                              for name in names) + "</div>"]
    for line, length in zip(timeline["rows"], lengths):
        at, inside = 0.0, [grid(ticks, 22)]
        for part in line["parts"]:
            inside.append(f'<rect class="part{names.index(part["name"]) % PARTS}" x="{percent(at / ticks[-1])}" y="3" height="16" '
                          f'width="{percent(part["length"] / ticks[-1])}"><title>{text(part["name"])} '
                          f'{text(figures.show(part["length"], timeline["unit"]))}</title></rect>')
            at += part["length"]
        found.append(row(line["title"], svg(22, *inside, label=f"{line['title']}: {figures.show(length, timeline['unit'])}"),
                         figures.show(length, timeline["unit"])))
    return "".join(found) + axis(ticks, timeline["unit"])


def spark(samples):
    """A small line of samples in the order in which they came."""
    samples = figures.squeeze(samples, 60)
    least, most = min(samples), max(samples)
    width, height = 90, 20

    def place(i, value):
        x = 3 + (width - 6) * (i / (len(samples) - 1) if len(samples) > 1 else 0.5)
        return f"{x:.1f},{3 + (height - 6) * (1 - ((value - least) / (most - least) if most > least else 0.5)):.1f}"
    points = [place(i, value) for i, value in enumerate(samples)]
    x, y = points[-1].split(",")
    return (f'<svg class="spark" width="{width}" height="{height}" role="img" aria-label="samples in their order">'
            f'<polyline points="{" ".join(points)}"/><circle cx="{x}" cy="{y}" r="2.5"/></svg>')

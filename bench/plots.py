# SPDX-License-Identifier: Apache-2.0
"""Plots of a page, as SVG in the text. They are as wide as there is room: what lies along x is a percentage, letters and
strokes keep their size, and whatever may be long (names) is HTML beside them, which wraps."""
import html
import math
import statistics

import figures

PARTS = 7  # colours that page.css has for the parts of a timeline
ROW = 22  # height of a row, in pixels


def text(value):
    return html.escape(str(value))


def percent(value):
    return f"{min(max(100 * value, 0), 100):.2f}%"


def shape(name, inside="", kind=None, title=None, **attributes):
    """One element; `kind` is its class, text_anchor is text-anchor, numbers are pixels, `title` is said when it is pointed at."""
    said = [f'class="{kind}"'] if kind else []
    said += [f'{key.replace("_", "-")}="{value:.1f}"' if isinstance(value, float) else f'{key.replace("_", "-")}="{value}"'
             for key, value in attributes.items()]
    told = f"<title>{text(title)}</title>" if title is not None else ""
    return f"<{' '.join([name, *said])}>{told}{inside}</{name}>"


def upright(at, y1, y2, kind):
    return shape("line", kind=kind, x1=percent(at), x2=percent(at), y1=y1, y2=y2)


def svg(height, label, *inside):
    return f'<svg width="100%" height="{height}" role="img" aria-label="{text(label)}">{"".join(inside)}</svg>'


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
        prefixes = (1e9, "GB"), (1e6, "MB"), (1e3, "kB")
        return next((f"{tick / size:g} {name}" for size, name in prefixes if tick >= size), f"{tick:g}")
    return f"{tick:.6g}{' ' + unit if last and unit else ''}"


def axis(ticks, unit):
    """The line of numbers below rows."""
    marks, last = [], len(ticks) - 1
    for i, tick in enumerate(ticks):
        anchor = "start" if i == 0 else "end" if i == last else "middle"
        near = "near" if unit and i == last - 1 else None  # the last needs room for its unit
        marks.append(shape("text", text(tick_text(tick, unit, i == last)), kind=near, x=percent(tick / ticks[-1]), y=12,
                           text_anchor=anchor))
    return row("", svg(16, "scale", *marks), "")


def grid(ticks):
    return "".join(upright(tick / ticks[-1], 0, ROW, "grid") for tick in ticks)


def dots(samples, top, who):
    return "".join(shape("circle", kind=f"dot {who}", cx=percent(sample / top), cy=ROW // 2, r=3.5, title=figures.show(sample))
                   for sample in samples)


def bars(ratios):
    """[(label, ratio)]: medians as bars, their rounds as dots, and a line where both are alike."""
    medians = [statistics.median(ratio["samples"]) for _, ratio in ratios]
    # A single round far out does not make all bars short.
    top = max(1.0, *medians, *(figures.percentile(sorted(ratio["samples"]), 90) for _, ratio in ratios))
    ticks, found = nice_ticks(top), []
    for (label, ratio), middle in zip(ratios, medians):
        good = (middle >= 1) == (ratio["better"] == "higher")
        bar = shape("rect", kind="bar good" if good else "bar plain", x=0, y=4, height=14, width=percent(middle / ticks[-1]), rx=2)
        plot = svg(ROW, f"{label}: {figures.show(middle)}", grid(ticks), bar, dots(ratio["samples"], ticks[-1], "ours"),
                   upright(1 / ticks[-1], 0, ROW, "parity"))
        found.append(row(label, plot, figures.show(middle)))
    return "".join(found) + axis(ticks, "")


def strips(rows, unit):
    """[(label, figure)] of one unit: samples as dots on one scale, with a stroke at each median."""
    ticks, found = nice_ticks(max(max(figure["samples"]) for _, figure in rows)), []
    for label, figure in rows:
        middle = statistics.median(figure["samples"])
        said = f"{label}: median {figures.show(middle, unit)} of {len(figure['samples'])}"
        plot = svg(ROW, said, grid(ticks), shape("line", kind="rule", x1=0, x2="100%", y1=ROW // 2, y2=ROW // 2),
                   dots(figure["samples"], ticks[-1], figure["who"]),
                   upright(middle / ticks[-1], 2, ROW - 2, f"median {figure['who']}"))
        found.append(row(label, plot, figures.show(middle, unit)))
    return "".join(found) + axis(ticks, unit)


def curves(rows, unit):
    """Figures over their x: a line of medians for each who, a stroke from least to most at each point."""
    height, pad = 200, 8
    ticks = nice_ticks(max(max(figure["samples"]) for figure in rows))
    places = sorted({figure["x"] for figure in rows})
    across = {x: percent(0.06 + 0.88 * (i / (len(places) - 1) if len(places) > 1 else 0.5)) for i, x in enumerate(places)}

    def up(value):
        return pad + (height - 2 * pad) * (1 - value / ticks[-1])
    inside = []
    for tick in ticks:
        inside.append(shape("line", kind="grid", x1=0, x2="100%", y1=up(tick), y2=up(tick)))
        inside.append(shape("text", text(tick_text(tick, unit, tick == ticks[-1])), x=0, y=up(tick) - 3.0))
    for who in dict.fromkeys(figure["who"] for figure in rows):
        points = sorted((figure["x"], figure["samples"]) for figure in rows if figure["who"] == who)
        middles = [(across[x], up(statistics.median(samples))) for x, samples in points]
        inside += [shape("line", kind=f"curve {who}", x1=a[0], y1=a[1], x2=b[0], y2=b[1]) for a, b in zip(middles, middles[1:])]
        for (at, y), (x, samples) in zip(middles, points):
            inside.append(shape("line", kind=f"span {who}", x1=at, x2=at, y1=up(min(samples)), y2=up(max(samples))))
            inside.append(shape("circle", kind=f"point {who}", cx=at, cy=y, r=4,
                                title=f"{figures.show(statistics.median(samples), unit)} at {x:g}"))
    inside += [shape("text", f"{x:g}", x=at, y=height + 14, text_anchor="middle") for x, at in across.items()]
    return svg(height + 20, "curves", *inside)


def columns(one):
    """A histogram over a logarithmic scale, with its percentiles."""
    height = 90
    tops = [top for top, _ in one["buckets"] if top > 0] or [1.0]
    low, high = math.log(min(tops) / 1.1), math.log(max(tops) * 1.1)

    def place(value):
        return min(1.0, max(0.0, (math.log(value) - low) / (high - low))) if value > 0 else 0.0
    counts = [0] * max(12, min(60, len(tops)))
    for top, count in one["buckets"]:
        counts[min(int(place(top) * len(counts)), len(counts) - 1)] += count
    inside = []
    for i, count in enumerate(counts):
        tall = height * count / max(counts)
        if count:
            inside.append(shape("rect", kind="column", x=percent(i / len(counts)), width=percent(0.92 / len(counts)),
                                y=height - tall, height=tall, title=f"{count} of {one['count']}"))
    marks = [(place(one[key]), f"{key} {figures.show(one[key], one['unit'])}") for key in ("p50", "p90", "p99")]
    inside += [upright(at, 0, height + 4 + 13 * i, "parity") for i, (at, _) in enumerate(marks)]
    for i, (at, words) in enumerate(marks):
        left = at > 0.8  # there is no room on its right
        inside.append(shape("text", text(words), kind="mark", x=percent(at), dx=-3 if left else 3, y=height + 13 + 13 * i,
                            text_anchor="end" if left else "start"))
    return svg(height + 46, f"{one['title']}: distribution", *inside)


def timelines(timeline):
    """What came after what: a bar of parts for each row, and what the colours mean."""
    names = list(dict.fromkeys(part["name"] for line in timeline["rows"] for part in line["parts"]))
    colours = {name: f"part{i % PARTS}" for i, name in enumerate(names)}
    lengths = [sum(part["length"] for part in line["parts"]) for line in timeline["rows"]]
    ticks, unit = nice_ticks(max(lengths)), timeline["unit"]
    keys = "".join(f'<span><i class="key {colour}"></i>{text(name)}</span>' for name, colour in colours.items())
    found = [f'<div class="legend">{keys}</div>']
    for line, length in zip(timeline["rows"], lengths):
        at, inside = 0.0, [grid(ticks)]
        for part in line["parts"]:
            inside.append(shape("rect", kind=colours[part["name"]], x=percent(at / ticks[-1]), y=3, height=16,
                                width=percent(part["length"] / ticks[-1]),
                                title=f"{part['name']} {figures.show(part['length'], unit)}"))
            at += part["length"]
        said = figures.show(length, unit)
        found.append(row(line["title"], svg(ROW, f"{line['title']}: {said}", *inside), said))
    return "".join(found) + axis(ticks, unit)


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
            f'{shape("polyline", points=" ".join(points))}{shape("circle", cx=x, cy=y, r=2.5)}</svg>')

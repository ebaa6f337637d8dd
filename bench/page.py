# SPDX-License-Identifier: Apache-2.0
"""A result as one HTML file: plots, tables, the machine, all samples. No script, and nothing that it would have to fetch."""
import json
import os
import statistics
import sys

import figures
import plots
from plots import text

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1c2128; --soft: #5b6672; --line: #dfe3e8; --card: #f6f7f9;
  --ours: #2563c9; --peer: #8b95a1; --ceiling: #c26a00; --base: #5f8f2f; --good: #9dbdf0; --plain: #d3d8de; --warn: #fff1d6;
  --p0: #4269d0; --p1: #e0a100; --p2: #e2573f; --p3: #45ab95; --p4: #8c5ad6; --p5: #d6649a; --p6: #7f8a95; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --ink: #e3e7ec; --soft: #98a3af; --line: #2c333b;
  --card: #1b1f25; --ours: #74a7ff; --peer: #8d98a5; --ceiling: #f0a04b; --base: #a4cf72; --good: #2f4f86; --plain: #39414b;
  --warn: #40331a; --p0: #7b9bf0; --p1: #e9bb44; --p2: #f0806b; --p3: #6ccfb9; --p4: #b48cf0; --p5: #ee92bd; --p6: #9aa5b0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 24px 20px 60px; max-width: 1080px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 4px; } h2 { font-size: 19px; margin: 40px 0 4px; }
h3 { font-size: 15px; margin: 22px 0 6px; } p { margin: 4px 0 12px; } .soft, .note { color: var(--soft); }
.note { font-size: 13px; } .warn { background: var(--warn); border-radius: 6px; padding: 8px 12px; margin: 14px 0; }
.box { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px; margin: 10px 0; }
.box h3 { margin-top: 0; } .box h3:not(:first-child) { margin-top: 20px; }
.mark { paint-order: stroke; stroke: var(--card); stroke-width: 3px; } .row { display: grid; grid-template-columns: 30% 1fr 92px; gap: 0 14px; align-items: center; }
.label { font-size: 13px; line-height: 1.3; padding: 3px 0; } .value { text-align: right; font-variant-numeric: tabular-nums;
  font-size: 13px; } svg { display: block; overflow: visible; } svg text { font: 11px system-ui, sans-serif; fill: var(--soft); }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 0 14px; }
.grid { stroke: var(--line); } .base { stroke: var(--line); } .parity { stroke: var(--ink); stroke-dasharray: 3 3; }
.bar.good { fill: var(--good); } .bar.plain { fill: var(--plain); } .column { fill: var(--ours); }
.dot { fill-opacity: .55; } .median { stroke-width: 2.5; } .curve { stroke-width: 2; } .span { stroke-width: 1.5; opacity: .6; }
.dot.ours, .point.ours { fill: var(--ours); } .dot.peer, .point.peer { fill: var(--peer); }
.dot.ceiling, .point.ceiling { fill: var(--ceiling); } .dot.base, .point.base { fill: var(--base); stroke: none; }
.median.ours, .curve.ours, .span.ours { stroke: var(--ours); } .median.peer, .curve.peer, .span.peer { stroke: var(--peer); }
.median.ceiling, .curve.ceiling, .span.ceiling { stroke: var(--ceiling); }
.median.base, .curve.base, .span.base { stroke: var(--base); } .curve.base, .curve.ceiling { stroke-dasharray: 5 4; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; font-size: 13px; color: var(--soft); margin-bottom: 6px; }
.key { display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin-right: 5px; }
.spark polyline { fill: none; stroke: var(--soft); stroke-width: 1.3; } .spark circle { fill: var(--ours); }
.scroll { overflow-x: auto; margin-bottom: 26px; } table { border-collapse: collapse; width: 100%; font-size: 13px; }
.scroll table { min-width: 720px; } .scroll td { overflow-wrap: normal; } .scroll td:first-child { min-width: 240px; overflow-wrap: anywhere; }
th, td { text-align: left; padding: 5px 10px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; } .n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
summary { cursor: pointer; color: var(--soft); } pre { overflow: auto; max-height: 480px; font-size: 12px; overflow-wrap: normal;
  background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px; }
.facts th { width: 34%; } td details { max-width: 300px; overflow-wrap: anywhere; }
@media (max-width: 640px) { body { padding: 16px 14px 40px; } .row { grid-template-columns: 1fr 84px; }
  .label { grid-column: 1 / -1; padding: 6px 0 0; } .label:empty, .near { display: none; } h1 { font-size: 22px; } }
""" + "".join(f".part{i} {{ fill: var(--p{i}); background: var(--p{i}); }}" for i in range(plots.PARTS)) + "".join(
    f".key.{who} {{ background: var(--{who}); }}" for who in ("ours", "peer", "ceiling", "base"))

WHO = {"ours": "Understudy", "peer": "QEMU's own", "ceiling": "ceiling of the same run", "base": "baseline"}
RATIOS = {"ceiling": "Of the ceiling", "peer": "Beside QEMU's own migration", "base": "Beside the baseline"}


def short(title, group):
    """What a title says beyond the name of its group."""
    rest = title[len(group):] if title.startswith(group) else title[:-len(group)] if title.endswith(group) else title
    return rest.strip(" ,:") or title


def common(titles):
    """The words with which all begin, up to a comma or colon."""
    start = os.path.commonprefix(titles) if len(titles) > 1 else ""
    return start[:max(start.rfind(", "), start.rfind(": ")) + 1].strip(" ,:")


def legend(whos):
    return '<div class="legend">' + "".join(f'<span><i class="key {who}"></i>{text(WHO[who])}</span>' for who in whos) + "</div>"


def box(title, *inside):
    return f'<div class="box"><h3>{text(title)}</h3>' + "".join(inside) + "</div>"


def section(title, note, *boxes):
    return f'<section><h2>{text(title)}</h2><p class="note">{text(note)}</p>' + "".join(boxes) + "</section>" if any(boxes) else ""


def grouped(items, key):
    found = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def ratio_boxes(document):
    """A box for each side that is compared with; in it the same figure of ours beside all others."""
    for who, ratios in grouped(document["ratios"], lambda ratio: (ratio["who"], ratio["better"])).items():
        better = "longer is better" if who[1] == "higher" else "shorter is better"
        inside = []
        by_figure = grouped(ratios, lambda ratio: ratio["of"])
        if all(len(rows) == 1 for rows in by_figure.values()):
            by_figure = {None: ratios}
        for rows in by_figure.values():
            start = common([ratio["title"] for ratio in rows]) if len(by_figure) > 1 else ""
            if start:
                inside.append(f"<h3>{text(start)}</h3>")
            inside.append(plots.bars([(short(ratio["title"], start) if start else ratio["title"], ratio) for ratio in rows]))
        yield box(f"{RATIOS[who[0]]}: {better}", *inside)


def figure_boxes(document):
    for (group, unit), rows in grouped(document["figures"], lambda figure: (figure["group"], figure["unit"])).items():
        whos = list(dict.fromkeys(figure["who"] for figure in rows))
        key = legend(whos) if len(whos) > 1 else ""
        if all("x" in figure for figure in rows):
            yield box(group, key, plots.curves(rows, unit), f'<p class="note">along x: {text(rows[0]["x_title"])}</p>')
        elif len(rows) > 1 or len(rows[0]["samples"]) > 1:
            yield box(group, key, plots.strips([(short(figure["title"], group), figure) for figure in rows], unit))


def figures_table(rows):
    head = ("<tr><th>figure</th><th class=n>median</th><th class=n>least</th><th class=n>most</th><th>better</th><th>samples</th>"
            "</tr>")
    lines = []
    for figure in rows:
        samples, unit = figure["samples"], figure.get("unit", "")
        values = "".join(f"<td class=n>{text(figures.show(value, unit))}</td>" for value in
                         (statistics.median(samples), min(samples), max(samples)))
        raw = ", ".join(f"{sample:.6g}" for sample in samples)
        lines.append(f"<tr><td>{text(figure['title'])}<br><span class=soft>{text(figures.name_of(figure))}</span></td>{values}"
                     f"<td>{text(figure['better'])}</td><td>{plots.spark(samples)}<details><summary>{len(samples)}</summary>{raw} "
                     f"{text(unit)}</details></td></tr>")
    return f'<div class="scroll"><table>{head}{"".join(lines)}</table></div>'


def facts(pairs):
    lines = (f"<tr><th>{text(key)}</th><td>{text(value if isinstance(value, (str, int, float)) else json.dumps(value))}</td></tr>"
             for key, value in pairs)
    return f'<table class="facts">{"".join(lines)}</table>'


def noise_facts(document):
    for when, noise in document["environment"].get("noise", {}).items():
        yield (f"noise {when}", f"others had {100 * noise['stolen_share']:.1f} % of {noise['threads']} cores in {noise['seconds']:.1f} s, "
               f"longest at a time {noise['gaps_us']['max'] / 1000:.2f} ms; a sleep of 1 ms ended late by p50 "
               f"{noise['late_us']['p50']:.0f}, p99 {noise['late_us']['p99']:.0f}, at most {noise['late_us']['max']:.0f} us")


def environment(document):
    where = {key: value for key, value in document["environment"].items() if key != "noise"}
    where["memory_bytes"] = f"{where['memory_bytes'] / 2**30:.1f} GiB"
    where["kvm"] = figures.kvm(where["kvm"])
    for when in "load_average_before", "load_average_after":
        where[when] = ", ".join(f"{load:.2f}" for load in where[when])
    return box("The machine", facts([*where.items(), *noise_facts(document)])) + box("Options", facts(document["options"].items()))


def body(document):
    warning = figures.noise_note(document)
    yield f"<h1>understudy bench {text(document['subcommand'])}</h1>"
    yield (f'<p class="soft">version {text(document["tool"]["version"])}, {text(document["began"])}, {document["seconds"]:.0f} s<br>'
           f"{text(figures.machine(document))}</p>")
    for note in filter(None, [warning, *document.get("notes", [])]):
        yield f'<div class="warn">{text(note)}</div>'
    yield section("Ratios", "Each dot is a round, divided by the same round of the other; the bar is their median, the broken "
                  "line where both are alike.", *ratio_boxes(document))
    yield section("Timelines", "What came after what.", *(box(one["title"], plots.timelines(one)) for one in document["timelines"]))
    histograms = "".join(box(f"{one['title']} ({one['count']})", plots.columns(one)) for one in document["histograms"])
    yield section("Distributions", "How many, over a logarithmic scale.", histograms and f'<div class="pair">{histograms}</div>')
    yield section("Samples", "Each dot is a sample, the stroke their median; in curves, the stroke goes from the least to the most.",
                  *figure_boxes(document))
    yield section("Figures", "In words and by name; open the count for the samples.", figures_table(document["figures"]),
                  figures_table(document["ratios"]) if document["ratios"] else "")
    yield section("Where and how", "Compare only what was measured alike: understudy bench compare refuses the rest.",
                  environment(document))
    yield ("<section><h2>Everything</h2><details><summary>the result as JSON (understudy bench report and compare read it)</summary>"
           f"<pre>{text(json.dumps(document, indent=1))}</pre></details></section>")


def render(document):
    title = f"understudy bench {document['subcommand']}, {document['began']}"
    return ('<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; style-src \'unsafe-inline\'; img-src data:">'
            f'<link rel="icon" href="data:,"><title>{text(title)}</title><style>{STYLE}</style></head><body>\n'
            + "\n".join(body(document)) + "\n</body></html>\n")


def write(document, path):
    """-: standard output."""
    rendered = render(document)
    if path == "-":
        sys.stdout.write(rendered)
        return
    with open(path, "w") as file:
        file.write(rendered)

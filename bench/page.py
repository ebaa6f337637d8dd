# SPDX-License-Identifier: Apache-2.0
"""A result as one HTML file: plots, tables, the machine, all samples. No script, and nothing that it would have to fetch."""
import json
import os
import statistics
import sys

import figures
import plots
from plots import text

WHO = {"ours": "Understudy", "peer": "QEMU", "ceiling": "ceiling of the same run", "base": "baseline"}
RATIOS = {"ceiling": "Of the ceiling", "peer": "Beside QEMU", "base": "Beside the baseline"}


def short(title, group):
    """What a title says beyond the name of its group."""
    rest = title[len(group):] if title.startswith(group) else title[:-len(group)] if title.endswith(group) else title
    return rest.strip(" ,:") or title


def common(titles):
    """The words with which all begin, up to a comma or colon."""
    start = os.path.commonprefix(titles) if len(titles) > 1 else ""
    return start[:max(start.rfind(", "), start.rfind(": ")) + 1].strip(" ,:")


def legend(whos):
    keys = "".join(f'<span><i class="key {who}"></i>{text(WHO[who])}</span>' for who in whos)
    return f'<div class="legend">{keys}</div>'


def box(title, *inside):
    return f'<div class="box"><h3>{text(title)}</h3>' + "".join(inside) + "</div>"


def section(title, note, *boxes):
    if not any(boxes):
        return ""
    return f'<section><h2>{text(title)}</h2><p class="note">{text(note)}</p>{"".join(boxes)}</section>'


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
    head = ("<tr><th>figure</th><th class=n>median</th><th class=n>least</th><th class=n>most</th><th>better</th>"
            "<th>samples</th></tr>")
    lines = []
    for figure in rows:
        samples, unit = figure["samples"], figure.get("unit", "")
        values = "".join(f"<td class=n>{text(figures.show(value, unit))}</td>" for value in
                         (statistics.median(samples), min(samples), max(samples)))
        raw = ", ".join(f"{sample:.6g}" for sample in samples)
        lines.append(f"<tr><td>{text(figure['title'])}<br><span class=soft>{text(figures.name_of(figure))}</span></td>{values}"
                     f"<td>{text(figure['better'])}</td><td>{plots.spark(samples)}<details><summary>{len(samples)}</summary>"
                     f"{raw} {text(unit)}</details></td></tr>")
    return f'<div class="scroll"><table>{head}{"".join(lines)}</table></div>'


def facts(pairs):
    shown = [(key, value if isinstance(value, (str, int, float)) else json.dumps(value)) for key, value in pairs]
    lines = "".join(f"<tr><th>{text(key)}</th><td>{text(value)}</td></tr>" for key, value in shown)
    return f'<table class="facts">{lines}</table>'


def noise_facts(document):
    for when, noise in document["environment"].get("noise", {}).items():
        late = noise["late_us"]
        yield (f"noise {when}", f"others had {100 * noise['stolen_share']:.1f} % of {noise['threads']} cores in "
               f"{noise['seconds']:.1f} s, longest at a time {noise['gaps_us']['max'] / 1000:.2f} ms; a sleep of 1 ms ended late "
               f"by p50 {late['p50']:.0f}, p99 {late['p99']:.0f}, at most {late['max']:.0f} us")


def environment(document):
    where = {key: value for key, value in document["environment"].items() if key != "noise"}
    where["memory_bytes"] = f"{where['memory_bytes'] / 2**30:.1f} GiB"
    where["kvm"] = figures.kvm(where["kvm"])
    for when in "load_average_before", "load_average_after":
        where[when] = ", ".join(f"{load:.2f}" for load in where[when])
    return (box("The machine", facts([*where.items(), *noise_facts(document)]))
            + box("Options", facts(document["options"].items())))


def body(document):
    warning = figures.noise_note(document)
    yield f"<h1>understudy bench {text(document['subcommand'])}</h1>"
    what = f"version {document['tool']['version']}, {document['began']}, {document['seconds']:.0f} s"
    yield f'<p class="soft">{text(what)}<br>{text(figures.machine(document))}</p>'
    for note in filter(None, [warning, *document.get("notes", [])]):
        yield f'<div class="warn">{text(note)}</div>'
    yield section("Ratios", "Each dot is a round, divided by the same round of the other; the bar is their median, the broken "
                  "line where both are alike.", *ratio_boxes(document))
    yield section("Timelines", "What came after what.",
                  *(box(one["title"], plots.timelines(one)) for one in document["timelines"]))
    histograms = "".join(box(f"{one['title']} ({one['count']})", plots.columns(one)) for one in document["histograms"])
    yield section("Distributions", "How many, over a logarithmic scale.",
                  histograms and f'<div class="pair">{histograms}</div>')
    yield section("Samples", "Each dot is a sample, the stroke their median; in curves, the stroke goes from the least to the "
                  "most.", *figure_boxes(document))
    yield section("Figures", "In words and by name; open the count for the samples.", figures_table(document["figures"]),
                  figures_table(document["ratios"]) if document["ratios"] else "")
    yield section("Where and how", "Compare only what was measured alike: understudy bench compare refuses the rest.",
                  environment(document))
    yield ("<section><h2>Everything</h2><details><summary>the result as JSON (understudy bench report and compare read it)"
           f"</summary><pre>{text(json.dumps(document, indent=1))}</pre></details></section>")


HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">"""


def render(document):
    title = f"understudy bench {document['subcommand']}, {document['began']}"
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "page.css")) as file:
        style = file.read()
    return (f"{HEAD}\n<title>{text(title)}</title>\n<style>\n{style}</style></head><body>\n" + "\n".join(body(document))
            + "\n</body></html>\n")


def write(document, path):
    """-: standard output."""
    rendered = render(document)
    if path == "-":
        sys.stdout.write(rendered)
        return
    with open(path, "w") as file:
        file.write(rendered)

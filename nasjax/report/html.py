"""One self-contained web page about a run."""

from __future__ import annotations

import json
import os
from html import escape
from pathlib import Path
from typing import Any

from nasjax.report.conflict import conflict_curve, conflict_plot
from nasjax.report.formats import format_accuracy, format_flops, format_params, is_number
from nasjax.report.oracle import anytime, format_oracle, oracle_plot
from nasjax.report.page import BODY, ORACLE, SECTION, STYLE, TABLE_HINT
from nasjax.report.plots import (
    accuracy_size_plot,
    architecture_plot,
    mixture_plot,
    training_plot,
)
from nasjax.report.record import Run
from nasjax.report.second_stage import population_plot, predictors, probes_plot
from nasjax.report.style import GRID, INK, MUTED, PAPER, require_matplotlib
from nasjax.report.tables import html_table

_MEASURES = (
    ("retrained", "when retrained"),
    ("fine_tuned", "when fine-tuned"),
    ("inherited", "with inherited weights"),
)


def write_report(workdir: str | Path) -> Path:
    """Writes ``report.html`` into a run's working directory.

    Shows whatever the run has recorded so far and says what is not there yet. The page needs no
    other file and no network; writing it again from the same files gives the same bytes. The file
    is replaced in one step, so that a browser never sees half of it.

    Args:
        workdir: Working directory of the run.

    Returns:
        Path of the page.

    Raises:
        FileNotFoundError: If there is no such directory.
        ImportError: If matplotlib is missing.
    """
    require_matplotlib()
    path = Path(workdir) / "report.html"
    text = _page(Run.load(workdir))
    part = path.with_name(f".report.html.{os.getpid()}")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def headline(run: Run) -> str:
    """One sentence in plain words on what the run has achieved so far."""
    rows = {str(row.get("network")): row for row in run.rows}
    found = rows.get("found", {})
    size = found if is_number(found.get("params")) else run.arch
    if not size:
        return _progress(run)
    text = f"Found a network of {format_params(size.get('params'))} parameters"
    if is_number(size.get("flops")):
        text += f" and {format_flops(size['flops'])} multiply-adds"
    others = [(n, r) for n, r in rows.items() if n.startswith("random")]
    for key, words in _MEASURES:
        if is_number(found.get(key)):
            text += f": {format_accuracy(found[key])} {words}"
            for _, row in others[:1]:
                if is_number(row.get(key)):
                    text += f", {format_accuracy(row[key])} for random networks of the same space"
            return text + "."
    return text + "; its accuracy has not been measured yet."


def _progress(run: Run) -> str:
    search = run.lines("search")
    if not search:
        return "Nothing has been recorded yet."
    text = f"The search has reached step {search[-1]['step']:,}"
    if is_number(search[-1].get("epoch")):
        text += f" (epoch {search[-1]['epoch']:g})"
    _, accuracies = run.series("search", "val_accuracy")
    if accuracies:
        text += f" with {format_accuracy(accuracies[-1])} validation accuracy"
    return text + "; it has not picked its network yet."


def _facts(run: Run) -> list[tuple[str, str]]:
    facts = []
    if run.space_name:
        facts.append(("search space", escape(run.space_name)))
    size = str(run.space.get("size") or "")
    if size.isdigit():
        # Written by digits: sizes go far beyond what a float can hold.
        short = f"{int(size):,}" if len(size) < 7 else ""
        power = f"{size[0]}.{size[1:2]} &times; 10<sup>{len(size) - 1}</sup>"
        facts.append(("networks in the space", short or f"about {power}"))
    search = run.lines("search")
    if search:
        facts.append(("search steps", f"{search[-1]['step']:,}"))
    _, speeds = run.series("search", "steps_per_second")
    if speeds:
        facts.append(("search steps per second", f"{sorted(speeds)[len(speeds) // 2]:.3g}"))
    if is_number(run.result.get("test_examples")):
        facts.append(("test examples", f"{run.result['test_examples']:,}"))
    if run.result.get("device"):
        facts.append(("device", escape(str(run.result["device"]))))
    return facts


def _figure(svg: str, caption: str) -> str:
    # Exchanges the neutral colours for the page's own, which follow the light or dark theme.
    for colour, name in ((INK, "ink"), (MUTED, "muted"), (GRID, "grid"), (PAPER, "paper")):
        svg = svg.replace(colour, f"var(--{name})")
    text = f"<figcaption>{caption}</figcaption>\n" if caption else ""
    return f"<figure>\n{svg}{text}</figure>"


def _page(run: Run) -> str:
    found = bool(run.arch) or any(row.get("network") == "found" for row in run.rows)
    which = "The network found." if found else "The most probable network at the last step."
    which = which if run.architecture else ""
    title = f"Architecture search: {run.space_name or run.name}"
    facts = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in _facts(run))
    layered = any(
        isinstance(value, list) and name not in run.nodes
        for name, value in run.architecture.items()
    )
    whole = "multiply-adds"  # Not to be broken at its hyphen.
    notes = "".join(f"<li>{escape(note)}</li>" for note in run.notes)
    return BODY.format(
        style=STYLE,
        title=escape(title),
        run=escape(run.name),
        headline=escape(headline(run)).replace(whole, f'<span class="whole">{whole}</span>'),
        facts=f"<dl>{facts}</dl>" if facts else "",
        notes=f'<ul class="notes">{notes}</ul>' if notes else "",
        table=html_table(run.rows) + (TABLE_HINT if run.rows else ""),
        architecture=_figure(
            architecture_plot(run.architecture, run.choices, layers=run.layers, nodes=run.nodes),
            f"{which} The height of a box is the value picked, relative to the largest option."
            if layered
            else which,
        ),
        size=_figure(
            accuracy_size_plot(run),
            "Measured on the test examples. Sampled networks use the weights they inherit from "
            "the super-network; bars are one standard deviation."
            if run.rows or run.samples
            else "",
        ),
        mixture=_mixture(run),
        training=_figure(
            training_plot(run),
            "Entropy is 1 while all options are equally probable and 0 when every choice is made. "
            "Expected sizes are averages over the mixture."
            if run.lines("search")
            else "",
        ),
        oracle=_oracle(run),
        second=_second(run),
        config=_config(run),
        versions=_versions(run),
    )


def _oracle(run: Run) -> str:
    """A section on what a table of true accuracies says; empty where there was none."""
    judged = run.result.get("oracle")
    if not anytime(run)[0] and not judged:
        return ""
    text = escape(format_oracle(judged)) if isinstance(judged, dict) else ""
    caption = "The architecture that led at each logged step, as the table has it. The search "
    caption += "does not see the table."
    return ORACLE.format(text=text, figure=_figure(oracle_plot(run), caption))


def _mixture(run: Run) -> str:
    """How the mixture came about; empty for a super-network trained by sampling, without one."""
    lines = run.lines("search")
    if run.history or any("probes" in r and "mixture" not in r for r in lines):
        return ""
    caption = (
        "Per layer: the colour is the most probable option, the fainter the less certain; "
        "the option that leads at the end stands at the right. Layer 1 is next to the input."
    )
    figure = _figure(mixture_plot(run), caption if run.layers else "")
    return SECTION.format(title="How the choices were made", figure=figure)


def _second(run: Run) -> str:
    """Sections on what was evaluated, and on sub-networks seen on the way; empty without either."""
    text = ""
    if run.history:
        caption = "Accuracy with inherited weights on training images that trained no weights. "
        figure = _figure(population_plot(run), caption + escape(" ".join(predictors(run))))
        text += SECTION.format(title="The search of the trained super-network", figure=figure)
    if any("probes" in line for line in run.lines("search")):
        caption = "Inherited weights, on training images that do not train the weights."
        figure = _figure(probes_plot(run), caption)
        text += SECTION.format(title="Sub-networks while the weights trained", figure=figure)
    if conflict_curve(run)[0]:
        caption = "Tensors whose gradients of the largest network and of the others point apart, "
        caption += "before any projection; at one half, dashed, chance alone decides."
        figure = _figure(conflict_plot(run), caption)
        text += SECTION.format(title="Gradients in conflict", figure=figure)
    return text


def _config(run: Run) -> str:
    if not run.config:
        return "<p>No settings recorded.</p>"
    text = escape(json.dumps(run.config, indent=2, ensure_ascii=False))
    return f"<details><summary>Settings of the run</summary><pre>{text}</pre></details>"


def _versions(run: Run) -> str:
    versions: Any = run.result.get("versions")
    parts = [f"{n} {v}" for n, v in versions.items()] if isinstance(versions, dict) else []
    return escape(" · ".join(parts)) or "Versions not recorded yet."

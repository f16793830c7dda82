"""The HTML of a finished reproduction: an index with rates, figures and tables, and a page for each notebook.

Every page stands alone: styles and images are inside it and nothing is fetched, so the folder opens from disk
without a network and can be sent as it is. Formulas stay as they were typed, because typesetting them would
need a script from elsewhere.
"""

from __future__ import annotations

import base64
import csv
import html
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import nbformat
import pandas as pd
from nbconvert import HTMLExporter

from dagger_nb import paths
from dagger_nb.evaluation.tables import fraction, rates

MAX_ROWS = 200  # of one table on the index page; the link leads to the whole file

_DIGITS = re.compile(r"-?\d+\.\d{5,}(e-?\d+)?")
_TEMPLATE = """{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block jupyter_widgets -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
"""

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0; font-size: 0.9rem }
td, th { border-bottom: 1px solid #ccc; padding: 0.25rem 0.75rem; text-align: left }
details { margin: 0.5rem 0; overflow-x: auto } figure { margin: 2rem 0 } img { max-width: 100% } a { color: #0072b2 }"""


def build(executed: Sequence[Path], output: Path, *, title: str, results: Path, figures: Path) -> Path:
    """Write `output`/index.html and one page for each executed notebook; return the index.

    Args:
        executed: executed notebooks, in the order of the story.
        results: folder whose *.csv tables are shown; figures: folder whose *.png pictures are shown.
    """
    paths.writable(output)
    pages = [notebook_page(notebook, output) for notebook in executed]
    titles = [html.escape(_title(notebook)) for notebook in executed]
    links = "".join(f'<li><a href="{p.name}">{title}</a></li>' for p, title in zip(pages, titles, strict=True))
    tables = "".join(_table(path, output) for path in sorted(results.glob("*.csv")))
    pictures = "".join(_figure(path, output) for path in sorted(figures.glob("*.png")))
    body = (
        f"<h1>{html.escape(title)}</h1>{_rates(results / 'outcomes.csv')}<h2>Notebooks</h2><ul>{links}</ul>"
        f"<h2>Figures</h2>{pictures or '<p>No figures were written.</p>'}"
        f"<h2>Tables</h2>{tables or '<p>No tables were written.</p>'}"
    )
    index = output / "index.html"
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    index.write_text(f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>{body}</body></html>\n', "utf-8")
    return index


def notebook_page(notebook: Path, output: Path) -> Path:
    """One executed notebook as one HTML file with everything inside."""
    exporter = HTMLExporter(raw_template=_TEMPLATE, embed_images=True)
    content, _ = exporter.from_filename(str(notebook))
    page = output / f"{notebook.stem}.html"
    page.write_text(content, "utf-8")
    return page


def _title(notebook: Path) -> str:
    """The first heading of a notebook, or else its name."""
    for cell in nbformat.read(notebook, as_version=4).cells:
        if cell.cell_type == "markdown" and cell.source.startswith("# "):
            return cell.source.splitlines()[0][2:].strip()
    return notebook.stem


def _rates(path: Path) -> str:
    """Tasks resolved by recipe and exam, with intervals; empty where nothing was graded."""
    if not path.is_file():
        return ""
    outcomes = pd.read_csv(path)
    found = rates(outcomes.assign(split=outcomes.exam))
    cells = found.assign(cell=[fraction(row) for row in found.itertuples()])
    wide = cells.pivot(index="recipe", columns="split", values="cell").fillna("")
    rows = [_row(["recipe", *wide.columns], "th"), *(_row([name, *row], "td") for name, row in wide.T.items())]
    return f"<h2>Tasks resolved, with 95 % intervals</h2><table>{''.join(rows)}</table>"


def _table(path: Path, output: Path) -> str:
    """A folded table; the file has every digit."""
    with path.open(newline="", encoding="utf-8") as lines:
        head, *rows = list(csv.reader(lines)) or [[]]
    shown = [_row(head, "th"), *(_row(map(_short, row), "td") for row in rows[:MAX_ROWS])]
    summary = f"<summary>{_link(path, output)}, {len(rows)} rows</summary>"
    return f"<details>{summary}<table>{''.join(shown)}</table></details>"


def _short(value: str) -> str:
    """A fraction of many digits with four of them, and anything else as it is.

    >>> _short("0.3541666666666667"), _short("16"), _short("sft")
    ('0.3542', '16', 'sft')
    """
    return f"{float(value):.4g}" if _DIGITS.fullmatch(value) else value


def _row(values: Iterable[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(value)}</{tag}>" for value in values) + "</tr>"


def _figure(path: Path, output: Path) -> str:
    image = base64.b64encode(path.read_bytes()).decode()
    others = [path.with_suffix(suffix) for suffix in (".pdf", ".json")]
    links = ", ".join(_link(other, output) for other in others if other.is_file())
    name = html.escape(path.stem)
    picture = f'<img alt="{name}" src="data:image/png;base64,{image}">'
    return f"<figure>{picture}<figcaption>{name} {links}</figcaption></figure>"


def _link(path: Path, output: Path) -> str:
    return f'<a href="{html.escape(os.path.relpath(path, output))}">{html.escape(path.name)}</a>'

"""The frame of a report page: head, style, tables. Everything is inside the one file."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

# Okabe and Ito's colours (2008); on a dark ground the lighter ones of them, which keep a contrast of 4.5 and more.
_STYLE = """
:root{color-scheme:light dark;--ground:#fff;--ink:#1b1f24;--soft:#59636e;--line:#d8dee4;--shade:#f6f8fa;--good:#00714f;--bad:#b23a00;
--plain:#0072b2;--c0:#0072b2;--c1:#b85400;--c2:#00714f;--c3:#a8447e;--c4:#1f7fae;--c5:#7a6a00}
@media(prefers-color-scheme:dark){:root{--ground:#0d1117;--ink:#e6edf3;--soft:#9da7b1;--line:#30363d;--shade:#161b22;--good:#2fc295;
--bad:#ff8a50;--plain:#56b4e9;--c0:#56b4e9;--c1:#e69f00;--c2:#2fc295;--c3:#e79cc5;--c4:#8fd0f5;--c5:#f0e442}}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,sans-serif;max-width:92rem;margin:1.5rem auto;padding:0 1rem;color:var(--ink);background:var(--ground)}
h1{font-size:1.5rem;margin:.2rem 0}h2{font-size:1.15rem;margin:1.6rem 0 .5rem}code{font-size:.85em;overflow-wrap:anywhere}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:1rem;margin:1rem 0}
figure{margin:0;padding:.7rem;border:1px solid var(--line);border-radius:6px;background:var(--shade);min-width:0}
figcaption{font-weight:600;margin-bottom:.3rem}figure p,.note{color:var(--soft);margin:.3rem 0;font-size:.88rem}
figure>svg{width:100%;height:auto;display:block}
.table{overflow-x:auto;border:1px solid var(--line);border-radius:6px}table{border-collapse:collapse;width:100%;font-size:.88rem}
th,td{padding:.35rem .6rem;border-bottom:1px solid var(--line);text-align:left;white-space:nowrap}td:last-child{white-space:normal;
min-width:16rem}th{background:var(--shade);position:sticky;top:0}td.n{text-align:right;font-variant-numeric:tabular-nums}
tr.refused td,tr.empty td{color:var(--bad)}tr.floor td{font-style:italic}tr:last-child td{border-bottom:0}
text{fill:var(--ink);font:13px system-ui,sans-serif}text.tick{fill:var(--soft);font-size:12px}text.label{font-size:12px}
.grid{stroke:var(--line);stroke-width:1}.axis{stroke:var(--soft);stroke-width:1}.front{fill:none;stroke-width:2;opacity:.7}
.f0{stroke:var(--c0)}.f1{stroke:var(--c1)}.f2{stroke:var(--c2)}.f3{stroke:var(--c3)}.f4{stroke:var(--c4)}.f5{stroke:var(--c5)}
.s0{fill:var(--c0)}.s1{fill:var(--c1)}.s2{fill:var(--c2)}.s3{fill:var(--c3)}.s4{fill:var(--c4)}.s5{fill:var(--c5)}
rect.good{fill:var(--good)}rect.bad{fill:var(--bad)}rect.plain{fill:var(--plain)}rect.mark{fill:var(--ink)}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.2rem 1rem;margin:.4rem 0 0;padding:0;font-size:.88rem}
.legend svg{display:inline;vertical-align:-2px}
"""


def page(title: str, parts: Iterable[str]) -> str:
    """A whole HTML document."""
    return ('<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>\n<h1>{html.escape(title)}</h1>\n"
            + "\n".join(part for part in parts if part) + "\n</body></html>\n")


def charts(figures: Iterable[str]) -> str:
    """Figures side by side where there is room; nothing when there is none."""
    found = "".join(figures)
    return f'<div class="charts">{found}</div>' if found else ""


def table(headings: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]], *, numbers: Sequence[int] = (), name: str = "") -> str:
    """A table that scrolls by itself on a narrow screen.

    Args:
        rows: a class of the style and the cells, each. numbers: columns that are aligned right.
    """
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in headings)
    body = "".join(f'<tr class="{html.escape(kind)}">' + "".join(
        f"<td{' class=n' if index in numbers else ''}>{html.escape(cell)}</td>" for index, cell in enumerate(cells)) + "</tr>"
        for kind, cells in rows)
    named = f' class="{html.escape(name)}"' if name else ""
    return f'<div class="table"><table{named}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def notes(sentences: Iterable[str]) -> str:
    return "".join(f'<p class="note">{html.escape(sentence)}</p>' for sentence in sentences)

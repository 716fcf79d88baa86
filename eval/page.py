"""Tables as Markdown, and as one self-contained page whose columns sort on a click."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape as escape_marks

from foundation.plain_text import markdown, plain


@dataclass(frozen=True)
class Cell:
    """`value` is what a numeric cell is sorted by; `note` stands below the text, or behind it in Markdown."""

    text: str
    value: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Sheet:
    title: str
    header: list[str]
    rows: list[list[Cell]]
    note: str


def to_markdown(sheets: Sequence[Sheet]) -> str:
    parts = []
    for sheet in sheets:
        lines = [_markdown_row(sheet.header), "|" + "---|" * len(sheet.header)]
        lines += [_markdown_row([f"{cell.text} {cell.note}".strip() for cell in row]) for row in sheet.rows]
        parts.append("\n".join([f"## {markdown(sheet.title)}", "", *lines, "", sheet.note, ""]))
    return "\n".join(parts)


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(markdown, cells))} |"


_STYLE = """
:root{color-scheme:light dark}
body{font:15px/1.4 system-ui,sans-serif;margin:2rem auto;max-width:90rem;padding:0 1rem}
.scroll{overflow:auto;max-height:85vh;width:fit-content;max-width:100%;border:1px solid #8884}
table{border-collapse:separate;border-spacing:0;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .7rem;border-bottom:1px solid #8883;text-align:right;white-space:nowrap}
th{position:sticky;top:0;background:light-dark(#f2f2f2,#333)}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:light-dark(#fafafa,#262626)}
th:first-child{z-index:1}
th.text,td.text{text-align:left}
td{vertical-align:top}
small{opacity:.75}
th button{all:unset;cursor:pointer;font-weight:600}
th button:focus-visible{outline:2px solid}
th[aria-sort] button::after{content:" ▲"}
th[aria-sort=descending] button::after{content:" ▼"}
@media(max-width:40rem){td:first-child{min-width:9rem;max-width:9rem;white-space:normal;overflow-wrap:anywhere}}
p{max-width:70rem;color:light-dark(#555,#bbb)}
"""
# Numbers before texts before empty cells, whatever the direction.
_SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const rank = cell => cell.dataset.value ? 0 : cell.textContent ? 1 : 2;
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const order = head.ariaSort === "descending" ? "ascending" : head.ariaSort ? "descending" :
      body.rows[0].cells[column].dataset.value ? "descending" : "ascending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const rows = [...body.rows].sort((first, second) => {
      const a = first.cells[column], b = second.cells[column];
      if (rank(a) !== rank(b)) return rank(a) - rank(b);
      return sign * (rank(a) ? a.textContent.localeCompare(b.textContent) : a.dataset.value - b.dataset.value);
    });
    body.append(...rows);
  }));
}
"""


def escape(text: str) -> str:
    return escape_marks(plain(text))


def to_html(title: str, sheets: Sequence[Sheet]) -> str:
    parts = [
        '<!doctype html>\n<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style>\n<h1>{escape(title)}</h1>",
    ]
    for sheet in sheets:
        numeric = [any(row[column].value is not None for row in sheet.rows) for column in range(len(sheet.header))]
        head = "".join(
            f'<th scope="col"{"" if is_numeric else " class=text"}><button>{escape(name)}</button></th>'
            for name, is_numeric in zip(sheet.header, numeric, strict=True)
        )
        body = "\n".join("<tr>" + "".join(map(_html_cell, row)) + "</tr>" for row in sheet.rows)
        parts.append(f"<h2>{escape(sheet.title)}</h2>\n<p>{escape(sheet.note)}</p>")
        parts.append(
            f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'
        )
    return "\n".join([*parts, f"<script>{_SCRIPT}</script></html>\n"])


def _html_cell(cell: Cell) -> str:
    if cell.value is None:
        return f'<td class="text">{escape(cell.text)}</td>'
    note = f"<br><small>{escape(cell.note)}</small>" if cell.note else ""
    return f'<td data-value="{cell.value!r}">{escape(cell.text)}{note}</td>'

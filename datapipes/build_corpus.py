"""Builds the corpus that the repository ships (datapipes/corpus) from documentation that Debian distributes.

    python -m datapipes.build_corpus ROOT datapipes/corpus

ROOT is where the packages that datapipes/corpus/README.md names were unpacked. The output is a pure function of them.
Nothing here runs in data preparation.
"""

import argparse
import hashlib
import json
import lzma
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import lxml.html  # type: ignore[import-untyped]

MIN_DOCUMENT_CHARS, MAX_DOCUMENT_CHARS = 200, 20_000
HELDOUT_ONE_IN = 20  # pages; a page is held out in every language, so that no translation of it is trained on
SHINGLE_WORDS = 8
MAX_SEEN_SHINGLES = 0.5  # a document that shares more of its shingles with earlier ones is a near-duplicate
# Sizes that keep a checkout small and still give the tiny recipe about one epoch.
MAX_ENGLISH_CHARS = {"python-docs": 2_500_000, "postgresql": 1_300_000, "sqlite": 1_300_000}
MAX_LANGUAGE_CHARS, MAX_CODE_CHARS = 600_000, 2_600_000

# Source name -> (handbook folder, GNOME help folder). "C" is GNOME's English.
LANGUAGES = {
    "en": ("en-US", "C"),
    "fra": ("fr-FR", "fr"),
    "deu": ("de-DE", "de"),
    "spa": ("es-ES", "es"),
    "ita": ("it-IT", "it"),
    "por": ("pt-BR", "pt_BR"),
}
STOPWORDS = {
    "en": "the of and to in is that for it with as be this by are or from which you can not an have",
    "fra": "le la les de des du et à un une est que pour dans il qui en par sur ne pas au vous ce avec",
    "deu": "der die das und zu den von mit ist ein eine auf für nicht sich des dem es im werden sie wird oder",
    "spa": "el la los las de y que en un una es por con para se del al no su como lo más o este",
    "ita": "il la i le di e che in un una è per con non si del della da dei al sono come più questo",
    "por": "o a os as de e que em um uma é para com não se do da dos no na por como mais ou",
}

PYTHON_DOCS = ("tutorial", "faq", "howto", "reference", "using", "extending", "library", "whatsnew")
# Release notes, indices, and pages that are all tables.
POSTGRESQL_EXCLUDED = re.compile(r"^(release|bookindex|index|catalog-|features|errcodes|biblio|acronyms|legalnotice)")
SQLITE_EXCLUDED = re.compile(r"^(doc|changes|chronology|toc|keyword|sitemap|books|cves|pragma|th3|news|hirely)")

# Parts of the standard library that read like application code; tables of data and tests are left out.
CODE_PACKAGES = (
    *("asyncio", "collections", "concurrent", "dbm", "email", "html", "http", "importlib", "json"),
    *("logging", "re", "sqlite3", "tomllib", "unittest", "urllib", "wsgiref", "xmlrpc", "zoneinfo"),
)
CODE_EXCLUDED = re.compile(r"/test/|^_sysconfigdata|^antigravity|^this\.py|html/entities|^__p?hello__")

Blocks = list[tuple[str, str]]  # (kind, text) with kind "heading", "paragraph" or "verbatim"


@dataclass(frozen=True)
class Page:
    """One page, chapter or file of a source: the unit of the held-out split."""

    key: str  # the same for all translations of a page
    name: str  # unique within one output file
    blocks: Blocks


class BlockReader:
    """Text blocks of an XML tree: XHTML and GNOME's Mallard share enough element names for one reader."""

    HEADINGS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6", "title"})
    VERBATIM = frozenset({"pre", "screen"})
    CONTAINERS = frozenset(
        {"body", "page", "section", "div", "p", "ul", "ol", "dl", "li", "dt", "dd", "blockquote", "header", "hgroup"}
        | {"steps", "list", "terms", "item", "note", "example", "synopsis", "listing", "quote", "tree"}
    )
    # Navigation, credits, pictures, and tables, whose cells make no sentences.
    SKIPPED = frozenset(
        {"head", "info", "table", "img", "figure", "media", "links", "comment", "footer", "nav"}
        | {"script", "style", "svg"}
    )
    SKIPPED_CLASSES = frozenset(
        {"docnav", "indexterm", "toc", "figure", "mediaobject", "footnote", "footnotes", "author", "table"}
        | {"headerlink", "navheader", "navfooter", "nosearch", "fancy_title", "fancy_toc"}
        | {"toctree-wrapper", "contents"}
    )
    SKIPPED_IDS = frozenset({"banner", "title"})

    def __init__(self) -> None:
        self.blocks: Blocks = []
        self._inline = ""
        self._marker = ""

    def read(self, element: ElementTree.Element) -> Blocks:
        self._walk(element)
        self._flush()
        return self.blocks

    def _walk(self, element: ElementTree.Element, number: int = 0) -> None:
        tag = _local_name(element.tag)
        if self._skipped(element, tag):
            return
        if tag in self.VERBATIM:
            self._flush()
            text = "".join(element.itertext()).strip("\n").expandtabs(4).rstrip()
            self.blocks.append(("verbatim", "\n".join(line.rstrip() for line in text.split("\n"))))
        elif tag in self.HEADINGS:
            self._flush()
            self._inline = "".join(element.itertext()).rstrip("¶")
            self._flush("heading")
        elif tag in self.CONTAINERS:
            self._flush()
            if tag in ("li", "item"):
                self._marker = f"{number}. " if number else "- "
            self._children(element, ordered=tag in ("ol", "steps"))
            self._flush()
            self._marker = ""
        else:
            self._children(element, ordered=False)

    def _children(self, element: ElementTree.Element, ordered: bool) -> None:
        self._inline += element.text or ""
        number = 0
        for child in element:
            number += ordered and _local_name(child.tag) in ("li", "item")
            self._walk(child, number)
            self._inline += child.tail or ""

    def _skipped(self, element: ElementTree.Element, tag: str) -> bool:
        classes = set(element.get("class", "").split())
        return tag in self.SKIPPED or bool(classes & self.SKIPPED_CLASSES) or element.get("id") in self.SKIPPED_IDS

    def _flush(self, kind: str = "paragraph") -> None:
        text = " ".join(self._inline.split())
        self._inline = ""
        if kind == "heading":
            text = re.sub(r"^(Chapter |Chapitre |Kapitel |Capítulo |Capitolo )?([A-Z]|\d+)\.(\d+\.)*\s+", "", text)
        if text:
            self.blocks.append((kind, self._marker + text))
            self._marker = ""


def _local_name(tag: object) -> str:
    return tag.rpartition("}")[2] if isinstance(tag, str) else "comment"


def _html_page(path: Path, key: str, main: str = "//body") -> Page:
    parser = lxml.html.HTMLParser(remove_comments=True, encoding="utf-8")
    elements = lxml.html.parse(str(path), parser).xpath(main)
    return Page(key, key, BlockReader().read(elements[0]) if elements else [])


def handbook(folder: Path) -> Iterator[Page]:
    for path in sorted(folder.glob("*.html")):
        if path.stem != "index":
            yield _html_page(path, f"handbook/{path.stem}")


def gnome_help(folder: Path) -> Iterator[Page]:
    for path in sorted(folder.rglob("*.page")):
        key = f"gnome-help/{path.parent.name}/{path.stem}"
        yield Page(key, key, BlockReader().read(ElementTree.parse(path).getroot()))


def python_docs(folder: Path) -> Iterator[Page]:
    for path in sorted(path for part in PYTHON_DOCS for path in (folder / part).glob("*.html")):
        yield _html_page(path, f"python-docs/{path.parent.name}/{path.stem}", "//div[@role='main']")


def postgresql_docs(folder: Path) -> Iterator[Page]:
    for path in sorted(folder.glob("*.html")):
        if not POSTGRESQL_EXCLUDED.search(path.name):
            yield _html_page(path, f"postgresql/{path.stem}")


def sqlite_docs(folder: Path) -> Iterator[Page]:
    for path in sorted(folder.glob("*.html")):
        if not SQLITE_EXCLUDED.search(path.name):
            yield _html_page(path, f"sqlite/{path.stem}")


def python_code(lib: Path) -> Iterator[Page]:
    """Modules of the standard library, cut (when too long) between top-level statements."""
    paths = [*lib.glob("*.py"), *(path for package in CODE_PACKAGES for path in (lib / package).rglob("*.py"))]
    for path in sorted(paths):
        name = path.relative_to(lib).as_posix()
        if CODE_EXCLUDED.search(name):
            continue
        source = path.read_text(encoding="utf-8").expandtabs(4)
        parts = re.split(r"\n\n\n+(?=[@\w#\"])", "\n".join(line.rstrip() for line in source.split("\n")))
        yield Page(f"python/{name}", f"python/{name}", [("heading", part.strip("\n")) for part in parts])


def clean(text: str) -> str:
    """NFC, plain spaces, no invisible characters; newlines stay."""
    text = unicodedata.normalize("NFC", text)
    text = re.sub(r"[\u00a0\u2002-\u200a\u202f]", " ", text)
    return re.sub(r"[\u200b-\u200f\u2060\ufeff\u00ad\x00-\x08\x0b-\x1f\x7f]", "", text)


def in_language(page: Page, language: str) -> Page:
    """The page without the paragraphs that its translators left in English."""
    own, english = (frozenset(STOPWORDS[code].split()) for code in (language, "en"))

    def foreign(kind: str, text: str) -> bool:
        words = re.findall(r"[^\W\d_]+", text.lower())
        in_english, in_own = sum(word in english for word in words), sum(word in own for word in words)
        return kind != "verbatim" and in_english > in_own

    return Page(page.key, page.name, [block for block in page.blocks if not foreign(*block)])


def documents(page: Page, separator: str) -> Iterator[dict[str, str]]:
    """Cut a page into documents of at most MAX_DOCUMENT_CHARS, at headings when the piece is long enough."""
    pieces: list[list[str]] = [[]]
    length = 0
    for kind, raw in page.blocks:
        text = clean(raw)
        full = length + len(text) > MAX_DOCUMENT_CHARS
        if pieces[-1] and (full or (kind == "heading" and length > MAX_DOCUMENT_CHARS // 2)):
            pieces.append([])
            length = 0
        pieces[-1].append(text)
        length += len(text) + len(separator)
    for number, piece in enumerate(pieces):
        text = separator.join(piece).strip()
        if MIN_DOCUMENT_CHARS <= len(text) <= MAX_DOCUMENT_CHARS:
            yield {"id": page.name if len(pieces) == 1 else f"{page.name}#{number}", "text": text}


def shingles(text: str) -> set[int]:
    words = re.findall(r"\w+", text.lower())
    count = max(1, len(words) - SHINGLE_WORDS + 1)
    return {hash(tuple(words[start : start + SHINGLE_WORDS])) for start in range(count)}


def without_near_duplicates(rows: Iterable[dict[str, str]], seen: set[int]) -> list[dict[str, str]]:
    """Rows most of whose shingles are new; `seen` collects the shingles of the rows kept."""
    kept = []
    for row in rows:
        own = shingles(row["text"])
        if len(own & seen) <= MAX_SEEN_SHINGLES * len(own):
            seen |= own
            kept.append(row)
    return kept


def page_hash(page: Page) -> int:
    return int.from_bytes(hashlib.sha256(page.key.encode()).digest(), "big")


def is_held_out(page: Page) -> bool:
    return page_hash(page) % HELDOUT_ONE_IN == 0


def sample(pages: list[Page], max_chars: int) -> list[Page]:
    """A pseudo-random subset of whole pages, in their order, of about `max_chars` characters."""
    chosen, chars = set(), 0
    for page in sorted(pages, key=page_hash):
        chars += sum(len(text) for _, text in page.blocks)
        if chars <= max_chars:
            chosen.add(page.name)
    return [page for page in pages if page.name in chosen]


def write(path: Path, rows: list[dict[str, str]]) -> None:
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
    characters = sum(len(row["text"]) for row in rows)
    print(f"{path.name:36} {len(rows):6,} documents {characters:10,} characters {path.stat().st_size:9,} bytes")


def write_source(name: str, pages: list[Page], out: Path, separator: str = "\n\n") -> None:
    seen: set[int] = set()
    for suffix, held_out in (("", False), ("-heldout", True)):
        part = [page for page in pages if is_held_out(page) == held_out]
        rows = [row for page in part for row in documents(page, separator)]
        write(out / f"{name}{suffix}.jsonl.xz", without_near_duplicates(rows, seen))


def credits(gnome: Path) -> Iterator[str]:
    """Authors, editors and translators of GNOME Help, per language, as its licence asks to name them."""
    for language, (_, folder) in LANGUAGES.items():
        names = set()
        for path in (gnome / folder).rglob("*.page"):
            for element in ElementTree.parse(path).iter():
                if _local_name(element.tag) == "credit":
                    name = next((child for child in element if _local_name(child.tag) == "name"), None)
                    names.add(" ".join((name.text or "").split()) if name is not None else "")
        yield f"{language}: " + ", ".join(sorted(names - {""}))


def pages_of_language(root: Path, language: str) -> list[Page]:
    handbook_folder, gnome_folder = LANGUAGES[language]
    pages = [
        *handbook(root / "share/doc/debian-handbook/html" / handbook_folder),
        *gnome_help(root / "share/help" / gnome_folder),
    ]
    if language != "en":
        return sample([in_language(page, language) for page in pages], MAX_LANGUAGE_CHARS)
    technical = {
        "python-docs": python_docs(root / "share/doc/python3.11/html"),
        "postgresql": postgresql_docs(root / "share/doc/postgresql-doc-15/html"),
        "sqlite": sqlite_docs(root / "share/doc/sqlite3"),
    }
    return pages + [page for name, part in technical.items() for page in sample(list(part), MAX_ENGLISH_CHARS[name])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="ROOT")
    parser.add_argument("out", type=Path, metavar="OUT")
    arguments = parser.parse_args()
    root, out = arguments.root / "usr", arguments.out
    for language in LANGUAGES:
        write_source(f"tiny-web-{language}", pages_of_language(root, language), out)
    code = sample(list(python_code(root / "lib/python3.11")), MAX_CODE_CHARS)
    write_source("tiny-code-python", code, out, separator="\n\n\n")
    (out / "GNOME-HELP-CREDITS.txt").write_text("\n\n".join(credits(root / "share/help")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""What the project is licensed under, and the terms of the corpus that it ships, go with every copy of it."""

import lzma
import re
import tarfile
import tomllib
import zipfile
from pathlib import Path

import yaml

from datapipes.registry import CORPUS_FOLDER, load_registry

NOTICE = " ".join(Path("NOTICE").read_text().split())
PROJECT = tomllib.loads(Path("pyproject.toml").read_text())["project"]
LICENCE_FILES = {
    *("LICENSE", "NOTICE", "datapipes/corpus/README.md", "datapipes/corpus/GNOME-HELP-CREDITS.txt"),
    *(f"datapipes/corpus/licences/{name}.txt" for name in ("cc-by-sa-3.0", "postgresql", "python")),
}


def corpus_text(pattern: str) -> str:
    return "".join(lzma.open(path, "rt", encoding="utf-8").read() for path in sorted(CORPUS_FOLDER.glob(pattern)))


def test_wheel_and_sdist_carry_the_licences_and_the_corpus_beside_them(built: Path) -> None:
    [wheel], [sdist] = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive, tarfile.open(sdist) as source:
        in_wheel, in_sdist = set(archive.namelist()), {name.partition("/")[2] for name in source.getnames()}
    info = f"smollm3_pipeline-{PROJECT['version']}.dist-info/licenses"
    assert {f"{info}/{name}" for name in LICENCE_FILES} <= in_wheel
    assert in_sdist >= LICENCE_FILES
    corpus = {str(path) for path in Path("datapipes/corpus").rglob("*") if path.is_file()}
    assert len(corpus) > 15 and corpus <= in_wheel and corpus <= in_sdist


def test_the_metadata_name_every_licence_of_the_corpus() -> None:
    named = set(PROJECT["license"].split(" AND "))
    sources = [source for source in load_registry().values() if source.reader.kind == "corpus"]
    of_corpus = {part for source in sources for part in source.licence.split(" AND ")}
    assert named == {"Apache-2.0", *of_corpus} - {"public-domain"}
    assert "Apache License\n                           Version 2.0, January 2004" in Path("LICENSE").read_text()


def test_notice_names_every_work_of_the_corpus() -> None:
    works = set(re.findall(r'\{"id": "([\w-]+)/', corpus_text("*.xz")))
    assert works == set(re.findall(r'ids "([\w-]+)/\.\.\."', NOTICE)) and len(works) == 6


def test_notice_names_every_holder_of_a_copyright_that_a_module_states() -> None:
    text = corpus_text("tiny-code-python*.xz")
    stated = re.findall(
        r"(?:Copyright|SPDX-FileCopyrightText:)(?: \(c\))? [\d, -]+(?:by )?([A-Z][\w.-]+ [A-Z][\w.-]*)", text, re.I
    )
    holders = {holder.rstrip(".,") for holder in stated}
    assert {"Secret Labs", "Sam Rushing", "Python Software"} <= holders
    assert {holder for holder in holders if holder not in NOTICE} == set()


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load(Path("CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == "Apache-2.0" and citation["title"] and citation["authors"]
    newest = re.search(r"^## (\S+)", Path("CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None and newest[1] == PROJECT["version"]

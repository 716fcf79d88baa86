"""Small files that would unpack to gigabytes, at every door: refused in a sentence, in little memory and time."""

import base64
import bz2
import gzip
import json
import lzma
import pickle
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from datapipes.errors import SourceError
from datapipes.readers import texts_of
from datapipes.registry import Files, Source
from eval.planning import inspect_model
from eval.tasks.code import contest_tests
from foundation.errors import UserError
from foundation.limits import TooLargeError, bounded_lines, decompress
from foundation.pretrained import ForeignCodeError
from foundation.recipe import RecipeError, load_recipe
from merge.checkpoint import Checkpoint, MergeError
from nanotron_ext.import_hf import import_hf
from posttrain.generate import ChatModel
from posttrain.rows import UnusableRow, row_of_line
from tests.posttrain.tiny_model import write_model

MB = 1 << 20


@pytest.fixture(autouse=True)
def _two_megabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of these tests: bombs of 64 MB are as much above it as those of gigabytes above the real one."""
    monkeypatch.setenv("SMOLLM3_MAX_ITEM_MB", "2")


def peak_bytes(act: Callable[[], object]) -> int:
    """Of Python's own memory while `act` is refused."""
    tracemalloc.start()
    try:
        with pytest.raises(UserError):
            act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "xz": lzma.compress, "gz": gzip.compress, "bz2": bz2.compress, "zst": zstandard.compress, "": bytes,
}  # fmt: skip


def test_a_blob_is_not_unpacked_beyond_its_limit(tmp_path: Path) -> None:
    """The text of a data set of identifiers, which lies elsewhere."""
    (tmp_path / "rows.jsonl").write_text('{"blob": "a"}\n{"blob": "bomb"}\n')
    for name, size in (("a", 2 * MB), ("bomb", 64 * MB)):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(b"a" * size))
    url = f"file://{tmp_path}/{{}}.gz"
    reader = Files(
        kind="files", path=str(tmp_path), format="jsonl", files=["*.jsonl"], text_columns=["blob"], blob_url=url
    )
    blobs = texts_of(Source(name="bomb", category="web", licence="none", reader=reader))
    assert next(blobs) == "a" * 2 * MB

    def read() -> None:
        with pytest.raises(
            SourceError, match=r"bomb\.gz has more than 2 MB\. .* set SMOLLM3_MAX_ITEM_MB higher"
        ) as error:
            next(blobs)
        raise error.value

    assert peak_bytes(read) < 16 * MB


def source(folder: Path) -> Source:
    reader = Files(kind="files", path=str(folder), format="jsonl", files=["*"])
    return Source(name="bomb", category="web", licence="none", reader=reader)


@pytest.mark.parametrize("packing", PACKERS)
def test_a_line_of_a_data_set_is_not_unpacked_beyond_its_limit(packing: str, tmp_path: Path) -> None:
    line = b'{"text": "' + b"a" * (64 * MB) + b'"}\n'
    file = tmp_path / f"rows.jsonl{'.' if packing else ''}{packing}"
    file.write_bytes(PACKERS[packing](b'{"text": "' + b"a" * 3000 + b'"}\n' + line))
    if packing:
        assert file.stat().st_size < MB

    def read() -> None:
        with pytest.raises(SourceError, match=r"rows.*: Line 2 has more than 2 MB. .* set SMOLLM3_MAX_ITEM_MB higher"):
            list(texts_of(source(tmp_path)))
        raise UserError

    assert peak_bytes(read) < 16 * MB


@pytest.mark.parametrize("row", ["[" * 50_000, "[" * 50_000 + "]" * 50_000, '{"a": ' * 50_000])
def test_a_deep_row_of_post_training_is_a_lost_row(row: str) -> None:
    """Arrow's parser of JSON overflows the stack on it; rows are read as lines, and parsed one by one."""
    with pytest.raises(UnusableRow, match="the line is no JSON"):
        row_of_line('{"messages": ' + row + "}")


def test_the_limit_can_be_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"text": "' + b"a" * (3 * MB) + b'"}\n')
    monkeypatch.setenv("SMOLLM3_MAX_ITEM_MB", "4")
    assert [len(text) for text in texts_of(source(tmp_path))] == [3 * MB]
    for wrong in ("0", "-1", "many", "1.5", "²"):
        monkeypatch.setenv("SMOLLM3_MAX_ITEM_MB", wrong)
        with pytest.raises(UserError, match=r"SMOLLM3_MAX_ITEM_MB is .*Give a whole number"):
            list(texts_of(source(tmp_path)))


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"a\n\nb" + b"c" * (2 * MB - 1))
    with (tmp_path / "file").open("rb") as file:
        assert [len(line) for line in bounded_lines(file)] == [2, 1, 2 * MB]


def test_a_contest_row_is_not_unpacked_beyond_its_limit() -> None:
    def row(text: str) -> dict[str, str]:
        private = base64.b64encode(zlib.compress(pickle.dumps(text))).decode()
        return {"public_test_cases": "[]", "private_test_cases": private}

    tests = [{"input": "1", "output": "2", "testtype": "stdin"}]
    assert contest_tests(row(json.dumps(tests))) == tests
    bomb = row("[" + " " * (64 * MB) + "]")
    assert len(bomb["private_test_cases"]) < MB
    assert peak_bytes(lambda: contest_tests(bomb)) < 8 * MB
    with pytest.raises(TooLargeError, match="A row of private tests has more than 2 MB"):
        contest_tests(bomb)
    with pytest.raises(zlib.error):
        decompress(zlib.compress(b"a" * 1000)[:-3], "It")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


HEADER_DOORS: dict[str, tuple[Callable[[Path], object], str]] = {
    "merge": (lambda model: Checkpoint(model).tensors, "is not a safetensors file"),
    "evaluation": (lambda model: inspect_model(model, None), "safetensors"),
    "import": (lambda model: import_hf(model, model.parent / "imported"), "safetensors"),
    "chat": (lambda model: ChatModel.load(str(model)), "safetensors|cannot be loaded"),
}


@pytest.mark.parametrize("door", HEADER_DOORS)
@pytest.mark.parametrize("claimed", [2_700_000_000, 2**63, 150_000_000])
def test_a_header_that_claims_gigabytes_is_not_read(door: str, claimed: int, model: Path) -> None:
    """A sparse file takes no disk, and its header as much memory as it claims."""
    act, message = HEADER_DOORS[door]
    with (model / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", claimed) + b"{")
        file.truncate(2_800_000_000)
    assert (model / "model.safetensors").stat().st_blocks < 100
    assert peak_bytes(lambda: act(model)) < 16 * MB
    with pytest.raises(UserError, match=message):
        act(model)


LAYER_DOORS = {**{name: door for name, (door, _) in HEADER_DOORS.items()}}


@pytest.mark.parametrize("door", LAYER_DOORS)
def test_more_layers_than_any_model_has_are_refused(door: str, model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3_000_000}))
    assert peak_bytes(lambda: LAYER_DOORS[door](model)) < 16 * MB
    with pytest.raises((ForeignCodeError, UserError), match=r"3,000,000 layers|num_hidden_layers"):
        LAYER_DOORS[door](model)


def test_a_recipe_has_as_many_layers_at_most() -> None:
    with pytest.raises(RecipeError, match="less than or equal to 10000"):
        load_recipe("recipes/tiny/pretrain.yaml", ["model.model_config.num_hidden_layers=3000000"])


def test_what_is_refused_is_no_other_error() -> None:
    assert issubclass(MergeError, UserError) and issubclass(TooLargeError, UserError)

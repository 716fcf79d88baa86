import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from datapipes import shards
from datapipes.errors import SourceError
from datapipes.shards import Manifest, read_manifest, token_bytes_for, verify_folder, verify_shard

VOCAB_SIZE, EOS, SPECIALS = 400, 1, [0, 1, 2, 3, 4]


def write_shard(path: Path, documents: list[list[int]], dtype: str = "<u2") -> None:
    tokens = [token for document in documents for token in document]
    path.write_bytes(np.array(tokens, dtype=dtype).tobytes())
    ends = np.cumsum([len(document) for document in documents])
    path.with_name(path.name + ".index").write_bytes(ends.astype("<u8").tobytes())


@pytest.fixture
def documents() -> list[list[int]]:
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 40, size=50)
    return [[*generator.integers(5, VOCAB_SIZE, size=length - 1).tolist(), EOS] for length in lengths]


def verify(path: Path) -> shards.ShardFile:
    return verify_shard(path, VOCAB_SIZE, 2, EOS, SPECIALS)


@pytest.mark.parametrize("chunk_tokens", [1, 7, 64, 1 << 24])
def test_a_sound_shard_passes_whatever_the_chunk_size(
    tmp_path: Path, documents: list[list[int]], chunk_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "CHUNK_TOKENS", chunk_tokens)
    write_shard(tmp_path / "a.ds", documents)
    found = verify(tmp_path / "a.ds")
    assert (found.documents, found.tokens) == (50, sum(map(len, documents)))


def test_four_byte_tokens(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.ds", [[128_000, 70_000, 128_001], [5, 128_001]], "<u4")
    found = verify_shard(tmp_path / "a.ds", 128_256, 4, 128_001, [128_001])
    assert (found.documents, found.tokens) == (2, 5)
    assert (token_bytes_for(65_536), token_bytes_for(65_537)) == (2, 4)


def rewrite_token(position: int, token: int) -> Callable[[Path], None]:
    def corrupt(path: Path) -> None:
        tokens = np.frombuffer(path.read_bytes(), dtype="<u2").copy()
        tokens[position] = token
        path.write_bytes(tokens.tobytes())

    return corrupt


def rewrite_index(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def corrupt(path: Path) -> None:
        index = path.with_name(path.name + ".index")
        index.write_bytes(change(np.frombuffer(index.read_bytes(), dtype="<u8").copy()).astype("<u8").tobytes())

    return corrupt


def truncate(bytes_off: int, suffix: str = "") -> Callable[[Path], None]:
    def corrupt(path: Path) -> None:
        target = path.with_name(path.name + suffix)
        target.write_bytes(target.read_bytes()[:-bytes_off])

    return corrupt


def swap_ends(ends: np.ndarray) -> np.ndarray:
    ends[[3, 4]] = ends[[4, 3]]
    return ends


def shift_end(ends: np.ndarray) -> np.ndarray:
    ends[np.flatnonzero(np.diff(ends) > 2)[0]] += 1
    return ends


@pytest.mark.parametrize(
    ("corrupt", "complaint"),
    [
        (truncate(2), "the index ends at token"),
        (truncate(1), "no whole number of tokens"),
        (truncate(8, ".index"), "the index ends at token"),
        (truncate(3, ".index"), "none of index entries"),
        (rewrite_index(swap_ends), "does not rise strictly"),
        (rewrite_index(lambda ends: np.concatenate([ends[:5], ends[4:]])), "does not rise strictly"),
        (rewrite_index(shift_end), "does not end with the EOS"),
        (rewrite_index(lambda ends: np.delete(ends, 7)), "1 special tokens lie inside"),
        (rewrite_index(lambda ends: ends[:0]), "does not rise strictly"),
        (rewrite_token(-1, 17), "document 49 does not end with the EOS"),
        (rewrite_token(0, VOCAB_SIZE), f"token {VOCAB_SIZE} at position 0 is outside the vocabulary"),
        (rewrite_token(0, 65_535), "outside the vocabulary"),
        (rewrite_token(0, EOS), "1 special tokens lie inside"),
        (rewrite_token(0, 3), "1 special tokens lie inside"),
        (lambda path: path.with_name("a.ds.index").unlink(), "the index is missing"),
        (lambda path: path.unlink(), "the shard is missing"),
    ],
)
def test_each_corruption_is_caught(
    tmp_path: Path, documents: list[list[int]], corrupt: Callable[[Path], None], complaint: str
) -> None:
    documents[0] = [9, 9, 9, EOS]
    path = tmp_path / "a.ds"
    write_shard(path, documents)
    verify(path)
    corrupt(path)
    with pytest.raises(SourceError, match=complaint) as error:
        verify(path)
    assert str(path) in str(error.value)


@pytest.fixture
def folder(tmp_path: Path, documents: list[list[int]]) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    write_shard(folder / "a.ds", documents)
    write_shard(folder / "b.ds", documents[:20])
    files = [verify(folder / "a.ds"), verify(folder / "b.ds")]
    totals = sum(entry.documents for entry in files), sum(entry.tokens for entry in files)
    Manifest("letters", "r1", "0" * 64, "1" * 64, VOCAB_SIZE, 2, EOS, *totals, files).write(folder)
    return folder


def test_a_manifest_survives_the_round_trip_and_vouches_for_its_files(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert manifest is not None
    verify_folder(folder, manifest, SPECIALS)
    assert json.loads((folder / "manifest.json").read_text())["format"] == "token-shards/1"


def test_a_manifest_that_lies_is_caught(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert manifest is not None
    shutil.copy(folder / "b.ds", folder / "a.ds")
    shutil.copy(folder / "b.ds.index", folder / "a.ds.index")
    with pytest.raises(SourceError, match=r"a\.ds is not the file that manifest"):
        verify_folder(folder, manifest, SPECIALS)


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [("documents", 69, "totals"), ("format", "token-shards/9", "token-shards/9"), ("extra", 1, "extra")],
)
def test_a_manifest_with_wrong_content_is_caught(folder: Path, key: str, value: object, complaint: str) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**content, key: value}))
    with pytest.raises(SourceError, match=complaint):
        manifest = read_manifest(folder)
        assert manifest is not None
        verify_folder(folder, manifest, SPECIALS)

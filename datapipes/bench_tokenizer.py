"""Tokenisation per core: the stage that writes a source's shards beside the tokenizers library alone.

    python -m datapipes.bench_tokenizer TOKENIZER_JSON [--source NAME] [--rounds N]

Both encode the same texts on one core, in alternating order; the stage also reads, cleans, shuffles and writes them.
What counts is CPU time, and the median over the rounds.
"""

import argparse
import hashlib
import json
import os
import statistics
import sys
import tempfile
from collections import deque
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from time import process_time

from datatrove.utils.logging import logger as datatrove_logger
from tokenizers import Tokenizer

from datapipes.errors import SourceError
from datapipes.pipeline import TOKENIZER_BATCH_DOCUMENTS, SourceBuild
from datapipes.readers import texts_of
from datapipes.registry import Files, Source, find_source
from datapipes.tokenizer import EOS, LoadedTokenizer

GOAL = 0.85


def library_alone(texts: list[str], tokenizer: Tokenizer) -> int:
    """Encode the texts in batches and drop the result; returns the number of tokens."""
    starts = range(0, len(texts), TOKENIZER_BATCH_DOCUMENTS)
    batches = (tokenizer.encode_batch(texts[start : start + TOKENIZER_BATCH_DOCUMENTS]) for start in starts)
    return sum(len(encoding.ids) for batch in batches for encoding in batch)


def whole_stage(build: SourceBuild) -> int:
    """Run the stage that writes the shards, without executor; returns the number of tokens without the end tokens."""
    build.partial.mkdir(parents=True, exist_ok=True)
    data = None
    steps = build.stages()[-1].steps
    for step in steps:
        data = step(data, 0, 1)
    deque(data or (), maxlen=0)
    return int(steps[-1].stats["tokens"].total - steps[-1].stats["documents"].total)


def measure(texts: list[str], loaded: LoadedTokenizer, folder: Path, rounds: int) -> tuple[list[float], list[float]]:
    """Tokens per CPU second of the library and of the stage, round by round."""
    (folder / "raw").mkdir()
    lines = "".join(json.dumps({"id": str(number), "text": text}) + "\n" for number, text in enumerate(texts))
    (folder / "raw" / "texts.jsonl").write_text(lines, encoding="utf-8")
    reader = Files(kind="files", path=str(folder / "raw"), format="jsonl")
    source = Source(name="texts", category="web", licence="none", reader=reader)

    def timed(run: Callable[[], int]) -> float:
        start = process_time()
        tokens = run()
        return tokens / (process_time() - start)

    library, stage = [], []
    for number in range(rounds):
        build = SourceBuild(source, loaded, folder / f"shards{number}")
        runs = [
            lambda: library.append(timed(lambda: library_alone(texts, loaded.tokenizer))),
            lambda build=build: stage.append(timed(lambda: whole_stage(build))),  # type: ignore[misc]
        ]
        for run in runs if number % 2 else reversed(runs):
            run()
    return library, stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path, help="tokenizer.json")
    parser.add_argument("--source", default="tiny-web-en", help="registry name of the source whose texts are encoded")
    parser.add_argument("--documents", type=int, default=1000, help="how many of its documents")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    datatrove_logger.remove()
    try:
        texts = list(islice(texts_of(find_source(arguments.source)), arguments.documents))
        data = arguments.tokenizer.read_bytes()
    except (SourceError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    tokenizer = Tokenizer.from_str(data.decode("utf-8"))
    tokenizer.encode_special_tokens = True
    if (eos_token_id := tokenizer.token_to_id(EOS)) is None:
        print(f"error: {arguments.tokenizer} has no token {EOS}; give a tokenizer of this project.", file=sys.stderr)
        sys.exit(2)
    loaded = LoadedTokenizer(arguments.tokenizer, hashlib.sha256(data).hexdigest(), tokenizer, EOS, eos_token_id)
    with tempfile.TemporaryDirectory() as folder:
        library, stage = measure(texts, loaded, Path(folder), arguments.rounds)
    ratios = [mine / alone for mine, alone in zip(stage, library, strict=True)]
    print(f"{len(texts)} documents, {sum(map(len, texts)) / 1e6:.1f} M characters, {arguments.rounds} rounds, one core")
    print(f"  tokenizers alone {statistics.median(library) / 1e6:8.3f} M tokens per CPU second")
    print(f"  whole stage      {statistics.median(stage) / 1e6:8.3f} M tokens per CPU second")
    print(
        f"  ratio            {statistics.median(ratios):8.3f}  ({min(ratios):.3f} to {max(ratios):.3f}; goal: {GOAL})"
    )


if __name__ == "__main__":
    main()

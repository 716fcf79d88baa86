import random
from pathlib import Path

from datapipes.bench_tokenizer import library_alone, measure
from datapipes.tokenizer import LoadedTokenizer
from tests.datapipes.helpers import random_text, read_documents


def test_both_sides_encode_the_same_tokens(tokenizer: LoadedTokenizer, tmp_path: Path) -> None:
    generator = random.Random(1)
    texts = [random_text(generator, 50) for _ in range(20)]
    library, stage = measure(texts, tokenizer, tmp_path, rounds=2)
    assert min(*library, *stage) > 0
    for part in (tmp_path / "shards0/.partial", tmp_path / "shards1/.partial"):
        (folder,) = part.iterdir()
        documents = read_documents(folder)
        assert len(documents) == 20
        assert sum(len(document) - 1 for document in documents) == library_alone(texts, tokenizer.tokenizer)

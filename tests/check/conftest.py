"""A small tokenizer for mixtures and windows."""

import pytest

from datapipes.tokenizer import LoadedTokenizer
from tests.datapipes.helpers import make_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> LoadedTokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))

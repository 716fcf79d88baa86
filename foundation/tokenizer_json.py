"""When two tokenizer.json are the same tokenizer."""

import hashlib
import json


def content_sha256(tokenizer_json: bytes) -> str:
    """SHA-256 of what the file says, however it is laid out: a line end or another indentation is no other tokenizer.

    Raises:
        ValueError: if it is not JSON.
    """
    return hashlib.sha256(json.dumps(json.loads(tokenizer_json), sort_keys=True).encode()).hexdigest()

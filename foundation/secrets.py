"""Environment variables that hold keys and passwords: told by their names, kept out of recipes and of other processes.

What a recipe says goes to the run folder, to wandb and into messages, and a recipe may be somebody else's: with
`${HF_TOKEN}` in it, it would publish the token. A job needs few such variables, and is given no others.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

# Whole words of a name. TOKENS and TOKENIZERS are none: they count tokens, or name tokenizers.
_ANYWHERE = frozenset({"SECRET", "SECRETS", "PASSWORD", "PASSWD", "PASSPHRASE", "CREDENTIAL", "CREDENTIALS", "COOKIE"})
_AT_THE_END = re.compile(r"(?:(?:^|_)(?:TOKEN|KEY|KEY_ID|AUTH|AUTH_SOCK|PAT|JWT)|PASSWORD|PASSWD|APIKEY)\d*$")
_PLACES = ("_FILE", "_PATH", "_DIR")  # such a variable says where a secret is
_SHORTEST = 8  # characters of a value that is looked for: a shorter one stands in other text by chance
_PASSWORD_IN_ADDRESS = re.compile(r"://[^/@:\s]*:[^/@\s]+@")

MORE = "SMOLLM3_JOB_KEYS"  # names further variables that jobs get, separated by spaces
# What jobs get: of the model hub, of wandb, and of object storage.
OF_JOBS = frozenset(
    {
        *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "GOOGLE_APPLICATION_CREDENTIALS"),
        *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN"),
        *("AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"),
        *("FSSPEC_S3_KEY", "FSSPEC_S3_SECRET", "FSSPEC_S3_TOKEN"),
    }
)


def is_secret(name: str) -> bool:
    """Whether a variable of this name is taken to hold a secret: HF_TOKEN, OPENAI_API_KEY, PGPASSWORD, ..."""
    name = name.upper()
    if name.endswith(_PLACES):
        return False
    return bool(_ANYWHERE & set(name.split("_")) or _AT_THE_END.search(name))


def for_jobs() -> dict[str, str]:
    """The environment without the secrets that are not for jobs: those of OF_JOBS, and those named by MORE, are."""
    allowed = OF_JOBS | set(os.environ.get(MORE, "").split())
    return {name: value for name, value in os.environ.items() if name in allowed or not is_secret(name)}


@contextmanager
def environment_for_jobs() -> Iterator[None]:
    """The same as this process's own environment, around libraries that submit jobs and take no other."""
    kept = {name: os.environ.pop(name) for name in os.environ.keys() - for_jobs().keys()}
    try:
        yield
    finally:
        os.environ.update(kept)


def secret_in(text: str, environment: Mapping[str, str] | None = None) -> str:
    """What secret a text gives away, in words that do not repeat it; empty if none."""
    for name, value in (os.environ if environment is None else environment).items():
        if len(value) >= _SHORTEST and is_secret(name) and value in text:
            return f"what the environment variable {name} holds"
    return "a password in an address" if _PASSWORD_IN_ADDRESS.search(text) else ""

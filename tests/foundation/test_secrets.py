"""What is taken for a secret, and that recipes, messages and other processes get none."""

import json
import os
import sys
from pathlib import Path

import pytest

from chain.runner import _run
from datapipes.synthetic.recipe import load_recipe as load_synthetic_recipe
from foundation.recipe import RecipeError, load_recipe
from foundation.recipe.loading import read_tree
from foundation.secrets import OF_JOBS, for_jobs, is_secret, secret_in

SECRET = "hf_canary0123456789"
SECRETS = (
    *("HF_TOKEN", "hf_token", "HUGGING_FACE_HUB_TOKEN", "GITHUB_PAT", "WANDB_API_KEY", "OPENAIAPIKEY", "API_KEY2"),
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "MYSQL_PASSWORD", "SSH_AUTH_SOCK", "A_TEACHER_KEY"),
    *("AZURE_CLIENT_SECRET", "SECRET", "SESSION_COOKIE", "PROXY_AUTH", "KEY_PASSPHRASE"),
    *("SLURM_JWT", "FSSPEC_S3_KEY", "FSSPEC_S3_SECRET"),
)
NONE = (
    *("RUN", "TOKENS", "MAX_TOKENS", "TOKENIZER", "TOKENIZERS_PARALLELISM", "PWD", "OLDPWD", "MONKEY", "KEYBOARD"),
    *("AWS_SHARED_CREDENTIALS_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "HF_TOKEN_PATH", "SMOLLM3_JOB_KEYS", "COMPAT"),
)


def test_names() -> None:
    assert [name for name in SECRETS if not is_secret(name)] == []
    assert [name for name in NONE if is_secret(name)] == []
    assert all(map(is_secret, OF_JOBS))


def recipe_with(folder: Path, run: str) -> Path:
    """The tiny recipe under another name of its run."""
    file = folder / "pretrain.yaml"
    file.write_text(f"extends: {Path('recipes/tiny/pretrain.yaml').resolve()}\ngeneral:\n  run: {run}\n")
    return file


@pytest.mark.parametrize("text", ["${HF_TOKEN}", "a-${HF_TOKEN}", "'${HF_TOKEN:-none}'", "${NOT_SET_TOKEN:-none}"])
def test_a_recipe_may_not_ask_for_a_secret(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    for load in (load_recipe, read_tree):
        with pytest.raises(RecipeError, match=r"is the name of a secret.*\n?.*") as refusal:
            load(recipe_with(tmp_path, text))
        assert SECRET not in str(refusal.value) and "pretrain.yaml:3" in str(refusal.value)


def test_a_secret_is_refused_however_it_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By another variable, by the shell, by hand: what a recipe says is published. The message is, too."""
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("HARMLESS", f"run-{SECRET}")
    for path, overrides in (
        (recipe_with(tmp_path, "${HARMLESS}"), []),
        (recipe_with(tmp_path, SECRET), []),
        (Path("recipes/tiny/pretrain.yaml"), [f"general.run=x{SECRET}"]),
    ):
        with pytest.raises(RecipeError, match=r"(?s)general\.run.*environment variable HF_TOKEN holds") as refusal:
            load_recipe(path, overrides)
        assert SECRET not in str(refusal.value)
    with pytest.raises(RecipeError, match="a password in an address") as refusal:
        load_recipe("recipes/tiny/pretrain.yaml", ["checkpoints.remote_path=s3://me:geheim99@bucket/runs"])
    assert "geheim99" not in str(refusal.value)


def test_what_is_no_secret_goes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SORT_KEY", "tiny")  # too short to be told from a word
    monkeypatch.setenv("RUN", "runs/tiny-of-mine")
    assert load_recipe("recipes/tiny/pretrain.yaml").general.runs_path == "runs/tiny-of-mine"
    for address in ("s3://bucket/a:b@c", "https://host:8000/a@b", "hf://datasets/a/b@main", "a: b@c"):
        assert secret_in(address, {}) == "", address


TEACHERS = {  # what the recipe says of key and address -> what it is told
    ("HF_TOKEN", "https://teacher.example"): "is not the name of a teacher's key",
    ("WANDB_API_KEY", "http://127.0.0.1:8000"): "is not the name of a teacher's key",
    ("MY_TEACHER_KEYS", "https://teacher.example"): "is not the name of a teacher's key",
    ("MY_TEACHER_KEY", "http://teacher.example"): "sent unencrypted",
    ("MY_TEACHER_KEY", "http://127.0.0.1.teacher.example"): "sent unencrypted",
    ("MY_TEACHER_KEY", "http://localhost@teacher.example"): "sent unencrypted",
    ("MY_TEACHER_KEY", "https://teacher.example"): "",
    ("TEACHER_KEY", "http://127.0.0.1:8000"): "",
    ("TEACHER_KEY", "http://[::1]:8000"): "",
    ("TEACHER_KEY", "http://localhost:8000"): "",
    ("null", "http://teacher.example"): "",
}


@pytest.mark.parametrize(("key", "url"), TEACHERS)
def test_a_recipe_sends_only_a_teachers_key_and_only_where_nobody_listens(key: str, url: str) -> None:
    overrides = [f"teacher.api_key_variable={key}", f"teacher.url={url}"]
    if not TEACHERS[key, url]:
        load_synthetic_recipe("recipes/tiny/synthetic_sft.yaml", overrides)
        return
    with pytest.raises(RecipeError, match=TEACHERS[key, url]):
        load_synthetic_recipe("recipes/tiny/synthetic_sft.yaml", overrides)


def test_other_processes_get_the_keys_of_jobs_and_those_that_the_user_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"BANK_PASSWORD": SECRET, "GITHUB_TOKEN": SECRET, "AZURE_STORAGE_KEY": "mine", "HF_TOKEN": "of jobs"}
    for name, value in {**given, "NCCL_DEBUG": "INFO", "SMOLLM3_JOB_KEYS": "AZURE_STORAGE_KEY OTHER"}.items():
        monkeypatch.setenv(name, value)
    assert for_jobs().items() == os.environ.items() - {("BANK_PASSWORD", SECRET), ("GITHUB_TOKEN", SECRET)}
    show = "import json, os; print(json.dumps(dict(os.environ)))"
    monkeypatch.setattr("chain.runner.PROGRAM", (sys.executable, "-c", show))
    _run([], tmp_path / "log", lambda: None)
    environment = json.loads((tmp_path / "log").read_text().splitlines()[1])
    assert {name: environment.get(name) for name in given} == {
        "BANK_PASSWORD": None, "GITHUB_TOKEN": None, "AZURE_STORAGE_KEY": "mine", "HF_TOKEN": "of jobs",
    }  # fmt: skip

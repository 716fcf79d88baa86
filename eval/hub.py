"""The real sets, from the Hugging Face hub or from a folder with copies of its repositories."""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from eval.benchmarks import Dataset
from eval.errors import EvalError
from eval.local_data import Row, Rows

# Repositories whose builders are scripts, which datasets 4 and later refuse, have a converted copy on this branch.
CONVERTED = "refs/convert/parquet"
_BFCL_REPO = "gorilla-llm/Berkeley-Function-Calling-Leaderboard"
# Files of HELMET's archive (34 GB): questions with 1,000 retrieved passages each, and solved examples.
_HELMET_FILES = {
    "kilt_nq": ("nq-dev-multikilt_1000_k1000_dep6", "nq-train-multikilt_1000_k3_dep6"),
    "kilt_triviaqa": ("triviaqa-dev-multikilt_1000_k1000_dep6", "triviaqa-train-multikilt_1000_k3_dep6"),
    "kilt_hotpotqa": ("hotpotqa-dev-multikilt_1000_k1000_dep3", "hotpotqa-train-multikilt_1000_k3_dep3"),
    "kilt_popqa": ("popqa_test_1000_k1000_dep6", "popqa_test_1000_k3_dep6"),
}
_HELMET_QUESTIONS = 100  # the file repeats each question per depth of its answer; HELMET asks as many


class Hub:
    """Reads dataset repositories; with `mirror`, from <mirror>/<owner>/<name> as `hf download --local-dir` leaves them.

    Raises:
        EvalError: from every method, saying what the hub or the folder lacks.
    """

    def __init__(self, mirror: Path | None = None) -> None:
        self._mirror = mirror

    def fetch(self, dataset: Dataset, revision: str | None) -> tuple[Rows, str]:
        """Rows of the splits of `dataset`, and the commit that they come from."""
        try:
            if dataset.repo == "bfcl":
                commit = self._commit(_BFCL_REPO, revision)
                return {dataset.split: self._bfcl(dataset.subset, commit)}, commit
            commit = self._commit(dataset.repo, revision)
            if dataset.subset in _HELMET_FILES:
                return self._helmet(dataset, commit), commit
            return self._load(dataset, commit)
        except (OSError, ValueError) as error:
            if isinstance(error, EvalError):
                raise
            raise EvalError(
                f"{dataset.repo} ({dataset.subset}) could not be read: {error}. Gated sets need their conditions "
                "accepted on the hub and HF_TOKEN; without a network, give --mirror FOLDER with copies."
            ) from None

    def _commit(self, repo: str, revision: str | None) -> str:
        if self._mirror is not None:
            if not (self._mirror / repo).is_dir():
                raise EvalError(f"There is no folder {self._mirror / repo}. Copy the repository {repo} there.")
            return revision or "mirror"
        from huggingface_hub import HfApi

        return str(HfApi().dataset_info(repo, revision=revision).sha)

    def _load(self, dataset: Dataset, commit: str) -> tuple[Rows, str]:
        try:
            return {split: self._split(dataset, split, commit) for split in dataset.splits}, commit
        except RuntimeError as error:
            if "scripts are no longer supported" not in str(error) or self._mirror is not None:
                raise EvalError(f"{dataset.repo} could not be read: {error}.") from None
        commit = self._commit(dataset.repo, CONVERTED)
        return {split: self._converted(dataset, split, commit) for split in dataset.splits}, commit

    def _split(self, dataset: Dataset, split: str, commit: str) -> list[Row]:
        import datasets

        subset = None if dataset.subset == "default" else dataset.subset
        if self._mirror is not None:
            loaded = datasets.load_dataset(str(self._mirror / dataset.repo), subset, split=split)
        else:
            loaded = datasets.load_dataset(dataset.repo, subset, split=split, revision=commit)
        return [dict(row) for row in loaded]

    def _converted(self, dataset: Dataset, split: str, commit: str) -> list[Row]:
        """By the files' paths, <subset>/<split>/<number>.parquet, of one subset alone.

        Such a branch has no README that names the subsets: load_dataset takes the files of all of them for one. A
        script without subsets is converted under a name of the hub's, so the only one there is the one that is meant.
        """
        import datasets
        from huggingface_hub import HfApi

        names = HfApi().list_repo_files(dataset.repo, revision=commit, repo_type="dataset")
        files = [PurePosixPath(name) for name in names if name.endswith(".parquet")]
        subsets = sorted({file.parts[0] for file in files})
        subset = subsets[0] if len(subsets) == 1 else dataset.subset
        chosen = sorted(str(file) for file in files if file.parts[:-1] == (subset, split))
        if not chosen:
            there = ", ".join(sorted({str(file.parent) for file in files})) or "no Parquet file"
            raise EvalError(f"{dataset.repo}: {CONVERTED} has no files in {subset}/{split}; it has {there}.")
        paths = [str(self._file(dataset.repo, name, commit)) for name in chosen]
        loaded = datasets.load_dataset("parquet", data_files={split: paths}, split=split)
        return [dict(row) for row in loaded]

    def _file(self, repo: str, name: str, commit: str) -> Path:
        if self._mirror is not None:
            return self._mirror / repo / name
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(repo, name, repo_type="dataset", revision=commit))

    def _bfcl(self, subset: str, commit: str) -> list[Row]:
        def lines(name: str) -> list[Row]:
            text = self._file(_BFCL_REPO, name, commit).read_text(encoding="utf-8")
            return [json.loads(line) for line in text.split("\n") if line]  # splitlines also splits inside of strings

        questions = lines(f"BFCL_v3_{subset}.json")
        if subset == "irrelevance":
            return [{**question, "ground_truth": []} for question in questions]
        answers = {row["id"]: row["ground_truth"] for row in lines(f"possible_answer/BFCL_v3_{subset}.json")}
        return [{**question, "ground_truth": answers[question["id"]]} for question in questions]

    def _helmet(self, dataset: Dataset, commit: str) -> Rows:
        wanted = dict(zip(_HELMET_FILES[dataset.subset], dataset.splits, strict=True))
        rows: Rows = {}
        with tarfile.open(self._file(dataset.repo, "data.tar.gz", commit), "r|gz") as archive:
            for member in archive:
                split = wanted.get(Path(member.name).name.removesuffix(".jsonl"))
                if split is not None and (stream := archive.extractfile(member)) is not None:
                    rows[split] = list(_distinct_questions(stream))
                if len(rows) == len(wanted):
                    return rows
        missing = [name for name, split in wanted.items() if split not in rows]
        raise EvalError(f"{dataset.repo}: data.tar.gz holds no {' and no '.join(missing)}.")


def _distinct_questions(lines: Any) -> Iterator[Row]:
    seen: set[str] = set()
    for line in lines:
        row = json.loads(line)
        if row["question"] not in seen:
            seen.add(row["question"])
            ctxs = [{"title": ctx["title"], "text": ctx["text"]} for ctx in row["ctxs"]]
            yield {"question": row["question"], "answers": row["answers"], "ctxs": ctxs}
        if len(seen) == _HELMET_QUESTIONS:
            return

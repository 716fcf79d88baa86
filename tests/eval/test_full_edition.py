"""The real sets' way from repository to score, over copies with their columns, types and oddities."""

import io
import json
import re
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import yaml

from eval.benchmarks import BENCHMARKS, Dataset
from eval.data import write_full_edition
from eval.errors import EvalError
from eval.hub import CONVERTED, Hub
from eval.local_data import read_dataset
from eval.planning import inspect_model, plan_suite
from eval.recipe import load_eval_recipe
from eval.results import read_suite
from eval.runner import run_suite
from smollm3.command_line import main
from tests.archives import unpack
from tests.datapipes import hub_server
from tests.eval.real_schemas import write_mirror
from tests.eval.test_command_line import run
from tests.eval.test_scripted_models import Scripted, best

# One language stands for the others, one set of passages for its family, which differ in nothing but names.
LEFT_OUT = re.compile(r".*_(de|es|it|pt)(_en)?|helmet_rag_(triviaqa|hotpotqa|popqa)")


@pytest.fixture(scope="module")
def prefetched(tmp_path_factory):
    """(recipe, mirror) after `smollm3 eval-data --edition full --mirror --pack`, run as a user would."""
    folder = tmp_path_factory.mktemp("full")
    chosen = [b for b in BENCHMARKS.values() if b.dataset is not None and not LEFT_OUT.fullmatch(b.name)]
    write_mirror(folder / "mirror", chosen)
    tasks = {b.name: {"context_tokens": 600} if b.generator else {} for b in chosen}
    recipe = {
        "output": str(folder / "results"),
        "data": str(folder / "data"),
        "backend": {"dtype": "float32", "device": "cpu"},
        "execute_code": True,
        "suites": {"all": {"tasks": tasks}},
    }
    (folder / "eval.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    arguments = ["eval-data", str(folder / "eval.yaml"), "--edition", "full", "--mirror", str(folder / "mirror")]
    assert main([*arguments, "--pack", str(folder / "all.tar")]) == 0
    return load_eval_recipe(folder / "eval.yaml"), folder


def test_a_perfect_model_scores_one_hundred_on_the_real_schemas(prefetched, model_folder):
    recipe, _ = prefetched
    model = inspect_model(model_folder, "perfect")
    result = run_suite(recipe, "all", model, plan_suite(recipe, "all", model), lambda: Scripted("perfect", False))
    for task in result.tasks:
        assert task.main_metric.value == pytest.approx(best(task)), task.task
        assert task.dataset.edition == "full" and task.dataset.revision == "mirror"
    documents = {task.task: task.num_documents for task in result.tasks}
    # The unannotated and the culturally sensitive question, the one without an answer, the one asked at two depths.
    assert documents["global_mmlu_fr"] == documents["global_mmlu_instruct_fr"] == 1
    assert documents["gsm_plus"] == documents["helmet_rag_nq"] == 1
    assert documents["math"] == 3 and documents["arc_easy"] == 2


def test_the_pack_holds_the_whole_suite_and_runs_elsewhere_with_all_sockets_blocked(prefetched, model_folder, tmp_path):
    recipe, folder = prefetched
    unpack(folder / "all.tar", tmp_path / "unpacked")
    tree = recipe.model_dump()
    tree["data"], tree["output"] = str(tmp_path / "unpacked"), str(tmp_path / "results")
    for task in tree["suites"]["all"]["tasks"].values():
        task |= {"max_documents": 1, "num_fewshots": 0, "num_samples": 1, "generation_tokens": 4}
    (tmp_path / "eval.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    done = run("eval", str(tmp_path / "eval.yaml"), "--model", str(model_folder), "--name", "m")
    assert done.returncode == 0, done.stderr
    assert "NETWORK" not in done.stderr
    tasks = read_suite(tmp_path / "results" / "m" / "all.json").tasks
    assert {task.task for task in tasks} == set(recipe.suites["all"].tasks)
    assert {task.dataset.edition for task in tasks if task.dataset} <= {"full", "generated"}


def test_one_suite_alone_and_unknown_suites(prefetched, tmp_path, capsys):
    _, folder = prefetched
    arguments = ["eval-data", str(folder / "eval.yaml"), f"data={tmp_path}", "--suite"]
    assert main([*arguments, "all"]) == 0
    assert main([*arguments, "al"]) == 2 and "no suite 'al'" in capsys.readouterr().err


def test_what_the_mirror_lacks_is_named(tmp_path):
    with pytest.raises(EvalError, match=r"Copy the repository owner/name there"):
        Hub(tmp_path).fetch(Dataset("owner/name", "default", "test"), None)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    (tmp_path / "owner" / "name" / "train.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(EvalError, match=r"owner/name \(default\) could not be read"):
        Hub(tmp_path).fetch(Dataset("owner/name", "default", "test"), None)
    (tmp_path / "owner" / "name" / "name.py").write_text("")
    (tmp_path / "owner" / "name" / "train.jsonl").unlink()
    with pytest.raises(EvalError, match="owner/name"):
        Hub(tmp_path).fetch(Dataset("owner/name", "default", "test"), None)


def parquet(rows: list[dict[str, object]]) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr("datasets.config.HF_ENDPOINT", "")
    with hub_server.serving(monkeypatch) as served:
        monkeypatch.setattr("datasets.config.HF_ENDPOINT", served.url)
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
        yield served


def test_script_repositories_are_read_from_their_converted_branch(hub):
    """PIQA's has one subset of another name, clinc_oos's several, of which one alone is meant."""
    for name in ("ybisk/piqa", "clinc/clinc_oos"):
        hub.commit(name, {f"{name.split('/')[1]}.py": b"raise SystemExit", "README.md": b"---\n---\n"})
    hub.branches["ybisk/piqa", CONVERTED] = {
        "default/train/0000.parquet": parquet([{"goal": "a"}]),
        "default/train/0001.parquet": parquet([{"goal": "b"}]),
        "default/validation/0000.parquet": parquet([{"goal": "c"}]),
    }
    hub.branches["clinc/clinc_oos", CONVERTED] = {
        f"{subset}/{split}/0000.parquet": parquet([{"text": f"{subset} {split}", "intent": 1}])
        for subset in ("imbalanced", "plus", "small")
        for split in ("train", "validation", "test")
    }
    rows, commit = Hub().fetch(BENCHMARKS["piqa"].dataset, None)
    assert commit == hub_server.commit_id(hub.branches["ybisk/piqa", CONVERTED])
    assert rows == {"train": [{"goal": "a"}, {"goal": "b"}], "validation": [{"goal": "c"}]}
    rows, _ = Hub().fetch(BENCHMARKS["helmet_icl_clinc150"].dataset, None)
    assert rows["validation"] == [{"text": "plus validation", "intent": 1}]
    with pytest.raises(EvalError, match=r"no files in other/test; it has imbalanced/test, .*small/validation"):
        Hub().fetch(Dataset("clinc/clinc_oos", "other", "test"), None)


def test_a_set_that_cannot_be_had_stops_no_other(tmp_path, capsys):
    fetched = []

    def fetch(dataset, revision):
        fetched.append(dataset.repo)
        if dataset.repo == "google/boolq":
            raise EvalError("google/boolq is not there.")
        return {split: [{"a": 1}] for split in dataset.splits}, "c0"

    (tmp_path / "eval.yaml").write_text(
        f"output: {tmp_path}\ndata: {tmp_path}/data\n"
        "suites: {all: {tasks: {piqa: {}, boolq: {}, hellaswag: {}}}}\n", encoding="utf-8",
    )  # fmt: skip
    recipe = load_eval_recipe(tmp_path / "eval.yaml")
    with pytest.raises(EvalError, match=r"1 of 3 sets .* goes on with these:\n  google/boolq is not there\."):
        write_full_edition(recipe, fetch)
    assert len(fetched) == 3 and "google/boolq default FAILED" in capsys.readouterr().out
    assert read_dataset(Path(recipe.data), BENCHMARKS["hellaswag"].dataset).edition == "full"
    fetched.clear()
    write_full_edition(recipe, lambda dataset, revision: fetched.append(dataset.repo) or fetch_all(dataset))
    assert fetched == ["google/boolq"]


def fetch_all(dataset):
    return {split: [{"a": 1}] for split in dataset.splits}, "c1"


def test_a_mirror_edition_is_written_with_its_manifest(prefetched):
    recipe, _ = prefetched
    data = read_dataset(Path(recipe.data), BENCHMARKS["boolq"].dataset)
    assert data.rows["validation"] == [{"question": "do birds fly", "answer": True, "passage": "Birds fly."}]
    manifest = json.loads((Path(recipe.data) / BENCHMARKS["boolq"].dataset.folder / "dataset.json").read_text())
    assert manifest["edition"] == "full" and manifest["splits"]["validation"]["rows"] == 1

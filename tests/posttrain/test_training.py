"""Runs through TRL: isolation of packed samples, the APO loss by hand, exact resume, and what a run leaves behind."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, Trainer

from foundation.launch import torchrun_command
from posttrain import train as train_command
from posttrain.data import DatasetError, prepare_data
from posttrain.progress import TrainingFailure
from posttrain.recipe import PostTrainingRecipe
from posttrain.template import load_template
from posttrain.training import RunError, build_trainer, load_tokenizer, save_model, train
from smollm3.command_line import main
from tests.posttrain.runs import FAST, from_base, metrics_of, recipe, weights
from tests.wandb_files import offline_runs


def make_trainer(wanted: PostTrainingRecipe) -> Trainer:
    tokenizer = load_tokenizer(wanted)
    return build_trainer(wanted, tokenizer, prepare_data(wanted, tokenizer))


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {name: p.grad.double().clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_same_gradients(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor], tolerance: float) -> None:
    assert one.keys() == two.keys()
    scale = max(gradient.abs().max() for gradient in two.values())
    for name in one:
        assert (one[name] - two[name]).abs().max() <= tolerance * scale, name


@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_samples_equal_separate_ones(run: Path, checkpointing: bool) -> None:
    """Loss and gradient of a packed batch against a float64 model on each sample alone: no sample sees another."""
    trainer = make_trainer(
        recipe("sft", from_base(run), f"optimizer.activation_checkpointing={str(checkpointing).lower()}")
    )
    rows = [trainer.train_dataset[index] for index in range(3)]
    assert max(len(row["seq_lengths"]) for row in rows) > 1
    batch = trainer.data_collator(rows)
    loss = trainer.compute_loss(trainer.model.train(), dict(batch))
    loss.backward()
    ours = gradients(trainer.model)

    reference = AutoModelForCausalLM.from_pretrained(run / "hf" / "long_context_64k", dtype=torch.float64)
    total, count = torch.zeros((), dtype=torch.float64), 0
    for row in rows:
        start = 0
        for length in row["seq_lengths"]:
            ids, labels = (torch.tensor(row[name][start : start + length]) for name in ("input_ids", "labels"))
            logits = reference(ids[None], use_cache=False).logits[0, :-1]
            total = total + torch.nn.functional.cross_entropy(logits, labels[1:], ignore_index=-100, reduction="sum")
            count += int((labels[1:] != -100).sum())
            start += length
    (total / count).backward()
    assert float(loss) == pytest.approx(float(total / count), rel=1e-5)
    assert_same_gradients(ours, gradients(reference), 1e-4)


def test_apo_zero_equals_a_hand_computation(run: Path) -> None:
    """(1 - sigmoid(beta r_w)) + sigmoid(beta r_l), summed log-ratios, pairs of unequal lengths in a padded batch."""
    wanted = recipe("apo", from_base(run), "apo.beta=0.3")
    trainer = make_trainer(wanted)
    torch.manual_seed(1)
    with torch.no_grad():  # move the policy away from its reference
        for parameter in trainer.model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    rows = [trainer.train_dataset[index] for index in range(5)]
    assert len({len(row["prompt_ids"]) + len(row["chosen_ids"]) for row in rows}) > 1
    loss = trainer.compute_loss(trainer.model.train(), trainer.data_collator(rows))
    loss.backward()
    ours = gradients(trainer.model)

    source = run / "hf" / "long_context_64k"
    reference = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float64)
    policy = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float64)
    policy.load_state_dict({name: value.double() for name, value in trainer.model.state_dict().items()})

    def log_ratio(row: dict[str, Any], answer: str) -> torch.Tensor:
        ids = torch.tensor(row["prompt_ids"] + row[answer])
        sums = []
        for model in (policy, reference):
            log_probs = model(ids[None], use_cache=False).logits[0, :-1].log_softmax(-1)
            chosen = log_probs.gather(1, ids[1:, None])[len(row["prompt_ids"]) - 1 :]
            sums.append(chosen.sum())
        return sums[0] - sums[1].detach()

    losses = [
        (1 - torch.sigmoid(0.3 * log_ratio(row, "chosen_ids"))) + torch.sigmoid(0.3 * log_ratio(row, "rejected_ids"))
        for row in rows
    ]
    expected = torch.stack(losses).mean()
    expected.backward()
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert_same_gradients(ours, gradients(policy), 1e-4)


@pytest.mark.parametrize("phase", ["sft", "apo"])
def test_resume_in_the_second_epoch_is_exact(run: Path, phase: str) -> None:
    """A run that lost everything after a checkpoint in epoch 2, its newest checkpoint half-written, ends bit-equal."""
    wanted = recipe(
        phase,
        from_base(run),
        "checkpoints.checkpoint_interval=1",
        "checkpoints.keep_last=null",
        "optimizer.global_batch_size=4",
        "optimizer.micro_batch_size=2",
    )
    train(wanted)
    straight = weights(wanted.model_folder)
    metrics = (wanted.run_folder / "metrics.jsonl").read_text().splitlines()
    steps = len(metrics)
    assert steps >= 4
    resume_at = steps // 2 + 1  # in epoch 2
    assert json.loads(metrics[resume_at - 1])["epoch"] > 1
    checkpoints = wanted.run_folder / "checkpoints"
    for step in range(resume_at + 2, steps + 1):
        shutil.rmtree(checkpoints / f"checkpoint-{step}")
    (checkpoints / f"checkpoint-{resume_at + 1}" / "trainer_state.json").write_text('{"epoch": 1.')
    shutil.rmtree(wanted.model_folder)

    train(wanted)
    resumed = weights(wanted.model_folder)
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    again = [json.loads(line) for line in (wanted.run_folder / "metrics.jsonl").read_text().splitlines()]
    for before, after in zip(map(json.loads, metrics), again, strict=True):
        assert {k: before[k] for k in ("step", "loss", "lr", "tokens")} == {
            k: after[k] for k in ("step", "loss", "lr", "tokens")
        }


def test_a_training_is_in_wandb_as_the_user_says(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """WANDB_MODE goes before the recipe's wandb.mode=disabled, and WANDB_PROJECT before its project."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_PROJECT", "comets")
    before = {name: value for name, value in os.environ.items() if name.startswith("WANDB")}
    wanted = recipe("sft", from_base(run), "optimizer.num_train_epochs=1")
    assert train(wanted).outcome == "finished"
    assert {name: value for name, value in os.environ.items() if name in before} == before
    [tracked] = offline_runs(wanted.run_folder)
    assert (tracked.project, tracked.name, tracked.group) == ("comets", "sft", "sft")
    steps = [(row["step"], row["loss"]) for row in metrics_of(wanted.run_folder / "metrics.jsonl")]
    assert [(row["_step"], row["loss"]) for row in tracked.rows] == steps


def test_three_phases_leave_a_chat_model(run: Path) -> None:
    """Mid-training, SFT and APO one after the other; the last folder is complete and declares itself rightly."""
    assert train_command.main(["recipes/tiny/midtrain.yaml", *FAST, "optimizer.num_train_epochs=1"]) == 0
    assert train_command.main(["recipes/tiny/sft.yaml", *FAST, "optimizer.num_train_epochs=1"]) == 0
    overrides = ["optimizer.learning_rate=5e-3", "optimizer.num_train_epochs=6", "optimizer.max_grad_norm=10.0"]
    assert train_command.main(["recipes/tiny/apo.yaml", *FAST, *overrides]) == 0

    metrics = [json.loads(line) for line in (run / "apo" / "metrics.jsonl").read_text().splitlines()]
    assert {"step", "loss", "lr", "grad_norm", "tokens", "tokens_per_second"} <= metrics[0].keys()
    assert metrics[0]["loss"] == pytest.approx(1, abs=1e-4)
    assert metrics[-1]["loss"] < 0.98 and metrics[-1]["rewards/margins"] > metrics[0]["rewards/margins"] + 0.05
    report = json.loads((run / "sft" / "data_report.json").read_text())
    assert {entry["mode"] for entry in report["sets"]} == {"think", "no_think"} and 0 < report["fill_rate"] <= 1

    folder = run / "hf" / "apo"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert tokenizer.chat_template == load_template("dual_mode")
    assert AutoTokenizer.from_pretrained(run / "hf" / "midtrain").chat_template == load_template("chatml")
    defaults = GenerationConfig.from_pretrained(folder)
    assert (defaults.do_sample, defaults.temperature, defaults.top_p, defaults.eos_token_id) == (True, 0.6, 0.95, 4)
    assert (model.config.eos_token_id, model.config.pad_token_id, model.config.vocab_size) == (4, 2, 600)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    for written in (folder, max((run / "apo" / "checkpoints").glob("checkpoint-*"), key=os.path.getmtime)):
        assert_spelled_for_every_release(written)


def assert_spelled_for_every_release(folder: Path) -> None:
    """What 4.x and 5.x read, each under its names; tests/compat loads such folders in these releases."""
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10_000.0
    assert config["dtype"] == config["torch_dtype"]
    assert config["tie_word_embeddings"] is True and config["use_cache"] is True
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast" and tokenizer["model_max_length"] == 1024


def test_two_processes_take_the_same_steps(run: Path) -> None:
    """Data parallel on two processes: the same global batches, so the same losses, and one writer of metrics."""
    arguments = [*FAST, from_base(run), "optimizer.micro_batch_size=1", "data.packing_strategy=null"]
    assert train_command.main(["recipes/tiny/sft.yaml", *arguments, "general.run=one"]) == 0
    command = torchrun_command(2, "-m", "posttrain.train", "recipes/tiny/sft.yaml", *arguments, "general.run=two")
    subprocess.run(
        command, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": ".", "OMP_NUM_THREADS": "1"}
    )
    one, two = (
        [json.loads(line) for line in (run / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert [line["step"] for line in one] == [line["step"] for line in two]
    assert [line["tokens"] for line in one] == [line["tokens"] for line in two]
    assert [line["loss"] for line in one] == pytest.approx([line["loss"] for line in two], rel=1e-4)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(
        weights(run / "hf/one").values(), weights(run / "hf/two").values(), strict=True))  # fmt: skip


@pytest.mark.long
def test_sharded_over_two_processes_it_is_the_same_training(run: Path) -> None:
    """Sharded over two processes (FSDP2): the same losses and weights as one process, also over an interruption."""
    arguments = [*FAST, from_base(run), "optimizer.micro_batch_size=1", "data.packing_strategy=null"]
    assert train_command.main(["recipes/tiny/sft.yaml", *arguments, "general.run=one"]) == 0
    arguments += [
        "general.run=two",
        "parallelism.fsdp=true",
        "optimizer.activation_checkpointing=true",
        "checkpoints.checkpoint_interval=5",
        "checkpoints.keep_last=null",
    ]

    command = torchrun_command(2, "-m", "tests.posttrain.train_twice", "recipes/tiny/sft.yaml", *arguments)
    environment = {**os.environ, "PYTHONPATH": ".", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, capture_output=True, env=environment)

    one, two = metrics_of(run / "one" / "metrics.jsonl"), metrics_of(run / "two" / "metrics-first.jsonl")
    assert [line["step"] for line in one] == [line["step"] for line in two]
    assert [line["tokens"] for line in one] == [line["tokens"] for line in two]
    assert [line["loss"] for line in one] == pytest.approx([line["loss"] for line in two], rel=1e-4)
    sharded = weights(run / "hf/two-first")
    assert all(torch.allclose(weight, sharded[name], atol=1e-4) for name, weight in weights(run / "hf/one").items())

    assert (run / "two" / "checkpoints" / "checkpoint-5" / "pytorch_model_fsdp.bin").is_file()
    again = metrics_of(run / "two" / "metrics.jsonl")
    assert [line["loss"] for line in again] == [line["loss"] for line in two]
    assert all(torch.equal(weight, sharded[name]) for name, weight in weights(run / "hf/two").items())


def test_masters_of_another_type_than_float32_are_refused(run: Path) -> None:
    trainer = make_trainer(recipe("sft", from_base(run)))
    trainer.model.to(torch.bfloat16)
    with pytest.raises(TrainingFailure, match=r"updates weights of type torch.bfloat16 instead of torch.float32"):
        trainer.train()


def test_checkpoints_of_another_recipe_are_not_continued(run: Path) -> None:
    wanted = ["recipes/tiny/sft.yaml", *FAST, from_base(run)]
    assert train_command.main(wanted) == 0
    with pytest.raises(RunError, match=r"another recipe \(optimizer.learning_rate: .* then, 0.5 now\)"):
        train(recipe("sft", from_base(run), "optimizer.learning_rate=0.5"))


def test_a_model_whose_checkpoints_are_gone_is_not_overwritten(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same command would train anew and end by replacing what may be the only copy."""
    wanted = recipe("sft", from_base(run))
    wanted.model_folder.mkdir(parents=True)
    (wanted.model_folder / "model.safetensors").write_text("trained before")
    command = ["recipes/tiny/sft.yaml", *FAST, from_base(run)]
    assert train_command.main(command) == 2
    assert f"{wanted.model_folder} holds a model, but {wanted.run_folder}/checkpoints no checkpoint" in (
        capsys.readouterr().err
    )
    assert (wanted.model_folder / "model.safetensors").read_text() == "trained before"
    assert not wanted.run_folder.exists()


def test_a_diverged_run_stops(run: Path) -> None:
    with pytest.raises(TrainingFailure, match=r"Lower optimizer\.learning_rate"):
        train(recipe("sft", from_base(run), "optimizer.learning_rate=1e30", "optimizer.warmup_ratio=0.0"))


def test_a_broken_model_is_not_trained(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One NaN in the embedding of a token that no sample holds would never show in a loss."""
    file = run / "hf" / "long_context_64k" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.embed_tokens.weight"][2, 3] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    assert train_command.main(["recipes/tiny/sft.yaml", *FAST, from_base(run)]) == 2
    assert "model.embed_tokens.weight holds nan in row 2." in capsys.readouterr().err
    assert not (run / "hf" / "sft").exists()


def test_broken_weights_are_not_saved(run: Path) -> None:
    wanted = recipe("sft", from_base(run))
    tokenizer = load_tokenizer(wanted)
    model = AutoModelForCausalLM.from_pretrained(run / "hf" / "long_context_64k")
    weights = {**model.state_dict(), "model.norm.weight": torch.full((32,), float("inf"))}
    with pytest.raises(TrainingFailure, match=r"the trained model: model\.norm\.weight holds inf in row 0\."):
        save_model(wanted, model, weights, tokenizer)
    assert not wanted.model_folder.exists()


def test_a_model_that_releases_read_differently_is_not_trained(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = run / "hf" / "long_context_64k" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "rope_theta": 5e6}))
    assert train_command.main(["recipes/tiny/sft.yaml", *FAST, from_base(run)]) == 2
    assert "config.json contradicts itself: rope_theta" in capsys.readouterr().err


def test_a_full_disk_is_said_and_survived(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Real short writes, by a limit on the size of files: of the weights, then of the optimizer state."""
    command = ["recipes/tiny/sft.yaml", *FAST, from_base(run), "checkpoints.checkpoint_interval=1"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (60_000, 400_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            assert train_command.main(command) == 1
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert "checkpoints cannot be written" in capsys.readouterr().err
    assert train_command.main(command) == 0
    assert "is incomplete: removed" in capsys.readouterr().out


def test_a_template_without_marks_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing would be trained: the loss is taken between the marks."""
    bare = load_template("dual_mode")
    monkeypatch.setattr("posttrain.template.load_training_template", lambda name: bare)
    with pytest.raises(DatasetError, match=r"12 of 12 samples: \d+ x the template marks 0 of \d replies for loss"):
        train(recipe("sft", from_base(run)))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.model_name_or_path=/no/such/model"], "no model at /no/such/model"),
        (["data.max_length=4096"], "exceeds the 1024 positions"),
        (["data.datasets=[{path: /no/such/set}]"], "no /no/such/set/train.jsonl"),
        (["data.max_lenght=1"], "Did you mean 'max_length'"),
        (["data.max_length=40", "data.max_lost_fraction=0.9"], "no trained token within max_length"),
    ],
)
def test_bad_input_exits_with_one_message(
    run: Path, overrides: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_command.main(["recipes/tiny/sft.yaml", *FAST, from_base(run), *overrides]) == 2
    assert message in capsys.readouterr().err


def test_preview_trains_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["posttrain", "recipes/tiny/apo.yaml", *FAST, from_base(run), "--preview", "1"]) == 0
    shown = capsys.readouterr().out
    assert "Reasoning mode" in shown and "twice" in shown
    assert not (run / "apo").exists()


def test_processes_wait_for_one_that_tokenizes_for_hours() -> None:
    """As long as the published recipes do (ddp_timeout 18,000 s), not PyTorch's 10 or 30 minutes."""
    code = (
        "import torch; from posttrain.training import processes; processes(); "
        "group = torch.distributed.group.WORLD._get_backend(torch.device('cpu')); "
        "print(group.options._timeout.total_seconds())"
    )
    environment = {**os.environ, "PYTHONPATH": ".", "CUDA_VISIBLE_DEVICES": ""}
    command = torchrun_command(1, "--no-python", sys.executable, "-c", code)
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    assert float(said.stdout.split()[-1]) >= 18_000

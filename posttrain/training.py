"""One run of a phase: model and data into a TRL trainer, exact resume, and the finished transformers folder."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import PartialState
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from foundation import outcome
from foundation.device import device_kind
from foundation.errors import UserError
from foundation.files import write_atomically
from foundation.finite import NotFiniteError, check_finite
from foundation.hf_folder import finish_folder, spelled_for_all
from foundation.outcome import Outcome
from foundation.pretrained import load_model
from foundation.pretrained import load_tokenizer as load_model_tokenizer
from foundation.recipe.loading import read_tree
from foundation.terminal import Terminal
from foundation.wandb_run import wandb_mode
from posttrain.data import TrainingData, prepare_data
from posttrain.data_report import print_report
from posttrain.progress import FinishesCheckpoints, MetricsWriter, StartsAtReference, TrainingFailure
from posttrain.recipe import PostTrainingRecipe
from posttrain.sharding import Float32Masters, allow_cpus, fsdp_arguments, reduce_in_float32
from posttrain.stopping import StopBehindStep, StopRequest
from posttrain.template import install_template

# For the main process, which tokenizes alone. The published recipes wait as long: ddp_timeout 14,400 and 18,000 s.
_LONGEST_WAIT = timedelta(hours=5)
_DATA_REPORT = "data_report.json"


class RunError(UserError):
    """A run that cannot start; the message names the file or key and the fix."""


@contextmanager
def _saving(folder: Path | str) -> Iterator[None]:
    """A full disk has many names: safetensors, torch and Python each raise their own error."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        free = shutil.disk_usage(folder).free / 1e9
        raise TrainingFailure(
            f"{folder} cannot be written ({free:.2f} GB are free): {error}. Free some space; the same command then "
            "goes on from the last complete checkpoint."
        ) from error


class _SupervisedTrainer(SFTTrainer):
    def _save_checkpoint(self, *arguments: Any, **named: Any) -> None:
        with _saving(self.args.output_dir):
            super()._save_checkpoint(*arguments, **named)


class _TokenizedPairTrainer(DPOTrainer):
    """DPOTrainer on pairs that are already tokenized; TRL has no switch for it."""

    def _save_checkpoint(self, *arguments: Any, **named: Any) -> None:
        with _saving(self.args.output_dir):
            super()._save_checkpoint(*arguments, **named)

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset


def processes() -> PartialState:
    """The process group of this run; without a GPU it has to be told so, or it takes each process for the only one.

    Raises:
        DeviceError: when GPUs are asked for and this process finds none.
    """
    return PartialState(cpu=device_kind() == "cpu", timeout=_LONGEST_WAIT)


def load_tokenizer(recipe: PostTrainingRecipe) -> PreTrainedTokenizerBase:
    """The model's tokenizer with this phase's chat template."""
    tokenizer = load_model_tokenizer(recipe.model.model_name_or_path, revision=recipe.model.model_revision)
    install_template(tokenizer, recipe.data.chat_template)
    return tokenizer


def train(recipe: PostTrainingRecipe, stop: StopRequest | None = None) -> Outcome:
    """Train (or resume, or find finished) the run of a recipe. When it is finished the model is in its model folder;
    when `stop` was asked for, on any process, there is a checkpoint of the step done.

    Raises:
        RunError, DatasetError, MissingInputError, TrackingError: nothing was trained; the message says why.
        TrainingFailure: the run broke off; its last checkpoint stays.
    """
    state = processes()
    tracking_mode = wandb_mode(recipe) if state.is_main_process else "disabled"
    _check_config(recipe)
    stop = stop or StopRequest()
    tokenizer = load_tokenizer(recipe)
    checkpoint = _agreed_checkpoint(recipe)
    with state.main_process_first():
        data = prepare_data(recipe, tokenizer)
    if checkpoint is not None:
        _check_same_data(recipe, data)
    if state.is_main_process:
        print_report(data, Terminal())
        outcome.clear(recipe)
        _write_run_files(recipe, data)
    set_seed(recipe.general.seed)
    trainer = build_trainer(recipe, tokenizer, data, tracking_mode)
    trainer.add_callback(StopBehindStep(stop))
    with stop.heeded():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        step = trainer.state.global_step
        if step == trainer.state.max_steps:
            _save_trained(recipe, trainer, tokenizer)
        state.wait_for_everyone()  # torchrun ends the others when the first one exits
    return Outcome("finished" if step == trainer.state.max_steps else "stopped", step)


def _save_trained(recipe: PostTrainingRecipe, trainer: Trainer, tokenizer: PreTrainedTokenizerBase) -> None:
    weights = trainer.accelerator.get_state_dict(trainer.model)  # whole tensors, on the main process at least
    if processes().is_main_process:
        save_model(recipe, trainer.accelerator.unwrap_model(trainer.model), weights, tokenizer)


def _check_config(recipe: PostTrainingRecipe) -> None:
    """Raises ModelFolderError, before anything is loaded, for a model that no folder could state to every release."""
    source = recipe.model.model_name_or_path
    config, _ = PreTrainedConfig.get_config_dict(source, revision=recipe.model.model_revision)
    spelled_for_all(config, Path(source) / "config.json")


def save_model(
    recipe: PostTrainingRecipe,
    trained: PreTrainedModel,
    weights: dict[str, torch.Tensor],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Write the weights, in the compute type, as a model of the trained one's configuration, with its tokenizer.

    Raises:
        TrainingFailure: a weight is NaN or infinite (nothing is written then), or the folder cannot be written.
    """
    dtype = getattr(torch, recipe.model.compute_dtype)
    weights = {name: weight.to(dtype) for name, weight in weights.items()}
    try:
        for name, weight in weights.items():
            check_finite(name, weight, "the trained model")
    except NotFiniteError as error:
        raise TrainingFailure(str(error)) from None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(trained.config, dtype=dtype)
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    model.generation_config = trained.generation_config
    recipe.model_folder.mkdir(parents=True, exist_ok=True)
    with _saving(recipe.model_folder):
        model.save_pretrained(recipe.model_folder)
        tokenizer.save_pretrained(recipe.model_folder)
        finish_folder(recipe.model_folder)


def build_trainer(
    recipe: PostTrainingRecipe, tokenizer: PreTrainedTokenizerBase, data: TrainingData, tracking_mode: str = "disabled"
) -> Trainer:
    """The phase's TRL trainer, ready to train. Weights are float32 masters whatever the compute type.

    Raises:
        RunError: model and tokenizer do not belong together.
        UnsafeNameError: the model's index names weights elsewhere.
    """
    model = load_model(
        recipe.model.model_name_or_path,
        revision=recipe.model.model_revision,
        dtype=torch.float32,
        attn_implementation=recipe.model.attn_implementation,
    )
    _check_sizes(recipe, model, tokenizer)
    for name, parameter in model.named_parameters():
        if not parameter.is_meta:  # with FSDP only one process holds the weights
            check_finite(name, parameter.detach(), recipe.model.model_name_or_path)
    set_chat_defaults(model, tokenizer)  # also in every checkpoint, which may become a member of a soup
    metrics = MetricsWriter(recipe, tracking_mode)
    trainer: Trainer
    if recipe.apo is not None:
        pair_arguments = DPOConfig(
            **_common_arguments(recipe),
            loss_type=["apo_zero"],
            beta=recipe.apo.beta,
            max_length=recipe.data.max_length,
            precompute_ref_log_probs=True,
        )
        allow_cpus(pair_arguments)
        trainer = _TokenizedPairTrainer(
            model=model, args=pair_arguments, train_dataset=data.dataset, processing_class=tokenizer,
            callbacks=[metrics, StartsAtReference()],
        )  # fmt: skip
    else:
        packing: dict[str, Any] = (
            {"packing_strategy": recipe.data.packing_strategy} if recipe.data.packing_strategy else {}
        )
        arguments = SFTConfig(
            **_common_arguments(recipe),
            **packing,
            packing=bool(packing),
            max_length=recipe.data.max_length,
            dataset_kwargs={"skip_prepare_dataset": True},
        )
        allow_cpus(arguments)
        trainer = _SupervisedTrainer(
            model=model, args=arguments, train_dataset=data.dataset, processing_class=tokenizer, callbacks=[metrics]
        )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Float32Masters())
    trainer.add_callback(FinishesCheckpoints())
    if trainer.args.fsdp:
        reduce_in_float32(trainer)
    return trainer


def _common_arguments(recipe: PostTrainingRecipe) -> dict[str, Any]:
    optimizer = recipe.optimizer
    per_pass = optimizer.micro_batch_size * processes().num_processes
    if optimizer.global_batch_size % per_pass:
        raise RunError(
            f"optimizer.global_batch_size {optimizer.global_batch_size} is no multiple of micro_batch_size "
            f"{optimizer.micro_batch_size} x {processes().num_processes} processes. Change one of them."
        )
    sharding: dict[str, Any] = {}
    if recipe.parallelism.fsdp and processes().num_processes > 1:
        sharding = fsdp_arguments(optimizer.activation_checkpointing)
    return {
        "output_dir": str(_checkpoints(recipe)),
        "seed": recipe.general.seed,
        "data_seed": recipe.data.seed,
        "num_train_epochs": optimizer.num_train_epochs,
        "per_device_train_batch_size": optimizer.micro_batch_size,
        "gradient_accumulation_steps": optimizer.global_batch_size // per_pass,
        "learning_rate": optimizer.learning_rate,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": optimizer.min_lr_rate},
        "warmup_steps": optimizer.warmup_ratio,
        "weight_decay": optimizer.weight_decay,
        "adam_beta1": optimizer.adam_beta1,
        "adam_beta2": optimizer.adam_beta2,
        "max_grad_norm": optimizer.max_grad_norm,
        "activation_checkpointing": optimizer.activation_checkpointing,
        "bf16": recipe.model.compute_dtype == "bfloat16",
        "use_cpu": device_kind() == "cpu",
        "save_strategy": "steps",
        "save_steps": recipe.checkpoints.checkpoint_interval,
        "save_total_limit": recipe.checkpoints.keep_last,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "ddp_find_unused_parameters": False,
        "report_to": [],  # MetricsWriter tells wandb
        "push_to_hub": False,
        **sharding,
    }


def _check_sizes(recipe: PostTrainingRecipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    positions = model.config.max_position_embeddings
    if recipe.data.max_length > positions:
        raise RunError(
            f"data.max_length {recipe.data.max_length} exceeds the {positions} positions that the model "
            f"{recipe.model.model_name_or_path} is declared for (max_position_embeddings). Lower max_length."
        )
    if len(tokenizer) > model.config.vocab_size:
        raise RunError(
            f"The tokenizer of {recipe.model.model_name_or_path} has {len(tokenizer)} tokens, the model only "
            f"{model.config.vocab_size} embeddings. They do not belong together."
        )


def _agreed_checkpoint(recipe: PostTrainingRecipe) -> Path | None:
    """What the main process finds to go on from: on a shared file system others may see another listing."""
    state = processes()
    found = last_checkpoint(recipe) if state.is_main_process else None
    if state.num_processes == 1:
        return found
    step = torch.tensor(_step_of(found) if found else -1, device=state.device)
    torch.distributed.broadcast(step, src=0)
    return _checkpoints(recipe) / f"checkpoint-{step.item()}" if step >= 0 else None


def _checkpoints(recipe: PostTrainingRecipe) -> Path:
    return recipe.run_folder / "checkpoints"


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def last_checkpoint(recipe: PostTrainingRecipe) -> Path | None:
    """The newest complete checkpoint of the run; one that a kill left half-written is removed.

    Raises:
        RunError: the checkpoints belong to a recipe that trains other weights, or there is a model without any.
    """
    checkpoints = sorted(_checkpoints(recipe).glob("checkpoint-*"), key=_step_of)
    if checkpoints:
        _check_same_recipe(recipe)
    while checkpoints:
        newest = checkpoints.pop()
        if _is_complete(newest):
            return newest
        if processes().is_main_process:
            print(f"{newest} is incomplete: removed.", flush=True)
            shutil.rmtree(newest)
    _check_no_model(recipe)
    return None


def _check_no_model(recipe: PostTrainingRecipe) -> None:
    """A run that begins anew would end by overwriting what an earlier one of its name has left."""
    if recipe.model_folder.is_dir() and any(recipe.model_folder.iterdir()):
        raise RunError(
            f"{recipe.model_folder} holds a model, but {_checkpoints(recipe)} no checkpoint that this run could go on "
            "from: it would begin anew and overwrite the model. Give the run another general.run, or move the model "
            "away."
        )


def _is_complete(checkpoint: Path) -> bool:
    """The Trainer writes trainer_state.json last."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return False
    return True


def _check_same_recipe(recipe: PostTrainingRecipe) -> None:
    file = recipe.run_folder / "recipe.yaml"
    then = PostTrainingRecipe.model_validate(read_tree(file)).identity()
    now = recipe.identity()
    different = [key for key in now if now[key] != then[key]]
    if different:
        changes = "; ".join(f"{key}: {then[key]} then, {now[key]} now" for key in different[:5])
        raise RunError(
            f"{recipe.run_folder} holds checkpoints of another recipe ({changes}). Give this run its own general.run, "
            "or delete the folder."
        )


def _check_same_data(recipe: PostTrainingRecipe, data: TrainingData) -> None:
    """A run goes on with the samples that it has been trained on so far.

    Raises:
        RunError: naming the sets that now give others.
    """
    file = recipe.run_folder / _DATA_REPORT
    try:
        then = json.loads(file.read_text(encoding="utf-8"))["fingerprints"]
    except (OSError, json.JSONDecodeError, KeyError):
        if processes().is_main_process:
            print(f"{file} does not say what samples this run began with: not compared with those of now.", flush=True)
        return
    sets = zip(recipe.data.datasets, then, data.fingerprints, strict=True)
    changed = [spec.source for spec, before, now in sets if before != now]
    if changed:
        raise RunError(
            f"{', '.join(changed)} gives other samples than those that {recipe.run_folder} has been trained on so far: "
            "the data, the tokenizer, the chat template, or the code that reads them has changed. Restore it, or give "
            "this run its own general.run."
        )


def _write_run_files(recipe: PostTrainingRecipe, data: TrainingData) -> None:
    recipe.run_folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(recipe.to_dict(), sort_keys=False, allow_unicode=True)
    write_atomically(recipe.run_folder / "recipe.yaml", text)
    report = {
        "sets": [asdict(report) for report in data.reports],
        "fingerprints": data.fingerprints,
        "sequences": len(data.dataset),
        "fill_rate": data.fill_rate,
    }
    write_atomically(recipe.run_folder / _DATA_REPORT, json.dumps(report, indent=2) + "\n")


def set_chat_defaults(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """End of turn, padding, and the sampling that SmolLM3 is released with (temperature 0.6, top-p 0.95)."""
    model.config.eos_token_id = tokenizer.eos_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.6,
        top_p=0.95,
        bos_token_id=model.config.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )

"""Verbs of post-training: its data, its phases, and what they taught."""

import json
from pathlib import Path

import click

from jobs.profile import Profile
from smollm3.models import final_model, model_folder, model_or_hub_name
from smollm3.options import (
    FolderForResults,
    Place,
    json_option,
    refuse_other_phases,
    seeds_option,
    takes_profile,
    takes_recipes,
)

_FILE = Place(dir_okay=False)
_HELD_OUT = "heldout.jsonl"  # among the generated sets


@click.command("posttrain-data")
@takes_profile
@click.argument("folder", required=False, type=FolderForResults())
@click.option("--replace", is_flag=True, help="Files with other rows may be replaced.")
@click.option("--seed", type=int, default=6, show_default=True, help="Of every row.")
@click.option("--midtrain", type=click.IntRange(1), default=5600, show_default=True, help="Rows of mid-training.")
@click.option("--sft", type=click.IntRange(1), default=900, show_default=True, help="Rows of SFT in each mode.")
@click.option("--apo", type=click.IntRange(1), default=160, show_default=True, help="Pairs of APO in each mode.")
@click.option("--heldout", type=click.IntRange(1), default=40, show_default=True, help="Held-out prompts of a task.")
def posttrain_data(profile: Profile, folder: Path | None, replace: bool, seed: int, **sizes: int) -> None:
    """Write the conversations, pairs and held-out prompts of the tiny profile into FOLDER.

    FOLDER is RUN/posttrain_data unless given. Everything follows from the seed; files with other rows are not replaced
    unasked.
    """
    from posttrain.tiny_data import write_sets

    folder = folder or profile.posttrain_data
    for name, count in write_sets(folder, seed, sizes, replace).items():
        click.echo(f"{folder / name}: {count} rows")


@click.command()
@takes_recipes()
@click.option(
    "--preview", type=click.IntRange(0), metavar="N",
    help="Print the data report and N samples coloured by role and by loss, and stop.",
)  # fmt: skip
def posttrain(profile: Profile, recipes: list[Path], overrides: list[str], preview: int | None) -> None:
    """Train RECIPEs on this machine: mid-training, SFT or APO, one after the other.

    RECIPE is a file or a name such as sft. Everything that can be checked is checked before a process starts; then one
    process per GPU, or per core, shares each step. A phase that was interrupted goes on at its last checkpoint. On a
    cluster, slurm/ does the same.
    """
    refuse_other_phases(recipes, "posttrain")
    if preview is not None:
        from foundation.terminal import Terminal
        from posttrain.preview import preview as show

        show(recipes, overrides, preview, Terminal())
    else:
        from posttrain.launch import launch

        launch(recipes, overrides)


@click.command("posttrain-seeds")
@takes_profile
@seeds_option(at_least=1)
@click.option("--prompts", type=_FILE, help="Held-out prompts; default: RUN/posttrain_data/heldout.jsonl.")
@click.option("--out", type=_FILE, help="The table as JSON; default: RUN/eval/posttrain_seeds.json.")
def posttrain_seeds(profile: Profile, seeds: tuple[int, ...], prompts: Path | None, out: Path | None) -> None:
    """Train all phases from start to finish under several seeds, and show what each taught.

    Each seed orders the data of every phase anew, in RUN/seeds/SEED. The base model and all final ones then answer the
    held-out prompts; the table gives shares with 95 % intervals.
    """
    from posttrain.seeds import run_seeds

    out = out or profile.run / "eval" / "posttrain_seeds.json"
    run_seeds(profile.recipes, seeds, prompts or profile.posttrain_data / _HELD_OUT, out)
    click.echo(f"written: {out}")


@click.command()
@takes_profile
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="How often each prompt is sampled.")
@click.option("--prompts", type=_FILE, help="Held-out prompts; default: RUN/posttrain_data/heldout.jsonl.")
@click.option("--out", type=_FILE, help="Results and replies; default: RUN/eval/capabilities.json.")
@click.option("--temperature", type=click.FloatRange(0), default=0.6, show_default=True, help="0 is greedy.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=0.95, show_default=True)
@click.option("--max-new-tokens", type=click.IntRange(1), default=80, show_default=True)
@click.option("--date", default="01 July 2025", show_default=True, help="The date in the prompts.")
@json_option
def capabilities(
    profile: Profile, models: tuple[str, ...], seeds: int, prompts: Path | None, out: Path | None,
    temperature: float, top_p: float, max_new_tokens: int, date: str, as_json: bool,
) -> None:  # fmt: skip
    """Ask MODELs the held-out prompts in both modes: do they keep to the mode, end their turn, and answer rightly?

    MODEL is a transformers folder, or the name of one in RUN/hf, such as apo. A base model is given our chat template.
    """
    from foundation.files import write_atomically
    from foundation.terminal import Terminal
    from posttrain.evaluate import evaluate_models, load_prompts, print_table, to_document
    from posttrain.generate import Sampling

    prompts, out = prompts or profile.posttrain_data / _HELD_OUT, out or profile.run / "eval" / "capabilities.json"
    folders, rows = [str(model_folder(profile, model)) for model in models], load_prompts(prompts)
    sampling = Sampling(temperature, top_p, max_new_tokens)
    results = evaluate_models(folders, rows, seeds=seeds, sampling=sampling, date=date)
    text = json.dumps(to_document(prompts, rows, results, seeds, sampling), indent=1)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, text + "\n")
    if as_json:
        click.echo(text)
    else:
        print_table(results, Terminal())
        click.echo(f"written: {out}")


@click.command()
@takes_profile
@click.argument("model", required=False)
@click.option("--prompt", help="Ask this one question, print the reply and leave.")
@click.option("--system", default="", help="System message; /think and /no_think in it switch the mode.")
@click.option("--no-think", is_flag=True, help="Start with reasoning off.")
@click.option("--tools", type=_FILE, help="JSON file with a list of function schemas.")
@click.option("--temperature", type=click.FloatRange(0), default=0.6, show_default=True, help="0 is greedy.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=0.95, show_default=True)
@click.option("--max-new-tokens", type=click.IntRange(1), default=512, show_default=True)
def chat(
    profile: Profile, model: str | None, prompt: str | None, system: str, no_think: bool, tools: Path | None,
    temperature: float, top_p: float, max_new_tokens: int,
) -> None:  # fmt: skip
    """Talk to MODEL in the terminal.

    MODEL is a transformers folder, the name of one in RUN/hf (such as apo), or a hub name; RUN/hf/merged unless given.
    In the conversation /think and /no_think switch reasoning, /system TEXT sets the system message, /reset forgets what
    was said, and /quit leaves; Ctrl-C stops a reply.
    """
    folder = str(final_model(profile)) if model is None else model_or_hub_name(profile, model)
    from posttrain.chat import chat as talk
    from posttrain.generate import Sampling

    sampling = Sampling(temperature, top_p, max_new_tokens)
    talk(folder, sampling, thinking=not no_think, system=system, tools=tools, prompt=prompt)

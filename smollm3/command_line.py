"""The verbs of `smollm3`, and what they have in common: help, suggestions, errors and exit codes.

A verb's module is imported when the verb is used, and imports what it runs only then: `smollm3 --help` takes a tenth of
a second. Exit codes: 0 done; 1 a check that failed (a difference, a score below its band); 2 wrong input, with a
sentence that says what to change; 75 stopped on request, the same command goes on; 130 interrupted.
"""

import errno
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import click

from foundation.errors import UserError
from foundation.plain_text import plain
from foundation.pretrained import TRUST


@dataclass(frozen=True)
class Verb:
    name: str
    place: str  # module:function below this package
    help: str


# In the order of the chain; each section is a heading of the help.
VERBS: dict[str, tuple[Verb, ...]] = {
    "The whole chain": (
        Verb("demo", "whole_chain:demo", "Run the chain on this machine, from text to the report."),
        Verb("report", "whole_chain:report", "Write one page about all that has run."),
        Verb("demo-seeds", "whole_chain:demo_seeds", "Run the chain under several seeds, and measure its effects."),
        Verb("report-seeds", "whole_chain:report_seeds", "Measure the effects of chains that have run."),
        Verb("ablations", "whole_chain:ablations", "Train the announcement's ablations, and compare."),
    ),
    "Data": (
        Verb("data", "data:data", "Prepare the tokenizer and the token shards that recipes train on."),
        Verb("audit", "data:audit", "Show what a recipe trains on: mixture, samples, a lint of windows."),
        Verb("synthesize", "data:synthesize", "Have a teacher model answer the prompts of a recipe."),
    ),
    "Recipes": (
        Verb("check", "planning:check", "Validate recipes of every phase, without a GPU."),
        Verb("plan", "planning:plan", "Predict memory, speed, days, cost and storage."),
        Verb("diff", "planning:diff", "Compare two recipes, or one with nanotron's own configuration."),
    ),
    "Pretraining": (
        Verb("train", "pretraining:train", "Pretrain a stage, or extend its context, on this machine."),
        Verb("checkpoints", "pretraining:checkpoints", "List, verify, prune or upload the checkpoints of a run."),
        Verb("rewind", "pretraining:rewind", "Continue a run from an earlier step, leaving out samples."),
        Verb("export", "pretraining:export", "Write a checkpoint as a transformers folder."),
        Verb("import", "pretraining:import_model", "Write a transformers SmolLM3 as a checkpoint to go on from."),
        Verb("summary", "pretraining:summary", "Losses, held-out bits per byte against baselines, a sample of text."),
    ),
    "Post-training": (
        Verb("posttrain-data", "posttraining:posttrain_data", "Write the tiny profile's conversations and pairs."),
        Verb("posttrain", "posttraining:posttrain", "Train phases on this machine: mid-training, SFT, APO."),
        Verb("posttrain-seeds", "posttraining:posttrain_seeds", "Train all phases under several seeds, in one table."),
        Verb("capabilities", "posttraining:capabilities", "Do models keep to the mode, and know the taught tasks?"),
        Verb("chat", "posttraining:chat", "Talk to a model in the terminal."),
    ),
    "Merge": (
        Verb("merge", "merging:merge", "Average the APO checkpoints, then mix in the mid-training model."),
        Verb("merge-sweep", "merging:merge_sweep", "Evaluate mixing weights from 0 to 1, and draw the curve."),
    ),
    "Evaluation": (
        Verb("eval-data", "evaluation:eval_data", "Put the evaluation sets on disk: ours, or the real ones."),
        Verb("eval", "evaluation:evaluate", "Evaluate models on the suites of a recipe."),
        Verb("eval-curve", "evaluation:eval_curve", "Evaluate all checkpoints of a run, against tokens."),
        Verb("eval-report", "evaluation:eval_report", "Show all evaluations so far, beside the announced scores."),
    ),
    "Clusters": (
        Verb("submit", "cluster:submit", "Check a job and put it into the scheduler's queue."),
        Verb("cluster-run", "cluster:cluster_run", "Submit the whole chain as one graph of dependencies."),
        Verb("cluster-status", "cluster:cluster_status", "Show where the chain's jobs are."),
        Verb("eval-checkpoint", "evaluation:eval_checkpoint", "Join a checkpoint's evaluation to its run (for jobs)."),
    ),
    "This machine": (
        Verb("doctor", "machine:doctor", "Say what is installed, what is missing, and how to get it."),
        Verb("completion", "machine:completion", "Print the completion script for a shell."),
    ),
}


class Verbs(click.Group):
    """Finds each verb's function when it is asked for."""

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(context, arguments)
        except click.exceptions.NoSuchCommand as error:
            raise click.exceptions.NoSuchCommand(
                error.command_name, possibilities=self.list_commands(context), ctx=context
            ) from None

    def list_commands(self, context: click.Context) -> list[str]:
        return [verb.name for verbs in VERBS.values() for verb in verbs]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        for verb in (verb for verbs in VERBS.values() for verb in verbs):
            if verb.name == name:
                module, _, function = verb.place.partition(":")
                command: click.Command = getattr(importlib.import_module(f"smollm3.{module}"), function)
                command.name, command.short_help = name, verb.help
                return command
        return None

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """By section, without importing the verbs."""
        width = max(map(len, self.list_commands(context)))
        for section, verbs in VERBS.items():
            if verbs:
                with formatter.section(section):
                    formatter.write_dl([(verb.name.ljust(width), verb.help) for verb in verbs])


@click.command(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    subcommand_metavar="VERB ...",
    epilog="`smollm3 VERB --help` says more about each. --profile chooses the recipes; default: tiny, the miniature.",
)
@click.version_option(package_name="smollm3-pipeline")
@click.option("--trust-remote-code", is_flag=True, help="Let models run code of their own, which you have read.")
def smollm3(trust_remote_code: bool) -> None:
    """SmolLM3 from raw text to a merged reasoning model.

    The verbs stand in the order of the chain; `smollm3 demo` runs it whole, in miniature, on this machine.
    """
    os.environ.pop(TRUST, None)  # the command line alone decides
    if trust_remote_code:
        os.environ[TRUST] = "1"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (default: the process's own); returns its exit code, and prints errors."""
    arguments = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    color = False if os.environ.get("NO_COLOR") else None
    try:
        code = smollm3.main(arguments, prog_name="smollm3", standalone_mode=False, color=color)
    except click.ClickException as error:
        if isinstance(error, click.UsageError) and error.ctx is not None:
            click.echo(f"{error.ctx.get_usage()}\nTry '{error.ctx.command_path} --help' for help.\n", err=True)
        _say_error(error.format_message(), color)
        return error.exit_code
    except UserError as error:
        _say_error(str(error), color)
        return 2
    except OSError as error:
        if error.filename is not None:
            _say_error(f"{error.strerror}: {error.filename}. Give another path, or mend this one.", color)
        elif error.errno in (errno.ENOSPC, errno.EDQUOT):
            _say_error(f"{error.strerror}. Make room; the same command goes on.", color)
        else:  # not about a file: ours to mend, with the traceback
            raise
        return 2
    except (click.Abort, KeyboardInterrupt):
        click.echo("\nInterrupted.", err=True)
        return 130
    return code if isinstance(code, int) else 0


def _say_error(text: str, color: bool | None) -> None:
    click.secho("error: ", fg="red", bold=True, nl=False, err=True, color=color)
    click.echo(plain(text), err=True)

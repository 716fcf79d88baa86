"""`python -m posttrain.train RECIPE ... [section.key=value ...]`: mid-training, SFT or APO, as each recipe says.

torchrun starts it: `smollm3 posttrain` on this machine, slurm/ on a cluster.
"""

import argparse
import sys
from typing import TYPE_CHECKING

from foundation.outcome import StopSignal
from foundation.plain_text import plain

if TYPE_CHECKING:  # importing torch and TRL takes seconds, which --help and a wrong recipe should not cost
    from posttrain.recipe import PostTrainingRecipe


def main(arguments: list[str] | None = None, stop: StopSignal | None = None) -> int:
    """Returns the exit code: 0 trained, 1 broke off, 2 could not start, 75 stopped on request, with a checkpoint if
    there was anything to save. `stop` is the program's from its first line on."""
    parser = argparse.ArgumentParser(
        prog="python -m posttrain.train",
        description="Post-train a model as a recipe says, or several one after the other. SIGUSR1 or SIGTERM ends a "
        "run behind its step, with a checkpoint. One that was interrupted goes on at its last checkpoint. Several "
        "processes: smollm3 posttrain RECIPE.",
    )
    parser.add_argument(
        "recipes",
        nargs="+",
        metavar="RECIPE | section.key=value",
        help="YAML files, and overrides of all of them: recipes/tiny/sft.yaml optimizer.learning_rate=1e-4",
    )
    parser.add_argument(
        "--with", action="append", dest="overlays", metavar="FILE", help="YAML file whose keys replace the recipes'"
    )
    options = parser.parse_args(arguments)
    from foundation.errors import UserError
    from foundation.recipe.loading import names_and_overrides

    paths, values = names_and_overrides(options.recipes)
    overrides = [*(options.overlays or ()), *values]
    if not paths:
        parser.error("no recipe given")

    from posttrain.quiet import quiet_libraries
    from posttrain.recipe import load_recipe

    try:
        recipes = [load_recipe(path, overrides) for path in paths]
        quiet_libraries()
        return _train(recipes, stop)
    except UserError as error:
        print(plain(f"error: {error}"), file=sys.stderr)
        return 2


def _train(recipes: list["PostTrainingRecipe"], stop: StopSignal | None) -> int:
    from posttrain.progress import TrainingFailure

    try:
        return _train_all(recipes, stop)
    except (TrainingFailure, OSError) as error:
        print(plain(f"error: {error}"), file=sys.stderr)
        return 1


def _train_all(recipes: list["PostTrainingRecipe"], program: StopSignal | None) -> int:
    """One after the other, up to the first that is stopped.

    What became of them all is the outcome in the first one's folder, which is a job's. Its step counts the steps of all
    of them, so that a job that was stopped twice can be seen to get on.
    """
    from foundation import outcome
    from posttrain.progress import TrainingFailure
    from posttrain.recipe import check_inputs
    from posttrain.stopping import StopRequest
    from posttrain.training import processes, train

    stop, steps = StopRequest(program=program), 0
    for number, recipe in enumerate(recipes, 1):
        stop.nothing_to_save()
        check_inputs(recipe)
        try:
            result = train(recipe, stop)
        except TrainingFailure as error:
            if processes().is_main_process:
                step = steps + outcome.last_recorded_step(recipe)
                outcome.write(recipes[0], outcome.Outcome("failed", step, str(error)))
            raise
        steps += result.step
        if processes().is_main_process:
            print(f"{result.outcome} after step {result.step}   metrics: {recipe.run_folder / 'metrics.jsonl'}")
            if result.outcome == "finished":
                print(f"model: {recipe.model_folder}")
        if number < len(recipes) and stop.agreed():
            result = outcome.Outcome("stopped", result.step)
        if result.outcome == "stopped":
            break
    if processes().is_main_process:
        outcome.write(recipes[0], outcome.Outcome(result.outcome, steps))
    processes().wait_for_everyone()  # torchrun ends the others as soon as one exits with 75
    return outcome.EXIT_CODES[result.outcome]


if __name__ == "__main__":
    sys.exit(main(stop=StopSignal(ends_at_once=True)))  # before imports that take seconds

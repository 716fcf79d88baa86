"""What a node check found: which nodes are bad, and whether the check can be believed. For lib.sh:

`python -m slurm.node_verdict judge FOLDER NODE ...` reads what each node left (`<node>.log` when its check started,
`<node>.status` when it ended), writes `verdict.json` and says what it found. Exit code 0: the job may train.
`python -m slurm.node_verdict exclude FOLDER ...` prints the nodes that the job should avoid from now on.

1. Failed on more than a tenth of the nodes, and on more than one or on all: the check is suspect (a wrong driver,
   PyTorch for CPUs, a wrong rate in the site file). Before training the job stops and says so; after a crash the check
   says nothing. Started on no node at all: srun or the controller stumbled; another attempt may do better.
2. Not finished in time: no failure, the node takes part. Only after an attempt that crashed, a few such nodes are lost.
3. Failed, or did not answer: lost. Excluded if they are few by the rule above, and if the job could run without them.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

TIMED_OUT = 124  # exit status of a check that did not finish, as timeout(1) has it
SUSPECT_SHARE = 0.1  # of a job's nodes
VERDICT_FILE = "verdict.json"
_LISTED_NODES = 8  # in a message; the rest is in the folder
_SAID_CHARACTERS = 300

State = Literal["passed", "failed", "timed out", "absent"]


@dataclass(frozen=True)
class Answer:
    """How a node's check ended, and the last line that it printed."""

    node: str
    state: State
    said: str = ""

    def __str__(self) -> str:
        said = self.said or {"absent": "does not answer", "timed out": "did not finish"}.get(self.state)
        return f"{self.node} ({said})"


@dataclass(frozen=True)
class Verdict:
    """What to do about it; `lost` and `exclude` are names of nodes."""

    problem: str = ""  # the check cannot be believed: the job stops
    not_started: str = ""  # srun started it nowhere: the attempt ends here, as after a crash
    lost: list[str] = field(default_factory=list)  # the attempt ends here, another may do without them
    exclude: list[str] = field(default_factory=list)  # those of them that the job should avoid
    reason: str = ""  # why the lost ones are
    note: str = ""  # for the log, without consequences

    @property
    def may_train(self) -> bool:
        return not self.lost and not self.problem and not self.not_started


def is_suspect(failed: int, nodes: int) -> bool:
    """Whether so many failures say more about the check than about the nodes."""
    return failed == nodes or failed > max(1, SUSPECT_SHARE * nodes)


def read_answers(folder: Path, nodes: Sequence[str], ran_out_of_time: bool) -> list[Answer]:
    """`ran_out_of_time`: the whole step did, so that a node without any file may have been about to start."""
    answers = []
    for node in nodes:
        log, status = folder / f"{node}.log", folder / f"{node}.status"
        said = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
        last = next((line.strip()[:_SAID_CHARACTERS] for line in reversed(said) if line.strip()), "")
        code = status.read_text().strip() if status.is_file() else ""
        if code == "0":
            answers.append(Answer(node, "passed"))
        elif code == str(TIMED_OUT) or (not code and (log.is_file() or ran_out_of_time)):
            answers.append(Answer(node, "timed out", last if code else ""))
        elif code:
            answers.append(Answer(node, "failed", last or f"exit code {code}"))
        else:
            answers.append(Answer(node, "absent"))
    return answers


def judge(answers: Sequence[Answer], folder: Path, site_file: str, *, after_crash: bool) -> Verdict:
    """The rules of this module's docstring. `folder` and `site_file` are named in messages."""
    failed, late, absent = ([a for a in answers if a.state == state] for state in ("failed", "timed out", "absent"))
    problem = ""
    if len(absent) == len(answers):
        message = _nothing_started(folder, len(answers))
        return Verdict(note=message) if after_crash else Verdict(not_started=message)
    if failed and is_suspect(len(failed), len(answers)):
        problem, failed = _suspect(failed, len(answers), folder, site_file), []
    if problem and not after_crash:
        return Verdict(problem=problem)
    lost = [*failed, *absent]
    if after_crash and not is_suspect(len(lost) + len(late), len(answers)):
        lost, late = lost + late, []
    names = [answer.node for answer in lost]
    notes = [problem] if problem else []
    if late:
        consequence = "." if after_crash else "; they take part nevertheless."
        notes.append(f"The node check did not finish in time on {_listed(late, folder)}{consequence}")
    return Verdict(
        lost=names,
        exclude=[] if is_suspect(len(lost), len(answers)) else names,
        reason=f"nodes that do not answer or fail their check: {_listed(lost, folder)}" if lost else "",
        note=" ".join(notes),
    )


def _suspect(failed: Sequence[Answer], nodes: int, folder: Path, site_file: str) -> str:
    how_many = f"all {nodes}" if len(failed) == nodes else f"{len(failed)} of {nodes}"
    which = "the node" if nodes == 1 else f"{how_many} nodes"
    return (
        f"The node check fails on {which}, so the check itself is suspect: {_listed(failed, folder)}. No node was "
        f"excluded. If the check is wrong, correct NODE_CHECK_OPTIONS or NODE_CHECK in {site_file} (NODE_CHECK=() goes "
        f"without) or the software that it names, and submit the job again; if these nodes are bad, submit it with "
        f"--exclude={','.join(answer.node for answer in failed)}."
    )


def _nothing_started(folder: Path, nodes: int) -> str:
    output = folder / "srun"
    lines = output.read_text(errors="replace").split("\n") if output.is_file() else []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    where = "the node" if nodes == 1 else f"any of the {nodes} nodes"
    return f"srun could not start the node check on {where} (see {output}): {last[:_SAID_CHARACTERS]}"


def _listed(answers: Sequence[Answer], folder: Path) -> str:
    listed = ", ".join(map(str, answers[:_LISTED_NODES]))
    more = len(answers) - _LISTED_NODES
    return f"{listed} and {more} more, see {folder}" if more > 0 else listed


def excluded_nodes(
    verdict: Verdict, excluded: Sequence[str], required: Sequence[str], partition: dict[str, str], job: Sequence[str]
) -> tuple[list[str], str]:
    """All nodes to exclude, those that already are included; and a word where the bad ones are not among them.

    Args:
        excluded: by the user's --exclude or by earlier attempts; always kept.
        required: by the user's --nodelist.
        partition: the partition's nodes, with Slurm's words for their GPUs; one with others than the job's nodes have
            could not run it.
        job: the nodes that the attempt ran on.
    """
    new = [node for node in verdict.exclude if node not in excluded]
    avoided = {*excluded, *new}
    kinds = {partition[node] for node in job if node in partition}
    left = [node for node, kind in partition.items() if kind in kinds and node not in avoided]
    word = ""
    if wanted := sorted({*new} & {*required}):
        word = f"{', '.join(wanted)} not excluded, since --nodelist asks for it"
    elif new and len(left) < len(job):
        word = f"{', '.join(new)} not excluded, since the job needs {len(job)} nodes and {len(left)} would be left"
    return ([*excluded] if word else [*excluded, *new]), word


def write_verdict(folder: Path, verdict: Verdict) -> None:
    (folder / VERDICT_FILE).write_text(json.dumps(dataclasses.asdict(verdict)) + "\n")


def read_verdict(folder: Path) -> Verdict:
    """The verdict of `judge`; one without any bad node where there was no check."""
    file = folder / VERDICT_FILE
    return Verdict(**json.loads(file.read_text())) if file.is_file() else Verdict()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m slurm.node_verdict", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    judging = commands.add_parser("judge", help="exit code 0: the job may train")
    judging.add_argument("folder", type=Path)
    judging.add_argument("nodes", nargs="+", help="of the job")
    judging.add_argument("--srun-status", type=int, required=True, help="exit status of the step that ran the check")
    judging.add_argument("--site-file", required=True, help="where NODE_CHECK is set")
    judging.add_argument("--after-crash", action="store_true", help="the attempt has failed already")
    excluding = commands.add_parser(
        "exclude", help="print all nodes to exclude, comma-separated; standard input: the partition's nodes, NODE GRES"
    )
    excluding.add_argument("folder", type=Path)
    excluding.add_argument("nodes", nargs="+", help="of the job")
    excluding.add_argument("--excluded", nargs="*", default=[], help="nodes that are excluded already")
    excluding.add_argument("--required", nargs="*", default=[], help="nodes that the job insists on")
    options = parser.parse_args()
    if options.command == "judge":
        ran_out_of_time = options.srun_status in (TIMED_OUT, 128 + 9)  # timeout(1) had to kill it
        answers = read_answers(options.folder, options.nodes, ran_out_of_time)
        verdict = judge(answers, options.folder, options.site_file, after_crash=options.after_crash)
        write_verdict(options.folder, verdict)
        found = ". ".join(filter(None, (verdict.problem, verdict.not_started, verdict.reason, verdict.note)))
        print(found or "every node passed its check")
        return 0 if verdict.may_train else 1
    partition = dict(line.split(maxsplit=1) for line in sys.stdin.read().splitlines())
    verdict = read_verdict(options.folder)
    nodes, word = excluded_nodes(verdict, options.excluded, options.required, partition, options.nodes)
    print(",".join(nodes))
    if word:
        print(word, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

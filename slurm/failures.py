"""What ended an attempt that crashed: read from torchrun's summaries and the ranks' output, or the trainer's own words.

A failure's message is for people. Its cause is for comparison: the same for two failures of one kind, whatever rank,
node, process or address they happened at.
"""

import re
import signal
from dataclasses import dataclass
from pathlib import Path

_ROOT_CAUSE = re.compile(  # torchrun's summary of the first worker that failed on its node
    r"Root Cause \(first observed failure\):\n\[\d+\]:\n\s*time\s*: (?P<time>\S+)\n\s*host\s*: \S+\n"
    r"\s*rank\s*: (?P<rank>\d+).*\n\s*exitcode\s*: (?P<code>-?\d+)"
)
_EXCEPTION = r"(?:[\w.]+(?:Error|Exception|Failure)|error): \S.*"
_FATAL_SIGNAL = re.compile(r"^Fatal Python error: (\w[\w ]*)", re.MULTILINE)  # faulthandler's, in the rank's output
# The words of nanotron_ext/train/heartbeat.py.
_RAISED = re.compile(r"Rank \d+ raised (?P<type>\w+) in step \d+ \([^)]*\): (?P<text>.*)")
_SILENT = re.compile(r"Rank \d+ was killed, or hangs")
KILLED = "a rank was killed or fell silent"  # by SIGKILL: nothing else tells the one from the other
_CHANCE = re.compile(  # causes that say nothing of the program: a node, the network, or no word at all
    rf"{KILLED}|exit (code|status) \S+$|NCCL|gloo|Dist(Network|Store)Error|[Cc]onnection|[Nn]etwork|[Tt]imed? ?out"
)
_MESSAGE_CHARACTERS = 300


@dataclass(frozen=True)
class Failure:
    """`code` is the exit code of the process, negative for a signal."""

    code: int
    message: str
    cause: str


def first_failure(logs: Path | None, exit_status: int) -> Failure:
    """The first failure on any node, since other ranks only echo it. `logs` has a file per node."""
    texts = _texts(logs)
    roots = [(root, file) for file, text in texts.items() for root in _ROOT_CAUSE.finditer(text)]
    if roots:
        # Times are whole seconds; of failures in the same one, a killed rank is the cause of exceptions elsewhere.
        root, file = min(roots, key=lambda found: (found[0]["time"], int(found[0]["code"]) > 0))
        return _of_rank(int(root["code"]), root["rank"], texts[file], file)
    for file, text in texts.items():
        if raised := re.findall(rf"^{_EXCEPTION}", text, re.MULTILINE):
            return Failure(exit_status, f"{raised[-1][:_MESSAGE_CHARACTERS]} ({file})", normalised(raised[-1]))
    where = f", see {logs}" if logs else ""
    return Failure(exit_status, f"exit status {exit_status}{where}", f"exit status {exit_status}")


def cause_of(message: str, logs: Path | None) -> str:
    """The cause in a message that the trainer left. Of a silent rank, torchrun or its own output may know more."""
    if raised := _RAISED.match(message):
        return normalised(f"{raised['type']}: {raised['text']}")
    if not _SILENT.match(message):
        return normalised(message)
    failure = first_failure(logs, 0)
    if failure.code < 0:
        return failure.cause
    fatal = next((found[1] for text in _texts(logs).values() if (found := _FATAL_SIGNAL.search(text))), "")
    return f"a rank was killed: {fatal}" if fatal else KILLED


def may_be_chance(cause: str) -> bool:
    """Whether two failures of this cause may have nothing to do with each other."""
    return _CHANCE.search(cause) is not None


def normalised(text: str) -> str:
    """The first line without what differs from case to case: processes and their hosts, paths, addresses, numbers."""
    line = text.strip().split("\n")[0][:_MESSAGE_CHARACTERS]
    line = re.sub(r" on \S+, process \d+", "", line)
    line = re.sub(r"0x[0-9a-fA-F]+", "#", line)
    line = re.sub(r"(?<![\w.])~?/[\w./@+-]+", "/...", line)
    return re.sub(r"\d+(?:[.,:]\d+)*", "#", line)


def _texts(logs: Path | None) -> dict[Path, str]:
    files = sorted(logs.glob("*.log")) if logs else []
    return {file: file.read_text(encoding="utf-8", errors="replace") for file in files}


def _of_rank(code: int, rank: str, text: str, file: Path) -> Failure:
    where = f"rank {rank} on {file.stem}"
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"  # a real-time one
        cause = KILLED if name == "SIGKILL" else f"a rank was killed by {name}"
        return Failure(code, f"{where} was killed by {name} ({file})", cause)
    raised = re.findall(rf"^\[rank{rank}\]: ({_EXCEPTION})", text, re.MULTILINE)
    raised = raised or re.findall(rf"^{_EXCEPTION}", text, re.MULTILINE)
    if raised:
        return Failure(code, f"{where}: {raised[0][:_MESSAGE_CHARACTERS]} ({file})", normalised(raised[0]))
    return Failure(code, f"{where}: exit code {code} ({file})", f"exit code {code}")

"""Decision tables of the node check: who is lost, who is excluded, and when the check itself is suspect."""

import subprocess
import sys
from pathlib import Path

import pytest

from slurm.node_verdict import Answer, State, Verdict, excluded_nodes, is_suspect, judge, read_answers, read_verdict

CODES: dict[str, State] = {"p": "passed", "f": "failed", "t": "timed out", "a": "absent"}


def verdict_on(states: str, *, after_crash: bool = False) -> Verdict:
    """`states`: a letter per node, n1 first."""
    answers = [
        Answer(f"n{number}", CODES[state], "0 of 8 GPUs are visible" if state == "f" else "")
        for number, state in enumerate(states, 1)
    ]
    return judge(answers, Path("logs/node_check"), "slurm/site.sh", after_crash=after_crash)


@pytest.mark.parametrize(
    ("states", "lost", "excluded", "suspect"),
    [
        # one node: nothing tells a bad node from a bad check
        ("p", "", "", False),
        ("f", "", "", True),
        ("t", "", "", False),
        # two nodes: one may be bad, both are not
        ("pf", "n2", "n2", False),
        ("ff", "", "", True),
        ("pa", "n2", "n2", False),
        ("pt", "", "", False),
        ("tt", "", "", False),
        ("ft", "n1", "n1", False),
        ("fa", "n1 n2", "", False),  # both is too many to do without
        # up to ten nodes, one; from there a tenth
        ("ppf", "n3", "n3", False),
        ("pff", "", "", True),
        ("p" * 9 + "f", "n10", "n10", False),
        ("p" * 8 + "ff", "", "", True),
        ("p" * 18 + "ff", "n19 n20", "n19 n20", False),
        ("p" * 17 + "fff", "", "", True),
        ("p" * 44 + "ffff", "n45 n46 n47 n48", "n45 n46 n47 n48", False),
        ("p" * 43 + "fffff", "", "", True),
        ("f" * 384, "", "", True),
        # a rack without power: not the check's fault; Slurm itself will notice
        ("p" * 40 + "a" * 8, " ".join(f"n{number}" for number in range(41, 49)), "", False),
        ("t" * 384, "", "", False),
    ],
)
def test_before_the_first_step(states: str, lost: str, excluded: str, suspect: bool) -> None:
    verdict = verdict_on(states)
    assert (verdict.lost, verdict.exclude) == (lost.split(), excluded.split())
    assert bool(verdict.problem) == suspect
    assert verdict.may_train == (not suspect and not lost)


@pytest.mark.parametrize("states", ["a", "aa", "a" * 48])
def test_a_check_that_started_nowhere_is_sruns_fault(states: str) -> None:
    """Nothing can be said of the nodes; another attempt may do better."""
    verdict = verdict_on(states)
    assert "srun could not start the node check" in verdict.not_started and not verdict.may_train
    assert (verdict.lost, verdict.exclude, verdict.problem) == ([], [], "")


@pytest.mark.parametrize(
    ("states", "lost", "excluded"),
    [
        ("pp", "", ""),
        ("pf", "n2", "n2"),
        ("ff", "", ""),  # memory that the crashed attempt still holds, for one
        ("fff", "", ""),
        ("ffa", "n3", "n3"),
        ("aa", "", ""),
        ("pa", "n2", "n2"),
        ("pt", "n2", "n2"),  # a crash, and this node alone does not finish
        ("tt", "", ""),
        ("ptt", "", ""),
        ("p" * 44 + "ffat", "n45 n46 n47 n48", "n45 n46 n47 n48"),
        ("p" * 40 + "ff" + "t" * 6, "n41 n42", "n41 n42"),
    ],
)
def test_after_a_crash_the_check_only_finds_lost_nodes(states: str, lost: str, excluded: str) -> None:
    verdict = verdict_on(states, after_crash=True)
    assert (verdict.lost, verdict.exclude, verdict.problem) == (lost.split(), excluded.split(), "")


def test_a_suspect_check_says_what_each_node_said_and_how_to_go_on() -> None:
    problem = verdict_on("ff").problem
    for part in (
        "The node check fails on all 2 nodes, so the check itself is suspect",
        "n1 (0 of 8 GPUs are visible), n2 (0 of 8 GPUs are visible)",
        "No node was excluded",
        "NODE_CHECK=()",
        "slurm/site.sh",
        "--exclude=n1,n2",
    ):
        assert part in problem
    assert "on the node, so" in verdict_on("f").problem
    many = verdict_on("p" * 30 + "f" * 18).problem
    assert "on 18 of 48 nodes" in many and "n38 (" in many and "n39 (" not in many and "and 10 more" in many


def test_a_check_that_did_not_finish_is_said_to_take_part() -> None:
    note = "The node check did not finish in time on n2 (did not finish); they take part nevertheless."
    assert verdict_on("pt").note == note


@pytest.mark.parametrize(
    ("files", "ran_out_of_time", "state", "said"),
    [
        ({"log": "", "status": "0\n"}, False, "passed", ""),
        ({"log": "slow\n", "status": "0\n"}, True, "passed", ""),
        (
            {"log": "Traceback ...\nImportError: torch\n\n", "status": "1\n"},
            False,
            "failed",
            "ImportError: torch",
        ),
        ({"log": "", "status": "127\n"}, False, "failed", "exit code 127"),
        ({"log": "rank 3 took longer\n", "status": "124\n"}, False, "timed out", "rank 3 took longer"),
        ({"log": "still at it\n"}, True, "timed out", ""),
        ({"log": "still at it\n"}, False, "timed out", ""),  # srun ended it, because of another node
        ({"log": "still at it\n", "status": ""}, False, "timed out", ""),
        ({}, True, "timed out", ""),
        ({}, False, "absent", ""),
    ],
)
def test_what_a_node_left(
    tmp_path: Path, files: dict[str, str], ran_out_of_time: bool, state: State, said: str
) -> None:
    for suffix, text in files.items():
        (tmp_path / f"n1.{suffix}").write_text(text)
    assert read_answers(tmp_path, ["n1"], ran_out_of_time) == [Answer("n1", state, said)]


def test_one_bad_node_of_several_is_never_suspect_and_all_always_are() -> None:
    for nodes in range(1, 2049):
        assert is_suspect(nodes, nodes) and is_suspect(1, nodes) == (nodes == 1)
        limit = 0 if nodes == 1 else max(1, nodes // 10)
        assert not is_suspect(limit, nodes) and is_suspect(limit + 1, nodes)


GPUS = {f"n{number}": "gpu:h100:8(S:0-1)" for number in range(1, 5)} | {"old1": "gpu:a100:4", "cpu1": "(null)"}


@pytest.mark.parametrize(
    ("bad", "excluded", "required", "job", "expected", "word"),
    [
        ("n2", "", "", "n1 n2", "n2", ""),
        ("n2", "n4", "", "n1 n2", "n4 n2", ""),  # the user's are kept
        ("n2", "n2 n4", "", "n1 n3", "n2 n4", ""),  # nothing is added twice
        ("n1 n2", "", "", "n1 n2", "n1 n2", ""),
        ("n2", "n3 n4", "", "n1 n2", "n3 n4", "the job needs 2 nodes and 1 would be left"),
        ("n2", "", "", "n1 n2 n3 n4", "", "the job needs 4 nodes and 3 would be left"),  # the others have other GPUs
        ("n2", "n4", "n1 n2", "n1 n2", "n4", "--nodelist asks for it"),
        ("", "n4", "", "n1 n2", "n4", ""),
    ],
)
def test_exclusion_adds_to_what_is_excluded_and_leaves_enough_nodes(
    bad: str, excluded: str, required: str, job: str, expected: str, word: str
) -> None:
    verdict = Verdict(lost=bad.split(), exclude=bad.split())
    nodes, said = excluded_nodes(verdict, excluded.split(), required.split(), GPUS, job.split())
    assert nodes == expected.split()
    assert word in said and bool(said) == bool(word)


def test_the_commands_of_the_job_script(tmp_path: Path) -> None:
    (tmp_path / "n1.status").write_text("0\n")
    (tmp_path / "n2.log").write_text("GPU 3 is slow\n")
    (tmp_path / "n2.status").write_text("1\n")
    command = [sys.executable, "-m", "slurm.node_verdict"]
    judging = [*command, "judge", str(tmp_path), "n1", "n2", "--srun-status", "0", "--site-file", "site.sh"]
    answer = subprocess.run(judging, capture_output=True, text=True)
    assert (answer.returncode, answer.stdout) == (
        1,
        "nodes that do not answer or fail their check: n2 (GPU 3 is slow)\n",
    )
    assert read_verdict(tmp_path).lost == ["n2"]
    excluding = [*command, "exclude", str(tmp_path), "n1", "n2", "--excluded", "n9", "--required"]
    partition = "n1 gpu:8\nn2 gpu:8\nn3 gpu:8\nn9 gpu:8\n"
    answer = subprocess.run(excluding, input=partition, capture_output=True, text=True, check=True)
    assert answer.stdout == "n9,n2\n"

"""Synthetic sets from a teacher that is well, down, slow, talking nonsense, and on a disk that is full."""

import json
import random
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from datapipes.errors import SourceError
from datapipes.synthetic.answers import AnswerLog, Unusable, parse_answer, repeats_itself
from datapipes.synthetic.build import Report, build
from datapipes.synthetic.recipe import load_recipe
from foundation.recipe import RecipeError
from smollm3.command_line import main
from tests.datapipes.synthetic.fake_server import serving

THINK = "<think>\nLet me see: {0}\n</think>\nThe answer to {0}"


def write_prompts(folder: Path, rows: list[Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def chat(*questions: str, system: str = "") -> dict[str, Any]:
    """A conversation of a non-reasoning set, with old answers."""
    messages = [{"role": "system", "content": system}] if system else []
    for question in questions:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": "old answer"}]
    return {"messages": messages}


def make(folder: Path, url: str, *overrides: str) -> Report:
    """Build the set of `folder`/prompts from the server."""
    file = folder / "synthetic.yaml"
    file.write_text(
        f"output: {folder}/out\n"
        f"prompts: [{{kind: files, path: {folder}/prompts, format: jsonl, files: ['*.jsonl']}}]\n"
        f"teacher: {{url: '{url}', model: teacher, request: {{max_tokens: 64, temperature: 0.6}},\n"
        "  max_concurrent_requests: 4, retries: 1, retry_delay_seconds: 0.02, ready_seconds: 1}\n"
        "max_lost_fraction: 0.9\n"
    )
    return build(load_recipe(file, overrides))


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out/train.jsonl").read_text().splitlines()]


def echo(payload: dict[str, Any], _: int) -> str:
    return THINK.format(payload["messages"][-1]["content"])


def test_conversations_in_the_sft_schema(tmp_path: Path) -> None:
    """All user turns are answered, earlier answers reach the teacher without their thinking."""
    write_prompts(tmp_path / "prompts", [chat("one", "two", system="Be kind."), chat("three"), chat("three")])
    with serving(echo) as server:
        report = make(tmp_path, server.url)
    assert (report.prompts, report.rows, dict(report.lost)) == (3, 2, {"prompt asked twice": 1})
    longest = max(rows_of(tmp_path), key=lambda row: len(row["messages"]))
    assert longest["chat_template_kwargs"] == {"enable_thinking": True}
    assert longest["messages"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": THINK.format("one")},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": THINK.format("two")},
    ]
    last = next(request for request in server.requests if request["messages"][-1]["content"] == "two")
    assert [m["content"] for m in last["messages"]] == ["Be kind.", "one", "The answer to one", "two"]
    assert (last["model"], last["max_tokens"], last["temperature"]) == ("teacher", 64, 0.6)
    assert last["chat_template_kwargs"] == {"enable_thinking": True}


def test_flags_of_the_old_mode_go(tmp_path: Path) -> None:
    """They would win over the template argument, and a row that reasons would be trained as one that must not."""
    rows = [chat("one", system="Be kind. /no_think"), chat("two", system="/no_think"), chat("three", system="a\n  b")]
    write_prompts(tmp_path / "prompts", rows)
    with serving(echo) as server:
        make(tmp_path, server.url)
    systems = {row["messages"][-2]["content"]: row["messages"][0]["content"] for row in rows_of(tmp_path)}
    assert systems == {"one": "Be kind.", "two": "two", "three": "a\n  b"}


def test_pairs_in_the_apo_schema(tmp_path: Path) -> None:
    """The weaker model answers the last turn of what the teacher's answers made of the prompt."""
    write_prompts(tmp_path / "prompts", [chat("one", "two"), chat("three"), chat("same"), chat("lost")])

    def respond(payload: dict[str, Any], _: int) -> Any:
        question = payload["messages"][-1]["content"]
        weak = payload["model"] == "weak"
        if question == "lost" and not weak:
            return "no reasoning"
        return THINK.format(f"{question}?" if weak and question != "same" else question)

    with serving(respond) as server:
        rejected = f"rejected={{url: '{server.url}', model: weak, request: {{max_tokens: 8}}}}"
        report = make(tmp_path, server.url, rejected)
    assert dict(report.lost) == {"without reasoning": 1, "rejected: chosen equals rejected": 1}
    rows = sorted(rows_of(tmp_path), key=lambda row: len(row["chosen"]))
    assert [row["chosen"][-2]["content"] for row in rows] == ["three", "two"]
    for row in rows:
        assert row["chosen"][:-1] == row["rejected"][:-1] and row["chat_template_kwargs"] == {"enable_thinking": True}
        assert row["chosen"][-1]["content"] == THINK.format(row["chosen"][-2]["content"])
        assert row["rejected"][-1]["content"] == THINK.format(row["chosen"][-2]["content"] + "?")
    weak = [request["messages"] for request in server.requests if request["model"] == "weak"]
    assert "lost" not in [messages[-1]["content"] for messages in weak]
    two = next(messages for messages in weak if messages[-1]["content"] == "two")
    assert [m["content"] for m in two] == ["one", "The answer to one", "two"] and len(weak) == 3


LOOP = "and then I add one more to it, so "
PROSE = Path(json.__file__).read_text()
TURNS: dict[str, tuple[dict[str, Any], str]] = {
    "cut off": ({"text": "<think>\nhm", "finish_reason": "length"}, "truncated"),
    "cut off by the server": ({"text": "<think>\nhm\n</think>\nYes", "finish_reason": "abort"}, "truncated"),
    "never closed": ({"text": "<think>\nhm"}, "unbalanced think tags"),
    "thinks twice": ({"text": "<think>a</think>b<think>c</think>d"}, "unbalanced think tags"),
    "does not think": ({"text": "Yes"}, "without reasoning"),
    "empty block": ({"text": "<think>\n\n</think>\nYes"}, "without reasoning"),
    "only thinks": ({"text": "<think>\nhm\n</think>\n \n"}, "empty answer"),
    "silent": ({"text": "", "reasoning": "hm"}, "empty answer"),
    "loops in thought": ({"text": f"<think>{PROSE}{LOOP * 150}</think>Yes"}, "repeats itself"),
    "loops in the answer": ({"text": f"<think>hm</think>{LOOP * 50}"}, "repeats itself"),
    "one letter": ({"text": f"<think>{'a' * 2000}</think>Yes"}, "repeats itself"),
}


@pytest.mark.parametrize(("turn", "reason"), TURNS.values(), ids=TURNS.keys())
def test_answers_that_are_dropped(turn: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        parse_answer({"reasoning": "", "finish_reason": "stop", **turn}, thinking=True)


@pytest.mark.parametrize(
    "turn",
    [
        {"text": "<think>\nhm\n</think>\n\nYes\n"},
        {"text": "hm\n</think>\nYes"},  # the prompt ended with the opening tag
        {"text": "Yes", "reasoning": "hm"},  # the server has taken them apart
    ],
)
def test_reasoning_is_found_in_every_form(turn: dict[str, Any]) -> None:
    answer = parse_answer({"reasoning": "", "finish_reason": "stop", **turn}, thinking=True)
    assert answer.content == "<think>\nhm\n</think>\nYes"


def test_direct_answers() -> None:
    turn = {"reasoning": "", "finish_reason": "stop"}
    assert parse_answer({**turn, "text": "<think>\n\n</think>\nYes"}, thinking=False).content == "Yes"
    with pytest.raises(Unusable, match="not asked for"):
        parse_answer({**turn, "text": "<think>\nhm\n</think>\nYes"}, thinking=False)


def test_ordinary_text_does_not_repeat_itself() -> None:
    """Prose, code and worked arithmetic stay clear of the threshold."""
    rng = random.Random(0)
    sums = "\n".join(f"{a} + {b} = {a + b}" for a, b in ((rng.randrange(99), rng.randrange(99)) for _ in range(900)))
    licence = Path("datapipes/corpus/licences/postgresql.txt").read_text()
    for text in (PROSE, sums, licence, Path(random.__file__).read_text()):
        assert not repeats_itself(text)


def test_every_loss_is_counted(tmp_path: Path) -> None:
    """Prompts that cannot be asked, answers that cannot be used, parrots, benchmark passages, refusals."""
    tool = {"messages": [{"role": "user", "content": "a"}, {"role": "tool", "content": "1"}]}
    empty = {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": " "}]}
    questions = ["good", "long", "long too", "cut", "too long for the server", "leaked"]
    write_prompts(tmp_path / "prompts", [*map(chat, questions), tool, empty])
    passage = "the seven quick foxes of the northern valley jumped over thirteen lazy dogs yesterday"
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks/foxes.jsonl").write_text(json.dumps({"question": passage}) + "\n")

    def respond(payload: dict[str, Any], _: int) -> Any:
        question = payload["messages"][-1]["content"]
        if question == "too long for the server":
            return 400, "the prompt exceeds the context"
        if question == "cut":
            return {"content": "<think>\nhm", "finish_reason": "length"}
        said = {"leaked": passage, "good": "Yes"}
        return "<think>\nhm\n</think>\n" + said.get(question, " ".join(f"word{i}" for i in range(30)))

    with serving(respond) as server:
        report = make(tmp_path, server.url, f"benchmarks={tmp_path / 'benchmarks'}")
    assert dict(report.lost) == {
        "prompt with tool turns": 1,
        "prompt without a question": 1,
        "truncated": 1,
        "refused by the server": 1,
        "answer given before": 1,
        "passage of foxes": 1,
    }
    assert (report.prompts, report.rows) == (8, 2)
    assert json.loads((tmp_path / "out/report.json").read_text())["lost"] == dict(report.lost)


def test_a_run_that_broke_off_goes_on(tmp_path: Path) -> None:
    """The teacher goes down, a kill leaves half a line; nothing is asked twice and the rows are those of one run."""
    questions = [f"question {i}" for i in range(20)]
    for name in ("whole", "broken"):
        write_prompts(tmp_path / name / "prompts", [chat(question) for question in questions])
    with serving(echo) as server:
        make(tmp_path / "whole", server.url)

    with (
        serving(lambda payload, number: echo(payload, 0) if number < 7 else (503, "overloaded")) as server,
        pytest.raises(
            SourceError, match=r"gives no answer: HTTP 503: overloaded \(tried 2 times\).*7 answers are kept"
        ),
    ):
        make(tmp_path / "broken", server.url)
    assert not (tmp_path / "broken/out/train.jsonl").exists()
    log = tmp_path / "broken/out/answers/teacher.jsonl"
    answered = [json.loads(line)["messages"][-1]["content"] for line in log.read_text().splitlines()]
    with log.open("a") as file:
        file.write('{"id": "half a li')
    with serving(echo) as server:
        make(tmp_path / "broken", server.url)
    assert len(answered) == 7 and sorted(server.questions() + answered) == sorted(questions)
    assert rows_of(tmp_path / "broken") == rows_of(tmp_path / "whole")


def test_filters_change_without_asking_again(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts", [chat("one"), chat("two")])
    with serving(echo) as server:
        make(tmp_path, server.url)
        write_prompts(tmp_path / "prompts", [chat("one")])
        assert make(tmp_path, server.url).rows == 1
        assert len(server.requests) == 2
    with pytest.raises(SourceError, match=r"begun with .*'max_tokens': 64.* now says .*'max_tokens': 65"):
        make(tmp_path, server.url, "teacher.request.max_tokens=65")


def test_a_set_of_other_origin_is_left_alone(tmp_path: Path) -> None:
    write_prompts(tmp_path, [chat("Why?")])
    mine = tmp_path / "out" / "train.jsonl"
    mine.parent.mkdir()
    mine.write_text("bought")
    with serving(echo) as server, pytest.raises(SourceError, match=r"holds a train\.jsonl without answers"):
        make(tmp_path, server.url)
    assert mine.read_text() == "bought" and server.requests == []


def test_requests_keep_the_pace(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts", [chat(f"{i}") for i in range(6)])
    with serving(echo) as server:
        make(tmp_path, server.url, "teacher.requests_per_minute=600")
    gaps = [later - earlier for earlier, later in zip(server.times, server.times[1:], strict=False)]
    assert sum(gaps) >= 5 * 0.1 - 0.05


def test_memory_is_bounded_by_the_conversations_in_flight(tmp_path: Path) -> None:
    """However many prompts there are, no more are read than can be in flight."""
    from datatrove.data import Document

    from datapipes.synthetic.recipe import Teacher
    from datapipes.synthetic.teacher import ask

    ahead = []
    log = AnswerLog(tmp_path / "log.jsonl")

    def prompts() -> Iterator[Document]:
        for number in range(60):
            ahead.append(number - len(log.offsets))
            yield Document(text="", id=str(number), metadata={"messages": chat(f"{number}")["messages"][:1]})

    def respond(payload: dict[str, Any], _: int) -> str:
        time.sleep(0.01)
        return echo(payload, 0)

    with serving(respond) as server:
        ask(Teacher(url=server.url, model="m", request={}, max_concurrent_requests=5), prompts(), log)
    assert len(log.offsets) == 60 and server.most_in_flight <= 5 and max(ahead) <= 7


FAILURES: dict[str, tuple[Any, str]] = {
    "html": ((200, "<html>Welcome</html>"), r"HTTP 200: <html>Welcome.*tried 2 times"),
    "other json": ((200, '{"result": "yes"}'), "HTTP 200: {"),
    "null choices": ((200, '{"choices": null}'), "HTTP 200: {"),
    "broken inside": ((500, "oom"), "HTTP 500: oom"),
    "wrong model": ((404, "no such model"), "HTTP 404: no such model"),
    "wrong key": ((401, "who are you"), "HTTP 401"),
}


@pytest.mark.parametrize(("answer", "message"), FAILURES.values(), ids=FAILURES.keys())
def test_a_teacher_that_cannot_be_understood(answer: Any, message: str, tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts", [chat("one")])
    with serving(lambda *_: answer) as server, pytest.raises(SourceError, match=message):
        make(tmp_path, server.url)


def test_nonsense_once_is_asked_again(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts", [chat("one")])
    with serving(lambda payload, number: echo(payload, 0) if number else (200, "?")) as server:
        assert make(tmp_path, server.url).rows == 1


def test_a_teacher_that_is_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_prompts(tmp_path / "prompts", [chat("one")])
    with serving(echo) as server:
        url = server.url
    with pytest.raises(SourceError, match=f"no server at {url} for the teacher teacher"):
        make(tmp_path, url)
    assert main(["synthesize", str(tmp_path / "synthetic.yaml")]) == 2
    assert capsys.readouterr().err.startswith(f"error: There is no server at {url}")


def test_a_teacher_that_is_slow(tmp_path: Path) -> None:
    def respond(payload: dict[str, Any], _: int) -> str:
        time.sleep(0.5)
        return echo(payload, 0)

    write_prompts(tmp_path / "prompts", [chat("one")])
    with serving(respond) as server, pytest.raises(SourceError, match=r"no answer within 0\.1 s"):
        make(tmp_path, server.url, "teacher.request_timeout_seconds=0.1")


def test_a_full_disk(tmp_path: Path) -> None:
    """Real short writes, by a limit on the size of files; then space again."""
    write_prompts(tmp_path / "prompts", [chat(f"question {i} {'long ' * 60}") for i in range(30)])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with serving(echo) as server:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
        try:
            with pytest.raises(SourceError, match=r"teacher\.jsonl cannot be written: .*the same command goes on"):
                make(tmp_path, server.url)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert (tmp_path / "out/answers/teacher.jsonl").stat().st_size <= 10_000
        assert make(tmp_path, server.url).rows == 30
    assert len(server.requests) < 30 + 10


def test_the_api_key_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_prompts(tmp_path / "prompts", [chat("one")])
    with serving(echo) as server:
        with pytest.raises(SourceError, match="environment variable TEACHER_KEY"):
            make(tmp_path, server.url, "teacher.api_key_variable=TEACHER_KEY")
        monkeypatch.setenv("TEACHER_KEY", "secret")
        make(tmp_path, server.url, "teacher.api_key_variable=TEACHER_KEY")
    assert server.requests[0]["authorization"] == "Bearer secret"
    assert "secret" not in "".join(path.read_text() for path in (tmp_path / "out").rglob("*.json*"))


def test_too_many_losses_are_an_error(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts", [chat(f"{i}") for i in range(4)])
    with (
        serving(lambda *_: "no reasoning") as server,
        pytest.raises(SourceError, match=r"4 of 4 conversations are lost: 4 x without reasoning"),
    ):
        make(tmp_path, server.url)
    assert not (tmp_path / "out/train.jsonl").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "x"}\n', "no column 'messages'"),
        ("not json\n", "Line 1 of .* is not JSON"),
        ('{"messages": [{"role": "user"}]}\n', "message 0 has no role and content"),
        ('{"messages": []}\n', "no conversation with a question"),
    ],
)
def test_prompt_sets_that_cannot_be_used(content: str, message: str, tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts", [])
    (tmp_path / "prompts/train.jsonl").write_text(content)
    with serving(echo) as server, pytest.raises(SourceError, match=message):
        make(tmp_path, server.url)


def test_recipes() -> None:
    for profile in ("tiny", "smollm3-3b"):
        for name in ("synthetic_sft", "synthetic_apo"):
            recipe = load_recipe(f"recipes/{profile}/{name}.yaml")
            assert recipe.teacher.thinking and (recipe.rejected is not None) == (name == "synthetic_apo")
    with pytest.raises(RecipeError, match="same mode"):
        load_recipe("recipes/tiny/synthetic_apo.yaml", ["rejected.thinking=false"])

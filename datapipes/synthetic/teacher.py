"""Asking a teacher, on datatrove's inference runner.

The runner keeps a bounded number of conversations in flight. Three of its parts are replaced where 0.10.1 would lose
data in silence: it goes on after an answer that it could not save (a full disk, or aiofiles not installed), it cannot
time out a local server, and its client for other servers drops the reasoning that they return beside the answer.
"""

import asyncio
import os
import time
from collections.abc import Iterable
from typing import Any

import httpx
from datatrove.data import Document
from datatrove.pipeline.inference.run_inference import InferenceConfig, InferenceRunner
from datatrove.pipeline.inference.servers import InferenceServer
from datatrove.pipeline.inference.types import GenerateFunction, InferenceError, ServerError
from datatrove.utils.logging import logger

from datapipes.errors import SourceError
from datapipes.synthetic.answers import AnswerLog, Unusable, parse_answer, without_thinking
from datapipes.synthetic.recipe import Teacher


class TeacherServer(InferenceServer):
    """An OpenAI-compatible server that somebody else has started."""

    def __init__(self, config: InferenceConfig, rank: int, teacher: Teacher) -> None:
        super().__init__(config, rank)
        self.teacher = teacher
        self.next_request_at = 0.0
        self.client = httpx.AsyncClient(
            base_url=teacher.url,
            headers=_headers(teacher),
            timeout=httpx.Timeout(teacher.request_timeout_seconds, connect=10.0),
            limits=httpx.Limits(max_connections=teacher.max_concurrent_requests),
        )

    async def start_server(self) -> None:
        """Not ours to start."""

    async def monitor_health(self) -> None:
        """Not ours to watch; a request that fails says enough."""
        await asyncio.Event().wait()

    async def is_ready(self) -> bool:
        """`ask` has seen to it."""
        return True

    async def __aexit__(self, *error: Any) -> None:
        await super().__aexit__(*error)
        await self.client.aclose()

    async def _make_request(self, payload: dict[str, Any]) -> dict[str, Any]:
        """One answer.

        Raises:
            InferenceError: the server refuses this conversation (too long, say).
            ServerError: it does not answer any, or cannot be understood.
        """
        problem = ""
        for attempt in range(self.teacher.retries + 1):
            if attempt:
                await asyncio.sleep(self.teacher.retry_delay_seconds * 2 ** (attempt - 1))
            await self._pace()
            try:
                response = await self.client.post("/v1/chat/completions", json=payload)
            except httpx.TimeoutException:
                problem = f"no answer within {self.teacher.request_timeout_seconds:g} s"
                continue
            except httpx.HTTPError as error:
                problem = f"{type(error).__name__}: {error}"
                continue
            excerpt = response.text[:200]
            if response.status_code in (400, 413, 422):
                raise InferenceError(None, f"HTTP {response.status_code}: {excerpt}")
            if response.status_code in (401, 403, 404):
                raise ServerError(f"HTTP {response.status_code}: {excerpt}")
            if response.status_code == 200 and (answer := _understood(response)) is not None:
                return answer
            problem = f"HTTP {response.status_code}: {excerpt}"
        raise ServerError(f"{problem} (tried {self.teacher.retries + 1} times)")

    async def _pace(self) -> None:
        """Wait for this request's turn."""
        if self.teacher.requests_per_minute:
            now = time.monotonic()
            turn = max(now, self.next_request_at)
            self.next_request_at = turn + 60 / self.teacher.requests_per_minute
            await asyncio.sleep(turn - now)


def _understood(response: httpx.Response) -> dict[str, Any] | None:
    """The body, if it is an answer in OpenAI's form."""
    try:
        answer: dict[str, Any] = response.json()
        choice = answer["choices"][0]
        content, finish_reason = choice["message"]["content"], choice["finish_reason"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return None
    return answer if isinstance(content, str | None) and isinstance(finish_reason, str) else None


class TeacherRunner(InferenceRunner):
    """Writes each conversation to the log when its last turn is answered, and stops where it cannot."""

    def __init__(self, teacher: Teacher, log: AnswerLog) -> None:
        super().__init__(
            rollout_fn=self.answer,
            config=InferenceConfig(
                server_type="endpoint",
                endpoint_url=teacher.url,
                model_name_or_path=teacher.model,
                default_generation_params=teacher.request,
                max_concurrent_generations=teacher.max_concurrent_requests,
            ),
            output_writer=log,
        )
        self.teacher = teacher

    def _init_server(self, rank: int) -> TeacherServer:
        return TeacherServer(self.config, rank, self.teacher)

    async def answer(self, document: Document, generate: GenerateFunction) -> bool:
        """Answer the conversation's user turns that have no answer yet, one after the other.

        A turn that cannot be used ends the conversation: later turns would build on it.
        """
        asked: list[dict[str, str]] = []
        turns: list[dict[str, Any]] = []
        document.metadata["turns"] = turns
        messages = document.metadata["messages"]
        for message, following in zip(messages, [*messages[1:], None], strict=True):
            asked.append({"role": message["role"], "content": without_thinking(message["content"])})
            if message["role"] != "user" or (following and following["role"] == "assistant"):
                continue
            payload = {"messages": asked, "chat_template_kwargs": {"enable_thinking": self.teacher.thinking}}
            try:
                result = await generate(payload)
            except InferenceError as refusal:
                document.metadata["refused"] = str(refusal.error)
                break
            turns.append({"text": result.text, "reasoning": result.reasoning, "finish_reason": result.finish_reason})
            try:
                asked.append({"role": "assistant", "content": parse_answer(turns[-1], self.teacher.thinking).text})
            except Unusable:
                break
        return True

    async def _save_document(self, document: Document, log: AnswerLog, *_: Any, **__: Any) -> None:
        del document.metadata[self.metadata_key]
        try:
            log.write(document)
        except OSError as error:
            raise ServerError(error) from error


def ask(teacher: Teacher, prompts: Iterable[Document], log: AnswerLog) -> None:
    """Have the teacher answer the prompts that the log does not hold yet; it is opened and closed here.

    Raises:
        SourceError: the teacher does not answer, or the log cannot be written. What has been answered is kept.
    """
    _wait_until_ready(teacher)
    logger.disable("datatrove")
    runner = TeacherRunner(teacher, log)
    try:
        with log:
            known = frozenset(log.offsets)
        runner.run(prompt for prompt in prompts if prompt.id not in known)
    except ServerError as error:
        kept = f"{len(log.offsets)} answers are kept in {log.path}; the same command goes on from there."
        if isinstance(error.error, OSError):
            raise SourceError(
                f"{log.path} cannot be written: {error.error.strerror}. Free some space. {kept}"
            ) from None
        raise SourceError(
            f"The teacher {teacher.model} at {teacher.url} gives no answer: {error.error}. {kept}"
        ) from None
    finally:
        logger.enable("datatrove")


def _headers(teacher: Teacher) -> dict[str, str]:
    if not teacher.api_key_variable:
        return {}
    key = os.environ.get(teacher.api_key_variable)
    if not key:
        raise SourceError(
            f"The environment variable {teacher.api_key_variable} (api_key_variable of the teacher {teacher.model}) is "
            "not set. Export the server's API key in it."
        )
    return {"Authorization": f"Bearer {key}"}


def _wait_until_ready(teacher: Teacher) -> None:
    """Return when the server answers at all: what is wrong with its answers, the first request will tell."""
    headers = _headers(teacher)
    deadline = time.monotonic() + teacher.ready_seconds
    while True:
        try:
            httpx.get(f"{teacher.url}/v1/models", headers=headers, timeout=5.0)
            return
        except httpx.HTTPError as error:
            if time.monotonic() > deadline:
                raise SourceError(
                    f"There is no server at {teacher.url} for the teacher {teacher.model} ({error}, for "
                    f"{teacher.ready_seconds} s). Start it, or correct its url; the same command then goes on."
                ) from None
        time.sleep(0.5)

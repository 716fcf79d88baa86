"""Run where minijinja is installed: `render_minijinja.py REQUEST.json` prints what its engine makes of conversations.

The request has `template` and `conversations` ({messages, arguments}); the answer has a text or {"error": ...} of each.
"""

import json
import sys
from pathlib import Path
from typing import Any

import minijinja


def raise_exception(message: str) -> None:
    raise ValueError(message)


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    environment = minijinja.Environment(templates={"chat": request["template"]})
    environment.add_global("raise_exception", raise_exception)
    answers: list[Any] = []
    for conversation in request["conversations"]:
        try:
            answers.append(
                environment.render_template("chat", messages=conversation["messages"], **conversation["arguments"])
            )
        except Exception as error:
            answers.append({"error": str(error)})
    print(json.dumps(answers))


if __name__ == "__main__":
    main()

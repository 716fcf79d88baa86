"""Run where llama.cpp is installed: as render_minijinja.py, with the engine of llama.cpp's server.

The server wants a model before it renders anything, so it gets one of a single layer and a vocabulary of bytes.
"""

import json
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import xllamacpp

WIDTH = 32


def write_model(file: Path) -> None:
    writer = gguf.GGUFWriter(str(file), "llama")
    tokens = [chr(number + 256) for number in range(256)] + ["<|im_start|>", "<|im_end|>"]
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // 2)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 256 + [3, 3])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    for name in ("token_embd", "output"):
        writer.add_tensor(f"{name}.weight", np.zeros((len(tokens), WIDTH), np.float32))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros((WIDTH, WIDTH), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def start(template: str, model: Path) -> Any:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(model)
    parameters.chat_template = template
    parameters.use_jinja = True
    parameters.n_ctx = 64
    parameters.n_parallel = 1
    parameters.warmup = False
    parameters.prefill_assistant = False  # else a last reply is taken for one to be continued
    return xllamacpp.Server(parameters)


def render(server: Any, conversation: dict[str, Any]) -> Any:
    arguments = dict(conversation["arguments"])
    body = {
        "messages": conversation["messages"],
        "add_generation_prompt": arguments.pop("add_generation_prompt", False),
    }
    if arguments.get("tools"):
        body["tools"] = arguments.pop("tools")
    request = urllib.request.Request(
        f"{server.listening_address}/apply-template",
        json.dumps({**body, "chat_template_kwargs": arguments}).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)["prompt"]
    except urllib.error.HTTPError as error:
        return {"error": error.read().decode()}


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.gguf"
        write_model(model)
        server = start(request["template"], model)
        print(json.dumps([render(server, conversation) for conversation in request["conversations"]]))


if __name__ == "__main__":
    main()

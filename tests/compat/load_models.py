"""Run by any release of transformers: `load_models.py REQUEST.json ANSWER.pt`; what it makes of model folders.

The request has `folders`, `input_ids`, `texts` and `conversations` ({messages, arguments}); the answer, per folder, has
what a user of this release gets.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, SmolLM3Config


@torch.no_grad()
def load(folder: str, request: dict[str, Any]) -> dict[str, Any]:
    model = AutoModelForCausalLM.from_pretrained(folder).float().eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor(request["input_ids"])[None]
    stored = AutoConfig.from_pretrained(folder)
    rotary = model.model.rotary_emb
    greedy = model.generate(ids[:, :40], max_new_tokens=12, do_sample=False, temperature=None, top_p=None, min_length=0)
    encoded = [tokenizer(text)["input_ids"] for text in request["texts"]]
    defaults = GenerationConfig.from_pretrained(folder)
    return {
        "logits": model(ids).logits[0],
        "greedy": greedy[0].tolist(),
        "tied": model.get_output_embeddings().weight is model.get_input_embeddings().weight,
        "use_cache": model.config.use_cache,
        "positions": model.config.max_position_embeddings,
        "frequencies": rotary.inv_freq.clone(),
        "table_factor": float(rotary.attention_scaling),
        "stored_dtype": str(getattr(stored, "dtype", None) or stored.torch_dtype).removeprefix("torch."),
        "generation": [getattr(defaults, key) for key in ("do_sample", "eos_token_id", "pad_token_id", "bos_token_id")]
        + ([defaults.temperature, defaults.top_p] if defaults.do_sample else []),
        "ids": encoded,
        "decoded": [tokenizer.decode(part) for part in encoded],
        "without_special": [tokenizer.decode(part, skip_special_tokens=True) for part in encoded],
        "specials": [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, sorted(tokenizer.all_special_ids)],
        "model_max_length": tokenizer.model_max_length,
        "conversations": [
            tokenizer.apply_chat_template(entry["messages"], tokenize=False, **entry["arguments"])
            for entry in (request["conversations"] if tokenizer.chat_template else [])
        ],
    }


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    answer = {folder: load(folder, request) for folder in request["folders"]}
    defaults = {kind.model_type: kind().to_dict() for kind in (SmolLM3Config, LlamaConfig)}
    torch.save({"folders": answer, "defaults": json.dumps(defaults, default=str)}, sys.argv[2])


if __name__ == "__main__":
    main()

"""Run by any release of transformers: `save_models.py REQUEST.json`; make random models and save them its own way.

The request has `config`, `tokenizer_file`, `special_tokens`, and `folders`, each with the seed of its weights.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, SmolLM3Config, SmolLM3ForCausalLM

if __name__ == "__main__":
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=request["tokenizer_file"], **request["special_tokens"])
    for folder, seed in request["folders"].items():
        torch.manual_seed(seed)
        SmolLM3ForCausalLM(SmolLM3Config(**request["config"])).save_pretrained(folder)
        tokenizer.save_pretrained(folder)

"""Scores that the SmolLM3 model card gives for the released 3B models, in percent, for the table beside ours.

They were measured with vLLM at temperature 0.6 and top-p 0.95 (instruct), and belong next to full editions only.
"""

BASE: dict[str, float] = {
    "hellaswag": 76.15,
    "winogrande": 58.88,
    "commonsense_qa": 55.28,
    "mmlu": 44.13,
    "mmlu_pro": 19.61,
    "piqa": 78.89,
    "openbookqa": 40.60,
    "boolq": 78.99,
    "humaneval_plus": 30.48,
    "mbpp_plus": 52.91,
    "math": 46.10,
    "gsm8k": 67.63,
    "mlmm_hellaswag_fr": 63.94,
    "mlmm_hellaswag_es": 65.85,
    "mlmm_hellaswag_de": 59.56,
    "mlmm_hellaswag_it": 62.49,
    "mlmm_hellaswag_pt": 63.22,
}
THINK: dict[str, float] = {
    "aime25": 36.7,
    "gsm_plus": 83.4,
    "livecodebench_v4": 30.0,
    "gpqa_diamond": 41.7,
    "ifeval": 71.2,
}
NO_THINK: dict[str, float] = {
    "aime25": 9.3,
    "gsm_plus": 72.8,
    "livecodebench_v4": 15.2,
    "gpqa_diamond": 35.7,
    "ifeval": 76.7,
}


def published_score(benchmark: str, mode: str) -> float | None:
    """In percent, or None if the card has no such number."""
    return {"plain": BASE, "think": THINK, "no_think": NO_THINK}[mode].get(benchmark)

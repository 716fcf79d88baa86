"""The report's sections in their order, each with the sentence that says what one sees and why it matters."""

from report import models, training
from report.blocks import Section
from report.collect import Report
from report.verdicts import findings, introduction, seed_by_seed


def build_sections(report: Report) -> list[Section]:
    """All sections, also of parts without results: those say what makes them."""
    found = findings(report)
    return [
        Section("What happened", introduction(found), [*found, *seed_by_seed(report)]),
        Section(
            "This run", "What was trained, on which machine, and how long each stage took.",
            [*training.summary(report), *training.time_per_stage(report)],
        ),
        Section(
            "Pretraining",
            "The training loss, which falls while the model learns to predict its text; vertical lines are the borders "
            "of stages, where the mixture or the length of the windows changes.",
            training.pretraining(report),
        ),
        Section(
            "Mixture",
            "What share of each stage's tokens comes from which source, as the recipe plans and as the loader counted.",
            training.mixture(report),
        ),
        Section(
            "Held-out text",
            "Bits that the model needs per byte of text that it never trained on: the lower, the better it predicts. "
            "Unlike the training loss, it compares across mixtures, tokenizers and models.",
            training.held_out(report),
        ),
        Section(
            "Checkpoints while training", "Benchmark scores of checkpoints, over the tokens trained until then.",
            training.checkpoint_scores(report),
        ),
        Section(
            "Retrieval at length",
            "Facts are hidden in a long text and asked for: whether the model uses its whole window. Percent of the "
            "wanted strings that it gives back, ± one standard error, by the prompt's length in tokens.",
            models.retrieval(report),
        ),
        Section(
            "Post-training",
            "Reasoning mid-training, fine-tuning in both modes, and preference training (APO), in this order.",
            training.posttraining(report),
        ),
        Section(
            "Capabilities",
            "What the taught tasks come to on problems that were held out: percent right in both modes, how often a "
            "reply keeps to the mode that was asked for, and how often it ends. In brackets 95 % intervals (Wilson).",
            models.capabilities(report),
        ),
        Section(
            "Merge",
            "The last model is 0.9 of the averaged APO checkpoints and 0.1 of the mid-training one; here the scores "
            "over that share.",
            models.merge(report),
        ),
        Section(
            "Benchmarks",
            "Scores of the last pretraining checkpoint and the final model: percent ± one standard error.",
            models.benchmarks(report),
        ),
        Section(
            "Samples", "What the models write: the first answer to each kind of question, not selected.",
            models.samples(report),
        ),
        Section(
            "Ablations",
            "One design decision at a time is undone and the same tokens trained again, under several seeds.",
            training.ablations(report),
        ),
        Section(
            "Prediction and measurement",
            "What the planner said before anything ran, beside what was measured: how far its numbers can be trusted.",
            training.plan(report),
        ),
        Section(
            "Provenance", "Package versions, and the first 16 digits of the SHA-256 hashes that identify every stage.",
            training.provenance(report),
        ),
    ]  # fmt: skip

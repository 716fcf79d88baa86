"""Which decoder layers lie on which pipeline stage. No torch is needed here: the planner reads it too."""

from foundation.recipe import ModelConfig


def balanced_stages(config: ModelConfig, pp: int) -> list[int]:
    """Decoder layers per stage such that the slowest stage is fastest; the last one also runs the head.

    Costs are matrix-product sizes per token: a layer's parameters against the head's vocab_size x hidden_size.
    SmolLM3-3B: the head costs as much as 3.4 layers, hence 20 + 16 layers on two stages.
    """
    head = config.vocab_size * config.hidden_size
    layer = (config.num_parameters() - head * (1 if config.tie_word_embeddings else 2)) / config.num_hidden_layers
    head_layers = head / layer

    def slowest(last: int) -> float:
        others = -(-(config.num_hidden_layers - last) // (pp - 1))
        return max(last + head_layers, others)

    if pp == 1:
        return [config.num_hidden_layers]
    last = min(range(config.num_hidden_layers - pp + 1, 0, -1), key=slowest)
    rest, longer = divmod(config.num_hidden_layers - last, pp - 1)
    return [rest + (stage < longer) for stage in range(pp - 1)] + [last]

"""What a step costs in floating-point operations, and what devices give. No torch is needed here."""

from foundation.recipe import ModelConfig

# Dense bf16 tensor-core peaks without sparsity, from NVIDIA's data sheets, by a part of the device's name.
PEAK_FLOPS_PER_SECOND = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12}


def step_flops(model: ModelConfig, tokens: int, squared_document_lengths: int) -> float:
    """FLOPs of forward and backward over `tokens` tokens: 6 x parameters x tokens + causal attention in documents.

    Causal attention over a document of n tokens costs 2 matrix products x 2 FLOPs x n^2/2 pairs x hidden_size forward
    and twice that backward: 6 x num_hidden_layers x hidden_size x n^2. Recomputed activations do not count.
    """
    dense = 6 * model.num_parameters() * tokens
    attention = 6 * model.num_hidden_layers * model.hidden_size * squared_document_lengths
    return float(dense + attention)

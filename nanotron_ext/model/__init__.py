"""SmolLM3 on nanotron's parallel layers."""

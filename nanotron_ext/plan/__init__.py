"""The planner: what a pretraining recipe needs and costs, before a device is booked.

`smollm3 plan RECIPE` prints it; docs/planning.md compares its predictions with measurements.
"""

from nanotron_ext.plan.estimate import Estimate, Target, estimate

__all__ = ["Estimate", "Target", "estimate"]

"""What all sections of all recipes have in common."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Strict (no silent coercion), closed (unknown keys are errors) and frozen (a resolved recipe never changes)."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

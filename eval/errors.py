"""The one kind of error that evaluation reports to its user."""

from foundation.errors import UserError


class EvalError(UserError):
    """An evaluation that cannot run; the message is for the user."""

"""The one kind of error that data preparation reports to its user."""

from foundation.errors import UserError


class SourceError(UserError):
    """Data that cannot be prepared or used; the message names the file or key and the fix."""

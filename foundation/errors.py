"""The base of every error that a user can cause and mend."""


class UserError(ValueError):
    """Its message is all that a user needs: what is wrong, where, and what to do. Commands print it and exit with 2."""

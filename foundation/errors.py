"""The bases of every error whose message is all that its reader needs."""


class UserError(ValueError):
    """What a user can cause and mend: what is wrong, where, and what to do. Commands print it and exit with 2."""


class MachineError(RuntimeError):
    """What a machine has done wrong: another attempt may go well. Commands print it and exit with 70."""

"""The benchmarks as lighteval tasks: one module per family, one function per benchmark (see eval.benchmarks)."""

import eval.engine  # noqa: F401  before anything of lighteval is imported

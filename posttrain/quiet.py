"""What the libraries print; to be settled before they are imported."""

import os
import sys
import warnings


def quiet_libraries() -> None:
    """Without their warnings about their own future and, where nobody watches a terminal, without progress bars."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    if not sys.stderr.isatty():  # progress bars would fill log files
        os.environ |= {
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "TQDM_DISABLE": "1",
        }

"""Post-training on TRL: chat template, mid-training, supervised fine-tuning, preference alignment, chat, evaluation."""

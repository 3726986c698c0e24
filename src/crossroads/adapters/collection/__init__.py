"""Twelve LoRA experts on SmolLM2-135M, the tasks they were trained on, and tasks they never saw."""

"""Methods: one folder each, with `spec.py` (what it reads and writes), `task.py` and `config.yaml` (its settings)."""

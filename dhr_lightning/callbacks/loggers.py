"""Metrics as a table that an interrupted run continues."""

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment


class ContinuedCSVLogger(CSVLogger):
    """Keeps the lines of `evaluation.metrics.csv` that are there; Lightning's logger deletes the file."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:  # noqa: ANN401 - a writer, or a dummy on other ranks
        """The writer, with the earlier lines in it."""
        if self._experiment is None:
            path = Path(self.log_dir) / ExperimentWriter.NAME_METRICS_FILE
            lines = list(csv.DictReader(path.read_text().splitlines())) if path.is_file() else []
            writer = super().experiment
            writer.metrics = lines
            writer.save()
        return self._experiment

import csv
from pathlib import Path

import pytest

from dhr_lightning.callbacks.loggers import ContinuedCSVLogger

pytestmark = pytest.mark.filterwarnings("ignore:Experiment logs directory")  # that is the point here


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "version_0" / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def log(folder: Path, step: int, **metrics: float) -> None:
    """What one run, which ends, adds to the table."""
    logger = ContinuedCSVLogger(folder, name="", version="version_0")
    logger.log_metrics(metrics, step=step)
    logger.save()


def test_an_interrupted_run_continues_its_table(tmp_path: Path):
    log(tmp_path, 1, loss=0.5)
    log(tmp_path, 2, loss=0.25)
    assert rows_of(tmp_path) == [{"loss": "0.5", "step": "1"}, {"loss": "0.25", "step": "2"}]


def test_a_new_metric_gets_its_own_column(tmp_path: Path):
    log(tmp_path, 1, loss=0.5)
    log(tmp_path, 2, miou=0.75)
    assert rows_of(tmp_path) == [{"loss": "0.5", "miou": "", "step": "1"}, {"loss": "", "miou": "0.75", "step": "2"}]


def test_the_earlier_lines_are_on_the_disk_again_before_anything_new_is_logged(tmp_path: Path):
    log(tmp_path, 1, loss=0.5)
    logger = ContinuedCSVLogger(tmp_path, name="", version="version_0")
    writer = logger.experiment
    assert rows_of(tmp_path) == [{"loss": "0.5", "step": "1"}]
    assert logger.experiment is writer

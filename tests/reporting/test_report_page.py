import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from dhr_lightning.data.catalog import ClassSet
from dhr_lightning.errors import ArtifactError
from dhr_lightning.evaluation.counting import SplitResult, count_masks
from dhr_lightning.evaluation.kinds import MaskKind
from dhr_lightning.evaluation.truth import resolve_truth
from dhr_lightning.protocol import EvaluationProtocol
from dhr_lightning.reporting import confusions, verdict
from dhr_lightning.reporting.confusions import confusion_picture
from dhr_lightning.reporting.pictures import overlay_uri
from dhr_lightning.reporting.report import ReportParts, build_report
from dhr_lightning.reporting.tables import duration, heat_cell
from tests.reporting.conftest import entries_in


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self._open = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_data(self, data):
        if self._open[-1:] != ["style"]:
            self.text += data

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def report(store, truth, tmp_path):
    def build(**options):
        named = {"title": "Squares", "seconds": {"stage 1": 75.0}}
        named |= {name: options.pop(name) for name in ("title", "seconds", "notes", "graphs") if name in options}
        parts = ReportParts(entries_in(store), **named)
        summary = build_report(store, truth, parts, output=tmp_path / "report", **{"split": "train", **options})
        text = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
        assert json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8")) == summary
        return summary, Page(text), text

    return build


@pytest.fixture
def full_store(put, truth, lose_bottle, activation):
    put("cam/cam", "train", activation)
    put("crf/mask", "train", lose_bottle)
    put("dhr/mask/round_01", "train", lose_bottle, inputs=["crf/mask/train"])
    put("dhr/mask/round_02", "train", truth.draw, inputs=["crf/mask/train"])
    put("dhr/prediction", "val", truth.draw)


@pytest.mark.usefixtures("full_store")
def test_report_lists_every_kind_and_tells_the_story(report):
    summary, page, _ = report()
    assert list(summary["metrics"]) == [
        "cam/train",
        "propagation/train",
        "dhr/round_01/train",
        "dhr/round_02/train",
        "dhr/val",
    ]
    assert "DHR 100.0 mIoU on train; DHR segmenter 100.0 on val" in summary["verdict"]
    assert "small classes erased beside a larger neighbour fall from 100.0 % to 0.0 %" in summary["verdict"]
    assert "rails taken for train fall" in page.text
    for words in ("Squares", "DHR round 2", "Vanished beside", "rails → train", "1 min 15 s", "How to read this"):
        assert words in page.text


@pytest.mark.usefixtures("full_store")
def test_every_figure_says_how_its_masks_were_made(report, store):
    manifest = store.manifest("dhr/prediction", "val")
    protocol = EvaluationProtocol((1.0, 0.5), crf={"iterations": 10}, backend="lattice").record()
    manifest.with_info(protocol=protocol).save(store.folder("dhr/prediction", "val") / "manifest.json")
    metrics = report()[0]["metrics"]
    text = metrics["dhr/val"]["protocol"]
    assert text.startswith("split val: 2 images; pixels whose truth is 255 are not scored")
    assert "TTA: scales 1, 0.5 with flip; CRF lattice (iterations 10) over classes above 0.05" in text
    assert "TTA and CRF not recorded" in metrics["propagation/train"]["protocol"]


@pytest.mark.usefixtures("full_store")
def test_page_needs_no_other_file(report):
    _, page, text = report()
    links = [a[key] for _, a in page.tags for key in ("src", "href") if key in a]
    assert links
    assert all(link.startswith("data:") for link in links)
    assert not page.all("script")
    assert not re.search(r"url\(|@import|https?:", text)


@pytest.mark.usefixtures("full_store")
def test_pictures_are_described_and_never_repeated(report):
    _, page, _ = report(max_images=3)
    images = page.all("img")
    assert images
    assert all(image["alt"] for image in images)
    photos = [image["alt"] for image in images if image["alt"].startswith("Image ")]
    assert len(photos) == len(set(photos)) == 3 + 2
    picture = Image.open(io.BytesIO(base64.b64decode(images[0]["src"].split(",")[1])))
    assert picture.size == (int(images[0]["width"]), int(images[0]["height"])) == (16, 16)
    assert any("mean IoU 100.0" in image["alt"] for image in images)


@pytest.mark.usefixtures("full_store")
def test_tags_kept_come_with_images_area_and_what_they_cannot_see(report, truth, monkeypatch):
    truth.masks = False
    monkeypatch.setattr(verdict, "FEWEST_IMAGES", 4)
    summary, _, _ = report()
    assert summary["verdict"].startswith("CAM 66.7 → CRF 66.7 → DHR 100.0 % of tags kept on the 4 images of train. ")
    assert "cannot see whether they lie in the right place" in summary["verdict"]
    area = summary["metrics"]["cam/train"]["labelled_area"]
    assert f"Labelled area: CAM {100 * area:.1f} %, CRF 37.5 %, DHR 25.0 %." in summary["verdict"]
    assert "val has 2 images, too few for a figure." in summary["verdict"]
    assert summary["metrics"]["propagation/train"]["labelled_area"] == 0.375  # 64 pixels of objects and two rows of 16


@pytest.mark.usefixtures("full_store")
def test_confusion_counts_pixels_as_a_plain_loop_does(report, truth, lose_bottle):
    _, page, _ = report()
    text = page.text
    assert "Who is taken for whom on train" in text
    assert "Who is taken for whom on val" in text
    facts = resolve_truth(truth)
    counts = SplitResult("train", [_counted(truth, facts, lose_bottle)], {}, None, None)
    picture = confusion_picture(counts, facts)
    plain = np.zeros((4, 4))
    for image_id in truth.ids("train"):
        np.add.at(plain, (truth.draw(image_id), lose_bottle(image_id)), 1)
    shares = plain / np.maximum(plain.sum(1, keepdims=True), 1)
    shown = [[cell.text for cell in cells] for _, cells in picture.rows]
    assert [name for name, _ in picture.rows] == ["background", "table", "bottle", "train"]
    assert shown == [[f"{100 * share:.0f}" if share >= 0.005 else "" for share in row] for row in shares]
    assert picture.pairs[:2] == ("16.7 % of background taken for train", "100.0 % of bottle taken for table")


def test_of_many_classes_those_with_mistakes_are_shown(truth, lose_bottle, monkeypatch):
    monkeypatch.setattr(confusions, "MOST_CLASSES", 2)
    facts = resolve_truth(truth)
    picture = confusion_picture(SplitResult("train", [_counted(truth, facts, lose_bottle)], {}, None, None), facts)
    assert [name for name, _ in picture.rows] == ["background", "train"]
    assert picture.left_out == 2


def _counted(truth, facts, draw):
    kind = MaskKind("dhr/mask", "train", tuple(truth.ids("train")), "dhr", "DHR")
    return count_masks(truth, facts, [kind], lambda _, image_id, target: draw(image_id), title="").mask_counts[0]


@pytest.mark.usefixtures("full_store")
def test_what_masks_have_in_common_is_said_once(report):
    _, page, text = report()
    assert text.count("a pixel without a predicted class counts as a miss") == 2  # once for each split
    assert "All on train" in page.text
    title = re.search(r"<h1>(.*)</h1>", text)[1]
    assert text.split("<body>")[1].count(title) == 1


@pytest.mark.usefixtures("full_store")
def test_same_artifacts_give_the_same_bytes(report):
    assert report()[2] == report()[2]


@pytest.mark.usefixtures("full_store")
def test_progress_wraps_the_ids(report):
    calls = []

    def progress(ids, description):
        calls.append((description, len(ids)))
        return iter(ids)

    summary, _, _ = report(progress=progress)
    assert calls == [("report train", 4), ("report val", 2)]
    assert summary["metrics"]["dhr/val"]["images"] == 2


def test_incomplete_kinds_are_named_not_shown(report, put, truth, store, lose_bottle):
    put("crf/mask", "train", truth.draw)
    put("mars/mask", "train", truth.draw, stop=2)
    put("dhr/mask/round_01", "train", lose_bottle)
    store.path("dhr/mask/round_01", "train", "train_1").unlink()
    summary, page, _ = report(notes=["mine"])
    assert list(summary["metrics"]) == ["propagation/train"]
    mine, mars, dhr = summary["notes"]
    assert mine == "mine"
    assert mars.startswith("mars on train is incomplete, so it is not shown: 2 of 4 images are there. Run `python ")
    assert "dhr on train is incomplete" in dhr
    assert "first missing 'train_1'" in dhr
    assert "mars on train is incomplete" in page.text


def test_part_of_a_split_is_judged_and_said(report, put, truth):
    put("crf/mask", "train", truth.draw, ids=["train_0", "train_2"])
    summary, _, _ = report()
    assert summary["metrics"]["propagation/train"]["images"] == 2
    assert summary["notes"] == ["propagation on train covers 2 of 4 images; its figures are those."]


def test_damaged_mask_of_a_complete_kind_stops_with_its_path(report, put, truth, store):
    put("crf/mask", "train", truth.draw)
    store.path("crf/mask", "train", "train_3").write_bytes(b"\x89PNG broken")
    with pytest.raises(ArtifactError, match=r"train_3\.png"):
        report()


@pytest.mark.usefixtures("full_store")
def test_without_true_masks_the_page_says_so(report, truth):
    truth.masks = False
    summary, page, _ = report()
    assert "No true masks on train: only label-free figures are reported there." in summary["notes"]
    assert summary["verdict"].startswith("Too few images for a headline. There are no true masks. A tag is kept when")
    assert "train has 4 images, too few for a figure." in summary["verdict"]
    assert "mIoU" not in page.text
    assert "Every class" not in page.text
    assert "Most changed from CRF to DHR round 2" in page.text


def test_empty_store_gives_a_page_that_says_what_to_run(report):
    summary, page, _ = report(seconds={})
    assert summary["metrics"] == {}
    assert "Run `python -m dhr_lightning run` first" in page.text


def test_text_of_the_user_is_escaped(report, put, truth):
    put("crf/mask", "train", truth.draw)
    _, page, text = report(title="<b>&", notes=["<script>alert(1)</script>"])
    assert not page.all("script")
    assert "&lt;b&gt;&amp;" in text


def test_dataset_without_background(report, put, truth):
    truth.classes = ClassSet(("sky", "table", "bottle", "train"), has_background=False)
    truth.tags = lambda split, image_id: set(np.unique(truth.draw(image_id)).tolist())
    put("crf/mask", "train", truth.draw)
    put(
        "cam/cam",
        "train",
        lambda _: (np.array([0, 1], np.int16), np.stack([np.eye(4), 1 - np.eye(4)]).astype(np.float16)),
    )
    summary, page, _ = report()
    assert summary["metrics"]["propagation/train"]["miou"] == 1
    assert summary["metrics"]["cam/train"]["iou"]["sky"] > 0
    assert "pale photo" not in page.text


def test_overlay_keeps_class_colours_and_leaves_background_pale(truth):
    mask = truth.draw("train_1")
    uri = overlay_uri(Image.new("RGB", (16, 16), (90, 90, 90)), mask, truth)
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB")).astype(int)
    assert (drawn[mask == 0] > 190).all()
    for value in (1, 2):
        assert np.abs(drawn[mask == value] - truth.classes.palette[value]).max() < 60


def test_overlay_of_very_many_classes(truth):
    truth.classes = ClassSet(tuple(f"c{index}" for index in range(200)))
    mask = (np.arange(400).reshape(20, 20) % 200).astype(np.uint8)
    assert overlay_uri(Image.new("RGB", (20, 20)), mask, truth).startswith("data:image/png;base64,")


def luminance(colour):
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_heat_cells_can_be_read_everywhere():
    for value in np.linspace(0, 1, 101).tolist():
        cell = heat_cell(value)
        dark, light = sorted((luminance(cell.background), luminance(cell.ink)))
        assert (light + 0.05) / (dark + 0.05) >= 4.5
    assert heat_cell(None).text == "–"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.0 s"), (8.44, "8.4 s"), (59.4, "59 s"), (59.9, "1 min 00 s"), (84, "1 min 24 s"), (7500, "2 h 05 min")],
)
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words

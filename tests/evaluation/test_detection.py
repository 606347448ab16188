"""Detection on coloured pictures: the geometry of boxes, what counts as found, and a hand-made
YOLOX in ONNX."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cmmfnet.evaluation.detection import (
    Detections,
    DetectionScore,
    Detector,
    DetectorError,
    average_precision,
    iou,
    match,
    suppress,
)

REAL = Path(__file__).parents[3] / "shared" / "weights" / "yolox_nano.onnx"


def made(boxes, scores, classes) -> Detections:
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.array(classes, int),
    )


def write_model(
    path: Path, side: int = 64, classes: int = 3, rows: int | None = None, table: bool = True
) -> Path:
    """A detector that knows one thing: wherever its first-stride cell is red (BGR: channel 2 over
    200), there is an object of class 1, 16 px wide and 8 high, in the middle of that 8x8 cell."""
    onnx = pytest.importorskip(
        "onnx", reason="onnx writes the detector of this test: pip install onnx"
    )
    from onnx import TensorProto, helper, numpy_helper

    cells = sum((side // s) ** 2 for s in (8, 16, 32)) if rows is None else rows
    first = (side // 8) ** 2
    constant = np.zeros((1, cells, 5 + classes), np.float32)
    constant[..., :2] = 0.5  # middle of the cell
    constant[..., 2:4] = np.log([2.0, 1.0])  # in strides
    constant[..., 5:] = [0.02, 0.9, 0.02]
    nodes = [
        helper.make_node("AveragePool", ["picture"], ["mean"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Gather", ["mean", "two"], ["red"], axis=1),
        helper.make_node("Reshape", ["red", "shape"], ["flat"]),
        helper.make_node("Greater", ["flat", "limit"], ["hot"]),
        helper.make_node("Cast", ["hot"], ["sure"], to=TensorProto.FLOAT),
        helper.make_node("Pad", ["sure", "pads"], ["column"]),
        helper.make_node("Add", ["column", "constant"], ["output"]),
    ]
    values = {
        "two": np.array([2]), "shape": np.array([1, first, 1]),
        "limit": np.array([200], np.float32),
        "pads": np.array([0, 0, 4, 0, cells - first, classes]), "constant": constant,
    }  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("picture", TensorProto.FLOAT, [1, 3, side, side])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)
    return path


@pytest.fixture
def detector(tmp_path) -> Detector:
    pytest.importorskip("onnxruntime", reason="pip install 'cmmfnet[onnx]'")
    return Detector(write_model(tmp_path / "tiny.onnx"))


def test_boxes_come_back_in_pixels_of_the_picture(detector):
    """A 128x96 picture is halved to 64x48, in the upper left corner; below it is grey."""
    picture = np.zeros((96, 128, 3), np.uint8)
    picture[32:48, 64:80, 0] = 255  # red, one 8x8 cell after halving: cell row 2, column 4
    found = detector(picture)
    assert (
        len(found) == 1
        and found.classes.tolist() == [1]
        and found.scores[0] == pytest.approx(0.9, abs=1e-5)
    )
    # middle (36, 20), 16 wide, 8 high, twice as large in the picture
    assert found.boxes[0].tolist() == pytest.approx([56, 32, 88, 48])
    blue = picture[..., ::-1]
    assert len(detector(np.ascontiguousarray(blue))) == 0  # channels arrive as BGR
    assert len(detector(np.zeros((10, 500, 3), np.uint8))) == 0


def test_boxes_end_at_the_edge_of_the_picture(detector):
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:8, :8, 0] = 255
    assert detector(picture).boxes[0].tolist() == pytest.approx([0, 0, 12, 8])


def test_record_names_the_file(detector):
    assert detector.record["file"] == "tiny.onnx" and detector.record["side"] == 64
    assert len(detector.record["sha256"]) == 64


def test_files_that_are_no_detector(tmp_path):
    pytest.importorskip("onnxruntime", reason="pip install 'cmmfnet[onnx]'")
    with pytest.raises(FileNotFoundError, match=r"no detector file .*gone.onnx; expected YOLOX"):
        Detector(tmp_path / "gone.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(DetectorError, match="is no ONNX model that onnxruntime can run"):
        Detector(tmp_path / "text.onnx")
    with pytest.raises(
        DetectorError, match=r"gives \(1, 100, 8\); expected YOLOX: \(1, 84, 5 \+ classes\)"
    ):
        Detector(write_model(tmp_path / "other.onnx", rows=100))
    with pytest.raises(
        DetectorError,
        match=r"takes \[1, 3, 40, 40\]; expected \[1, 3, S, S\] with S a multiple of 32",
    ):
        Detector(write_model(tmp_path / "odd.onnx", side=40))


def test_without_onnxruntime(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"pip install 'cmmfnet\[onnx\]'"):
        Detector(tmp_path / "any.onnx")


def test_iou_by_hand():
    a = np.array([[0, 0, 10, 10], [0, 0, 4, 4]], float)
    b = np.array([[5, 0, 15, 10], [20, 20, 30, 30], [3, 3, 3, 3]], float)
    assert iou(a, b) == pytest.approx(np.array([[50 / 150, 0, 0], [0, 0, 0]]))
    assert iou(a, a).diagonal().tolist() == [1, 1] and iou(a, a)[0, 1] == pytest.approx(0.16)


def test_suppression_keeps_the_surest_of_each_class():
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10], [50, 50, 60, 60]], float)
    kept = suppress(boxes, np.array([0.5, 0.9, 0.7, 0.1]), np.array([1, 1, 2, 1]))
    assert kept.scores.tolist() == [0.9, 0.7, 0.1] and kept.classes.tolist() == [1, 2, 1]


def test_an_object_is_found_once_by_its_own_class():
    objects = made([[0, 0, 10, 10], [100, 100, 110, 110]], [1, 1], [1, 2])
    found = made(
        [[0, 0, 10, 9], [0, 0, 10, 10], [100, 100, 110, 110], [0, 0, 4, 4]],
        [0.9, 0.8, 0.7, 0.6],
        [1, 1, 1, 1],
    )
    assert match(found, objects).tolist() == [True, False, False, False]
    assert (
        match(made([], [], []), objects).tolist() == []
        and match(found, made([], [], [])).tolist() == [False] * 4
    )


def test_average_precision_by_hand():
    """Hits at ranks 1 and 3 of three objects: precision 1 up to recall 1/3, 2/3 up to 2/3."""
    assert average_precision(
        np.array([0.9, 0.5, 0.7]), np.array([True, True, False]), 3
    ) == pytest.approx(1 / 3 + 1 / 3 * 2 / 3)
    assert average_precision(np.array([]), np.array([], bool), 3) == 0
    # the envelope: a hit at rank 2 alone has precision 1/2 over its recall
    assert average_precision(np.array([0.9, 0.5]), np.array([False, True]), 1) == pytest.approx(0.5)


def test_recall_counts_sure_findings_and_ap50_is_the_mean_over_classes():
    score = DetectionScore()
    objects = made([[0, 0, 10, 10], [20, 0, 30, 10], [50, 50, 60, 60]], [1, 1, 1], [1, 1, 2])
    found = made([[0, 0, 10, 10], [20, 0, 30, 10]], [0.9, 0.1], [1, 1])
    assert score.ap50() is None
    assert score.add(found, objects) == (1, 3)  # the second is found, but not surely
    assert score.ap50() == pytest.approx((1 + 0) / 2)
    assert score.add(made([], [], []), made([], [], [])) == (0, 0)
    assert score.ap50() == pytest.approx(0.5)


@pytest.mark.skipif(not REAL.is_file(), reason=f"no {REAL}")
def test_the_real_detector_takes_its_layout():
    pytest.importorskip("onnxruntime", reason="pip install 'cmmfnet[onnx]'")
    detector = Detector(REAL)
    assert (
        detector.side == 416
        and len(detector(np.full((200, 300, 3), 128, np.uint8)).above(0.3)) == 0
    )

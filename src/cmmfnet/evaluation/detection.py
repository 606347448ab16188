"""Detection on coloured pictures: does a detector that was trained on colour photos find in them
what it finds in the truth?

The detector is an ONNX file with the layout of YOLOX (Ge et al., arXiv 2107.08430): input
(1,3,S,S), BGR 0 to 255, the picture in the upper left corner, the rest 114; output (1,N,5+C) on
strides 8, 16 and 32. Its findings on the true colour pictures stand for the truth, which makes
sense by day only.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from cmmfnet.files.errors import UserError

TRUTH_SCORE = 0.5
"""Findings on the true picture that are at least this sure are the objects to be found."""
SCORE = 0.3
"""Findings on an output from which on they count for recall."""
LEAST_SCORE = 0.05
"""Findings below this are dropped: they change average precision by next to nothing."""
IOU = 0.5
NMS_IOU = 0.45
STRIDES = (8, 16, 32)


class DetectorError(UserError):
    """A file that is no detector of the layout above."""


@dataclass(frozen=True)
class Detections:
    """``boxes`` (n,4) float32: left, top, right, bottom in pixels of the picture; ``scores`` (n,)
    in [0,1], descending; ``classes`` (n,) int64."""

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray

    def above(self, score: float) -> Detections:
        keep = self.scores >= score
        return Detections(self.boxes[keep], self.scores[keep], self.classes[keep])

    def __len__(self) -> int:
        return len(self.scores)


class Detector:
    """A YOLOX detector from an ONNX file: ``detector(picture (H,W,3) uint8) -> Detections``.

    Raises :class:`DetectorError` for another layout, ``FileNotFoundError``, and ``ImportError``
    without onnxruntime.
    """

    def __init__(self, path: str | Path):
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(
                "a detector needs onnxruntime: pip install 'cmmfnet[onnx]'"
            ) from error
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"no detector file {path}; expected YOLOX as ONNX, for example yolox_nano.onnx"
            )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(
                path.read_bytes(), options, providers=["CPUExecutionProvider"]
            )
        except (
            Exception
        ) as error:  # its exception types are its own C++ classes without a public base
            raise DetectorError(
                f"{path} is no ONNX model that onnxruntime can run: {error}"
            ) from error
        self.input = self.session.get_inputs()[0].name
        shape = self.session.get_inputs()[0].shape
        self.side = shape[2] if len(shape) == 4 and isinstance(shape[2], int) else 0
        want = sum((self.side // stride) ** 2 for stride in STRIDES)
        if not self.side or list(shape) != [1, 3, self.side, self.side] or self.side % 32:
            raise DetectorError(
                f"{path} takes {shape}; expected [1, 3, S, S] with S a multiple of 32, as YOLOX "
                "has it"
            )
        found = self._raw(np.zeros((3, self.side, self.side), np.float32)).shape
        if len(found) != 2 or found[0] != want or found[1] < 6:
            raise DetectorError(
                f"{path} gives (1, {', '.join(map(str, found))}); expected YOLOX: (1, {want}, 5 + "
                "classes)"
            )
        self.record = {
            "file": path.name,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "side": self.side,
            "objects": f"findings on the true picture from {TRUTH_SCORE}, lighting day",
            "recall": f"findings from {SCORE}, same class, IoU from {IOU}",
        }
        steps = [
            (np.indices((self.side // s, self.side // s)).reshape(2, -1).T[:, ::-1], s)
            for s in STRIDES
        ]
        self.grid = np.concatenate([grid for grid, _ in steps]).astype(np.float32)
        self.stride = np.concatenate([np.full((len(grid), 1), s, np.float32) for grid, s in steps])

    def _raw(self, picture: np.ndarray) -> np.ndarray:
        return self.session.run(None, {self.input: picture[None]})[0][0]

    def __call__(self, picture: np.ndarray) -> Detections:
        height, width = picture.shape[:2]
        scale = min(self.side / height, self.side / width)
        small = Image.fromarray(picture).resize(
            (max(1, int(width * scale)), max(1, int(height * scale))), Image.Resampling.BILINEAR
        )
        canvas = np.full((self.side, self.side, 3), 114, np.float32)
        canvas[: small.height, : small.width] = np.asarray(small)
        raw = self._raw(np.ascontiguousarray(canvas[..., ::-1].transpose(2, 0, 1)))
        centre, size = (raw[:, :2] + self.grid) * self.stride, np.exp(raw[:, 2:4]) * self.stride
        boxes = np.concatenate([centre - size / 2, centre + size / 2], axis=1) / scale
        boxes = np.clip(boxes, 0, [width, height, width, height]).astype(np.float32)
        scores = raw[:, 4:5] * raw[:, 5:]
        rows, classes = np.nonzero(scores >= LEAST_SCORE)
        return suppress(boxes[rows], scores[rows, classes], classes)


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (n,4) and (m,4): (n,m); 0 for empty boxes."""
    low, high = (
        np.maximum(a[:, None, :2], b[None, :, :2]),
        np.minimum(a[:, None, 2:], b[None, :, 2:]),
    )
    shared = np.clip(high - low, 0, None).prod(axis=2)
    areas = [(x[:, 2:] - x[:, :2]).prod(axis=1) for x in (a, b)]
    union = areas[0][:, None] + areas[1][None] - shared
    return np.where(union > 0, shared / np.maximum(union, 1e-9), 0)


def suppress(
    boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, limit: float = NMS_IOU
) -> Detections:
    """Non-maximum suppression within each class: a box that overlaps a surer one by more than
    ``limit`` goes."""
    order = np.argsort(-scores, kind="stable")
    boxes, scores, classes = boxes[order], scores[order], classes[order]
    overlap = (iou(boxes, boxes) > limit) & (classes[:, None] == classes[None])
    keep = np.ones(len(scores), bool)
    for i in range(len(scores)):
        if keep[i]:
            keep[i + 1 :] &= ~overlap[i, i + 1 :]
    return Detections(boxes[keep], scores[keep], classes[keep])


def match(found: Detections, objects: Detections) -> np.ndarray:
    """Which findings, surest first, hit an object of their class that none before them hit, at IoU
    from .5: (n,) bool."""
    hits, free = np.zeros(len(found), bool), np.ones(len(objects), bool)
    overlap = iou(found.boxes, objects.boxes)
    for i in range(len(found)):
        fitting = np.where(free & (objects.classes == found.classes[i]), overlap[i], 0)
        if len(fitting) and fitting.max() >= IOU:
            hits[i], free[fitting.argmax()] = True, False
    return hits


@dataclass
class DetectionScore:
    """Collects the findings on one method's pictures."""

    scores: list[np.ndarray] = field(default_factory=list)
    hits: list[np.ndarray] = field(default_factory=list)
    classes: list[np.ndarray] = field(default_factory=list)
    objects: list[np.ndarray] = field(default_factory=list)

    def add(self, found: Detections, objects: Detections) -> tuple[int, int]:
        """Number of objects found (score from .3), and number of objects."""
        hits = match(found, objects)
        self.scores.append(found.scores)
        self.hits.append(hits)
        self.classes.append(found.classes)
        self.objects.append(objects.classes)
        return int(hits[found.scores >= SCORE].sum()), len(objects)

    def ap50(self) -> float | None:
        """Mean over the classes that have objects of their average precision at IoU .5; None
        without any object."""
        if not self.objects or not (objects := np.concatenate(self.objects)).size:
            return None
        scores, hits, classes = (np.concatenate(x) for x in (self.scores, self.hits, self.classes))
        values = [
            average_precision(scores[classes == c], hits[classes == c], int((objects == c).sum()))
            for c in np.unique(objects)
        ]
        return float(np.mean(values))


def average_precision(scores: np.ndarray, hits: np.ndarray, objects: int) -> float:
    """Area under the precision envelope over recall, all points (Everingham et al., VOC 2010
    on)."""
    order = np.argsort(-scores, kind="stable")
    true = np.cumsum(hits[order])
    precision = true / np.arange(1, len(order) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((envelope * np.diff(true, prepend=0)).sum() / objects)

"""Scores of pictures, one row per picture, and summaries of rows."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cmmfnet.data.pairs import Pairs
from cmmfnet.evaluation import edges, fid, intervals, metrics
from cmmfnet.evaluation.learned import Lpips
from cmmfnet.evaluation.metrics import METRICS, TEMPORAL, Metric
from cmmfnet.evaluation.niqe import niqe
from cmmfnet.evaluation.predictors import Predictor
from cmmfnet.evaluation.protocol import DEFAULT_GEOMETRY, frame, scored
from cmmfnet.evaluation.temporal import ThermalStep, still_flicker, warping_error
from cmmfnet.files.errors import UserError
from cmmfnet.thermal.motion import opencv

Rows = list[dict[str, float | str]]


def default_metrics(pretrained: str | Path | None = None) -> list[str]:
    """PSNR, SSIM, LPIPS if its files are found, share of colour."""
    return ["psnr", "ssim", *(["lpips"] if Lpips.at_hand(pretrained) else []), "colour_share"]


def check_metrics(names: Sequence[str], pairs: Pairs, geometry: str) -> None:
    """Raises :class:`UserError` for unknown metrics and for those that ``pairs`` cannot give, and
    ``ImportError`` for those that need a package."""
    if unknown := [name for name in names if name not in METRICS]:
        raise UserError(f"unknown metric {', '.join(unknown)}; choose some of {', '.join(METRICS)}")
    for name in (name for name in TEMPORAL if name in names):
        if geometry == "kaist-b":
            raise UserError(
                f"{name} compares frames pixel by pixel, but geometry kaist-b cuts each frame at "
                "another place"
            )
        sequences = [entry["sequence"] for entry in pairs.entries if entry.get("sequence")]
        if len(sequences) == len(set(sequences)):
            raise UserError(
                f"{name} needs sequences of two frames or more; {pairs.root}/index.jsonl has none"
            )
    if "fid" in names and len(pairs) < fid.FEATURES:
        warnings.warn(
            f"FID of {len(pairs)} frames is far too large, since {fid.FEATURES} features need more "
            "frames; compare it only with the FID of other methods on the same frames",
            stacklevel=3,
        )
    if "warping_error" in names:
        opencv()


class Scorer:
    """Scores the outputs of several methods frame by frame: :meth:`begin` a frame, then
    :meth:`row` for each method's output.

    Raises :class:`PretrainedError` if the files of a metric are missing.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        ssim: str = "skimage-u7",
        pretrained: str | Path | None = None,
        device: str = "cpu",
    ):
        self.names, self.ssim = tuple(names), ssim
        self.lpips = {
            name: Lpips(pretrained, network, device)
            for name, network in (("lpips", "alex"), ("lpips_vgg", "vgg16"))
            if name in names
        }
        self.fid = fid.Fid(fid.inception(device)) if "fid" in names else None
        # sequence -> thermal frame and truth of its last frame; method -> its output
        self._last: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}
        self._outputs: dict[tuple[str, str], np.ndarray] = {}

    def begin(self, thermal: np.ndarray, truth: np.ndarray | None, meta: dict) -> None:
        """``thermal``: (h, w) float32 in [-1, 1]. ``truth``: (h, w, 3) uint8; None where no metric
        needs it."""
        self.truth, self.meta = truth, meta
        if set(TEMPORAL) & set(self.names) and (sequence := meta.get("sequence")):
            before, self._truth_before = self._last.get(sequence, (None, None))
            self._step = ThermalStep(thermal, before) if before is not None else None
            self._last[sequence] = thermal, truth
        if {"colourfulness", "colour_share"} & set(self.names):
            self.truth_colourfulness = metrics.colourfulness(truth)
        if "apce" in self.names:
            self.thermal_edges = edges.edge_maps(((thermal + 1) * 127.5).round().astype(np.uint8))
        if self.fid is not None:
            self.fid.add(fid.Fid.TRUTH, truth)

    def row(self, method: str, out: np.ndarray) -> dict[str, float | str]:
        """Scores of ``out`` (h,w,3) uint8, without those that this frame cannot have."""
        truth, meta, names = self.truth, self.meta, self.names
        row: dict = {key: meta.get(key) or "" for key in ("name", "source", "lighting", "sequence")}
        if "psnr" in names:
            row["psnr"] = metrics.psnr(out, truth)
        if "ssim" in names:
            row["ssim"] = metrics.ssim(out, truth, self.ssim)
        for name, distance in self.lpips.items():
            row[name] = distance(out, truth)
        if "delta_e" in names:
            row["delta_e"] = metrics.delta_e(out, truth)
        if {"colourfulness", "colour_share"} & set(names):
            row |= {"colourfulness": metrics.colourfulness(out), "truth": self.truth_colourfulness}
        if "apce" in names:
            row["apce"] = edges.agreement(self.thermal_edges, edges.edge_maps(edges.grey(out)))
        if set(TEMPORAL) & set(names) and row["sequence"]:
            before = self._outputs.get((method, row["sequence"]))
            if before is not None:
                row |= self._changes(out, before)
            self._outputs[method, row["sequence"]] = out
        if "niqe" in names:
            row["niqe"] = niqe(out)
        if self.fid is not None:
            self.fid.add(method, out)
        return {key: value for key, value in row.items() if value is not None}

    def together(self, method: str) -> dict[str, dict]:
        """The cells of the metrics that all pictures of a method have together, after the last
        frame."""
        value = self.fid.distance(method) if self.fid is not None else None
        if value is None:
            return {}
        return {"fid": {"mean": value, "low": None, "high": None, "over_sequences": None}}

    def _changes(self, out: np.ndarray, before: np.ndarray) -> dict[str, float | None]:
        """The metrics of an output and the output of the frame before."""
        found = {}
        if "flicker" in self.names:
            found["flicker"] = metrics.flicker(out, before, self.truth, self._truth_before)
        if "still_flicker" in self.names:
            found["still_flicker"] = still_flicker(out, before, self._step)
        if "warping_error" in self.names:
            found["warping_error"] = warping_error(out, before, self._step)
        return found


def measure(
    predictors: Sequence[Predictor],
    pairs: Pairs,
    scorer: Scorer,
    geometry: str = DEFAULT_GEOMETRY,
    save: dict[str, Path] | None = None,
) -> tuple[dict[str, Rows], str]:
    """Rows of each method, and the sha256 of the true pictures as scored. Decodes every picture
    once.

    ``save``: method -> folder to write its pictures to, as NAME.png; for "whole-256" as they were
    coloured.
    """
    from tqdm import tqdm

    from cmmfnet.files.pictures import write_picture

    rows: dict[str, Rows] = {predictor.name: [] for predictor in predictors}
    digest = hashlib.sha256()
    step = max(predictor.batch for predictor in predictors)
    with tqdm(total=len(pairs), desc="score", unit="frame", mininterval=2, disable=None) as bar:
        for start in range(0, len(pairs), step):
            chunk = [frame(pairs, i, geometry) for i in range(start, min(start + step, len(pairs)))]
            thermals, metas = [thermal for thermal, *_ in chunk], [meta for *_, meta in chunk]
            outputs = {each.name: colour_all(each, thermals, metas) for each in predictors}
            for i, (thermal, truth, meta) in enumerate(chunk):
                truth = scored(truth, geometry)
                digest.update(repr(truth.shape).encode() + truth.tobytes())
                # a bicubic reduction may leave the range of the frame
                scorer.begin(scored(thermal, geometry).clip(-1, 1), truth, meta)
                for name, colours in outputs.items():
                    rows[name].append(scorer.row(name, scored(colours[i], geometry)))
                    if save and name in save:
                        write_picture(
                            save[name] / f"{meta['name']}.png", colours[i], {"Model": name}
                        )
            bar.update(len(chunk))
    return rows, digest.hexdigest()


def colour_all(
    predictor: Predictor, thermals: list[np.ndarray], metas: list[dict]
) -> list[np.ndarray]:
    """The predictor's pictures for all frames, up to ``batch`` frames of one size at a time."""
    pictures: list = [None] * len(thermals)
    groups: dict[tuple, list[int]] = {}
    for i, thermal in enumerate(thermals):
        groups.setdefault(thermal.shape, []).append(i)
    for group in groups.values():
        for start in range(0, len(group), predictor.batch):
            part = group[start : start + predictor.batch]
            found = predictor.colour([thermals[i] for i in part], [metas[i] for i in part])
            for i, picture in zip(part, found, strict=True):
                pictures[i] = picture
    return pictures


# --- summaries


def columns(metric: Metric, rows: Rows) -> tuple[list[float], list[float], list[str]]:
    """Numerators, denominators and clusters of the rows that have a value."""
    having = [row for row in rows if metric.values in row]
    weights = [float(row[metric.per]) if metric.per else 1.0 for row in having]
    return (
        [float(row[metric.values]) for row in having],
        weights,
        [str(row["sequence"] or row["name"]) for row in having],
    )


def mean_of(metric: Metric, rows: Rows) -> float | None:
    """The metric over a set of pictures; None if no picture has it."""
    values, weights, _ = columns(metric, rows)
    return float(np.sum(values) / np.sum(weights)) if np.sum(weights) > 0 else None


def summary(
    rows: Rows, names: Sequence[str] = ("psnr", "ssim", "lpips", "colour_share")
) -> dict[str, float]:
    """Metric -> its mean over pictures, for the metrics that some picture has.

    ``colour_share`` is the mean colourfulness of the outputs over that of the truth.
    """
    return {name: mean for name in names if (mean := mean_of(METRICS[name], rows)) is not None}


def cells(rows: Rows, names: Sequence[str], seed: int) -> dict[str, dict]:
    """Metric -> mean, low, high, over_sequences.

    ``mean`` is per picture. ``low`` and ``high`` are its 95 % interval over sequences, or None
    (:func:`intervals.mean_interval`). In ``over_sequences`` every sequence counts once.
    """
    found: dict[str, dict] = {}
    for name in names:
        values, weights, clusters = columns(METRICS[name], rows)
        if (mean := mean_of(METRICS[name], rows)) is None:
            continue
        interval = intervals.mean_interval(values, weights, clusters, seed=seed)
        found[name] = {
            "mean": mean, "low": interval and interval[0], "high": interval and interval[1],
            "over_sequences": intervals.mean_over_clusters(values, weights, clusters),
        }  # fmt: skip
    return found

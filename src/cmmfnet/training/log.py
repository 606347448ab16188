"""The log of a run: log.jsonl, trackers (TensorBoard, Weights & Biases), progress bar, sheets."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image
from torch import nn
from tqdm import tqdm

from cmmfnet.data.pairs import Pairs
from cmmfnet.evaluation.network_scores import by_default, centre_crops
from cmmfnet.files.atomic import atomic_write
from cmmfnet.training.run import Run


class Log:
    """``with Log(run, start) as log``: only the first process writes.

    ``start``: the number of steps that are done already.
    """

    def __init__(self, run: Run, start: int):
        self.run, self.main = run, run.accelerator.is_main_process
        self.began = self.read_at = time.monotonic()
        self.read_step = start
        self.bar = tqdm(
            total=run.recipe.steps, initial=start, desc="train", mininterval=2,
            disable=None if self.main else True,
        )  # fmt: skip
        self.file = (run.out / "log.jsonl" if self.main else Path(os.devnull)).open("a")

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()
        self.bar.close()

    def losses(self, done: int) -> dict[str, float]:
        """Write the losses of the last step, with speed and learning rate; returns them."""
        found, now, recipe = self.run.losses(), time.monotonic(), self.run.recipe
        pictures = (done - self.read_step) * recipe.batch_size
        self.read_at, seconds = now, now - self.read_at
        self.read_step = done
        row = {
            "step": done,
            "minutes": (now - self.began) / 60,
            "rate": recipe.learning_rate_at(done - 1),
            "images_per_second": pictures / max(seconds, 1e-9),
        }
        self.write(row | found)
        self.bar.set_postfix({k: f"{v:.3f}" for k, v in found.items()}, refresh=False)
        return found

    def scores(self, done: int, scores: dict[str, float]) -> None:
        """Write validation scores."""
        self.write({"step": done, "validation": scores})

    def write(self, row: dict) -> None:
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        numbers = (row | row.get("validation", {})).items()
        self.run.accelerator.log({k: v for k, v in numbers if isinstance(v, float)}, row["step"])


def write_sheet(path: Path, network: nn.Module, pairs: Pairs, count: int = 8) -> None:
    """Input, output and truth of the first ``count`` centre crops side by side, JPEG."""
    rows, colour = [], by_default(network)
    for thermal, truth, meta in centre_crops(pairs, limit=count):
        grey = np.repeat(((thermal + 1) * 127.5).round().astype(np.uint8)[..., None], 3, axis=2)
        rows.append(np.concatenate([grey, colour(thermal, meta), truth], axis=1))
    half = (len(rows) + 1) // 2
    rows += [np.zeros_like(rows[0])] * (2 * half - len(rows))
    sheet = np.concatenate([np.concatenate(rows[:half]), np.concatenate(rows[half:])], axis=1)
    with atomic_write(path, durable=False) as file:
        Image.fromarray(sheet).save(file, format="JPEG", quality=88)

"""The pictures that a training is validated on."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from cmmfnet.training.recipe import Recipe

if TYPE_CHECKING:
    from cmmfnet.data.pairs import Pairs


def open_validation(config: Recipe, data: str | Path) -> Pairs | None:
    """The pictures of the recipe's ``validation`` in the folder ``data``, at most
    ``validation_pictures`` of them; None where the recipe names none.

    A data set without the split that is asked for is trained without validation, with a warning:
    there is then no best model. Raises :class:`cmmfnet.data.store.PairsError` for a data set that
    is missing, and for a split whose lightings or sources are others than the recipe's.
    """
    from cmmfnet.data.pairs import Pairs, find  # here, so that `train --help` is quick

    source = config.validation
    if source is None:
        return None
    whole = Pairs(find(data, source.folder))
    splits = sorted({str(entry.get("split")) for entry in whole.entries})
    if source.split is not None and source.split not in splits:
        warnings.warn(
            f"{whole.root} has no pictures of split {source.split!r} (it has {', '.join(splits)}): "
            "trained without validation, so there is no best.safetensors and no score in the log",
            stacklevel=2,
        )
        return None
    return source.opened(data).pairs.thinned(config.validation_pictures)


def validation_geometry(config: Recipe) -> str:
    """How validation pictures are cut before they are scored (evaluation/protocol.py): "kaist-b",
    256x256 pixels of the frame, where the validation source has zoom 1, so that things are as large
    as in training; else the default."""
    from cmmfnet.evaluation.protocol import DEFAULT_GEOMETRY

    source = config.validation
    return "kaist-b" if source is not None and source.zoom == (1.0, 1.0) else DEFAULT_GEOMETRY

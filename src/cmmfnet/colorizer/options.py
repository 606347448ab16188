"""Options that the commands of colouring share: what they refuse, and the model that they open."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from cmmfnet.files.errors import UserError
from cmmfnet.text.prompt import read_prompt
from cmmfnet.text.prompt_files import check_prompt

if TYPE_CHECKING:
    from cmmfnet.colorizer.base import FrameColorizer


def check_options(
    text: str | None,
    span: str | None,
    palette: str | None,
    batch_size: int | None,
    max_pixels: int,
    raw: str | None,
) -> None:
    """Refuse options that would be wrong for every picture, before anything is done."""
    from cmmfnet.thermal.cameras.raw import parse_raw
    from cmmfnet.thermal.palettes import PALETTES
    from cmmfnet.thermal.stretch import parse_span

    try:
        check_prompt(text or "")
        if span is not None:
            parse_span(span)
        if raw is not None:
            parse_raw(raw)
    except ValueError as error:
        raise UserError(str(error)) from error
    if palette is not None and palette not in ("auto", *PALETTES):
        raise UserError(
            f"unknown palette {palette!r}; choose auto or one of: {', '.join(PALETTES)}"
        )
    if batch_size is not None and batch_size < 1:
        raise UserError(f"--batch-size is {batch_size}; expected 1 or more")
    if max_pixels < 1:
        raise UserError(f"--max-pixels is {max_pixels}; expected 1 or more")


def open_colorizer(model: str, device: str, guidance: float = 1.0) -> FrameColorizer:
    """The colorizer of ``model``: ONNX Runtime, without torch, for NAME.onnx; PyTorch for any
    other."""
    if not 0 <= guidance <= 4:
        raise UserError(
            f"--guidance is {guidance}; expected 0 (text has no effect) to 4, 1 is as trained"
        )
    if Path(model).suffix.lower() == ".onnx":
        if guidance != 1:
            raise UserError("--guidance needs a model of PyTorch; leave it out for .onnx")
        from cmmfnet.colorizer.onnx import OnnxColorizer

        return OnnxColorizer.from_pretrained(model, device=device)
    from cmmfnet.colorizer.torch import Colorizer

    return Colorizer.from_pretrained(model, device=device, guidance=guidance)


def open_for_text(text: str | None, model: str, device: str, guidance: float) -> FrameColorizer:
    """A model that takes the text of a video."""
    colorizer = open_colorizer(model, device, guidance)
    check_corrections(colorizer, [text])
    return colorizer


def check_corrections(colorizer: FrameColorizer, texts: Iterable[str | None]) -> None:
    """Texts that start from predicted tags need a model that predicts some and takes their
    names."""
    traits = colorizer.traits
    if traits.can_correct or not traits.takes_text:
        return
    for text in dict.fromkeys(filter(None, texts)):
        if read_prompt(text).needs_prediction:
            raise UserError(
                f"model {colorizer.name!r} predicts no tags, so {text!r} has nothing to start "
                "from; write what is to be seen"
            )

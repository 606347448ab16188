"""``cmmfnet explain``: a map for each word of a text, of where in the frame the model applies it;
and the tags that the model predicts."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cmmfnet.files.atomic import atomic_write
from cmmfnet.files.errors import UserError
from cmmfnet.files.page import as_grey, write_page
from cmmfnet.text.parser import parse_tags

if TYPE_CHECKING:
    from torch import Tensor

    from cmmfnet.colorizer.torch import Colorizer
    from cmmfnet.methods.cmmfnet.network import CMMFNet

Box = tuple[int, int, int, int]
SHOWN_TAGS = 12


@dataclass
class Explanation:
    """One frame and text.

    thermal (H,W) and the pictures plain (without text) and colour (with it) (H,W,3), all uint8.
    words: what was understood, with its colour ("red car"). maps (L,H,W) float32 in [0,1]: where
    each word holds. tags: predicted names with their probabilities, likeliest first. kind:
    "regions" (the maps that steer the colours), or "attention" (weights of the image positions'
    cross-attention to the words, of a model without regions: they need not have any effect).
    """

    thermal: np.ndarray
    plain: np.ndarray
    colour: np.ndarray
    words: list[str]
    maps: np.ndarray
    tags: list[tuple[str, float]]
    kind: str


def explain(
    source: str,
    *,
    out: str,
    text: str | None = None,
    box: str | None = None,
    model: str = "cmmfnet",
    device: str = "auto",
    span: str | None = None,
    palette: str | None = None,
) -> Explanation:
    """Show where in a frame each word of a text holds, and which tags the model predicts.

    Args:
        source: a thermal picture
        out: a page FILE.html, or a folder for colour.png, plain.png, a map WORD.png for each word
            and tags.txt
        text: the things in the picture, e.g. "a red car on a road, trees"; default: the tags that
            the model predicts
        box: WORD=LEFT,TOP,RIGHT,BOTTOM in pixels of the picture: the region of a word of the text;
            several with ";"
        model: a name of `cmmfnet models`, a .safetensors file, or hf:OWNER/REPO@COMMIT
        device: auto, cpu, cuda, cuda:1 or mps
        span: LOW,HIGH in the picture's own units; without it it is stretched between its 1st and
            99th percentile
        palette: false-colour palette the picture was saved in, e.g. ironbow; auto finds it

    Raises:
        UserError, ThermalFileError, ModelError, DeviceError: nothing was written.
    """
    boxes = read_boxes(box) if box is not None else {}
    from cmmfnet.colorizer.torch import Colorizer

    if not Path(source).is_file():
        raise FileNotFoundError(f"no picture {source}; cmmfnet explain takes one picture")
    found = look(
        Colorizer.from_pretrained(model, device=device),
        source,
        text,
        boxes=boxes,
        span=span,
        palette=palette,
    )
    if Path(out).suffix.lower() in (".html", ".htm"):
        write_explanation(
            Path(out), found, f"{Path(source).name}: {text or 'as the model sees it'}"
        )
    else:
        write_folder(Path(out), found)
    print(f"{', '.join(found.words) or 'no words'}: {out}")
    return found


def read_boxes(text: str) -> dict[str, Box]:
    """ "car=10,20,200,180; tree=..." -> name -> (left, top, right, bottom) in pixels. Raises
    :class:`UserError`."""
    boxes: dict[str, Box] = {}
    for part in filter(None, (p.strip() for p in text.split(";"))):
        match = re.fullmatch(r"([^=]+)=\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)", part)
        if match is None:
            raise UserError(
                f"--box is {part!r}; expected WORD=LEFT,TOP,RIGHT,BOTTOM, for example "
                "car=10,20,200,180"
            )
        names = parse_tags(match[1]).tags
        left, top, right, bottom = (int(n) for n in match.groups()[1:])
        if len(names) != 1 or left >= right or top >= bottom:
            raise UserError(
                f"--box is {part!r}; expected one known word, LEFT below RIGHT and TOP below "
                "BOTTOM, "
                "for example car=10,20,200,180"
            )
        boxes[names[0]] = (left, top, right, bottom)
    return boxes


def look(
    colorizer: Colorizer,
    x,
    text: str | None = None,
    *,
    boxes: Mapping[str, Box] | None = None,
    span: str | None = None,
    palette: str | None = None,
) -> Explanation:
    """Colour one picture with and without a text, and find where each word holds.

    Args:
        x: path, file contents, array (H, W), or Thermal.
        text: as for Colorizer ("+snow -grass", too); None takes the predicted tags.
        boxes: name of the text -> (left, top, right, bottom) in pixels, where it is to hold; needs
            a model with regions. span, palette: as for Colorizer.

    Raises:
        UserError: a model without words, or a box for a word that the text does not have.
    """
    import torch

    network, traits = colorizer.network, colorizer.traits
    if not traits.takes_names:
        raise UserError(
            f"model {colorizer.name!r} does not take the names of things, so there is nothing to "
            "show"
        )
    if boxes and not traits.takes_colours:
        raise UserError(
            f"model {colorizer.name!r} has no regions, so boxes have no effect; leave out --box"
        )
    frame = colorizer.prepare(x, span, palette=palette)
    tags, given = [], None
    if traits.predicts_tags:
        probabilities = colorizer.predict([frame])[0]
        tags = colorizer.likeliest(probabilities, SHOWN_TAGS)
        if text is None:
            given = colorizer.predicted_input(probabilities)
    if text is not None:
        given = colorizer.text_input(text, probabilities if traits.predicts_tags else None)
    names = given.names if given is not None else ()
    if missing := set(boxes or ()) - set(names):
        raise UserError(
            f"--box names {', '.join(sorted(missing))}, which the text does not have "
            f"({', '.join(names)})"
        )

    height, width = frame.low.shape
    with colorizer.runtime.inference():
        thermal = colorizer.runtime.on_device(colorizer.batch([frame]))
        padded = thermal.shape[-2:]
        plain = network(thermal, None, None)
        colour = plain
        if given is not None:
            tokens, mask = (part[None] for part in given.tokens)
            if traits.takes_colours:
                places = _places(names, boxes or {}, frame.full.shape, (height, width), padded)
                places = places.to(thermal)
                colour, *_, levels = network(
                    thermal, tokens, mask, heads=True, maps=True, places=places
                )
                maps = network.regions.maps(levels[-1], network.word_tokens(tokens, mask, places))
            else:
                colour = network(thermal, tokens, mask)
                maps = attention_maps(network, thermal, tokens, mask)
        if names:
            maps = torch.nn.functional.interpolate(
                maps.float(), padded, mode="bilinear", align_corners=False
            )[:, :, :height, :width]
            maps = torch.nn.functional.interpolate(
                maps, tuple(frame.full.shape), mode="bilinear", align_corners=False
            )[0]
        else:
            maps = torch.zeros(0, *frame.full.shape)
        pictures = [
            colorizer.finish(each[0, :, :height, :width].float(), frame) for each in (plain, colour)
        ]
    colours = given.colours if given is not None else ()
    words = [f"{c} {name}" if c else name for name, c in zip(names, colours, strict=True)]
    kind = "regions" if traits.takes_colours else "attention"
    full = frame.full if isinstance(frame.full, np.ndarray) else colorizer.runtime.array(frame.full)
    return Explanation(as_grey(full), *pictures, words, maps.clamp(0, 1).cpu().numpy(), tags, kind)


def attention_maps(network: CMMFNet, thermal: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
    """Weights of the frame's positions on each token in the last cross-attention, mean over heads:
    (B,L,grid,grid) in [0,1], for ``ci="image_query"``. The learned token for "no text" has the
    rest.

    Raises :class:`UserError` for another ``ci``, which has no such weights.
    """
    interaction = getattr(network, "interaction", None)
    if interaction is None:
        raise UserError(
            "this model has neither regions nor attention to words, so there is nothing to show; "
            "try --model cmmfnet"
        )
    if interaction.mode != "image_query":
        raise UserError(
            f"ci is {interaction.mode!r}; only image_query attends from positions to words"
        )
    caught: list[tuple[Tensor, Tensor, Tensor | None]] = []
    attention = interaction.blocks[-1].attention
    hook = attention.register_forward_pre_hook(
        lambda _, inputs: caught.append((inputs[0], inputs[1], inputs[3]))
    )
    try:
        network(thermal, text, text_mask)
    finally:
        hook.remove()
    query, key, mask = caught[0]
    query, key = (
        layer(x).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
        for layer, x in ((attention.query, query), (attention.key, key))
    )
    scores = (query @ key.transpose(2, 3)).float() * query.shape[-1] ** -0.5
    weights = scores.masked_fill(~mask[:, None, None, :], float("-inf")).softmax(dim=-1).mean(dim=1)
    side = math.isqrt(weights.shape[1])
    return weights[:, :, 1:].transpose(1, 2).unflatten(2, (side, side))


def _places(names, boxes: Mapping[str, Box], full, low, padded):
    """(1,L,H,W) of RegionText.maps for boxes in pixels of the full picture."""
    import torch

    places = torch.zeros(1, len(names), *padded)
    for i, name in enumerate(names):
        if name in boxes:
            scale = low[1] / full[1], low[0] / full[0]
            left, top, right, bottom = (round(v * scale[k % 2]) for k, v in enumerate(boxes[name]))
            places[0, i] = -1
            places[0, i, top : max(bottom, top + 1), left : max(right, left + 1)] = 1
    return places


def heat(picture: np.ndarray, share: np.ndarray) -> np.ndarray:
    """A map (H,W) in [0,1] over a picture (H,W) uint8: (H,W,3) uint8, orange where it is 1, the
    picture where it is 0."""
    grey = np.repeat(picture[..., None].astype(np.float32), 3, axis=2)
    orange = np.array([255, 120, 20], np.float32) * (0.35 + 0.65 * grey / 255)
    weight = share[..., None]
    return (grey * 0.75 * (1 - weight) + orange * weight).round().astype(np.uint8)


def write_folder(folder: Path, found: Explanation) -> None:
    """colour.png, plain.png, tags.txt, and for each word WORD.png, its map as grey (255 = 1)."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    pictures = {"colour": found.colour, "plain": found.plain}
    for word, share in zip(found.words, found.maps, strict=True):
        pictures[re.sub(r"[^\w-]+", "_", word)] = (share * 255).round().astype(np.uint8)
    for name, pixels in pictures.items():
        with atomic_write(folder / f"{name}.png", durable=False) as file:
            Image.fromarray(pixels).save(file, format="PNG")
    with atomic_write(folder / "tags.txt", text=True, durable=False) as file:
        file.writelines(f"{name}\t{probability:.3f}\n" for name, probability in found.tags)


def write_explanation(path: Path, found: Explanation, title: str) -> None:
    """One self-contained page: the pictures, a map for each word, and the predicted tags."""
    figures = [
        ("thermal", found.thermal),
        ("without text", found.plain),
        ("with the text", found.colour),
    ]
    figures += [
        (f"{word} ({share.mean():.0%} of the frame)", heat(found.thermal, share))
        for word, share in zip(found.words, found.maps, strict=True)
    ]
    write_page(
        path,
        "colorizer/explain.html",
        title=title,
        figures=figures,
        tags=found.tags,
        steers=found.kind == "regions",
    )

"""CMMF-Net: CLIP-guided multi-modal fusion for thermal-infrared colourisation.

Jiang et al., Intelligence & Robotics 2025;5(1):34-49, doi 10.20517/ir.2025.03. Image encoder (3.2)
and cross-modal interaction (3.3) are in interaction.py, the U-Net (3.4) and the whole network here,
the losses (3.5) in method.py. What the paper leaves open stands in ``PAPER`` with the choices of
docs/architecture.md; ``RELEASED`` is the model that the package bundles.

The image encoder always sees the whole frame resized to ``global_size``; only the U-Net sees full
resolution. So the network takes any size that is a multiple of 8, and a large frame has one global
context and no seams.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmmfnet.methods.cmmfnet.interaction import (
    CrossModalInteraction,
    ImageEncoder,
    Modulation,
    tone_channels,
)
from cmmfnet.methods.cmmfnet.regions import RegionText, WordTokens, word_facts
from cmmfnet.nn.blocks import Downsample, Stage
from cmmfnet.nn.unet import Guide, Resize, SideBySide, UpAndJoin, UpAndPaint
from cmmfnet.text.attributes import ATTRIBUTES

PAPER: dict = {"method": "cmmfnet"}  # every default of CMMFNet below: 40 M trainable parameters
RELEASED: dict = {
    "method": "cmmfnet", "stem": "vgg16", "vit_depth": 4, "vit_width": 320, "vit_heads": 5,
    "encoder_blocks": (2, 4, 2),
    "decoder_blocks": (2, 2, 1), "kernels": (7, 13, 13), "ci": "image_query", "text": "clip-tags",
    "modulation": True,
    "text_length": 16, "local_contrast": True, "classes": 25, "tail": 32,
}  # fmt: skip


class CMMFNet(nn.Module):
    """The whole network (Figure 1). ``forward(thermal (B,1,H,W) in [-1,1], text (B,L,D), text_mask
    (B,L) bool) -> (B,3,H,W)``.

    H and W are multiples of 8. ``text=None`` means no text. The defaults are ``cmmfnet-paper``.

    Beyond the paper:
        text="learned": a control with ``text_length`` learned tokens, the same for every frame, in
            the place of text.
        stem="vgg16": see ImageEncoder.
        local_contrast: a second tone channel (interaction.tone_channels).
        modulation: frame and text scale and shift the decoder's features.
        words: a table of tag vectors (``embed_tags``) and a tag head (``predict_tags``).
        classes: an auxiliary label head at H/8, for training.
        regions: every word holds in a region of the frame and has a colour (regions.py); needs
            ``words``.
        regions_alone: with ``regions``, words for things act in their regions only; the
            cross-modal interaction, which acts on the whole frame, gets the words for light and sky
            alone.
    """

    multiple_of, fixed_size, least_size = 8, None, 256
    takes_float32 = True  # whatever its weights are in

    def __init__(
        self,
        *,
        channels: Sequence[int] = (64, 128, 256),
        encoder_blocks: Sequence[int] = (2, 6, 2),
        decoder_blocks: Sequence[int] = (2, 6, 2),
        kernels: Sequence[int] = (13, 13, 13),
        stem: str = "patch",
        global_size: int = 256,
        vit_depth: int = 9,
        vit_width: int = 512,
        vit_heads: int = 8,
        ci: str = "text_query",
        ci_depth: int = 2,
        text: str = "clip-sentence",
        text_width: int = 512,
        text_length: int = 77,
        words: Sequence[str] = (),
        skip: str = "concat",
        output: str = "tanh",
        modulation: bool = False,
        local_contrast: bool = False,
        classes: int = 0,
        tail: int = 64,
        regions: bool = False,
        regions_alone: bool = False,
    ):
        super().__init__()
        if text not in ("clip-sentence", "clip-tags", "learned", "none"):
            raise ValueError(
                f"text is {text!r}; expected 'clip-sentence', 'clip-tags', 'learned' or 'none'"
            )
        if skip not in ("concat", "add") or output not in ("tanh", "clip"):
            raise ValueError(
                f"skip is {skip!r}, output is {output!r}; expected concat or add, tanh or clip"
            )
        self.text_source, self.words = "none" if text == "learned" else text, list(words)
        self.text_width, self.text_length = text_width, text_length
        self.output, self.concat, self.local_contrast = output, skip == "concat", local_contrast
        self.predicts_tags, self.takes_colours = bool(self.words), regions
        c1, c2, c3 = channels
        inputs = 2 if local_contrast else 1

        self.image_encoder = ImageEncoder(
            inputs, global_size, vit_width, vit_depth, vit_heads, stem
        )
        project = self.text_source != "none" and text_width != vit_width
        self.text_projection = nn.Linear(text_width, vit_width) if project else nn.Identity()
        if text == "clip-tags":
            # Rows are CLIP vectors while training; in a released file they are folded through
            # text_projection.
            self.word_vectors = nn.Parameter(
                nn.init.normal_(
                    torch.empty(max(len(self.words), 1), text_width), std=text_width**-0.5
                )
            )
        self.queries = (
            nn.Parameter(nn.init.normal_(torch.empty(1, text_length, vit_width), std=0.02))
            if text == "learned"
            else None
        )
        self.interaction = CrossModalInteraction(
            "none" if text == "none" else ci, vit_width, vit_heads, ci_depth,
            (global_size // 16) ** 2, global_size // 8, c3, text_length,
        )  # fmt: skip
        self.tag_head = nn.Linear(vit_width, len(self.words)) if self.predicts_tags else None

        self.down1, self.encode1 = Downsample(inputs, c1), Stage(c1, encoder_blocks[0], kernels[0])
        self.down2, self.encode2 = Downsample(c1, c2), Stage(c2, encoder_blocks[1], kernels[1])
        self.down3, self.encode3 = Downsample(c2, c3), Stage(c3, encoder_blocks[2], kernels[2])
        self.fuse = nn.Conv2d(2 * c3, c3, 1)
        self.up3 = nn.Conv2d(c3, c2, 3, padding=1)
        self.skip2 = nn.Conv2d(2 * c2, c2, 1) if self.concat else None
        self.decode2 = Stage(c2, decoder_blocks[0], kernels[1])
        self.up2 = nn.Conv2d(c2, c1, 3, padding=1)
        self.skip1 = nn.Conv2d(2 * c1, c1, 1) if self.concat else None
        self.decode1 = Stage(c1, decoder_blocks[1] + decoder_blocks[2], kernels[0])
        self.up1 = nn.Conv2d(c1, tail, 3, padding=1)
        self.last = nn.Conv2d(tail, 3, 3, padding=1)

        self.side_by_side, self.resize, self.guide = SideBySide(), Resize(), Guide()
        self.join, self.paint = UpAndJoin(), UpAndPaint()
        self.laterals = None
        if self.image_encoder.hybrid:
            self.laterals = nn.ModuleList(
                [nn.Conv2d(128, c1, 1), nn.Conv2d(256, c2, 1), nn.Conv2d(512, c3, 1)]
            )
        self.modulations = None
        if modulation:
            self.modulations = nn.ModuleList(Modulation(2 * vit_width, c) for c in (c3, c2, c1))
        self.label_head = nn.Conv2d(c3, classes, 1) if classes else None
        self.regions, self.regions_alone = None, regions_alone
        if regions:
            if text != "clip-tags" or not self.words:
                raise ValueError(
                    f"regions need words (text: clip-tags); text is {text!r} with "
                    f"{len(self.words)} words"
                )
            self.regions = RegionText(vit_width, (c3, c2, c1), tail)
            self.attribute_vectors = nn.Parameter(
                nn.init.normal_(
                    torch.empty(len(ATTRIBUTES), text_width), std=0.5 * text_width**-0.5
                )
            )
            self.register_buffer("word_facts", word_facts(self.words), persistent=False)

    def embed_tags(self, ids: Tensor, attributes: Tensor | None = None) -> Tensor:
        """Rows of the word table: ids (B,L) long, indices into ``words`` -> text tokens
        (B,L,text_width).

        With ``regions`` further columns follow: 1 where a word holds everywhere, and the classes
        that it names (regions.word_facts). ``attributes`` (B,L,A): the colour of each name, as
        weights over cmmfnet.text.attributes.ATTRIBUTES; None: no colours.
        """
        tokens = F.embedding(ids, self.word_vectors)
        if self.regions is None:
            return tokens
        if attributes is not None:
            tokens = tokens + attributes.to(tokens.dtype) @ self.attribute_vectors
        return torch.cat([tokens, self.word_facts[ids].to(tokens.dtype)], dim=-1)

    def word_tokens(self, text: Tensor, mask: Tensor, places: Tensor | None = None) -> WordTokens:
        """Tokens (B,L,...) of ``embed_tags``, their mask (B,L) bool and regions drawn by the user
        (B,L,H,W) -> the input of RegionText."""
        vectors, everywhere, classes = text.split(
            [self.text_width, 1, text.shape[2] - self.text_width - 1], dim=2
        )
        vectors = vectors.masked_fill(
            ~mask.unsqueeze(-1), 0
        )  # a product would let NaN in unset rows through
        classes = classes.masked_fill(~mask.unsqueeze(-1), 0)
        return WordTokens(
            self.text_projection(vectors), everywhere[..., 0] > 0.5, classes, mask, places
        )

    def fold_text_projection(self) -> dict:
        """Replace the word table by its projection, so that a released file has no CLIP vectors.
        Returns the changed constructor keywords."""
        if self.text_source != "clip-tags" or isinstance(self.text_projection, nn.Identity):
            return {}
        with torch.no_grad():
            self.word_vectors = nn.Parameter(self.text_projection(self.word_vectors))
            if self.regions is not None:  # they are added to a word's vector, which has the bias
                self.attribute_vectors = nn.Parameter(
                    F.linear(self.attribute_vectors, self.text_projection.weight)
                )
        self.text_projection = nn.Identity()
        self.text_width = self.word_vectors.shape[1]
        return {"text_width": self.text_width}

    def predict_tags(self, thermal: Tensor) -> Tensor:
        """Probability of each of ``words`` in the frame: (B,1,H,W) -> (B,len(words)) in [0,1]."""
        return torch.sigmoid(self._tag_logits(self.image_encoder(self._tones(thermal))[0]))

    def _tones(self, thermal: Tensor) -> Tensor:
        """Frame (B,1,H,W) -> tone channels (B,1 or 2,H,W) in the dtype of the weights. Local
        contrast is computed in float32 before."""
        x = tone_channels(thermal.float()) if self.local_contrast else thermal
        return x.to(self.last.bias.dtype)

    def _tag_logits(self, tokens: Tensor) -> Tensor:
        return self.tag_head(tokens.mean(dim=1)).float()

    def forward(
        self,
        thermal: Tensor,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        rows: Tensor | None = None,
        columns: Tensor | None = None,
        *,
        heads: bool = False,
        maps: bool = False,
        places: Tensor | None = None,
    ):
        """Colour frames.

        Args:
            thermal: (B,1,H,W) in [-1,1]; H and W are multiples of 8.
            text: tokens (B,L,text_width) (with ``regions``: of ``embed_tags``); None: no
                text.
            text_mask: (B,L) bool, True for a token; None: all are tokens.
            rows, columns: (h,) and (w,) long, in steps of 8 pixels: the U-Net colours this window
                of the frame alone, while the image encoder sees the whole frame. For training on
                windows of large frames.
            heads: also return tag logits (B,len(words)) or None, and label logits
                (B,classes,H/8,W/8) or None.
            maps: with ``heads``, also return the logits (B,1+L,h,w) of the words' maps at H/8, H/4
                and H/2; an empty list without ``regions`` or text.
            places: (B,L,H,W), regions that the user drew for words (RegionText.maps).

        Returns:
            Colour (B,3,H,W) in [-1,1], (B,3,8h,8w) of a window; a tuple where more is asked for.

        Raises:
            ValueError: a frame of another shape.
        """
        if (
            thermal.ndim != 4
            or thermal.shape[1] != 1
            or thermal.shape[2] % 8
            or thermal.shape[3] % 8
        ):
            raise ValueError(
                f"thermal is {tuple(thermal.shape)}; expected (B,1,H,W) with H and W multiples of 8"
            )
        x = self._tones(thermal)
        window = None if rows is None else (rows, columns)
        (tokens, stem), (e1, e2, e3) = self.side_by_side(
            self.image_encoder, lambda x: self._encode(_part(x, window, 8)), x
        )
        word_tokens = None
        text = None if text is None or self.text_source == "none" else text
        if text is not None and self.regions is not None:
            if text_mask is None:
                text_mask = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
            word_tokens = self.word_tokens(text, text_mask, places)
            text = word_tokens.vectors
            if self.regions_alone:
                text_mask = text_mask & word_tokens.everywhere
        elif text is not None:
            text = self.text_projection(text)
        if self.queries is not None:
            text, text_mask = self.queries.expand(x.shape[0], -1, -1), None
        context, pooled_text = self.interaction(tokens, text, text_mask)
        vector = torch.cat([tokens.mean(dim=1), pooled_text.expand(tokens.shape[0], -1)], dim=1)
        if window is not None:
            height, width = thermal.shape[-2:]
            context = _part(self.resize(context, (height // 8, width // 8)), window, 1)
            stem = [
                _part(self.resize(map_, (height // step, width // step)), window, 8 // step)
                for map_, step in zip(stem, (2, 4, 8), strict=False)  # no maps of a patch stem
            ]

        y = self.fuse(torch.cat([e3, self.resize(context, e3.shape[-2:])], dim=1))
        y = self._guided(y, stem, 2, vector)
        labels = None
        if (heads or word_tokens is not None) and self.label_head is not None:
            labels = self.label_head(y)
        if word_tokens is not None:
            y = self.regions(y, word_tokens, labels)
        y = self._guided(self.join(self.up3, y, e2, self.skip2), stem, 1, vector)
        y = self.decode2(y if word_tokens is None else self.regions(y, word_tokens))
        y = self._guided(self.join(self.up2, y, e1, self.skip1), stem, 0, vector)
        y = self.decode1(y if word_tokens is None else self.regions(y, word_tokens))
        between = None if word_tokens is None else lambda y: self.regions.finish(y, word_tokens)
        y = self.paint(self.up1, y, self.last, between)
        colour = torch.tanh(y) if self.output == "tanh" else y.clamp(-1, 1)
        if not heads:
            return colour
        tags = self._tag_logits(tokens) if self.predicts_tags else None
        return (
            (colour, tags, labels, word_tokens.levels if word_tokens is not None else [])
            if maps
            else (colour, tags, labels)
        )

    def _encode(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The U-Net's encoder: (B,C,H,W) -> maps at H/2, H/4, H/8."""
        e1 = self.encode1(self.down1(x))
        e2 = self.encode2(self.down2(e1))
        return e1, e2, self.encode3(self.down3(e2))

    def _guided(self, x: Tensor, maps: list[Tensor], level: int, vector: Tensor) -> Tensor:
        """Add the stem's map of this resolution and modulate by the global vector, as far as the
        configuration has these parts."""
        lateral = None if self.laterals is None else self.laterals[level](maps[level])
        change = () if self.modulations is None else self.modulations[2 - level](vector)
        return self.guide(x, lateral, *change)


def _part(x: Tensor, window: tuple[Tensor, Tensor] | None, scale: int) -> Tensor:
    """The window of a map x (B,C,H,W) of the whole frame; the whole map without a window. ``scale``
    pixels of the map are 8 pixels of the frame."""
    if window is None:
        return x
    steps = torch.arange(scale, device=x.device)
    rows, columns = ((side[:, None] * scale + steps).flatten() for side in window)
    return x.index_select(2, rows).index_select(3, columns)

"""CMMF-Net: CLIP-guided multi-modal fusion for thermal-infrared colourisation.

Jiang et al., Intelligence & Robotics 2025;5(1):34-49, doi 10.20517/ir.2025.03. Read top to bottom: image encoder (3.2),
cross-modal interaction (3.3), U-Net (3.4), the network, its losses. What the paper leaves open stands in ``PAPER`` with the
choices of docs/architecture.md; ``RELEASED`` is the model that the package bundles.

The image encoder always sees the whole frame resized to ``global_size``; only the U-Net sees full resolution. So the network
takes any size that is a multiple of 8, and a large frame has one global context and no seams.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmmfnet.attributes import ATTRIBUTES, attribute_weights
from cmmfnet.data.batches import IGNORE
from cmmfnet.layers import MLP, Attention, Downsample, TransformerBlock, large_kernel_stage
from cmmfnet.methods.matched import Matched
from cmmfnet.methods.method import Losses, Moment, unwrapped, with_factors
from cmmfnet.methods.region_text import RegionText, Said, draw_words, everywhere_words, memberships, region_loss
from cmmfnet.ops import Beside, add_bilinear, bilinear, convolve, double, join, serves_pointwise
from cmmfnet.perceptual import Cropped, feature_layers, load_features, tapped
from cmmfnet.text import DEFAULT_PROMPT, WORDS, SentenceEncoder, load_tag_vectors, tag_ids

if TYPE_CHECKING:
    from cmmfnet.data.batches import Batch
    from cmmfnet.recipe import Recipe

MAX_TAGS = 16
TAG_VECTORS = "clip-vitb16-cocostuff171.safetensors"

PAPER: dict = {"method": "cmmfnet"}  # every default of CMMFNet below: 40 M trainable parameters
RELEASED: dict = {
    "method": "cmmfnet", "stem": "vgg16", "vit_depth": 4, "vit_width": 320, "vit_heads": 5, "encoder_blocks": (2, 4, 2),
    "decoder_blocks": (2, 2, 1), "kernels": (7, 13, 13), "ci": "image_query", "text": "clip-tags", "modulation": True,
    "text_length": 16, "local_contrast": True, "classes": 25, "tail": 32,
}  # fmt: skip


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, without antialiasing, so that an exported graph gives the same numbers."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    with in_its_dtype(x):
        return bilinear(x, tuple(size))


def autocasts(x: Tensor) -> bool:
    """Whether products of x are cast to 16 bits here."""
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)


def in_its_dtype(x: Tensor) -> contextlib.AbstractContextManager:
    """For enlargements: autocast has every one in float32, twice the traffic for the largest maps."""
    return torch.autocast(x.device.type, enabled=False) if autocasts(x) else contextlib.nullcontext()


def tone_channels(thermal: Tensor, window: int = 33) -> Tensor:
    """(B,1,H,W) in [-1,1] -> (B,2,H,W): the frame, and its local contrast (x - local mean) / (local deviation + 0.1), squashed.

    One hot object (a person, an engine) presses the rest of a stretched frame into a few dark levels; the second channel
    keeps the structure there readable.
    """

    def mean(x: Tensor) -> Tensor:  # a box is separable: two passes of 33 instead of one of 1,089
        x = F.avg_pool2d(x, (window, 1), stride=1, padding=(window // 2, 0), count_include_pad=False)
        return F.avg_pool2d(x, (1, window), stride=1, padding=(0, window // 2), count_include_pad=False)

    local = mean(thermal)
    deviation = (mean(thermal.square()) - local.square()).clamp_min(0).sqrt()
    return torch.cat([thermal, torch.tanh((thermal - local) / (deviation + 0.1) / 1.5)], dim=1)


class ImageEncoder(nn.Module):
    """Section 3.2: ViT on the whole frame, (B,C,G,G) -> tokens (B,(G/16)^2,D), and the stem's finer maps where it has them.

    ``stem="patch"``: 16x16 convolution (the paper's plain ViT). ``stem="vgg16"``: a hybrid ViT whose patches are VGG-16's
    relu5_3 map (stride 16), so that training can start from ImageNet features; its relu2_2, relu3_3 and relu4_3 maps
    (strides 2, 4, 8) are returned for the U-Net.
    """

    VGG_TAPS = (8, 15, 22)

    def __init__(self, channels: int, size: int, width: int, depth: int, heads: int, stem: str):
        super().__init__()
        if stem == "patch":
            self.stem = nn.Conv2d(channels, width, 16, stride=16)
        elif stem == "vgg16":
            self.stem = feature_layers("vgg16")
            self.stem[0] = nn.Conv2d(channels, 64, 3, padding=1)
            self.join = nn.Conv2d(512, width, 1)
        else:
            raise ValueError(f"stem is {stem!r}; expected 'patch' or 'vgg16'")
        self.hybrid = stem == "vgg16"
        self.size = size
        self.positions = nn.Parameter(torch.randn(1, (size // 16) ** 2, width) * 0.02)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def load_imagenet(self, features: nn.Sequential) -> None:
        """Start the VGG stem from ImageNet: its colour filters are summed, and shared among our tone channels.

        Normalised ImageNet pictures span about -2.1 to 2.6, twice our [-1,1], hence the factor 2: a grey frame in every
        channel gives what the original gives for the picture of twice that value, but for the border and the bias.
        """
        state = features.state_dict()
        channels = self.stem[0].in_channels
        state["0.weight"] = state["0.weight"].sum(dim=1, keepdim=True).repeat(1, channels, 1, 1) * (2.0 / channels)
        self.stem.load_state_dict(state)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = resize(x, (self.size, self.size))
        maps: list[Tensor] = []
        if self.hybrid:
            x, maps = tapped(self.stem, x.contiguous(memory_format=torch.channels_last), self.VGG_TAPS)
            x = self.join(x)
        else:
            x = self.stem(x)
        tokens = x.flatten(2).transpose(1, 2).contiguous() + self.positions  # else all that follows has this order
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens), maps


class CrossBlock(nn.Module):
    """Pre-norm cross-attention and MLP; the residual is on the query stream (notes, section 15, rows 3 and 4)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm_q, self.norm_k, self.norm_v = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm, self.mlp = nn.LayerNorm(width), MLP(width)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        x = query + self.attention(self.norm_q(query), self.norm_k(key), self.norm_v(value), mask)
        return x + self.mlp(self.norm(x))


class CrossModalInteraction(nn.Module):
    """Section 3.3 and Figure 2: two transformer blocks between text and image tokens, then OutputProj to an image map.

    image (B,N,D), text (B,L,D), text_mask (B,L) -> (B,C,grid,grid), where the text has been joined with a learned token for
    "no text", so that an empty text is valid. Modes:

    - ``text_query`` (Fig. 2): Q = text; K = V = image, in the second block "the output of the current layer plus text tokens".
      The output has L rows; OutputProj mixes them into positions (linear over tokens, padding zeroed), L <= text_length.
    - ``image_query``: Q = image, K = V = text; keeps every position (an extension, the usual choice elsewhere).
    - ``text_key`` (section 3.1 to the letter): Q and V from the image, K from the text resampled to N rows by a linear map.
    - ``add`` (Table 3, "without CI"): pooled text through a linear layer is added to every image token.
    - ``none`` (Table 3, "without text encoder"): self-attention on the image tokens.
    """

    def __init__(
        self, mode: str, width: int, heads: int, depth: int, tokens: int, grid: int, channels: int, length: int
    ):
        super().__init__()
        if mode not in ("text_query", "image_query", "text_key", "add", "none"):
            raise ValueError(f"ci is {mode!r}; expected 'text_query', 'image_query', 'text_key', 'add' or 'none'")
        self.mode, self.grid, self.length = mode, grid, length
        self.no_text = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.blocks = nn.ModuleList(CrossBlock(width, heads) for _ in range(0 if mode == "add" else depth))
        if mode == "add":
            self.add = nn.Linear(width, width)
        if mode == "text_key":
            self.resample = nn.Linear(length + 1, tokens)
        if mode == "text_query":
            self.mix = nn.Linear(length + 1, grid * grid)
        self.project, self.norm = nn.Linear(width, channels), nn.LayerNorm(channels)

    def _fixed_length(self, text: Tensor) -> Tensor:
        if text.shape[1] > self.length + 1:
            raise ValueError(f"text has {text.shape[1] - 1} tokens; this network takes at most {self.length}")
        return F.pad(text, (0, 0, 0, self.length + 1 - text.shape[1]))

    def forward(self, image: Tensor, text: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """-> map (B,C,grid,grid) and the pooled text (B,D) (the learned "no text" token where there is none)."""
        batch = image.shape[0]
        empty = self.no_text.expand(batch, -1, -1)
        if text is None:
            text, mask = empty, torch.ones(batch, 1, dtype=torch.bool, device=image.device)
        else:
            if mask is None:
                mask = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
            text = torch.cat([empty, text.to(empty.dtype)], dim=1)
            mask = F.pad(mask, (1, 0), value=True)
            text = text.masked_fill(~mask.unsqueeze(-1), 0)  # a product would let NaN in unset rows through
        weight = mask.unsqueeze(-1).to(text.dtype)
        pooled = text.sum(dim=1) / weight.sum(dim=1)

        if self.mode == "text_query":
            text = self._fixed_length(text)
            given = F.pad(mask, (0, text.shape[1] - mask.shape[1]))  # padded queries answer too: not to be used
            state = key = image
            for i, block in enumerate(self.blocks):
                state = block(text, key, key, given if i else None)
                key = state + text
            tokens = self.mix((state * given.unsqueeze(-1)).transpose(1, 2)).transpose(1, 2)
        elif self.mode == "add":
            tokens = image + self.add(pooled).unsqueeze(1)
        else:
            tokens = image
            if self.mode == "text_key":
                text = self.resample(self._fixed_length(text).transpose(1, 2)).transpose(1, 2)
            for block in self.blocks:
                if self.mode == "image_query":
                    tokens = block(tokens, text, text, mask)
                elif self.mode == "text_key":
                    tokens = block(tokens, text, tokens)
                else:
                    tokens = block(tokens, tokens, tokens)
        side = math.isqrt(tokens.shape[1])
        out = self.norm(self.project(tokens)).transpose(1, 2).unflatten(2, (side, side))
        return resize(out, (self.grid, self.grid)), pooled


class Modulation(nn.Module):
    """Feature-wise scale and shift, each (B,C), of a map by a vector (B,D): the map times (1 + scale) plus shift. Starts as
    the identity."""

    def __init__(self, width: int, channels: int):
        super().__init__()
        self.linear = nn.Linear(width, 2 * channels)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = self.linear(vector).chunk(2, dim=1)
        return scale, shift


def modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x (B,C,H,W) changed by what Modulation gives."""
    return x * (1 + scale[:, :, None, None]) + shift[:, :, None, None]


class CMMFNet(nn.Module):
    """The whole network (Figure 1). ``forward(thermal (B,1,H,W) in [-1,1], text (B,L,D), text_mask (B,L) bool) -> (B,3,H,W)``.

    H and W are multiples of 8. ``text=None`` means no text. The defaults are ``cmmfnet-paper``. Beyond the paper:
    ``text="learned"`` (a control: ``text_length`` learned tokens, the same for every frame, in the place of text),
    ``stem="vgg16"`` (see ImageEncoder), ``local_contrast`` (a second tone channel), ``modulation`` (text and frame scale and
    shift the decoder, a path that text cannot be left out of), ``words`` (a table of tag vectors: ``embed_tags``),
    a tag head (``predict_tags``) where there are words, ``classes`` (an auxiliary label head at H/8, for training), and
    ``regions`` (every word holds in a region of the frame and has a colour: region_text.py; needs ``words``).
    """

    multiple_of, fixed_size = 8, None
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
        default_text: str = "none",
        tag_threshold: float = 0.5,
        working_size: int = 512,
        least_size: int = 256,
        regions: bool = False,
    ):
        super().__init__()
        if text not in ("clip-sentence", "clip-tags", "learned", "none"):
            raise ValueError(f"text is {text!r}; expected 'clip-sentence', 'clip-tags', 'learned' or 'none'")
        if skip not in ("concat", "add") or output not in ("tanh", "clip"):
            raise ValueError(f"skip is {skip!r}, output is {output!r}; expected concat or add, tanh or clip")
        self.text_source, self.words = "none" if text == "learned" else text, list(words)
        self.text_width = text_width
        self.output, self.concat, self.local_contrast = output, skip == "concat", local_contrast
        self.default_text, self.tag_threshold = default_text, tag_threshold
        self.working_size, self.least_size = working_size, least_size  # short side in pixels; Colorizer resizes to it
        self.predicts_tags, self.takes_colours = bool(self.words), regions
        c1, c2, c3 = channels
        inputs = 2 if local_contrast else 1

        self.image_encoder = ImageEncoder(inputs, global_size, vit_width, vit_depth, vit_heads, stem)
        project = self.text_source != "none" and text_width != vit_width
        self.text_projection = nn.Linear(text_width, vit_width) if project else nn.Identity()
        if text == "clip-tags":
            # Rows are CLIP vectors while training; in a released file they are folded through text_projection.
            self.word_vectors = nn.Parameter(torch.randn(max(len(self.words), 1), text_width) * text_width**-0.5)
        self.queries = nn.Parameter(torch.randn(1, text_length, vit_width) * 0.02) if text == "learned" else None
        self.interaction = CrossModalInteraction(
            "none" if text == "none" else ci, vit_width, vit_heads, ci_depth,
            (global_size // 16) ** 2, global_size // 8, c3, text_length,
        )  # fmt: skip
        self.tag_head = nn.Linear(vit_width, len(self.words)) if self.predicts_tags else None

        self.down1, self.encode1 = Downsample(inputs, c1), large_kernel_stage(c1, encoder_blocks[0], kernels[0])
        self.down2, self.encode2 = Downsample(c1, c2), large_kernel_stage(c2, encoder_blocks[1], kernels[1])
        self.down3, self.encode3 = Downsample(c2, c3), large_kernel_stage(c3, encoder_blocks[2], kernels[2])
        self.fuse = nn.Conv2d(2 * c3, c3, 1)
        self.up3 = nn.Conv2d(c3, c2, 3, padding=1)
        self.skip2 = nn.Conv2d(2 * c2, c2, 1) if self.concat else None
        self.decode2 = large_kernel_stage(c2, decoder_blocks[0], kernels[1])
        self.up2 = nn.Conv2d(c2, c1, 3, padding=1)
        self.skip1 = nn.Conv2d(2 * c1, c1, 1) if self.concat else None
        self.decode1 = large_kernel_stage(c1, decoder_blocks[1] + decoder_blocks[2], kernels[0])
        self.up1 = nn.Conv2d(c1, tail, 3, padding=1)
        self.last = nn.Conv2d(tail, 3, 3, padding=1)

        self.laterals = None
        if self.image_encoder.hybrid:
            self.laterals = nn.ModuleList([nn.Conv2d(128, c1, 1), nn.Conv2d(256, c2, 1), nn.Conv2d(512, c3, 1)])
        self.modulations = None
        if modulation:
            self.modulations = nn.ModuleList(Modulation(2 * vit_width, c) for c in (c3, c2, c1))
        self.label_head = nn.Conv2d(c3, classes, 1) if classes else None
        self.regions = None
        if regions:
            if text != "clip-tags" or not self.words:
                raise ValueError(f"regions need words (text: clip-tags); text is {text!r} with {len(self.words)} words")
            self.regions = RegionText(vit_width, (c3, c2, c1), tail)
            self.attribute_vectors = nn.Parameter(torch.randn(len(ATTRIBUTES), text_width) * 0.5 * text_width**-0.5)
            facts = torch.cat([everywhere_words(self.words), memberships(self.words)], dim=1)
            self.register_buffer("word_facts", facts, persistent=False)

    def embed_tags(self, ids: Tensor, attributes: Tensor | None = None) -> Tensor:
        """Rows of the word table: ids (B,L) long, indices into ``words`` -> text tokens (B,L,text_width).

        With ``regions`` further columns follow: 1 where a word holds everywhere, and the classes that it names
        (region_text.memberships); ``attributes`` (B,L,A): weights over cmmfnet.attributes.ATTRIBUTES of what is said of
        each name; None: nothing.
        """
        tokens = F.embedding(ids, self.word_vectors)
        if self.regions is None:
            return tokens
        if attributes is not None:
            tokens = tokens + attributes.to(tokens.dtype) @ self.attribute_vectors
        return torch.cat([tokens, self.word_facts[ids].to(tokens.dtype)], dim=-1)

    def said(self, text: Tensor, mask: Tensor, places: Tensor | None = None) -> Said:
        """Tokens of ``embed_tags`` (B,L,...) and their mask -> what RegionText takes."""
        vectors, everywhere, classes = text.split([self.text_width, 1, text.shape[2] - self.text_width - 1], dim=2)
        vectors = vectors.masked_fill(~mask.unsqueeze(-1), 0)  # a product would let NaN in unset rows through
        classes = classes.masked_fill(~mask.unsqueeze(-1), 0)
        return Said(self.text_projection(vectors), everywhere[..., 0] > 0.5, classes, mask, places)

    def fold_text_projection(self) -> dict:
        """Replace the word table by its projection; returns the changed constructor keywords. For release: no CLIP vectors."""
        if self.text_source != "clip-tags" or isinstance(self.text_projection, nn.Identity):
            return {}
        with torch.no_grad():
            self.word_vectors = nn.Parameter(self.text_projection(self.word_vectors))
            if self.regions is not None:  # they are added to a word's vector, which has the bias
                self.attribute_vectors = nn.Parameter(F.linear(self.attribute_vectors, self.text_projection.weight))
        self.text_projection = nn.Identity()
        self.text_width = self.word_vectors.shape[1]
        return {"text_width": self.text_width}

    def predict_tags(self, thermal: Tensor) -> Tensor:
        """Probability of each of ``words`` in the frame: (B,1,H,W) -> (B,len(words)) in [0,1]."""
        return torch.sigmoid(self._tag_logits(self.image_encoder(self._tones(thermal))[0]))

    def _tones(self, thermal: Tensor) -> Tensor:
        """What the network sees of a frame. A frame in float32 is fine for weights of 16 bits: contrast is computed before."""
        x = tone_channels(thermal.float()) if self.local_contrast else thermal
        return x if autocasts(x) else x.to(self.last.weight.dtype)

    def _tag_logits(self, tokens: Tensor) -> Tensor:
        return self.tag_head(tokens.mean(dim=1)).float()

    def forward(
        self,
        thermal: Tensor,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        *,
        heads: bool = False,
        maps: bool = False,
        places: Tensor | None = None,
    ):
        """-> colour (B,3,H,W); with ``heads`` also tag logits (B,len(words)) or None, and label logits
        (B,classes,H/8,W/8) or None; with ``maps``, too, also the logits of the words' maps (B,1+L,h,w) at H/8, H/4, H/2, an
        empty list without ``regions`` or text. ``places`` (B,L,H,W): where words hold, as RegionText.maps takes it."""
        if thermal.ndim != 4 or thermal.shape[1] != 1 or thermal.shape[2] % 8 or thermal.shape[3] % 8:
            raise ValueError(f"thermal is {tuple(thermal.shape)}; expected (B,1,H,W) with H and W multiples of 8")
        x = self._tones(thermal)
        with Beside(x) as other:
            tokens, stem = self.image_encoder(x)
        e1 = self.encode1(self.down1(x))
        e2 = self.encode2(self.down2(e1))
        e3 = self.encode3(self.down3(e2))
        other.join()
        said = None
        text = None if text is None or self.text_source == "none" else text
        if text is not None and self.regions is not None:
            if text_mask is None:
                text_mask = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
            said = self.said(text, text_mask, places)
            text = said.vectors
        elif text is not None:
            text = self.text_projection(text)
        if self.queries is not None:
            text, text_mask = self.queries.expand(x.shape[0], -1, -1), None
        context, pooled_text = self.interaction(tokens, text, text_mask)
        vector = torch.cat([tokens.mean(dim=1), pooled_text.expand(tokens.shape[0], -1)], dim=1)

        y = self.fuse(torch.cat([e3, resize(context, e3.shape[-2:])], dim=1))
        y = self._guide(y, stem, 2, vector)
        labels = self.label_head(y) if (heads or said is not None) and self.label_head is not None else None
        if said is not None:
            y = self.regions(y, said, labels)
        y = self._guide(self._merge(self.up3, self._double(y), e2, self.skip2), stem, 1, vector)
        y = self.decode2(y if said is None else self.regions(y, said))
        y = self._guide(self._merge(self.up2, self._double(y), e1, self.skip1), stem, 0, vector)
        y = self.decode1(y if said is None else self.regions(y, said))
        if y.is_cuda and torch.is_grad_enabled():
            # where tensor cores take channels last, the largest maps need not be turned for each convolution
            y = y.contiguous(memory_format=torch.channels_last)
        y = convolve(self.up1, self._double(y), "gelu")
        y = self.last(y if said is None else self.regions.finish(y, said))
        colour = torch.tanh(y.contiguous()) if self.output == "tanh" else y.contiguous().clamp(-1, 1)
        if not heads:
            return colour
        tags = self._tag_logits(tokens) if self.predicts_tags else None
        return (colour, tags, labels, said.levels if said is not None else []) if maps else (colour, tags, labels)

    @staticmethod
    def _double(x: Tensor) -> Tensor:
        with in_its_dtype(x):
            return double(x)

    def _merge(self, up: nn.Conv2d, x: Tensor, skip: Tensor, both: nn.Conv2d | None) -> Tensor:
        if both is None:
            return up(x) + skip
        if serves_pointwise(skip, both.out_channels) and x.dtype == skip.dtype:
            x = F.conv2d(x, up.weight.to(x.dtype), None, padding=up.padding)
            return join(x, skip, both.weight, both.bias, up.bias)
        return both(torch.cat([up(x), skip], dim=1))

    def _guide(self, x: Tensor, maps: list[Tensor], level: int, vector: Tensor) -> Tensor:
        """Add the stem's map of this resolution and modulate by the global vector, where the configuration has them."""
        change = self.modulations[2 - level](vector) if self.modulations is not None else (None, None)
        if self.laterals is not None:
            lateral = self.laterals[level](maps[level])
            with in_its_dtype(x):
                return add_bilinear(x, lateral, *change)
        return x if change[0] is None else modulated(x, *change)


class CMMFNetMethod(Matched):
    """The training of CMMF-Net: the losses of the paper (section 3.5) or of the released recipe, with text.

    ``losses``: ``l1``, ``perceptual``, ``tv``, ``ssim`` (the paper's four, eq. 3 to 6, each with weight 1 in the paper),
    ``adversarial`` (hinge PatchGAN), ``tags`` and ``labels`` (cross-entropy of the two auxiliary heads), ``regions`` (of
    the words' maps with label maps).

    ``text_dropout``: share of pictures trained without text, so that the network does without; night pictures always keep
    theirs, since nothing else asks for darkness. ``imagenet``: start a vgg16 stem from ImageNet's weights;
    ``stem_learning_rate``, ``text_learning_rate``: factors on the learning rate of that stem, and of the parts of
    ``regions``, which are new where the rest is trained already. ``only_regions``: the rest stays as it is, so that without
    text the network gives what it gave. ``perceptual_crop``: side in pixels of the random part of each picture that the
    perceptual loss sees, which spares time; 0 = all of it.
    """

    Network = CMMFNet
    title = "CMMF-Net"
    paper = "Jiang et al., CLIP-guided multi-modal fusion, Intelligence & Robotics 2025"
    LOSSES: ClassVar[dict[str, float]] = {
        "l1": 1.0, "perceptual": 1.0, "tv": 1.0, "ssim": 1.0, "adversarial": 0.0, "tags": 0.0, "labels": 0.0,
        "regions": 0.0,
    }  # fmt: skip

    def __init__(
        self,
        network: CMMFNet,
        losses: dict[str, float],
        *,
        pretrained: str | Path | None = None,
        perceptual: str = "vgg19",
        perceptual_mode: str = "l1",
        adversarial_start: float = 0.0,
        text_dropout: float = 0.0,
        imagenet: bool = False,
        stem_learning_rate: float = 1.0,
        text_learning_rate: float = 1.0,
        only_regions: bool = False,
        perceptual_crop: int = 0,
    ):
        super().__init__(
            network, losses, pretrained=pretrained, perceptual=perceptual, perceptual_mode=perceptual_mode,
            adversarial_start=adversarial_start,
        )  # fmt: skip
        if only_regions and network.regions is None:
            raise ValueError("only_regions is true, but the network has none; it needs regions: true in the model")
        if only_regions:
            network.requires_grad_(False)
            network.regions.requires_grad_(True)
            network.attribute_vectors.requires_grad_(True)
        if perceptual_crop and self.perceptual is not None:
            self.perceptual = Cropped(self.perceptual, perceptual_crop)
        if not 0 <= text_dropout <= 1:
            raise ValueError(f"text_dropout is {text_dropout}; expected 0 to 1")
        for loss, head, needs in (
            ("tags", network.tag_head, "words (text: clip-tags)"),
            ("labels", network.label_head, "classes: 25"),
        ):
            if loss in self.weights and head is None:
                raise ValueError(
                    f"loss {loss!r} has a weight, but the network has no head for it; it needs {needs}, or leave the loss out"
                )
            if loss not in self.weights and head is not None:
                head.requires_grad_(False)  # nothing would train it
        if "regions" in self.weights and network.regions is None:
            raise ValueError(
                "loss 'regions' has a weight, but the network has no maps; it needs regions: true, or leave it out"
            )
        if network.interaction.mode == "none" and not (network.modulations or network.regions):
            # nor does text reach anything here
            network.interaction.no_text.requires_grad_(False)
            network.text_projection.requires_grad_(False)
        self.text_dropout, self.imagenet = text_dropout, imagenet
        self.stem_learning_rate, self.text_learning_rate = stem_learning_rate, text_learning_rate
        self.sentences = None

    @classmethod
    def configuration(cls, model: dict) -> dict:
        """A fresh clip-tags network knows all words, unless the recipe names some."""
        return model | {"words": list(WORDS)} if model.get("text") == "clip-tags" and "words" not in model else model

    @classmethod
    def extended(cls, network: CMMFNet, config: dict, model: dict) -> tuple[CMMFNet, dict]:
        """A trained network with the parts that a recipe's ``model`` adds to it: ``regions``. Its output stays the same."""
        if not model.get("regions") or config.get("regions"):
            return network, config
        config = config | {"regions": True}
        larger = CMMFNet(**{k: v for k, v in config.items() if k != "method"})
        missing = larger.load_state_dict(network.state_dict(), strict=False).missing_keys
        if other := [key for key in missing if not key.startswith(("regions.", "attribute_vectors"))]:
            raise ValueError(f"the network lacks {', '.join(other)}")
        return larger, config

    def start(self) -> None:
        """Put the pre-trained parts of a fresh network in place: CLIP's vectors of words, ImageNet's stem."""
        network = self.networks["generator"]
        if network.text_source == "clip-tags":
            if self.pretrained is None:
                warnings.warn("no folder of pre-trained files: the vectors of words start at random", stacklevel=2)
            else:
                names, vectors = load_tag_vectors(Path(self.pretrained) / TAG_VECTORS)
                index = {w: i for i, w in enumerate(network.words)}
                with torch.no_grad():
                    for name, vector in zip(names, vectors, strict=True):
                        if name in index:
                            network.word_vectors[index[name]] = vector
        if self.imagenet:
            network.image_encoder.load_imagenet(load_features("vgg16", self.pretrained))

    def to(self, device: torch.device) -> None:
        super().to(device)
        if self.networks["generator"].text_source == "clip-sentence":
            self.sentences = SentenceEncoder()

    def parameter_groups(self, optimiser: str, recipe: Recipe) -> list[dict]:
        groups = super().parameter_groups(optimiser, recipe)
        if optimiser != "generator" or self.stem_learning_rate == self.text_learning_rate == 1:
            return groups
        network = self.networks["generator"]
        factors = {id(p): self.stem_learning_rate for p in network.image_encoder.stem.parameters()}
        if network.regions is not None:
            new = [*network.regions.parameters(), network.attribute_vectors]
            factors |= {id(p): self.text_learning_rate for p in new}
        return with_factors(groups, factors)

    def text(self, batch: Batch, moment: Moment) -> tuple[Tensor | None, Tensor | None]:
        """Text tokens and mask of a batch; draws which pictures go without text."""
        network, device = unwrapped(self.networks["generator"]), batch.thermal.device
        if network.text_source == "none":
            return None, None
        draws = [moment.rng(position) for position in batch.positions]
        dropped = [rng.random() < self.text_dropout for rng in draws]
        if network.text_source == "clip-sentence":
            tokens, mask = self.sentences([c or DEFAULT_PROMPT for c in batch.captions])
            kept = [not drop or "night" in tags for drop, tags in zip(dropped, batch.tags, strict=True)]
            return tokens.to(device), (mask.cpu() & torch.tensor(kept)[:, None]).to(device)
        if network.regions is not None:
            said = self.said(batch, moment)
            ids, mask = tag_ids([[name for name, _ in row] for row in said], network.words)
            pad = (0, MAX_TAGS - ids.shape[1])
            attributes = torch.zeros(len(said), MAX_TAGS, len(ATTRIBUTES))
            for b, row in enumerate(said):
                for i, (_, colour) in enumerate(row):
                    attributes[b, i] = torch.from_numpy(attribute_weights(colour))
            return network.embed_tags(F.pad(ids, pad).to(device), attributes.to(device)), F.pad(mask, pad).to(device)
        chosen = []
        for tags, rng, drop in zip(batch.tags, draws, dropped, strict=True):
            some = [t for t in tags if t in network.words and rng.random() < 0.8]
            chosen.append([] if drop else list(dict.fromkeys(some)))
            if "night" in tags and "night" in network.words and "night" not in chosen[-1]:
                chosen[-1].append("night")
        ids, mask = tag_ids([names[-MAX_TAGS:] for names in chosen], network.words)
        pad = (0, MAX_TAGS - ids.shape[1])  # one length, so that every step has the same shapes
        return network.embed_tags(F.pad(ids, pad).to(device)), F.pad(mask, pad).to(device)

    def said(self, batch: Batch, moment: Moment) -> list[list[tuple[str, str | None]]]:
        """For each picture the names that are said, with a colour or None, of a network with ``regions``."""
        words = unwrapped(self.networks["generator"]).words
        count, labelled = len(batch), (batch.label != IGNORE).flatten(1).any(dim=1).tolist()
        rows = zip(batch.tags, batch.colours or [[]] * count, batch.told or [[]] * count, batch.positions, strict=True)
        said = []
        for (tags, colours, told, position), known in zip(rows, labelled, strict=True):
            rng = moment.rng(position)
            drop = rng.random() < self.text_dropout
            always = [*told, *(["night"] if "night" in tags else [])]
            said.append(draw_words(rng, tags, colours, always, words, drop=drop, labelled=known, most=MAX_TAGS))
        return said

    def colour(self, batch: Batch, moment: Moment) -> tuple[Tensor, Losses]:
        network = self.networks["generator"]
        tokens, mask = self.text(batch, moment)
        colour, tag_logits, label_logits, levels = self.generate(batch.thermal, tokens, mask, heads=True, maps=True)
        losses: Losses = {}
        if "regions" in self.weights:
            names = [[name for name, _ in row] for row in self.said(batch, moment)]
            everywhere = unwrapped(network).said(tokens, mask).everywhere
            losses["regions"] = region_loss(levels, batch.label, names, mask, everywhere, IGNORE)
        if "tags" in self.weights:
            words = unwrapped(network).words
            target = torch.zeros(tag_logits.shape)
            index = {w: i for i, w in enumerate(words)}
            for row, tags in enumerate(batch.tags):
                target[row, [index[t] for t in tags if t in index]] = 1
            each = F.binary_cross_entropy_with_logits(tag_logits, target.to(tag_logits.device), reduction="none")
            losses["tags"] = (each.sum(dim=1) * batch.tagged).mean()
        if "labels" in self.weights:
            small = batch.label[:, 4::8, 4::8]
            entropy = F.cross_entropy(label_logits.float(), small, ignore_index=IGNORE, reduction="sum")
            losses["labels"] = entropy / (small != IGNORE).sum().clamp_min(1)
        return colour, losses

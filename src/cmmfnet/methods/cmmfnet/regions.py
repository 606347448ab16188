"""Text by region: every word gets a soft map of where it holds, and scales and shifts the decoder's
features there.

Not in the paper, whose cross-attention may ignore the text, and does (docs/text.md). As in semantic
image synthesis by spatially-adaptive modulation (SPADE, Park et al., CVPR 2019), a position's
features are scaled and shifted by what is said of it; but the map of what is where is not given, it
is predicted from the features for the words that are said (compare GroupViT and referring
segmentation), supervised where label maps are at hand. Words of one place compete in a softmax with
each other and with "none of these", so that a word for something that is not there gets an empty
map. Words of the light hold everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmmfnet.text.labels import CLAIMS, CLASSES, PLACES
from cmmfnet.text.vocabulary import EXTRA_WORDS


def memberships(words: Sequence[str]) -> Tensor:
    """(len(words),classes) float: 1 where a word is a name of a class, less where it claims it,
    else 0."""
    table = torch.zeros(len(words), len(CLASSES))
    for i, word in enumerate(words):
        table[i, list(CLAIMS.get(word, ()))] = 0.2
        table[i, list(PLACES.get(word, ()))] = 1.0
    return table


def everywhere_words(words: Sequence[str]) -> Tensor:
    """(len(words),1) float: 1 for words of the light, which hold everywhere."""
    return torch.tensor([[float(word in EXTRA_WORDS)] for word in words])


@dataclass
class Said:
    """The words of a batch as the network takes them: vectors (B,L,D) of names with their colours,
    everywhere (B,L) bool, classes (B,L,classes) as in `memberships`, mask (B,L) bool, places
    (B,L,H,W) or None as in RegionText.maps. ``levels`` collects the maps' logits (B,1+L,h,w),
    coarsest first."""

    vectors: Tensor
    everywhere: Tensor
    classes: Tensor
    mask: Tensor
    places: Tensor | None = None
    levels: list[Tensor] = field(default_factory=list)


class RegionText(nn.Module):
    """Maps of words over three levels of the decoder, and the modulation by them there and before
    the last layer.

    Level 0 is the coarsest (H/8): there the label head's classes say where a word may be, as far as
    they know it; learned keys of the features and queries of the words add to that. A finer level
    corrects the maps of the one before by its own features, whose edges are the frame's. The last
    layer takes the maps of level 2 (H/2): its features are nearly the colours, so that a word
    reaches them directly. Starts as the identity: what makes scales and shifts starts at zero.
    """

    def __init__(
        self, width: int, channels: Sequence[int], last: int, key: int = 64, hidden: int = 256
    ):
        super().__init__()
        self.key = key
        self.keys = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, key, 3, padding=1), nn.GELU(), nn.Conv2d(key, key, 1))
            for c in channels
        )
        self.queries = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, key), nn.GELU(), nn.Linear(key, key)
            )
            for _ in channels
        )
        self.nothing = nn.Parameter(torch.zeros(len(channels), key))
        self.values = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, 2 * c)
            )
            for c in (*channels, last)
        )
        for value in self.values:
            nn.init.zeros_(value[-1].weight)
            nn.init.zeros_(value[-1].bias)

    def logits(self, x: Tensor, said: Said, labels: Tensor | None) -> Tensor:
        """x (B,C,h,w) of the next level -> (B,1+L,h,w): "none of these" and every word, before the
        softmax. ``labels`` (B,classes,h,w): logits of the label head, for level 0."""
        level = len(said.levels)
        query = self.queries[level](said.vectors)
        query = torch.cat(
            [self.nothing[level].to(query.dtype).expand(x.shape[0], 1, -1), query], dim=1
        )
        found = torch.einsum("blk,bkhw->blhw", query, self.keys[level](x)) * self.key**-0.5
        if said.levels:
            return found + F.interpolate(
                said.levels[-1], found.shape[-2:], mode="bilinear", align_corners=False
            )
        return found if labels is None else found + self.known(labels, said).to(found.dtype)

    @staticmethod
    def known(labels: Tensor, said: Said) -> Tensor:
        """What the label head (B,classes,h,w) knows: log share of each word, and of the classes
        that no word names."""
        share = labels.float().softmax(dim=1)
        classes = said.classes.float() * said.mask.unsqueeze(-1)
        words = torch.einsum("blc,bchw->blhw", classes, share)
        free = torch.einsum("bc,bchw->bhw", (classes.amax(dim=1) == 0).float(), share)
        has = (classes.amax(dim=2) > 0)[
            :, :, None, None
        ]  # of a word without a class it knows nothing
        return (
            torch.cat([free.unsqueeze(1), torch.where(has, words, 0.1)], dim=1)
            .clamp_min(1e-3)
            .log()
        )

    @staticmethod
    def maps(logits: Tensor, said: Said) -> Tensor:
        """logits (B,1+L,h,w) -> shares (B,L,h,w) in [0,1]; their sum over words of things is at
        most 1.

        ``said.places`` (B,L,H,W): 1 inside and -1 outside of a region that the user drew for a
        word, 0 where none was.
        """
        if said.places is not None:
            size = logits.shape[-2:]
            asked = 12 * F.interpolate(
                said.places.to(logits.dtype), size, mode="bilinear", align_corners=False
            )
            logits = torch.cat([logits[:, :1], logits[:, 1:] + asked], dim=1)
        competes = F.pad(said.mask & ~said.everywhere, (1, 0), value=True)[:, :, None, None]
        share = logits.float().masked_fill(~competes, float("-inf")).softmax(dim=1)[:, 1:]
        holds = (said.mask & said.everywhere)[:, :, None, None]
        return torch.where(holds, torch.ones_like(share), share)

    def modulate(self, x: Tensor, share: Tensor, vectors: Tensor, part: int) -> Tensor:
        values = self.values[part](vectors).to(x.dtype)
        scale, shift = torch.einsum("blhw,blc->bchw", share.to(x.dtype), values).chunk(2, dim=1)
        return x * (1 + scale) + shift

    def forward(self, x: Tensor, said: Said, labels: Tensor | None = None) -> Tensor:
        """Features (B,C,h,w) of the next level -> the same, modulated; appends its maps' logits to
        ``said.levels``."""
        said.levels.append(self.logits(x, said, labels))
        return self.modulate(
            x, self.maps(said.levels[-1], said), said.vectors, len(said.levels) - 1
        )

    def finish(self, x: Tensor, said: Said) -> Tensor:
        """Features (B,last,H,W) before the last layer -> the same, modulated by the finest maps."""
        logits = F.interpolate(said.levels[-1], x.shape[-2:], mode="bilinear", align_corners=False)
        return self.modulate(x, self.maps(logits, said), said.vectors, len(self.values) - 1)

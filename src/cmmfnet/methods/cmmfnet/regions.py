"""Text by region: every word gets a soft map of where it holds, and scales and shifts the decoder's
features there.

This is not in the paper, whose cross-attention can ignore the text, and does (docs/text.md).
Features are scaled and shifted position by position, as in semantic image synthesis by
spatially-adaptive modulation (SPADE, Park et al., CVPR 2019). SPADE is given a label map; here the
maps are predicted from the features and the words (compare GroupViT and referring segmentation),
and supervised where there are label maps. At every position the words compete in a softmax with
each other and with "none of these", so that a word for an absent thing gets an empty map. Words
for the light hold everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmmfnet.text.labels import CLAIMS, CLASSES, PLACES
from cmmfnet.text.vocabulary import EXTRA_WORDS


def word_facts(words: Sequence[str]) -> Tensor:
    """(len(words),1+classes) float. First 1 for words for light and sky, which hold everywhere;
    then for each class 1 where the word names it, 0.2 where the word claims it (labels.CLAIMS:
    "snow" claims grass); else 0."""
    rows = []
    for word in words:
        classes = dict.fromkeys(CLAIMS.get(word, ()), 0.2) | dict.fromkeys(
            PLACES.get(word, ()), 1.0
        )
        rows.append(
            [float(word in EXTRA_WORDS), *(classes.get(i, 0.0) for i in range(len(CLASSES)))]
        )
    return torch.tensor(rows)


@dataclass
class WordTokens:
    """The words of a batch, as RegionText takes them.

    Attributes:
        vectors: (B,L,D), of names with their colours.
        everywhere: (B,L) bool, words that hold everywhere.
        classes: (B,L,classes), of `word_facts`.
        mask: (B,L) bool, True for a word, False for padding.
        places: (B,L,H,W) regions drawn by the user (RegionText.maps), or None.
        levels: the logits (B,1+L,h,w) of the maps, coarsest first; RegionText appends to it.
    """

    vectors: Tensor
    everywhere: Tensor
    classes: Tensor
    mask: Tensor
    places: Tensor | None = None
    levels: list[Tensor] = field(default_factory=list)


class RegionText(nn.Module):
    """Maps of words at three levels of the decoder, and the modulation of its features by them, at
    these levels and before the last layer.

    Level 0 is the coarsest (H/8). Its maps are the sum of two logits: the label head's class
    shares, as far as they know a word, and the product of learned keys of the features with learned
    queries of the words. Each finer level corrects the maps of the level before by its own
    features, which have the edges of the frame. The modulation before the last layer takes the maps
    of level 2 (H/2); features there are nearly colours, so that a word reaches the colours
    directly. The modulation starts as the identity: scales and shifts start at zero.
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

    def logits(self, x: Tensor, tokens: WordTokens, labels: Tensor | None) -> Tensor:
        """Features x (B,C,h,w) of the next level -> logits (B,1+L,h,w) of "none of these" and of
        every word. ``labels`` (B,classes,h,w): logits of the label head, for level 0."""
        level = len(tokens.levels)
        query = self.queries[level](tokens.vectors)
        query = torch.cat(
            [self.nothing[level].to(query.dtype).expand(x.shape[0], 1, -1), query], dim=1
        )
        found = torch.einsum("blk,bkhw->blhw", query, self.keys[level](x)) * self.key**-0.5
        if tokens.levels:
            return found + F.interpolate(
                tokens.levels[-1], found.shape[-2:], mode="bilinear", align_corners=False
            )
        return found if labels is None else found + self.known(labels, tokens).to(found.dtype)

    @staticmethod
    def known(labels: Tensor, tokens: WordTokens) -> Tensor:
        """The label head's logits (B,classes,h,w) -> (B,1+L,h,w): the log share of the classes that
        no word names, and of each word's classes; log 0.1 for a word without a class."""
        share = labels.float().softmax(dim=1)
        classes = tokens.classes.float() * tokens.mask.unsqueeze(-1)
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
    def maps(logits: Tensor, tokens: WordTokens) -> Tensor:
        """logits (B,1+L,h,w) -> shares (B,L,h,w) in [0,1]. At every position the shares of the
        words for things add up to at most 1; words that hold everywhere have share 1.

        ``tokens.places`` (B,L,H,W): 1 inside and -1 outside of a region that the user drew for a
        word, 0 where none was.
        """
        if tokens.places is not None:
            size = logits.shape[-2:]
            asked = 12 * F.interpolate(
                tokens.places.to(logits.dtype), size, mode="bilinear", align_corners=False
            )
            logits = torch.cat([logits[:, :1], logits[:, 1:] + asked], dim=1)
        competes = F.pad(tokens.mask & ~tokens.everywhere, (1, 0), value=True)[:, :, None, None]
        share = logits.float().masked_fill(~competes, float("-inf")).softmax(dim=1)[:, 1:]
        holds = (tokens.mask & tokens.everywhere)[:, :, None, None]
        return torch.where(holds, torch.ones_like(share), share)

    def modulate(self, x: Tensor, share: Tensor, vectors: Tensor, part: int) -> Tensor:
        """Features x (B,C,h,w) -> x (1 + scale) + shift, both summed over the words by share."""
        values = self.values[part](vectors).to(x.dtype)
        scale, shift = torch.einsum("blhw,blc->bchw", share.to(x.dtype), values).chunk(2, dim=1)
        return x * (1 + scale) + shift

    def forward(self, x: Tensor, tokens: WordTokens, labels: Tensor | None = None) -> Tensor:
        """Features (B,C,h,w) of the next level -> the same, modulated; appends its maps' logits to
        ``tokens.levels``."""
        tokens.levels.append(self.logits(x, tokens, labels))
        return self.modulate(
            x, self.maps(tokens.levels[-1], tokens), tokens.vectors, len(tokens.levels) - 1
        )

    def finish(self, x: Tensor, tokens: WordTokens) -> Tensor:
        """Features (B,last,H,W) before the last layer -> the same, modulated by the finest maps."""
        logits = F.interpolate(
            tokens.levels[-1], x.shape[-2:], mode="bilinear", align_corners=False
        )
        return self.modulate(x, self.maps(logits, tokens), tokens.vectors, len(self.values) - 1)

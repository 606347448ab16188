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

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmmfnet.text.labels import CLAIMS, CLASSES, PLACES
from cmmfnet.text.vocabulary import COCO_STUFF, COLOURS, EXTRA_WORDS


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


def region_targets(
    label: Tensor, names: Sequence[Sequence[str]], length: int, ignore: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What the maps should be: label (B,H,W) long and the names said -> targets.

    Returns:
        target: (B,1+length,H,W): 1 at the word of a pixel's class, shared among several; else at
            "none of these".
        weight: (B,H,W): 0 where the label is ``ignore``; rare classes count more, by the root of
            their share.
        known: (B,) bool: pictures with any label.
    """
    table = torch.zeros(len(label), len(CLASSES), 1 + length)
    for b, row in enumerate(names):
        for claims in (PLACES, CLAIMS):
            free = (
                table[b].sum(dim=1) == 0
            )  # before this round, so that words of one place share it
            for i, name in enumerate(row[:length]):
                for number in claims.get(name, ()):
                    if free[number]:
                        table[b, number, 1 + i] = 1
        table[b, :, 0] = (table[b].sum(dim=1) == 0).float()
    table = (table / table.sum(dim=2, keepdim=True)).to(label.device)
    valid = (label != ignore) & (label < len(CLASSES))
    flat = label.clamp(max=len(CLASSES) - 1).flatten(1)
    target = table.gather(1, flat.unsqueeze(-1).expand(-1, -1, 1 + length)).transpose(1, 2)
    one_hot = F.one_hot(flat, len(CLASSES)).float() * valid.flatten(1).unsqueeze(-1)
    share = one_hot.mean(dim=1)
    weight = (one_hot * share.clamp_min(1e-3).rsqrt().unsqueeze(1)).sum(dim=2).view_as(label)
    weight = weight / weight.mean(dim=(1, 2), keepdim=True).clamp_min(1e-6)
    return target.unflatten(2, label.shape[-2:]), weight, valid.flatten(1).any(dim=1)


def region_loss(
    levels: Sequence[Tensor],
    label: Tensor,
    names: Sequence[Sequence[str]],
    mask: Tensor,
    everywhere: Tensor,
    ignore: int,
) -> Tensor:
    """Cross-entropy of the maps' logits of all levels, each (B,1+L,h,w), with the label map
    (B,H,W), over labelled pictures."""
    competes = F.pad(mask & ~everywhere, (1, 0), value=True)[:, :, None, None]
    total = label.new_zeros((), dtype=torch.float32)
    for logits in levels:
        step = label.shape[-1] // logits.shape[-1]
        small = label[:, step // 2 :: step, step // 2 :: step]
        target, weight, known = region_targets(small, names, mask.shape[1], ignore)
        # large, but finite: its product with a target of 0 is 0
        likely = logits.float().masked_fill(~competes, -1e4).log_softmax(dim=1)
        each = -(target * likely).sum(dim=1) * weight
        total = total + (each.mean(dim=(1, 2)) * known).sum() / known.sum().clamp_min(1)
    return total / len(levels)


def colour_loss(
    made: Tensor,
    true: Tensor,
    label: Tensor,
    names: Sequence[Sequence[str]],
    length: int,
    ignore: int,
) -> Tensor:
    """Mean |difference| of the mean colours, made and true (B,3,H,W), of the regions
    (`region_targets`) of all words said.

    A word says the colour of its thing as a whole, whatever the thing's size: pixel losses leave a
    small region little. Regions below 1 % of the picture do not count.
    """
    target, _, _ = region_targets(label[:, ::2, ::2], names, length, ignore)
    valid = (label[:, ::2, ::2] != ignore).unsqueeze(1)
    region = (target[:, 1:] * valid).flatten(2)
    area = region.sum(dim=2)
    away = F.avg_pool2d(made.float() - true.float(), 2).flatten(2)
    mean = torch.einsum("blp,bcp->blc", region, away) / area.unsqueeze(2).clamp_min(1)
    counts = (area >= 0.01 * region.shape[2]).float()
    return (mean.abs().mean(dim=2) * counts).sum() / counts.sum().clamp_min(1)


# --- what is said in training

_ALIKE = (
    ("building-other", "house"),
    ("tree", "bush", "plant-other"),
    ("dirt", "ground-other"),
    ("sky-other", "clouds"),
)
BASIC = tuple(dict.fromkeys(COLOURS.values()))
_ABSENT = tuple(name for name in PLACES if name not in ("metal", "clothes", "window-blind"))
# Names that no label map has: a network that never heard them would do anything.
_UNKNOWN = tuple(name for name in COCO_STUFF if name not in PLACES)


def draw_words(
    rng: np.random.Generator,
    tags: Sequence[str],
    colours: Sequence[tuple[str, str]],
    told: Sequence[str],
    words: Sequence[str],
    *,
    drop: bool,
    labelled: bool,
    most: int,
) -> list[tuple[str, str | None]]:
    """What is said of a training picture: at most ``most`` pairs of a name and a colour phrase or
    None.

    ``told`` is always said, with its colour, since the picture alone cannot tell it; ``drop``:
    nothing else is. Of the rest four fifths are, half of those with the colour they have; trees
    whose colour is said now and then with their leaves; and, where label maps say what is there
    (``labelled``), by another name for the same class, and beside names of what is not there, which
    must change nothing.
    """
    known, colour_of = set(words), dict(reversed([(name, colour) for colour, name in colours]))
    said: list[tuple[str, str | None]] = []
    for name in tags:
        chosen, coloured = rng.random() < 0.8, rng.random() < 0.5
        if name in told or (chosen and not drop):
            said.append((name, colour_of.get(name) if coloured or name in told else None))
    if labelled and not drop:
        there = {number for name in tags for number in PLACES.get(name, ())}
        absent = [n for n in _ABSENT if not there & {*PLACES[n], *CLAIMS.get(n, ())}]
        for _ in range(int(rng.integers(1, 3)) if absent and rng.random() < 0.4 else 0):
            colour = str(rng.choice(BASIC)) if rng.random() < 0.4 else None
            said.append((str(rng.choice(absent if rng.random() < 0.5 else _UNKNOWN)), colour))
    foliage = dict(said).get("tree")
    if foliage and foliage != "bare" and rng.random() < (0.6 if foliage == "green" else 0.3):
        said.append(("leaves", foliage))  # as `attributes.said_of` reads "a tree with leaves"
    if labelled:
        for i, (name, colour) in enumerate(said):
            group = next((g for g in _ALIKE if name in g), None)
            if group and rng.random() < 0.25:
                said[i] = (str(rng.choice(group)), colour)
    said = [pair for pair in dict(said).items() if pair[0] in known]
    first = [pair for pair in said if pair[0] in told]
    rest = [pair for pair in said if pair[0] not in told]
    kept = first[:most] + rest[: max(0, most - len(first))]
    return [kept[i] for i in rng.permutation(len(kept))]

"""Losses of text by region: of the words' maps against label maps, of the regions' colours, and of
colours that spill out of the regions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cmmfnet.text.labels import CLAIMS, CLASSES, PLACES


def region_targets(
    label: Tensor, names: Sequence[Sequence[str]], length: int, ignore: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Targets of the words' maps, from label maps (B,H,W) long and the names given with them.

    Returns:
        target: (B,1+length,H,W): 1 at the word of a pixel's class, divided among several words of
            one class; 1 at "none of these" (index 0) where no word names the class.
        weight: (B,H,W): 0 where the label is ``ignore``; rare classes weigh more, by the root of
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
    """Mean |difference| between the mean colours of regions in two pictures, ``made`` and ``true``
    (B,3,H,W). A region is a class of the label map (B,H,W) that a word names (`region_targets`).

    A word gives the colour of a whole thing, whatever its size, while pixel losses give a small
    region little weight. Each class of a word is a region of its own: the snow on a roof counts as
    much as the snow on the ground before the house. Regions below 1 % of the picture do not count.
    """
    small = label[:, ::2, ::2]
    target, _, _ = region_targets(small, names, length, ignore)
    named = (1 - target[:, 0]) * (small != ignore)
    classes = F.one_hot(small.clamp(max=len(CLASSES) - 1), len(CLASSES)).to(named.dtype)
    region = (classes * named.unsqueeze(-1)).flatten(1, 2)
    area = region.sum(dim=1)
    away = F.avg_pool2d(made.float() - true.float(), 2).flatten(2)
    mean = torch.einsum("bpk,bcp->bkc", region, away) / area.unsqueeze(2).clamp_min(1)
    counts = (area >= 0.01 * region.shape[1]).float()
    return (mean.abs().mean(dim=2) * counts).sum() / counts.sum().clamp_min(1)


def spill_loss(
    made: Tensor,
    plain: Tensor,
    label: Tensor,
    names: Sequence[Sequence[str]],
    length: int,
    ignore: int,
) -> Tensor:
    """Mean |difference| between pictures with words for things and without, ``made`` and ``plain``
    (B,3,H,W), over the pixels that no word names (`region_targets`).

    ``plain`` has the words for light and sky, which hold everywhere. Pixels without a label do not
    count. Pictures of which words name little weigh more, by the root of the ratio of the pixels
    without to those with a word, up to 3: what spills around a small thing is seen beside it.
    """
    target, _, _ = region_targets(label[:, ::2, ::2], names, length, ignore)
    known = (label[:, ::2, ::2] != ignore).unsqueeze(1)
    outside = target[:, :1] * known
    named = ((1 - target[:, :1]) * known).sum(dim=(1, 2, 3)).clamp_min(0.005 * known[0].numel())
    weight = (outside.sum(dim=(1, 2, 3)) / named).sqrt().clamp(1, 3)[:, None, None, None]
    away = F.avg_pool2d(made.float() - plain.float(), 2).abs().mean(dim=1, keepdim=True)
    return (away * outside * weight).sum() / outside.sum().clamp_min(1)

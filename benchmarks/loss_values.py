"""What a recipe's losses say of pictures that need no training: the truth, the truth blurred, one
mean colour, a model's.

    python benchmarks/loss_values.py DATA --pretrained WEIGHTS

A loss that finds one grey better than a good picture teaches grey (docs/benchmark.md). The losses
are those of the CMMF-Net paper, each with weight 1, and the distance that the released recipe has
in place of its perceptual loss.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from PIL import Image, ImageFilter

from cmmfnet.colorizer.torch import Colorizer
from cmmfnet.data.pairs import Pairs
from cmmfnet.evaluation.learned import as_tensor
from cmmfnet.evaluation.network_scores import centre_crops
from cmmfnet.nn.losses import l1, ssim_loss, total_variation
from cmmfnet.nn.perceptual import Perceptual


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="a folder of pairs (docs/data.md)")
    parser.add_argument("--pretrained", help="folder of VGG-16 and the LPIPS heads")
    parser.add_argument("--model", default="cmmfnet")
    parser.add_argument("--lighting", default="day,dusk")
    parser.add_argument(
        "--sources", default="roadscene,house,msrs", help="with commas between; empty: all"
    )
    given = parser.parse_args()
    sources = tuple(given.sources.split(",")) if given.sources else None
    crops = list(centre_crops(Pairs(given.data, "val", tuple(given.lighting.split(",")), sources)))
    family, lpips = (Perceptual("vgg16", mode, given.pretrained) for mode in ("l1", "lpips"))
    colorizer = Colorizer.from_pretrained(given.model, device="cpu")
    truths = [truth for _, truth, _ in crops]
    mean = (
        np.mean([truth.reshape(-1, 3).mean(axis=0) for truth in truths], axis=0)
        .round()
        .astype(np.uint8)
    )
    shown = {
        "the truth": truths,
        "the truth, blurred by 8 pixels": [
            np.asarray(Image.fromarray(truth).filter(ImageFilter.GaussianBlur(8)))
            for truth in truths
        ],
        "one mean colour": [np.broadcast_to(mean, truth.shape) for truth in truths],
        given.model: [colorizer(thermal, text="", span=(-1, 1)) for thermal, _, _ in crops],
    }
    print(
        f"{len(crops)} pictures\n| picture | L1 | perceptual | TV | SSIM | sum | LPIPS of VGG-16 "
        "|\n" + "| --- " * 7 + "|"
    )
    for name, pictures in shown.items():
        found = []
        with torch.inference_mode():
            for picture, truth in zip(pictures, truths, strict=True):
                x, y = as_tensor(picture), as_tensor(truth)
                losses = l1(x, y), family(x, y), total_variation(x), ssim_loss(x, y), lpips(x, y)
                found.append([float(loss) for loss in losses])
        *four, distance = np.mean(found, axis=0)
        print(
            f"| {name} | {' | '.join(f'{value:.3f}' for value in (*four, sum(four), distance))} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

"""Writes architecture.svg beside this file: how the data goes through CMMF-Net, with the shape at
each arrow.

    python docs/figures/make_architecture.py

Text stands only on opaque panels and boxes, and lines have a grey that is seen on white and on
black, so that the picture needs no style sheet that knows the page's theme. Widths leave room for
DejaVu Sans, the widest of the fonts named.
"""

from __future__ import annotations

from pathlib import Path

WIDTH, HEIGHT = 1260, 985
INK, GREY, LINE = "#17212b", "#4a5763", "#6f7d8b"
BLUE, SAND, WHITE = "#e4edf9", "#f8efdf", "#ffffff"
FILLS = {"image": "#cfe0f7", "text": "#d9efd9", "unet": "#f5dcb4", "out": "#f3d3dc", "plain": WHITE}


def text(
    x: float, y: float, words: str, size: int, anchor: str = "middle", bold: bool = False
) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" fill="{INK}"{weight}>'
        f"{words}</text>"
    )


def panel(x: float, y: float, w: float, h: float, fill: str) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="12" fill="{fill}"/>'


def box(
    x: float, y: float, w: float, h: float, kind: str, title: str, *lines: str, dashed: bool = False
) -> str:
    """A box with a bold title and lines under it, centred. ``dashed``: only the released model has
    it."""
    dash = ' stroke-dasharray="6 4"' if dashed else ""
    top = y + h / 2 - (len(lines) * 17) / 2 + 5
    rows = [text(x + w / 2, top, title, 15, bold=True)]
    rows += [text(x + w / 2, top + 17 * (i + 1), line, 13) for i, line in enumerate(lines)]
    shape = (
        f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="7" fill="{FILLS[kind]}" '
        f'stroke="{GREY}" stroke-width="1.5"{dash}/>'
    )
    return "\n".join([shape, *rows])


def line(*points: tuple[float, float], dashed: bool = False) -> str:
    """A polyline, with an arrow head at its end."""
    dash = ' stroke-dasharray="6 4"' if dashed else ""
    path = " ".join(f"{x:g},{y:g}" for x, y in points)
    return (
        f'<polyline points="{path}" fill="none" stroke="{LINE}" stroke-width="2"{dash} '
        f'marker-end="url(#head)"/>'
    )


def pill(x: float, y: float, words: str, width: float) -> str:
    """A label with a ground of its own, for lines that run outside the panels."""
    shape = (
        f'<rect x="{x - width / 2:g}" y="{y - 14:g}" width="{width:g}" height="28" rx="14" '
        f'fill="{WHITE}" stroke="{LINE}"/>'
    )
    return shape + "\n" + text(x, y + 5, words, 13)


def global_path() -> list[str]:
    def label(x: float, *lines: str) -> str:
        """Beside the arrows of the middle row: above and below the line."""
        return "\n".join(text(x, y, words, 13) for y, words in zip((202, 230), lines, strict=True))

    return [
        panel(170, 20, 1075, 385, BLUE),
        text(
            190, 48, "(a) Global path: always the whole frame at 256 × 256", 17, "start", bold=True
        ),
        box(185, 170, 100, 86, "plain", "Resize", "to 256 × 256", "(bilinear)"),
        line((285, 213), (363, 213)),
        label(322, "1 | 2 ×", "256 × 256"),
        box(365, 170, 130, 86, "image", "Stem", "16 × 16 patches |", "VGG-16, ImageNet"),
        line((495, 213), (573, 213)),
        label(532, "D ×", "16 × 16"),
        box(575, 170, 115, 86, "image", "ViT", "9 | 4 blocks", "D = 512 | 320"),
        line((690, 213), (768, 213)),
        label(728, "tokens", "256 × D"),
        box(770, 170, 130, 86, "text", "CI, 2 blocks", "Q = text |", "Q = image"),
        line((900, 213), (978, 213)),
        label(938, "78 | 256", "× D"),
        box(980, 170, 120, 86, "text", "OutputProj", "to positions", "and channels"),
        # text
        box(
            745,
            308,
            180,
            84,
            "text",
            "Text tokens",
            "CLIP sentence, L = 77 |",
            "tag vectors, L ≤ 16;",
            "and “no text”",
        ),
        line((835, 308), (835, 258)),
        text(845, 288, "(L + 1) × D", 13, "start"),
        # tags
        box(560, 318, 145, 62, "out", "Tag head", "177 probabilities", dashed=True),
        line((632, 256), (632, 316), dashed=True),
        text(642, 292, "mean: D", 13, "start"),
        # the guide's two inputs
        line((430, 170), (430, 82), (1205, 82), (1205, 490), dashed=True),
        text(
            440,
            74,
            "relu2_2: 128 × 128 × 128,  relu3_3: 256 × 64 × 64,  relu4_3: 512 × 32 × 32",
            13,
            "start",
        ),
        box(735, 98, 200, 44, "plain", "Global vector", "image mean, text mean", dashed=True),
        line((632, 170), (632, 120), (733, 120), dashed=True),
        text(683, 113, "mean: D", 13),
        line((835, 170), (835, 144), dashed=True),
        text(845, 161, "mean: D", 13, "start"),
        line((935, 120), (1160, 120), (1160, 490), dashed=True),
        text(1047, 112, "2 D", 13),
    ]


def u_net() -> list[str]:
    left, right, wide = 230, 880, 210
    rows = {"H/8": 492, "H/4": 610, "H/2": 728, "H": 846}
    tall = 62
    middle = {k: y + tall / 2 for k, y in rows.items()}
    up, down = left + wide / 2, right + wide / 2
    parts = [
        panel(170, 435, 1075, 490, SAND),
        text(190, 463, "(b) U-Net: full resolution", 17, "start", bold=True),
        box(left, rows["H"], wide, tall, "plain", "Tone channels", "frame | and local contrast"),
        box(left, rows["H/2"], wide, tall, "unet", "Encoder 1", "stride 2, 2 blocks, k 13 | 7"),
        box(left, rows["H/4"], wide, tall, "unet", "Encoder 2", "stride 2, 6 | 4 blocks, k 13"),
        box(left, rows["H/8"], wide, tall, "unet", "Encoder 3", "stride 2, 2 blocks, k 13"),
        line((up, rows["H"]), (up, rows["H/2"] + tall + 2)),
        line((up, rows["H/2"]), (up, rows["H/4"] + tall + 2)),
        line((up, rows["H/4"]), (up, rows["H/8"] + tall + 2)),
        text(up + 10, 824, "1 | 2 × H × W", 13, "start"),
        text(up + 10, 706, "64 × H/2 × W/2", 13, "start"),
        text(up + 10, 588, "128 × H/4 × W/4", 13, "start"),
        box(right, rows["H/8"], wide, tall, "unet", "Fuse", "concatenate, 1×1"),
        box(right, rows["H/4"], wide, tall, "unet", "Decoder 2", "concatenate, 1×1, 2 blocks"),
        box(right, rows["H/2"], wide, tall, "unet", "Decoder 1", "concatenate, 1×1, 8 | 3 blocks"),
        box(right, rows["H"], wide, tall, "unet", "Output", "3×3, GELU, 3×3, tanh"),
        line((down, rows["H/8"] + tall), (down, rows["H/4"] - 2)),
        line((down, rows["H/4"] + tall), (down, rows["H/2"] - 2)),
        line((down, rows["H/2"] + tall), (down, rows["H"] - 2)),
        text(down + 10, 577, "256 × H/8 × W/8,", 13, "start"),
        text(down + 10, 595, "nearest ×2, 3×3", 13, "start"),
        text(down + 10, 695, "128 × H/4 × W/4,", 13, "start"),
        text(down + 10, 713, "nearest ×2, 3×3", 13, "start"),
        text(down + 10, 813, "64 × H/2 × W/2,", 13, "start"),
        text(down + 10, 831, "nearest ×2", 13, "start"),
        line((left + wide, middle["H/8"]), (right - 2, middle["H/8"])),
        line((left + wide, middle["H/4"]), (right - 2, middle["H/4"])),
        line((left + wide, middle["H/2"]), (right - 2, middle["H/2"])),
        text(640, middle["H/8"] - 9, "256 × H/8 × W/8", 13),
        text(640, middle["H/4"] - 9, "skip: 128 × H/4 × W/4", 13),
        text(640, middle["H/2"] - 9, "skip: 64 × H/2 × W/2", 13),
        # what the global path gives
        line((1040, 256), (1040, rows["H/8"] - 2)),
        text(1031, 330, "256 ×", 13, "end"),
        text(1031, 348, "32 × 32", 13, "end"),
        text(1031, 463, "resized to 256 × H/8 × W/8", 13, "end"),
        box(
            1128,
            rows["H/8"],
            107,
            tall,
            "image",
            "Guide",
            "+ lateral 1×1,",
            "× scale + shift",
            dashed=True,
        ),
        line((1128, middle["H/8"]), (right + wide + 2, middle["H/8"]), dashed=True),
        line(
            (1181, rows["H/8"] + tall),
            (1181, middle["H/2"]),
            (right + wide + 2, middle["H/2"]),
            dashed=True,
        ),
        line((1181, middle["H/4"]), (right + wide + 2, middle["H/4"]), dashed=True),
        text(1110, middle["H/8"] - 9, "256", 13),
        text(1140, middle["H/4"] - 9, "128", 13),
        text(1140, middle["H/2"] - 9, "64", 13),
        # labels, in training
        box(545, 551, 200, 46, "out", "Label head (training)", "25 × H/8 × W/8", dashed=True),
        line((900, rows["H/8"] + tall), (900, 576), (747, 576), dashed=True),
        # out
        box(1128, rows["H"], 107, tall, "out", "Colour", "3 × H × W"),
        line((right + wide, middle["H"]), (1126, middle["H"])),
    ]
    return parts


def entrance() -> list[str]:
    return [
        box(15, 846, 135, 62, "plain", "Thermal frame", "1 × H × W"),
        line((150, 877), (228, 877)),
        line((335, 827), (82, 827), (82, 213), (183, 213)),
        '<circle cx="335" cy="827" r="4" fill="' + LINE + '"/>',
        pill(82, 520, "1 | 2 × H × W", 124),
    ]


def legend() -> list[str]:
    return [
        panel(170, 940, 1075, 35, WHITE),
        f'<rect x="190" y="949" width="34" height="17" rx="4" fill="{WHITE}" stroke="{GREY}" '
        'stroke-width="1.5"/>',
        text(232, 962, "in both models", 13, "start"),
        f'<rect x="360" y="949" width="34" height="17" rx="4" fill="{WHITE}" stroke="{GREY}" '
        'stroke-width="1.5" '
        'stroke-dasharray="6 4"/>',
        text(402, 962, "in the released model only", 13, "start"),
        text(618, 962, "x | y: cmmfnet-paper | cmmfnet", 13, "start"),
        text(862, 962, "k: depthwise kernel; shapes without the batch", 13, "start"),
    ]


def svg() -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" '
        'role="img" aria-labelledby="title" font-family="Helvetica, Arial, \'DejaVu Sans\', '
        'sans-serif">\n'
        '<title id="title">CMMF-Net: global path at 256 × 256 and U-Net at full resolution, with '
        "shapes</title>\n"
        '<defs><marker id="head" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="7" '
        'markerHeight="7" orient="auto">'
        f'<path d="M0,0 L10,5 L0,10 z" fill="{LINE}"/></marker></defs>'
    )
    # panels first: lines that run from one to the other lie on both
    top, bottom = global_path(), u_net()
    return (
        "\n".join(
            [head, top[0], bottom[0], *top[1:], *bottom[1:], *entrance(), *legend(), "</svg>"]
        )
        + "\n"
    )


if __name__ == "__main__":
    Path(__file__).with_name("architecture.svg").write_text(svg(), encoding="utf-8")

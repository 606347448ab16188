"""Parts of the page, as HTML: the picture under its slider, histogram, error, drop zone."""

from __future__ import annotations

import numpy as np
from markupsafe import Markup

from cmmfnet.files.page import as_grey, data_url
from cmmfnet.serve.limits import Refused
from cmmfnet.serve.service import Coloured, Prepared
from cmmfnet.serve.shelf import Kept
from cmmfnet.serve.wording import for_visitors
from cmmfnet.thermal.frame import Thermal
from cmmfnet.thermal.stretch import frame_span, parse_span, to_8_bits

_SHOWN_SIDE = 1280
_BARS = 64


def link(kept: Kept, label: str) -> Markup:
    return Markup('<a class="download" href="files/{}" download="{}">{}</a>').format(
        kept.token, kept.name, label
    )


def welcome() -> str:
    return Markup(
        '<p class="welcome">The picture in colour appears here. Its colours are a plausible guess, '
        "not a measurement.</p>"
    )


def problem(error: Refused) -> str:
    return Markup(
        '<div class="problem" role="alert"><p><b>Found:</b> {}</p><p><b>Expected:</b> {}</p>'
        "<p><b>Instead:</b> {}</p></div>"
    ).format(*map(for_visitors, (error.found, error.expected, error.instead)))


def compare(name: str, prepared: Prepared, coloured: Coloured, text: str | None, kept: Kept) -> str:
    """The slider between the thermal frame and its colours, with a caption."""
    full = prepared.frame.full
    grey = as_grey(full if isinstance(full, np.ndarray) else full.cpu().numpy())
    height, width = coloured.rgb.shape[:2]
    notes = Markup("").join(
        Markup("<li>{}</li>").format(for_visitors(note)) for note in coloured.notes
    )
    return Markup(
        '<figure class="compare" style="--at:50%"><div class="frames" style="--ratio:{}">'
        '<img src="{}" alt="in colour"><img class="before" src="{}" alt="thermal frame">'
        '<span class="line" aria-hidden="true"></span>'
        '<input type="range" min="0" max="100" value="50" aria-label="how much of the thermal '
        'frame is shown"></div>'
        '<figcaption role="status"><b>{}</b>, {} × {}. {} {}</figcaption></figure><ul>{}</ul>'
    ).format(
        round(width / height, 4),
        data_url(coloured.rgb, _SHOWN_SIDE, 90),
        data_url(grey, _SHOWN_SIDE, 90),
        name,
        width,
        height,
        f"Text: {text}." if text else "",
        link(kept, "Download"),
        notes,
    )


def histogram(thermal: Thermal, span: str | None) -> str:
    """The values of a frame in its own unit, and the span that is shown."""
    values = thermal.values[np.isfinite(thermal.values)]
    if not values.size:
        return ""
    unit = {"C": " °C", "": ""}.get(thermal.unit, f" {thermal.unit}")
    low, high = np.percentile(values, (0.05, 99.95)).tolist()
    shown = parse_span(span) if span else frame_span(thermal) or (low, high)
    low, high = min(low, shown[0]), max(high, shown[1])
    if not low < high:
        low, high = low - 1, high + 1
    counts, _ = np.histogram(values, bins=_BARS, range=(low, high))
    tall = (counts / max(1, counts.max())) ** 0.5  # so that few pixels are seen, too
    at = [100 * (end - low) / (high - low) for end in shown]
    bars = Markup("").join(
        Markup('<rect x="{:.3f}" y="{:.2f}" width="{:.3f}" height="{:.2f}"/>').format(
            100 * i / _BARS, 30 - 30 * bar, 100 / _BARS, 30 * bar
        )
        for i, bar in enumerate(tall)
        if bar
    )
    ends = [f"{end:.5g}" for end in shown]
    return Markup(
        '<figure class="histogram"><svg viewBox="0 0 100 30" preserveAspectRatio="none" role="img" '
        'aria-label="histogram of the values"><rect class="span" x="{:.2f}" y="0" width="{:.2f}" '
        'height="30"/>{}</svg><figcaption><span>{:.5g}</span><span>shown: {} to {}{}</span>'
        "<span>{:.5g}</span></figcaption></figure>"
    ).format(at[0], at[1] - at[0], bars, low, *ends, unit, high)


def drop_zone(samples: dict[str, np.ndarray]) -> str:
    buttons = Markup("").join(
        Markup(
            '<button type="button" class="sample" data-sample="{}"><img src="{}" alt="">{}</button>'
        ).format(name, data_url(to_8_bits(frame), 160), name)
        for name, frame in samples.items()
    )
    return Markup(
        '<label class="zone"><input type="file" multiple aria-label="thermal files or a video">'
        "<b>Drop thermal files or a video here</b><span>or press to choose. FLIR and DJI files, "
        "16-bit TIFF and PNG, NumPy, MP4, MKV ...</span></label>"
        '<p class="status" role="status" aria-live="polite"></p>'
        '<div class="chosen" role="group" aria-label="your files"></div>'
        '<p class="try">Or try a rendered scene:</p>'
        '<div class="samples" role="group" aria-label="rendered scenes">{}</div>'
    ).format(buttons)

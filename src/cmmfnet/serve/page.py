"""The page in a browser, made with Gradio: drop thermal files, see them in colour.

Files do not go through Gradio, whose file routes the guard keeps closed: the drop zone sends them
to /files (files.py), and pictures come as a part of the page.
"""

from __future__ import annotations

import asyncio
import functools
import threading
import zipfile
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr
import gradio.routes
import numpy as np
from fastapi import FastAPI
from markupsafe import Markup
from starlette.exceptions import HTTPException
from starlette.routing import Match, Mount

from cmmfnet.colorizer.video import colorize_video
from cmmfnet.colorizer.video_options import VideoOptions
from cmmfnet.files.errors import DISK_FULL, UserError
from cmmfnet.files.page import as_grey, data_url
from cmmfnet.files.video_reader import Picture, VideoReader
from cmmfnet.serve.files import files_router, gone, sweep_regularly
from cmmfnet.serve.guard import OURS
from cmmfnet.serve.limits import Refused, no_room
from cmmfnet.serve.service import FORMATS, Coloured, Prepared, Reading, Service, encode, refused
from cmmfnet.serve.shelf import Kept, Shelf
from cmmfnet.serve.wording import LABELS, for_visitors
from cmmfnet.text.vocabulary import COLOURS
from cmmfnet.thermal.cameras.reading import Reading as Decoded
from cmmfnet.thermal.decode import is_known
from cmmfnet.thermal.frame import Thermal, read_thermal, thermal_of
from cmmfnet.thermal.palettes import PALETTES
from cmmfnet.thermal.sequence import holds_several
from cmmfnet.thermal.stretch import frame_span, parse_span, to_8_bits

_HERE = Path(__file__).parent
SAMPLES = {"street": ("street", 1), "house": ("house", 2), "park": ("park", 4)}
"""Name -> kind and seed of a rendered scene."""
_SAMPLE_SIZE = (256, 320)
_SHOWN_SIDE = 1280
_BARS = 64
_SHELF, _SHELF_SECONDS = 8, 900.0
"""Room for so many of the largest videos, and how long a file stays that nobody uses."""


@dataclass(frozen=True)
class Options:
    """The choices on the page that a picture depends on."""

    text: str | None
    model: str
    palette: str
    span: str | None
    raw: str | None
    kelvin: float | None
    form: str

    @property
    def reading(self) -> Reading:
        """How a file is read."""
        return Reading(
            (self.span or "").strip() or None,
            None if self.palette == _GREY else self.palette,
            (self.raw or "").strip() or None,
            self.kelvin or None,
        )


_GREY = "none: grey"


def with_chips(text: str | None, predicted: list[str], chosen: list[str]) -> str | None:
    """A text and the tags that were added to and removed from those that the model predicts, as one
    text with corrections; None where there is nothing to say."""
    signs = [f"+{name}" for name in chosen if name not in predicted]
    signs += [f"-{name}" for name in predicted if name not in chosen]
    return " ".join([*filter(None, [(text or "").strip()]), *signs]) or None


def render_samples() -> dict[str, np.ndarray]:
    """Thermal frames (H, W) uint16 to try the page with; computer graphics."""
    from cmmfnet.data.scenes import render

    return {
        name: render(seed, kind, size=_SAMPLE_SIZE).thermal
        for name, (kind, seed) in SAMPLES.items()
    }


class Page:
    """What the page does; every method belongs to an event of it.

    A visitor's state is a dictionary: ``token`` and ``name`` of the chosen file (or ``sample``),
    ``files`` (all tokens with names), ``predicted`` (the likely tags), ``result`` (a token).
    """

    def __init__(self, service: Service, shelf: Shelf, samples: dict[str, np.ndarray]):
        self.service, self.shelf, self.samples = service, shelf, samples
        self.stopping = threading.Event()
        self.streams_end: asyncio.Event  # of Gradio: set, its endless answers end
        self._unwanted: set[str] = set()  # tokens of videos that their visitors have stopped

    def stop(self) -> None:
        """End videos, and the answers that last as long as a page is open."""
        self.stopping.set()
        self.streams_end.set()

    # --- events

    async def pick(self, event: gr.EventData, state: dict, *options: Any) -> tuple:
        """A file or a sample was chosen; returns as ``look``."""
        data = event._data if isinstance(event._data, dict) else {}
        self._drop_result(state)
        listed = data.get("files") if isinstance(data.get("files"), list) else []
        found = [self.shelf.get(each.get("token")) for each in listed if isinstance(each, dict)]
        files = [{"token": kept.token, "name": kept.name} for kept in found if kept is not None]
        chosen = {key: str(data.get(key, ""))[:200] for key in ("token", "name", "sample")}
        return await self.look(chosen | {"files": files}, *options)

    async def look(self, state: dict, *options: Any) -> tuple:
        """Read the chosen file, find its tags, and colour it.

        Returns:
            The state, the chips, the histogram, the result, and the buttons for several files and
            for several frames, to be shown or not.
        """
        state = state | {"predicted": []}
        several = len(state.get("files", [])) > 1
        nothing = (gr.CheckboxGroup(choices=[], value=[], visible=False), "")
        if not (state.get("token") or state.get("sample")):
            return state, *nothing, _welcome(), gr.Group(visible=several), gr.Group(visible=False)
        chosen = Options(*options)
        frames = False
        try:
            async with self.service.turn():
                prepared, frames = await self._prepare(state, chosen)
                state, html, coloured = await self._colour(
                    state, chosen, prepared, chosen.text or None, tags=True
                )
            chips, traits = nothing[0], self.service.colorizer(chosen.model).traits
            if coloured.seen is not None and traits.can_correct:
                found = coloured.seen.predicted
                likely = [name for name, p in found if p > traits.tag_threshold]
                state = state | {"predicted": likely}
                choices = [(f"{name.removesuffix('-other')} {p:.0%}", name) for name, p in found]
                chips = gr.CheckboxGroup(choices=choices, value=likely, visible=True)
            histogram = _histogram(prepared.thermal, chosen.reading.span)
            shown = (chips, histogram, html)
        except Refused as error:
            shown = (*nothing, _problem(error))
        return state, *shown, gr.Group(visible=several), gr.Group(visible=frames)

    async def recolour(self, state: dict, chips: list[str], *options: Any) -> tuple:
        """Colour the chosen file anew: the text, the chips or the span have changed."""
        if not (state.get("token") or state.get("sample")):
            return state, "", _welcome()
        chosen = Options(*options)
        try:
            text = with_chips(chosen.text, state.get("predicted", []), chips)
            async with self.service.turn():
                prepared, _ = await self._prepare(state, chosen)
                state, html, _ = await self._colour(state, chosen, prepared, text)
            return state, _histogram(prepared.thermal, chosen.reading.span), html
        except Refused as error:
            return state, gr.skip(), _problem(error)

    async def colour_all(
        self, state: dict, *options: Any, progress: Callable[..., Any]
    ) -> tuple[dict, str]:
        """Colour all files of the visitor, with one text, into a ZIP file."""
        chosen, files = Options(*options), state.get("files", [])
        self._drop_result(state)
        kept = self.shelf.new("colour.zip", "application/zip")
        failed: list[str] = []
        names: set[str] = set()
        try:
            with zipfile.ZipFile(kept.path, "w", zipfile.ZIP_STORED) as archive:
                for i, file in enumerate(files):
                    progress(
                        (i, len(files)), desc=f"picture {i + 1} of {len(files)}", unit="pictures"
                    )
                    try:
                        async with self.service.turn():
                            prepared, _ = await self._prepare(file, chosen)
                            coloured = await self.service.colour(
                                self.service.colorizer(chosen.model), prepared, chosen.text or None
                            )
                            content = await self._encoded(chosen, coloured)
                    except Refused as error:
                        failed.append(f"{file['name']}: {for_visitors(error.found)}")
                        continue
                    name = _result_name(file["name"], chosen.form)
                    stem, number = Path(name).stem, 2
                    while name in names:
                        name, number = f"{stem}-{number}.{chosen.form}", number + 1
                    names.add(name)
                    archive.writestr(name, content)
            self.shelf.add(kept)
        except (Refused, OSError) as error:
            self.shelf.drop(kept.token)
            return state, _problem(_as_refused(error, "files of which the results fit into a ZIP"))
        lines = Markup("").join(Markup("<li>{}</li>").format(line) for line in failed)
        text = f"{len(names)} of {len(files)} pictures are in colour."
        html = Markup('<p role="status">{}</p>{}<ul>{}</ul>').format(
            text, _link(kept, "Download all (ZIP)") if names else "", lines
        )
        return state | {"result": kept.token}, html

    def colour_video(
        self,
        state: dict,
        chips: list[str],
        fps: float | None,
        smooth: float,
        side_by_side: bool,
        *options: Any,
        progress: Callable[..., Any],
    ) -> tuple[dict, str]:
        """Colour the chosen video or sequence. Runs in a thread."""
        chosen = Options(*options)
        self._drop_result(state)
        kept = self.shelf.get(state.get("token"))
        result: Kept | None = None
        text = with_chips(chosen.text, state.get("predicted", []), chips)
        try:
            if kept is None:
                raise gone()
            reading = chosen.reading
            colorizer = self.service.colorizer(chosen.model)
            self.service.check_text(colorizer, text)
            result = self.shelf.new(_result_name(kept.name, "mp4"), "video/mp4")
            out = result.path.with_suffix(".mp4")
            with self.service.place():
                colorize_video(
                    str(kept.path),
                    str(out),
                    lambda: colorizer,
                    text=text,
                    text_file=None,
                    span=reading.span,
                    reading={
                        "palette": reading.palette,
                        "max_pixels": self.service.limits.pixels,
                        "raw": reading.raw,
                        "kelvin_per_count": reading.kelvin_per_count,
                    },
                    batch_size=None,
                    overwrite=True,
                    options=VideoOptions(fps=fps or None, smooth=smooth, side_by_side=side_by_side),
                    watch=functools.partial(self._watch, kept, progress),
                    subtitles=False,  # drones write their places into them
                )
            out.replace(result.path)
            self.shelf.add(result)
            html = Markup(
                '<video controls loop muted playsinline preload="auto" src="files/{}"></video>'
                '<p role="status">The video is in colour. {}</p>'
            ).format(result.token, _link(result, "Download the video"))
            return state | {"result": result.token}, html
        except (Refused, UserError, OSError) as error:
            if result is not None:
                result.path.with_suffix(".mp4").unlink(missing_ok=True)
                self.shelf.drop(result.token)
            error = _as_refused(error, "a video, or a sequence of a camera")
            if kept is not None:
                error.found = error.found.replace(str(kept.path), kept.name)
            return state, _problem(error)
        finally:
            self._unwanted.discard(str(state.get("token")))

    def stop_video(self, state: dict) -> None:
        """End the video that this visitor waits for."""
        if self.shelf.get(state.get("token")) is not None:
            self._unwanted.add(state["token"])

    # --- steps

    def _watch(
        self, kept: Kept, progress: Callable[..., Any], done: int, total: int | None
    ) -> None:
        most = self.service.limits.frames
        if (total or done) > most:
            raise Refused(
                413,
                f"a video of {total or 'more than ' + str(most)} frames",
                f"at most {most}",
                "cut it, or use cmmfnet colorize",
            )
        if self.stopping.is_set() or kept.token in self._unwanted:
            raise Refused(409, "a video that was stopped", "one that may end", "start it again")
        if self.shelf.get(kept.token) is None:
            raise gone()
        if done:
            self.service.metrics.frames.inc()
        progress((done, total), desc=f"frame {done} of {total or '?'}", unit="frames")

    async def _prepare(self, state: dict, chosen: Options) -> tuple[Prepared, bool]:
        """The first frame of the chosen file, and whether there are more."""
        colorizer, reading = self.service.colorizer(chosen.model), chosen.reading
        sample = self.samples.get(state.get("sample", ""))
        if sample is not None:
            read = functools.partial(read_thermal, sample)
            prepare = self.service.prepare
            return await self.service.in_pool(prepare, colorizer, read, reading), False
        kept = self.shelf.get(state.get("token"))
        if kept is None:
            raise gone()
        frames: list[bool] = []

        def read_first() -> Thermal:
            thermal, several = self._first_frame(kept, reading)
            frames.append(several)
            return thermal

        try:
            prepared = await self.service.in_pool(
                self.service.prepare, colorizer, read_first, reading
            )
        except Refused as error:
            error.found = error.found.replace(str(kept.path), kept.name)
            raise
        notes = [
            note.replace(str(kept.path), kept.name)
            for note in prepared.notes
            if "holds several pictures" not in note
        ]
        return replace(prepared, notes=notes), frames[0]

    def _first_frame(self, kept: Kept, reading: Reading) -> tuple[Thermal, bool]:
        path, pixels = str(kept.path), self.service.limits.pixels
        if reading.raw is not None or is_known(path):
            several = holds_several(path, reading.raw, pixels)
            thermal = read_thermal(
                path,
                palette=reading.palette,
                max_pixels=pixels,
                raw=reading.raw,
                kelvin_per_count=reading.kelvin_per_count,
            )
            return thermal, several
        with kept.path.open("rb") as file:
            reader = VideoReader(file, kept.name, pixels)
            try:
                first = next((x for x in reader.items() if isinstance(x, Picture)), None)
            finally:
                reader.close()
        if first is None:
            raise UserError("; ".join(reader.problems))
        thermal = thermal_of(
            Decoded(first.pixels), kept.name, reading.palette, reading.kelvin_per_count
        )
        return thermal, True

    async def _colour(
        self,
        state: dict,
        chosen: Options,
        prepared: Prepared,
        text: str | None,
        *,
        tags: bool = False,
    ) -> tuple[dict, str, Coloured]:
        colorizer = self.service.colorizer(chosen.model)
        coloured = await self.service.colour(colorizer, prepared, text, tags=tags)
        content = await self._encoded(chosen, coloured)
        self._drop_result(state)
        name = state.get("name") or f"{state.get('sample')}.png"
        kept = self.shelf.put(_result_name(name, chosen.form), FORMATS[chosen.form], content)
        html = await self.service.in_pool(_compare, name, prepared, coloured, text, kept)
        return state | {"result": kept.token}, html, coloured

    async def _encoded(self, chosen: Options, coloured: Coloured) -> bytes:
        return await self.service.in_pool(
            encode, chosen.form, coloured.rgb, chosen.model, chosen.reading.span
        )

    def _drop_result(self, state: dict) -> None:
        if state.get("result"):
            self.shelf.drop(state["result"])


def _as_refused(error: Exception, expected: str) -> Refused:
    if isinstance(error, Refused):
        return error
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return no_room()
    return refused(error, expected, "see docs/video.md")


# --- parts of the page


def _result_name(name: str, form: str) -> str:
    return f"{Path(name).stem or 'picture'}-colour.{form}"


def _link(kept: Kept, label: str) -> Markup:
    return Markup('<a class="download" href="files/{}" download="{}">{}</a>').format(
        kept.token, kept.name, label
    )


def _welcome() -> str:
    return Markup(
        '<p class="welcome">The picture in colour appears here. Its colours are a plausible guess, '
        "not a measurement.</p>"
    )


def _problem(error: Refused) -> str:
    return Markup(
        '<div class="problem" role="alert"><p><b>Found:</b> {}</p><p><b>Expected:</b> {}</p>'
        "<p><b>Instead:</b> {}</p></div>"
    ).format(*map(for_visitors, (error.found, error.expected, error.instead)))


def _compare(
    name: str, prepared: Prepared, coloured: Coloured, text: str | None, kept: Kept
) -> str:
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
        _link(kept, "Download"),
        notes,
    )


def _histogram(thermal: Thermal, span: str | None) -> str:
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


def _drop_zone(samples: dict[str, np.ndarray]) -> str:
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


def add_page(app: FastAPI) -> Page:
    """Put the page at / of an application."""
    service: Service = app.state.service
    shelf = Shelf(_SHELF * service.limits.video, _SHELF_SECONDS)
    app.include_router(files_router(service, shelf))
    sweep_regularly(app, shelf)
    # Gradio makes a folder at its start; the usual one in /tmp may be another user's, and stays
    gradio.routes.DEFAULT_TEMP_DIR = str(shelf.folder / "gradio")
    page = Page(service, shelf, render_samples())
    blocks = _blocks(page)
    gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        theme=gr.themes.Default(
            primary_hue="blue",
            font=["system-ui", "sans-serif"],
            font_mono=["ui-monospace", "monospace"],
        ),
        css_paths=[_HERE / "page.css"],
    )
    inner = app.router.routes.pop().app
    app.router.routes.append(_Rest("/", inner))
    on_error = app.exception_handlers[HTTPException]
    for status in (404, 405):  # of other errors Gradio's script needs the text
        inner.add_exception_handler(status, on_error)
    page.streams_end = inner.stop_event
    return page


class _Rest(Mount):
    """An application for all paths but ours, so that a wrong method there is called that."""

    def matches(self, scope: MutableMapping[str, Any]) -> tuple[Match, MutableMapping[str, Any]]:
        if scope["type"] == "http" and scope["path"].startswith(OURS):
            return Match.NONE, {}
        return super().matches(scope)


def _blocks(page: Page) -> gr.Blocks:
    models, service = list(page.service.models), page.service
    words = sorted({w for m in service.models.values() for w in m.traits.words})
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    with gr.Blocks(title="cmmfnet", analytics_enabled=False) as blocks:
        gr.HTML("<h1>Thermal pictures in colour</h1>", elem_id="title")
        state = gr.State({})
        with gr.Row(elem_id="layout"):
            with gr.Column(elem_id="bring"):
                drop = gr.HTML(
                    html_template=_drop_zone(page.samples), js_on_load=script, elem_id="drop"
                )
                with gr.Group(visible=False) as many:
                    all_files = gr.Button("Colour all files")
                with gr.Group(visible=False) as frames:
                    fps = gr.Number(label=f"{LABELS['fps']}; 0: those of the file", value=0)
                    smooth = gr.Slider(0, 1, 0.9, label=LABELS["smooth"])
                    beside = gr.Checkbox(False, label="Thermal frame beside the colours")
                    video = gr.Button("Colour all frames", variant="primary")
                    stop = gr.Button("Stop")
            with gr.Column(elem_id="shown"):
                result = gr.HTML(_welcome(), js_on_load=_SLIDER, elem_id="result")
            with gr.Column(elem_id="options"):
                text = gr.Textbox(
                    label=LABELS["text"],
                    info="Without a text the model guesses. Press Enter to colour.",
                    placeholder="a street at night with a red car",
                    max_length=2000,
                    elem_id="text",
                )
                chips = gr.CheckboxGroup(
                    label="What the model saw", visible=False, elem_id="chips",
                    info="Take away what is wrong, add what it missed.",
                )  # fmt: skip
                with gr.Row():
                    colour = gr.Dropdown(
                        ["", *dict.fromkeys(COLOURS.values())], value="", label="Colour",
                        min_width=90,
                    )  # fmt: skip
                    thing = gr.Dropdown(words, label="Thing", value=None, min_width=120)
                add = gr.Button("Add to the text", size="sm")
                histogram = gr.HTML("", elem_id="histogram")
                span = gr.Textbox(
                    label=LABELS["span"],
                    info="LOW,HIGH in the unit of the file; empty: found from the frame.",
                    placeholder="20,35",
                    max_length=100,
                    elem_id="span",
                )
                with gr.Row():
                    model = gr.Dropdown(models, value=models[0], label="Model", min_width=180)
                    form = gr.Dropdown(
                        list(FORMATS), value="png", label="Download as", min_width=90
                    )
                with gr.Accordion("How the file is read", open=False):
                    palette = gr.Dropdown(
                        [_GREY, "auto", *PALETTES], value=_GREY, label=LABELS["palette"]
                    )
                    raw = gr.Textbox(
                        label=LABELS["raw"], placeholder="640x512,uint16le", max_length=100
                    )
                    kelvin = gr.Number(label=f"{LABELS['kelvin-per-count']}; 0: none", value=0)

        options = [text, model, palette, span, raw, kelvin, form]
        seen = [state, chips, histogram, result, many, frames]

        # Gradio gives an argument whose default is a Progress the event's own one, by its place
        async def colour_all(state, progress=gr.Progress(), *chosen):  # noqa: B008
            return await page.colour_all(state, *chosen, progress=progress)

        def colour_video(state, progress=gr.Progress(), *chosen):  # noqa: B008
            return page.colour_video(state, *chosen, progress=progress)

        unlimited = {"concurrency_limit": None, "api_visibility": "private"}
        drop.select(page.pick, [state, *options], seen, trigger_mode="always_last", **unlimited)
        gr.on(
            [model.input, palette.input, raw.submit, kelvin.submit],
            page.look, [state, *options], seen, trigger_mode="always_last", **unlimited,
        )  # fmt: skip
        gr.on(
            [text.submit, chips.input, span.submit, form.input],
            page.recolour, [state, chips, *options], [state, histogram, result],
            trigger_mode="always_last", **unlimited,
        )  # fmt: skip
        add.click(_with_word, [text, colour, thing], text, **unlimited).then(
            page.recolour, [state, chips, *options], [state, histogram, result], **unlimited
        )
        all_files.click(colour_all, [state, *options], [state, result], **unlimited)
        video.click(
            colour_video, [state, chips, fps, smooth, beside, *options], [state, result],
            concurrency_limit=1, api_visibility="private",
        )  # fmt: skip
        stop.click(page.stop_video, state, None, queue=False, api_visibility="private")
    blocks.queue(api_open=False, max_size=4 * service.limits.waiting)
    return blocks


def _with_word(text: str | None, colour: str | None, thing: str | None) -> str:
    """A text with one more thing, and its colour."""
    text, words = (text or "").strip(), f"{colour or ''} {thing or ''}".strip()
    return f"{text} +{words}".strip() if thing else text


_SLIDER = """
element.addEventListener("input", (event) => {
  if (event.target.type === "range")
    event.target.closest(".compare").style.setProperty("--at", event.target.value + "%");
});
"""

"""What the page in a browser does: drop thermal files, see them in colour. blocks.py lays it out.

Files do not go through Gradio, whose file routes the guard keeps closed: the drop zone sends them
to /files (files.py), and pictures come as a part of the page.
"""

from __future__ import annotations

import asyncio
import functools
import threading
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from markupsafe import Markup

from cmmfnet.colorizer.video import colorize_video
from cmmfnet.colorizer.video_options import VideoOptions
from cmmfnet.files.errors import DISK_FULL, UserError
from cmmfnet.files.video_reader import Picture, VideoReader
from cmmfnet.serve import parts
from cmmfnet.serve.files import gone
from cmmfnet.serve.limits import Refused, no_room
from cmmfnet.serve.service import FORMATS, Coloured, Prepared, Reading, Service, encode, refused
from cmmfnet.serve.shelf import Kept, Shelf
from cmmfnet.serve.wording import for_visitors
from cmmfnet.thermal.cameras.reading import Reading as Decoded
from cmmfnet.thermal.decode import is_known
from cmmfnet.thermal.frame import Thermal, read_thermal, thermal_of
from cmmfnet.thermal.sequence import holds_several

SAMPLES = {"street": ("street", 1), "house": ("house", 2), "park": ("park", 4)}
"""Name -> kind and seed of a rendered scene."""
_SAMPLE_SIZE = (256, 320)


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
            None if self.palette == GREY else self.palette,
            (self.raw or "").strip() or None,
            self.kelvin or None,
        )


GREY = "none: grey"


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
            return (
                state,
                *nothing,
                parts.welcome(),
                gr.Group(visible=several),
                gr.Group(visible=False),
            )
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
            histogram = parts.histogram(prepared.thermal, chosen.reading.span)
            shown = (chips, histogram, html)
        except Refused as error:
            shown = (*nothing, parts.problem(error))
        return state, *shown, gr.Group(visible=several), gr.Group(visible=frames)

    async def recolour(self, state: dict, chips: list[str], *options: Any) -> tuple:
        """Colour the chosen file anew: the text, the chips or the span have changed."""
        if not (state.get("token") or state.get("sample")):
            return state, "", parts.welcome()
        chosen = Options(*options)
        try:
            text = with_chips(chosen.text, state.get("predicted", []), chips)
            async with self.service.turn():
                prepared, _ = await self._prepare(state, chosen)
                state, html, _ = await self._colour(state, chosen, prepared, text)
            return state, parts.histogram(prepared.thermal, chosen.reading.span), html
        except Refused as error:
            return state, gr.skip(), parts.problem(error)

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
            return state, parts.problem(
                _as_refused(error, "files of which the results fit into a ZIP")
            )
        lines = Markup("").join(Markup("<li>{}</li>").format(line) for line in failed)
        text = f"{len(names)} of {len(files)} pictures are in colour."
        html = Markup('<p role="status">{}</p>{}<ul>{}</ul>').format(
            text, parts.link(kept, "Download all (ZIP)") if names else "", lines
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
            ).format(result.token, parts.link(result, "Download the video"))
            return state | {"result": result.token}, html
        except (Refused, UserError, OSError) as error:
            if result is not None:
                result.path.with_suffix(".mp4").unlink(missing_ok=True)
                self.shelf.drop(result.token)
            error = _as_refused(error, "a video, or a sequence of a camera")
            if kept is not None:
                error.found = error.found.replace(str(kept.path), kept.name)
            return state, parts.problem(error)
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
        html = await self.service.in_pool(parts.compare, name, prepared, coloured, text, kept)
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


def _result_name(name: str, form: str) -> str:
    return f"{Path(name).stem or 'picture'}-colour.{form}"

"""The page's layout, made with Gradio, and its place in the application."""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import gradio as gr
import gradio.routes
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.routing import Match, Mount

from cmmfnet.serve.files import files_router, sweep_regularly
from cmmfnet.serve.guard import OURS
from cmmfnet.serve.page import GREY, Page, render_samples
from cmmfnet.serve.parts import drop_zone, welcome
from cmmfnet.serve.service import FORMATS, Service
from cmmfnet.serve.shelf import Shelf
from cmmfnet.serve.wording import LABELS
from cmmfnet.text.vocabulary import COLOURS
from cmmfnet.thermal.palettes import PALETTES

_HERE = Path(__file__).parent
_SHELF, _SHELF_SECONDS = 8, 900.0
"""Room for so many of the largest videos, and how long a file stays that nobody uses."""
_SLIDER = """
element.addEventListener("input", (event) => {
  if (event.target.type === "range")
    event.target.closest(".compare").style.setProperty("--at", event.target.value + "%");
});
"""


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
                    html_template=drop_zone(page.samples), js_on_load=script, elem_id="drop"
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
                result = gr.HTML(welcome(), js_on_load=_SLIDER, elem_id="result")
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
                        [GREY, "auto", *PALETTES], value=GREY, label=LABELS["palette"]
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

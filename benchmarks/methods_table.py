"""What benchmarks/methods.py says about trainings that are done: table, lines of JSON, contact
sheets, an archive."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from cmmfnet.data.pairs import Pairs, find
from cmmfnet.evaluation.compare import read_result
from cmmfnet.evaluation.comparison import paired, varied
from cmmfnet.evaluation.metrics import METRICS
from cmmfnet.evaluation.protocol import differing, frame, sentence
from cmmfnet.evaluation.scoring import Rows, cells, mean_of

SHOWN = ("psnr", "ssim", "lpips", "colour_share")
REFERENCE = "cmmfnet"
PAPERS = {
    "cmmfnet-paper": "527,740 of 1 (20 epochs of 26,387, batch not stated)",
    "pix2pix": "200 epochs of its set", "cyclegan": "200 epochs of its set",
    "ticcgan": "667,980 of 1 (20 epochs of 33,399)", "scgan": "40 epochs of its set",
    "todaygan": "150 epochs of its set", "pearlgan": "200,880 of 1 (120 epochs of 1,674)",
    "mugan": "20 epochs of its set", "lkatgan": "20 epochs of its set",
    "tir2lab": "100 epochs of its set", "i2vgan": "70 epochs of its set",
    "palette": "1,000,000 of 1,024",
}  # fmt: skip
"""Configuration -> steps of a training in its paper, and pictures of a step; epochs where the
number of pictures is not published."""
JPEG = 92


class Row:
    """A row of the table: the seeds of one method in one group; scores of a frame are their
    mean."""

    def __init__(self, group: str, label: str):
        self.group, self.label, self.results, self.scores = group, label, [], []

    @property
    def rows(self) -> Rows:
        return mean_rows([score["pictures"][score["method"]] for score in self.scores])

    def range_of(self, metric: str) -> str:
        """Lowest and highest mean of the seeds: what another seed may move it by."""
        values = [
            mean_of(METRICS[metric], score["pictures"][score["method"]]) for score in self.scores
        ]
        digits = METRICS[metric].decimals
        return f"{min(values):.{digits}f} to {max(values):.{digits}f}" if len(values) > 1 else "-"


def mean_rows(seeds: Sequence[Rows]) -> Rows:
    """One row a frame: numbers are means over the seeds. Raises ``ValueError`` for seeds of other
    frames."""
    order = [row["name"] for row in seeds[0]]
    tables = [{row["name"]: row for row in rows} for rows in seeds]
    if any(table.keys() != set(order) for table in tables):
        raise ValueError("the seeds of a row were scored on different frames")
    return [
        {
            k: float(np.mean([t[name][k] for t in tables])) if isinstance(v, float) else v
            for k, v in tables[0][name].items()
        }
        for name in order
    ]


def read(out: Path, names: Sequence[str]) -> dict[tuple[str, str], Row]:
    """(group, label) -> row. Raises ``ValueError`` where two results were scored by different
    protocols."""
    found: dict[tuple[str, str], Row] = {}
    protocol = None
    for name in names:
        result, score = (
            json.loads((out / name / "result.json").read_text()),
            read_result(out / name / "scores.json"),
        )
        protocol = protocol or score["protocol"]
        if different := differing(protocol, score["protocol"]):
            raise ValueError(f"{out / name} was scored by another protocol: {'; '.join(different)}")
        training = result["training"]
        row = found.setdefault(
            (training["group"], training["label"]), Row(training["group"], training["label"])
        )
        row.results.append(result)
        row.scores.append(score)
    return found


def write_table(out: Path, data: Path, names: Sequence[str]) -> None:
    """OUT/table.md, results.jsonl and sheets, of the trainings ``names`` in OUT; prints the
    table."""
    found = read(out, names)
    first = next(iter(found.values())).scores[0]
    shown = [name for name in SHOWN if name in first["metrics"]]
    lines = [
        *head(first["protocol"], found),
        "",
        *table(found, first, shown),
        "",
        *differences(found, shown),
    ]
    lines += ["", *below_the_bar(found, first, shown)]
    (out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    write_lines(out / "results.jsonl", found, first, shown)
    for group in dict.fromkeys(group for group, _ in found):
        write_sheet(out, data, group, names)


def head(protocol: dict, found: dict) -> list[str]:
    results = [result for row in found.values() for result in row.results]
    said = lambda name: " and ".join(sorted({str(r[name]) for r in results}))  # noqa: E731
    return [
        f"{protocol['frames']} frames, sha256 {protocol['frames_sha256'][:16]}; "
        f"{sentence(protocol['geometry']['name'], protocol['ssim']['preset'])}.",
        f"Budget {said('budget')} pictures or {said('minutes_cap')} minutes of training, "
        f"{said('side_by_side')} side by side on "
        f"{said('device')}, torch {said('torch')}; changed configurations: {said('changes')}.",
        "[95 % bootstrap interval over scenes, of the mean over seeds]; range: lowest to highest "
        "mean of a seed.",
    ]


def table(found: dict[tuple[str, str], Row], first: dict, shown: Sequence[str]) -> list[str]:
    titles = [METRICS[name].title for name in shown]
    columns = [
        "group",
        "method",
        "text",
        "seeds",
        "pictures seen",
        "steps here / in the paper",
        "minutes",
        *titles,
        f"{titles[0]} range",
        "LPIPS range",
    ]
    lines = ["| " + " | ".join(columns) + " |", "| " + " | ".join("---" for _ in columns) + " |"]

    def line(*values) -> None:
        lines.append("| " + " | ".join(map(str, values)) + " |")

    for name, record in first["methods"].items():
        if record["kind"] == "baseline":
            scores = cells(first["pictures"][name], shown, first["seed"])
            line("trivial", name, "", "", "", "", "", *(cell(scores, n) for n in shown), "-", "-")
    for (group, label), row in found.items():
        scores = cells(row.rows, shown, first["seed"])
        seen, minutes = ([r[k] for r in row.results] for k in ("pictures_seen", "minutes"))
        steps = sorted({(r["steps"], r["pictures_seen"] // r["steps"]) for r in row.results})
        here = " to ".join(
            f"{count:,} of {size}" for count, size in (steps[0], steps[-1])[: len(steps)]
        )
        ranges = [row.range_of(n) if n in shown else "-" for n in (shown[0], "lpips")]
        spent = f"{min(minutes):.1f}" + (
            f" to {max(minutes):.1f}" if max(minutes) - min(minutes) >= 0.1 else ""
        )
        count = str(min(seen)) + (f" to {max(seen)}" if min(seen) < max(seen) else "")
        text = row.results[0]["text"]
        line(
            group,
            label,
            text,
            len(row.results),
            count,
            f"{here} / {papers_steps(row)}",
            spent,
            *(cell(scores, n) for n in shown),
            *ranges,
        )
    return lines


def papers_steps(row: Row) -> str:
    """The steps of the configuration's paper; "-" for another recipe than its own."""
    if row.group == "matched":
        return "-"
    return PAPERS.get(row.results[0]["training"]["config"], "-")


def cell(scores: dict, name: str) -> str:
    digits, value = METRICS[name].decimals, scores[name]
    interval = (
        f" [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"
        if value["low"] is not None
        else ""
    )
    return f"{value['mean']:.{digits}f}{interval}"


def differences(found: dict[tuple[str, str], Row], shown: Sequence[str]) -> list[str]:
    """Each group against cmmfnet in it, or cmmfnet-paper where cmmfnet was not trained; ablations,
    modes of CI and controls against cmmfnet-paper."""
    lines = []
    for group in dict.fromkeys(group for group, _ in found):
        part = {label: row.rows for (g, label), row in found.items() if g == group}
        reference = REFERENCE if REFERENCE in part else "cmmfnet-paper"
        if group in ("ablation", "ci", "control"):
            reference = "cmmfnet-paper"
            if ("own", reference) in found:
                part = {reference: found["own", reference].rows} | part
        if reference not in part or len(part) < 2:
            continue
        lines += [
            f"Differences to {reference} ({group}), paired by picture; p by sign flips of scenes, "
            "Holm:",
            "",
        ]
        metrics = [name for name in shown if METRICS[name].better in ("higher", "lower")]
        lines.append("| method | " + " | ".join(METRICS[n].title for n in metrics) + " |")
        lines.append("| --- |" + " --- |" * len(metrics))
        for label, each in paired(part, list(part), reference, metrics, seed=0).items():
            lines.append(
                f"| {label} | " + " | ".join(difference(each.get(n), n) for n in metrics) + " |"
            )
        lines.append("")
    return lines


def difference(found: dict | None, name: str) -> str:
    if found is None:
        return "-"
    digits = METRICS[name].decimals
    interval = (
        f" [{found['low']:+.{digits}f}, {found['high']:+.{digits}f}]"
        if found["low"] is not None
        else ""
    )
    return f"{found['difference']:+.{digits}f}{interval}" + (
        f", p {found['p_holm']:.3f}" if found["p"] is not None else ""
    )


def below_the_bar(
    found: dict[tuple[str, str], Row], first: dict, shown: Sequence[str]
) -> list[str]:
    """Which do not beat mean colour in PSNR and grey replicate in LPIPS: they have learned little
    of use."""
    bars = [("psnr", "mean colour", 1), ("lpips", "grey replicate", -1)]
    lines = []
    for name, baseline, sign in bars:
        if name not in shown or baseline not in first["pictures"]:
            continue
        bar = mean_of(METRICS[name], first["pictures"][baseline])
        below = [
            f"{label} ({group})"
            for (group, label), row in found.items()
            if sign * (mean_of(METRICS[name], row.rows) - bar) <= 0
        ]
        lines.append(
            f"No better than {baseline} in {METRICS[name].title}: {', '.join(below) or 'none'}."
        )
    return lines


def write_lines(
    file: Path, found: dict[tuple[str, str], Row], first: dict, shown: Sequence[str]
) -> None:
    """One JSON object a number: of every seed, of every row (seed null), of the trivial
    baselines."""
    with file.open("w", encoding="utf-8") as lines:

        def write(rows: Rows, **about) -> None:
            for name, value in cells(rows, shown, first["seed"]).items():
                counts = {
                    "pairs": len(rows),
                    "scenes": len({row["sequence"] or row["name"] for row in rows}),
                }
                number = {"metric": name, **value, **counts, "protocol": first["protocol"]}
                lines.write(json.dumps(about | number) + "\n")

        for name, record in first["methods"].items():
            if record["kind"] == "baseline":
                write(first["pictures"][name], group="trivial", method=name, seed=None)
        for (group, label), row in found.items():
            for result, score in zip(row.results, row.scores, strict=True):
                about = {k: v for k, v in result.items() if k not in ("key", "training")}
                write(
                    score["pictures"][score["method"]], group=group, method=label,
                    seed=result["training"]["seed"],
                    config=result["training"]["config"],
                    model_sha256=score["methods"][score["method"]]["sha256"], **about,
                )  # fmt: skip
            write(row.rows, group=group, method=label, seed=None, seeds=len(row.results))


# --- pictures


def picture_of(folder: Path, name: str) -> Image.Image:
    for suffix in (".png", ".jpg"):
        if (folder / f"{name}{suffix}").is_file():
            with Image.open(folder / f"{name}{suffix}") as picture:
                return picture.convert("RGB")
    raise FileNotFoundError(f"{folder}/{name}.png or .jpg")


def write_sheet(
    out: Path, data: Path, group: str, names: Sequence[str], frames: int = 8, side: int = 144
) -> None:
    """OUT/sheet-GROUP.jpg: a column a method (its first seed), a row a frame; of every scene one
    before any second."""
    columns, protocol = {}, None
    for name in names:
        training = json.loads((out / name / "result.json").read_text())["training"]
        if training["group"] == group and training["label"] not in columns:
            columns[training["label"]] = out / name / "pictures"
            protocol = protocol or read_result(out / name / "scores.json")["protocol"]
    chosen = [tuple(protocol[k]) if protocol[k] else None for k in ("lighting", "sources")]
    pairs = Pairs(find(data, "pairs"), protocol["split"], *chosen)
    place = {entry["name"]: i for i, entry in enumerate(pairs.entries)}
    scenes = {entry["name"]: entry.get("sequence") or entry["name"] for entry in pairs.entries}
    order = varied(list(place), scenes)
    distinct = order[: len(set(scenes.values()))]  # one of every scene
    picked = (
        [distinct[i * len(distinct) // frames] for i in range(frames)]
        if len(distinct) > frames
        else order[:frames]
    )
    titles = ["thermal", "truth", *columns]
    sheet = Image.new("RGB", (len(titles) * side, 16 + len(picked) * side))
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        draw.text((column * side + 3, 3), title, fill="white")
    for row, name in enumerate(picked):
        thermal, truth, _ = frame(pairs, place[name], protocol["geometry"]["name"])
        grey = Image.fromarray(((thermal + 1) * 127.5).round().astype(np.uint8)).convert("RGB")
        shown = [
            grey,
            Image.fromarray(truth),
            *(picture_of(folder, name) for folder in columns.values()),
        ]
        for column, picture in enumerate(shown):
            sheet.paste(
                picture.resize((side, side), Image.Resampling.BICUBIC),
                (column * side, 16 + row * side),
            )
    sheet.save(out / f"sheet-{group}.jpg", quality=90)


def pack(archive: Path, out: Path, names: Sequence[str]) -> None:
    """What `--table` needs of the trainings ``names``, pictures as JPEG: for a machine from which
    little comes back. Unpack it into OUT."""
    with tarfile.open(archive, "w:gz") as tar:
        for name in names:
            for file in ("result.json", "scores.json", "recipe.yaml", "log.jsonl", "output.txt"):
                if (out / name / file).is_file():
                    tar.add(out / name / file, f"{name}/{file}")
            for file in sorted((out / name / "pictures").glob("*.png")):
                buffer = io.BytesIO()
                with Image.open(file) as picture:
                    picture.convert("RGB").save(buffer, format="JPEG", quality=JPEG)
                entry = tarfile.TarInfo(f"{name}/pictures/{file.stem}.jpg")
                entry.size = buffer.tell()
                buffer.seek(0)
                tar.addfile(entry, buffer)
    print(f"{archive}: {len(names)} trainings, {archive.stat().st_size / 2**20:.1f} MiB")

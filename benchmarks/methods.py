"""The benchmark: every method trained with one budget on the same pairs and scored by one protocol.

    python benchmarks/methods.py DATA --pretrained WEIGHTS --out out/benchmark --parallel 8
    python benchmarks/methods.py DATA --out out/benchmark --list   # trainings, and which are done
    python benchmarks/methods.py DATA --out out/benchmark --only '*-own-*'   # a part of them
    python benchmarks/methods.py DATA --out out/benchmark --table   # table and sheets again
    python benchmarks/methods.py out/scenes --out out/toy --changes benchmarks/toy.yaml --budget 40

DATA holds pairs/ (or is a data set itself); for cmmfnet's recipe, and so for every matched
training, labelled-photos/ and rendered/ as well (docs/training.md). Every training is a process of
its own, as many at a time as --parallel says. It ends after --budget pictures or --minutes of
training, whichever is first; both are in the table. Schedules come from the configurations,
stretched to the budget (a warm-up takes a twentieth of the steps at most). A training that is done
is skipped, a stopped one continues.

Groups: ``own``, each configuration by its own paper; ``fixed``, TIC-CGAN, MUGAN and LKAT-GAN
    with the loss network fed as it was trained; ``matched``, a network by cmmfnet's losses and
    data; ``ablation``, the two of the paper's Table 3; ``ci``, other modes of the cross-modal
    interaction than its text_query; ``control``, replacements of the text (learned queries, the
    captions of other pictures, none). The last three change ``cmmfnet-paper`` under its own recipe.

OUT/NAME/ has recipe.yaml (what was trained), log.jsonl, scores.json (`cmmfnet evaluate`),
pictures/, and result.json when it is done. OUT/ has table.md, results.jsonl (one number a line,
with its protocol) and sheet-GROUP.jpg.
"""

from __future__ import annotations

import argparse
import fnmatch
import functools
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import yaml
from methods_table import pack, write_table

from cmmfnet.data.source import Source
from cmmfnet.evaluation.protocol import DEFAULT_GEOMETRY
from cmmfnet.methods import METHODS
from cmmfnet.training.recipe import Recipe, find_config, read_recipe

SEEDS = {"cmmfnet": 3, "cmmfnet-paper": 3, "lkatgan": 3, "pix2pix": 3}
"""Configuration -> seeds; 1 for the others. Ablations and controls have as many as what they
change."""
OWN_LOSS_ONLY = ("i2vgan", "palette")
"""Networks that other losses cannot train: predictors of frames, and a sampler without gradient."""
RESERVE = 1.5
"""Minutes that a training needs after its last step: to validate, to score, to write."""
CROPS = {"short-256-crop-256": (0.8, 1.0), "kaist-a": (1.0, 1.0), "whole-256": (0.8, 1.0)}
"""Geometry -> scale of the training crops of configurations that crop pixels of the frame, so that
things are as large in training as in scoring."""
STOPPED = 75
"""Exit status of a training that --call-minutes stopped before its budget."""


@dataclass(frozen=True)
class Training:
    """One row's training with one seed. ``model``, ``losses``, ``options`` and ``source`` change
    the configuration's network, losses, options and all its sources; ``text``: whether the model is
    scored with the text of the pictures."""

    group: str
    label: str
    config: str
    seed: int
    model: dict = field(default_factory=dict)
    source: dict = field(default_factory=dict)
    text: bool = False
    losses: dict = field(default_factory=dict)
    options: dict = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.label}-{self.group}-{self.seed}"


def plan() -> list[Training]:
    """All trainings: first seeds first, by group, so that one that ends early has a whole table of
    them."""
    configs = [
        "cmmfnet",
        "cmmfnet-paper",
        *(name for name in METHODS if not name.startswith("cmmfnet")),
    ]
    rows = [("own", name, name, {}, {}, name == "cmmfnet-paper") for name in configs]
    rows += [
        ("matched", name, name, {}, {}, False) for name in configs if name not in OWN_LOSS_ONLY
    ]
    for group, label, model, source, text in (
        ("ablation", "without-text", {"text": "none"}, {}, False),
        ("ablation", "without-ci", {"ci": "add"}, {}, True),
        ("ci", "image-query", {"ci": "image_query"}, {}, True),
        ("ci", "text-key", {"ci": "text_key"}, {}, True),
        ("control", "learned-queries", {"text": "learned"}, {}, False),
        ("control", "shuffled-text", {}, {"text": "shuffled"}, True),
        ("control", "empty-text", {}, {"text": "empty"}, False),
    ):
        rows.append((group, label, "cmmfnet-paper", model, source, text))
    plain = [
        Training(group, label, config, 0, model, source, text)
        for group, label, config, model, source, text in rows
    ]
    # what a paper gains by its loss alone: LKAT-GAN with CMMF-Net's SSIM in place of the GAN
    ssim = {"ssim": 1.0, "adversarial": 0.0}
    plain.append(Training("own", "lkatgan-ssim", "lkatgan", 0, losses=ssim))
    # the family's VGG-16 fed with ImageNet-normalised pictures, unlike in the authors' code
    plain += [
        Training("fixed", name, name, 0, options={"faithful": False})
        for name in ("ticcgan", "mugan", "lkatgan")
    ]
    return [
        replace(training, seed=seed)
        for seed in range(max(SEEDS.values()))
        for training in plain
        if seed < SEEDS.get(training.config, 1)
    ]


def merged(recipe: Recipe, changes: dict) -> Recipe:
    """With ``changes``, field -> value; of ``model``, ``losses`` and ``options`` the keys that are
    named."""
    whole = {
        k: getattr(recipe, k) | v if isinstance(getattr(recipe, k), dict) else v
        for k, v in changes.items()
    }
    if "sources" in whole:
        whole["sources"] = [Source(**source) for source in whole["sources"]]
    return replace(recipe, **whole)


@functools.cache
def configuration(name: str) -> Recipe:
    return read_recipe(find_config(name))


def recipe_of(training: Training, given: argparse.Namespace) -> Recipe:
    """What is trained: the configuration, --changes, the training's own, and the budget."""
    changes = yaml.safe_load(given.changes.read_text()) if given.changes else {}

    def changed(name: str) -> Recipe:
        return merged(configuration(name), changes.get(name, {}))

    recipe = changed(training.config)
    if training.group == "matched":
        recipe = replace(changed("cmmfnet").matched(), model=recipe.model)
    recipe = merged(recipe, changes.get("all", {}))
    if given.text_source and training.config == "cmmfnet-paper":
        length = 16 if given.text_source == "clip-tags" else 77
        text = {"text": given.text_source, "text_length": length}
        recipe = replace(recipe, model=recipe.model | text)
    crop = {}
    if recipe.shapes and given.geometry != "kaist-b":
        # 256 pixels of the frame are twice as near as what other geometries score
        crop = {"zoom": None, "scale": CROPS[given.geometry]}
        recipe = replace(recipe, shapes=(), sources=[replace(s, zoom=None) for s in recipe.sources])
    lighting = tuple(given.lighting.split(","))
    sources = [
        # cmmfnet-paper is by day, as KAIST is; here every method has the same pairs
        replace(
            source,
            lighting=lighting if source.lighting == ("day",) else source.lighting,
            **crop,
            **training.source,
        )
        for source in recipe.sources
    ]
    steps = max(1, math.ceil(given.budget / recipe.batch_size))
    part = tuple(given.sources.split(",")) if given.sources else None
    # nothing is looked at of a test set before the end
    watched = (
        Source("pairs", split="val", lighting=lighting, sources=part)
        if given.split == "val"
        else None
    )
    return replace(
        recipe, model=recipe.model | training.model, losses=recipe.losses | training.losses,
        options=recipe.options | training.options, sources=sources, steps=steps, epochs=None,
        seed=training.seed,
        warmup=min(recipe.warmup, steps // 20), validation=watched, save_every=max(1, steps // 4),
        sheet_every=max(1, math.ceil(steps / 4)), log_every=max(1, steps // 40),
        notes={"summary": f"{training.name} of benchmarks/methods.py"},
    )  # fmt: skip


def key(training: Training, recipe: Recipe, given: argparse.Namespace) -> str:
    """What a result is of: equal keys, equal training and scoring."""
    from cmmfnet.data.pairs import Pairs, find
    from cmmfnet.evaluation.protocol import frames_sha256

    frames = frames_sha256(Pairs(find(given.data, "pairs")).entries)
    said = [asdict(training), asdict(recipe), frames, given.minutes]
    said += [given.split, given.lighting, given.sources, given.geometry]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def is_done(training: Training, given: argparse.Namespace) -> bool:
    """Raises ``SystemExit`` for a result of another budget, recipe or data under the same name."""
    file = given.out / training.name / "result.json"
    if not file.is_file():
        return False
    if json.loads(file.read_text())["key"] != key(training, recipe_of(training, given), given):
        raise SystemExit(
            f"{file} is of another budget, recipe or data than this command's; name another "
            "--out, or delete that folder"
        )
    return True


def minutes_spent(log: Path) -> float:
    """Of all starts of a run: every start counts its minutes from 0."""
    if not log.is_file():
        return 0.0
    rows = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
    minutes = [row["minutes"] for row in rows if "minutes" in row]
    if not minutes:  # it ended before its first row
        return 0.0
    return sum(now for now, after in zip(minutes, [*minutes[1:], 0.0], strict=True) if after <= now)


def text_of(training: Training, recipe: Recipe, given: argparse.Namespace) -> str:
    """`--text` of the scoring: the pictures' own captions or tags, as in training; where the data
    set has none, as KAIST, the model's default text, with which it was trained."""
    from cmmfnet.data.pairs import Pairs, find

    if not training.text:
        return "none"
    kind = "caption" if recipe.model.get("text", "clip-sentence") == "clip-sentence" else "tags"
    chosen = [tuple(each.split(",")) if each else None for each in (given.lighting, given.sources)]
    scored = Pairs(find(given.data, "pairs"), given.split, *chosen)
    return kind if any(entry.get(kind) for entry in scored.entries) else "default"


def run_one(training: Training, given: argparse.Namespace) -> int:
    """Train, score, write result.json, in this process; -> its exit status."""
    import torch

    from cmmfnet.data.pairs import find
    from cmmfnet.evaluation.evaluate import evaluate
    from cmmfnet.evaluation.setting import Setting
    from cmmfnet.training import checkpoint
    from cmmfnet.training.train import train

    out, recipe = given.out / training.name, recipe_of(training, given)
    out.mkdir(parents=True, exist_ok=True)
    plain = json.loads(json.dumps(asdict(recipe)))
    (out / "recipe.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))
    newest, before = checkpoint.latest(out), minutes_spent(out / "log.jsonl")
    reached = int(newest.stem.removeprefix("step-")) if newest else 0
    if reached < recipe.steps and before < given.minutes:
        left = (given.deadline - time.time()) / 60 - RESERVE if given.deadline else math.inf
        if left <= 0:
            return STOPPED
        train(
            config=recipe, data=given.data, out=out, pretrained=given.pretrained,
            device=given.device,
            workers=given.workers, max_minutes=min(given.minutes - before, left),
        )  # fmt: skip
        reached = int(checkpoint.latest(out).stem.removeprefix("step-"))
        if reached < recipe.steps and minutes_spent(out / "log.jsonl") < given.minutes:
            return STOPPED  # by the end of the call, or by a signal
    pictures, scores = out / "pictures", out / "scores.json"
    for left in pictures.glob("*"):  # of a scoring that was killed
        left.unlink()
    text = text_of(training, recipe, given)
    evaluate(
        str(out),
        Setting(
            data=str(find(given.data, "pairs")),
            split=given.split,
            lighting=given.lighting,
            sources=given.sources,
            geometry=given.geometry,
            text=text,
            pretrained=given.pretrained,
            device=given.device,
        ),
        save=pictures,
        json=scores,
    )
    minutes = minutes_spent(out / "log.jsonl")
    cuda = torch.cuda.is_available() and given.device != "cpu"
    result = {
        "key": key(training, recipe, given), "training": asdict(training),
        "changes": str(given.changes or "none"),
        "steps": reached, "pictures_seen": reached * recipe.batch_size, "budget": given.budget,
        "minutes": minutes,
        "minutes_cap": given.minutes, "side_by_side": given.parallel, "text": text,
        "device": torch.cuda.get_device_name() if cuda else "CPU", "torch": torch.__version__,
        "gpu_memory_gib": torch.cuda.max_memory_allocated() / 2**30 if cuda else None,
    }  # fmt: skip
    (out / "result.json").write_text(json.dumps(result, indent=1))
    for file in out.glob("step-*.pt"):  # up to 1.5 GB each
        file.unlink()
    return 0


def run_all(todo: list[Training], given: argparse.Namespace) -> list[str]:
    """Each in a process of its own; -> the names of those that failed. Prints a line for each that
    ends."""
    running, failed, waiting = {}, [], list(todo)
    end = time.time() + 60 * given.call_minutes if given.call_minutes else None
    threads = str(max(1, (os.cpu_count() or 1) // given.parallel))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: not without the trainings
    environment = os.environ | {"OMP_NUM_THREADS": threads, "TQDM_DISABLE": "1"}
    try:
        while waiting or running:
            if waiting and end and time.time() + 60 * (RESERVE + 1) > end:
                print(
                    f"{len(waiting)} not begun, too little of {given.call_minutes:g} minutes is "
                    "left",
                    flush=True,
                )
                waiting = []
            while waiting and len(running) < given.parallel:
                training = waiting.pop(0)
                output = given.out / training.name / "output.txt"
                output.parent.mkdir(parents=True, exist_ok=True)
                with output.open("a") as file:
                    said = file.tell()
                    command = [
                        sys.executable,
                        str(Path(__file__)),
                        *sys.argv[1:],
                        "--one",
                        training.name,
                    ]
                    command += ["--deadline", str(end)] if end else []
                    process = subprocess.Popen(
                        command, stdout=file, stderr=subprocess.STDOUT, env=environment
                    )
                running[training.name] = process, time.monotonic(), output, said
            for name, (process, start, output, said) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[name]
                took = (time.monotonic() - start) / 60
                if process.returncode == STOPPED:
                    print(
                        f"{name}: stopped after {took:.1f} min, the same command goes on with it",
                        flush=True,
                    )
                elif process.returncode:
                    failed.append(name)
                    print(
                        f"{name} FAILED after {took:.1f} min: {output.read_text()[said:][-600:]}",
                        flush=True,
                    )
                else:
                    result = json.loads((output.parent / "result.json").read_text())
                    print(
                        f"{name}: {result['pictures_seen']} pictures, {took:.1f} min with all",
                        flush=True,
                    )
            time.sleep(0.2)
    finally:
        for process, *_ in running.values():  # they save, and go on with the next call
            process.terminate()
        for process, *_ in running.values():
            process.wait(timeout=120)
    return failed


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pretrained", type=Path, default=os.environ.get("CMMFNET_PRETRAINED"))
    parser.add_argument("--budget", type=int, default=20_000, help="pictures that a training sees")
    parser.add_argument(
        "--minutes", type=float, default=60.0, help="of training, at most, for each"
    )
    parser.add_argument(
        "--parallel", type=int, default=1, help="trainings side by side on the one device"
    )
    parser.add_argument(
        "--call-minutes", type=float, help="end after this time; trainings go on with the next call"
    )
    parser.add_argument(
        "--only", nargs="*", default=["*"], help="names or patterns of --list, in this order"
    )
    parser.add_argument(
        "--changes", type=Path, help="YAML: configuration (or all) -> field -> value"
    )
    parser.add_argument(
        "--text-source",
        choices=("clip-tags", "clip-sentence"),
        help="text of cmmfnet-paper and what changes it (default: the configuration's); "
        "clip-sentence needs CLIP's text encoder",
    )
    parser.add_argument("--split", default="val", help="that is scored: val or test")
    parser.add_argument(
        "--geometry", default=DEFAULT_GEOMETRY, help="how frames are cut (docs/evaluation.md)"
    )
    parser.add_argument("--lighting", default="day,dusk", help="of the pairs that are scored")
    parser.add_argument(
        "--sources", help="of the pairs that are scored, with commas between (default: all)"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--workers", type=int, default=1, help="processes that read pictures, for each training"
    )
    parser.add_argument(
        "--pack",
        type=Path,
        help="also write results and pictures (JPEG) of these trainings to this .tar.gz",
    )
    parser.add_argument(
        "--list", action="store_true", help="names of all trainings, and which are done"
    )
    parser.add_argument(
        "--table", action="store_true", help="train nothing, only write table and sheets"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    given = arguments()
    # in the order that --only names them: the slow ones first keep a device busy to the end
    known = {t.name: t for t in plan()}
    chosen = [
        known[n]
        for n in dict.fromkeys(n for p in given.only for n in known if fnmatch.fnmatch(n, p))
    ]
    if not chosen:
        raise SystemExit(
            f"--only {' '.join(given.only)} names no training; --list shows their names"
        )
    if given.one:
        return run_one(next(t for t in chosen if t.name == given.one), given)
    done = {t.name for t in chosen if is_done(t, given)} if not given.table else set()
    if given.list:
        print("\n".join(f"{'done' if t.name in done else 'open'}  {t.name}" for t in chosen))
        return 0
    failed = []
    if not given.table:
        print(
            f"{len(chosen) - len(done)} trainings of {len(chosen)}, {len(done)} are done",
            flush=True,
        )
        failed = run_all([t for t in chosen if t.name not in done], given)
    finished = [t for t in plan() if (given.out / t.name / "result.json").is_file()]
    if given.pack:
        pack(
            given.pack, given.out, [t.name for t in chosen if t in finished and t.name not in done]
        )
    if finished:
        write_table(given.out, given.data, [t.name for t in finished])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Kill colorize, archive, train, prepare and export with SIGKILL at random moments: is anything
lost?

    python benchmarks/kill.py --trials 250
    python benchmarks/kill.py --trials 250 --only train

Each command first runs to its end; its files are the reference. Then it is killed after a random
part of that time, many times over. After each kill every file under a final name must be whole:
equal to the reference, or, for a training, a checkpoint and a model that load, of no earlier step
than before. After half of the kills the same command runs to its end: its files must then be those
of the reference, with no ``.part`` file left. After each kill of an archive, its manifest must have
each frame once at most, and the picture of each row with the recorded checksum. Exits with 1 where
a trial failed.

The network is small, pictures are rendered. A trial is a fork of a process that has the package
imported already, so that the kills fall into the work and not into Python's start.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a fork has no threads of the process before it

import numpy as np
import onnxruntime  # noqa: F401, forks need not import it
import pandas  # noqa: F401, of pyarrow
import pyarrow.parquet  # noqa: F401
import torch
import torch._dynamo  # what the first tensor without memory imports: seconds
from PIL import Image
from safetensors import safe_open
from tqdm import tqdm

from cmmfnet import __version__, cli
from cmmfnet.archive import archive, manifest  # noqa: F401
from cmmfnet.colorizer import colorize  # noqa: F401
from cmmfnet.colorizer import torch as colorizer  # noqa: F401
from cmmfnet.data.prepare import prepare  # noqa: F401
from cmmfnet.data.scenes import write_pairs
from cmmfnet.export import export, graph  # noqa: F401
from cmmfnet.methods import build_network
from cmmfnet.training import checkpoint, setup, stopping  # noqa: F401
from cmmfnet.weights.files import load_model, save_model

COMMANDS = ("colorize", "archive", "train", "prepare", "export")
NETWORK = {
    "method": "cmmfnet", "text": "none", "channels": [8, 8, 8], "encoder_blocks": [0, 0, 0],
    "decoder_blocks": [0, 0, 0], "kernels": [7, 7, 7], "global_size": 32, "vit_depth": 1,
    "vit_width": 16, "vit_heads": 2,
}  # fmt: skip
STEPS = 8
CHANGING = {
    "log.jsonl", "recipe.json", "cmmfnet",  # of a training; neither of them is read again
    manifest.MANIFEST,  # rows have times; check_manifest reads it
}  # fmt: skip
manifest.PART_ROWS = 6  # so that kills fall into the writing of Parquet files, too


def run(arguments: list[str], moment: float | None = None, log: Path | None = None) -> bool:
    """Run a command in a fork, killed after ``moment`` seconds; whether it came to its end first.

    Raises RuntimeError where it ended with an error.
    """
    child = os.fork()
    if child == 0:
        status = 70
        try:
            target = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(target, 1)
            os.dup2(target, 2)
            status = cli.main(arguments)
        except SystemExit as stop:
            status = stop.code
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    limit = time.monotonic() + (300 if moment is None else moment)
    while time.monotonic() < limit:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if status:
                text = log.read_text() if log else ""
                raise RuntimeError(f"{' '.join(arguments)} ended with {status}: {text[-2000:]}")
            return True
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if moment is None:
        raise TimeoutError(f"{' '.join(arguments)} took more than 300 s")
    return False


def content(path: Path) -> str:
    """A hash of what a file holds. Bytes differ between equal model files, whose header has its
    notes in any order, and between equal checkpoints, which are pickles."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            held = sorted((file.metadata() or {}).items())
            held += [(key, file.get_tensor(key).numpy().tobytes()) for key in sorted(file.keys())]
    elif path.suffix == ".pt":
        held = plain(torch.load(path, map_location="cpu", weights_only=True))
    else:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return hashlib.sha256(repr(held).encode()).hexdigest()


def plain(x):
    """Tensors as their bytes, dicts as sorted pairs."""
    if isinstance(x, torch.Tensor):
        return str(x.dtype), tuple(x.shape), x.contiguous().view(-1).numpy().tobytes()
    if isinstance(x, dict):
        return sorted(((str(key), plain(value)) for key, value in x.items()), key=lambda y: y[0])
    return [plain(item) for item in x] if isinstance(x, list | tuple) else x


def files(out: Path) -> dict[str, str]:
    """Files under final names and what is in them."""
    found = [out] if out.is_file() else sorted(p for p in out.rglob("*") if p.is_file())
    return {
        str(p.relative_to(out.parent)): content(p)
        for p in found
        if p.suffix != ".part" and not CHANGING & set(p.relative_to(out.parent).parts)
    }


def parts(out: Path) -> list[str]:
    folder = out if out.is_dir() else out.parent
    return [p.name for p in folder.rglob(".*.part")]


def delete(out: Path) -> None:
    for path in (out, out.with_name(out.name + ".html")):
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)


def scene_files(root: Path) -> dict[str, list[str]]:
    """What the commands work on, made in ``root``; command -> its arguments, ``-o``/output last."""
    write_pairs(root / "scenes", 6, seed=1, size=(64, 80))
    model = root / "model.safetensors"
    torch.manual_seed(0)
    save_model(model, build_network(NETWORK), NETWORK)
    rng = np.random.default_rng(0)
    (root / "frames").mkdir()
    (root / "raw").mkdir()
    for i in range(8):
        frame = rng.integers(7000, 9000, (64, 96), dtype=np.uint16)
        Image.fromarray(frame).save(root / "frames" / f"{i:03d}.png")
        both = rng.integers(0, 255, (48, 128, 3), dtype=np.uint8)
        both[:, :64] = both[:, :64, :1]  # thermal on the left
        Image.fromarray(both).save(root / "raw" / f"{i:03d}.png")
    recipe = {
        "model": NETWORK, "losses": {"l1": 1.0}, "sources": [{"folder": ".", "split": "train"}],
        "steps": STEPS, "batch_size": 1, "size": 32, "save_every": 1, "log_every": 1,
    }  # fmt: skip
    (root / "recipe.yaml").write_text(json.dumps(recipe))
    given = ["--model", str(model), "--device", "cpu", "--batch-size", "4"]
    return {
        "colorize": ["colorize", str(root / "frames"), *given,
                     "--gallery", str(root / "colorize" / "gallery.html"), "--out"],
        "archive": ["archive", str(root / "frames"), "--model", str(model), "--device", "cpu",
                    "--batch-size", "2"],
        "train": ["train", "--config", str(root / "recipe.yaml"), "--data", str(root / "scenes"),
                  "--device", "cpu", "--workers", "0", "--out"],
        "prepare": ["prepare", "folder", "--jobs", "1", "--copy", str(root / "raw")],
        "export": ["export", str(model), "--out"],
    }  # fmt: skip


def check_training(out: Path, reached: int) -> int:
    """The step of the checkpoint that a killed training left. Raises where it, or the model, does
    not load or an earlier step is all that is left."""
    newest = checkpoint.latest(out)
    if newest is None:
        assert reached == 0, f"step {reached} is lost"
        return 0
    step = checkpoint.load(newest)["step"]
    assert step >= reached, f"back at step {step} from {reached}"
    load_model(out / "model.safetensors")
    return step


def check_manifest(out: Path) -> None:
    """Raise where a frame has two successes, or a success has no picture or another one."""
    if not out.exists():
        return
    rows = [row for row in manifest.read_manifest(str(out)).to_pylist() if row["output"]]
    inputs = [row["input"] for row in rows]
    assert len(set(inputs)) == len(inputs), f"recorded twice: {sorted(inputs)}"
    for row in rows:
        assert content(out / row["output"]) == row["sha256"], f"{row['output']} is another picture"


def trials(name: str, arguments: list[str], out: Path, count: int, moments: random.Random) -> dict:
    """Kill a command ``count`` times; what came of it."""
    log = out.with_name(f"{name}.log")
    command = [*arguments, str(out)]
    run(command, log=log)
    delete(out)
    began = time.monotonic()  # of the second run, whose files are in memory
    run(command, log=log)
    seconds, reference = time.monotonic() - began, files(out)
    assert reference and not parts(out)
    delete(out)
    tally = {"kills": 0, "with .part": 0, "completed": 0, "failed": 0}
    reached = 0
    while tally["kills"] < count:
        try:
            # once in a while the end, to have the slow moments, too
            ended = run(command, moments.uniform(0, 1.1 * seconds), log)
            tally["kills"] += not ended
            tally["with .part"] += bool(parts(out)) and not ended
            if name == "train" and not ended:
                reached = check_training(out, reached)
            elif not ended:
                found = files(out).items()
                wrong = [
                    key
                    for key, value in found
                    if reference.get(key) != value and not key.endswith("preparing.json")
                ]
                assert not wrong, f"half-written or other: {wrong}"
            if name == "archive":
                check_manifest(out)
            # a training or data set whose last file is there refuses to go on
            ended |= reached == STEPS or (out / "index.jsonl").exists()
            if ended or moments.random() < 0.5:
                if not ended:
                    run(command, log=log)
                left = files(out)
                assert left == reference, (
                    f"other files: {sorted(set(left.items()) ^ set(reference.items()))[:4]}"
                )
                assert not parts(out), f"left: {parts(out)}"
                if name == "archive":
                    check_manifest(out)
                    journal = list((out / manifest.JOURNAL).iterdir())
                    rows = manifest.read_manifest(str(out)).num_rows
                    assert rows == len(left) and not journal, f"{rows} rows, {journal}"
                tally["completed"] += 1
                delete(out)
                reached = 0
        except (AssertionError, RuntimeError, OSError, ValueError, TimeoutError) as error:
            tally["failed"] += 1
            print(f"{name}, kill {tally['kills']}: {error!r:.1500}", flush=True)
            delete(out)
            reached = 0
            if tally["failed"] > 20:
                break
        if tally["kills"] % 50 == 0:
            print(f"{name}: {tally}", flush=True)
    return {"seconds of a run": round(seconds, 2), **tally}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=250, help="kills of each command")
    parser.add_argument("--only", choices=COMMANDS, nargs="+", default=COMMANDS)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    # tqdm's own lock is shared by all forks: one that is killed while it holds it stops the others
    tqdm.set_lock(threading.RLock())
    print(f"cmmfnet {__version__}, torch {torch.__version__}, {os.cpu_count()} cores", flush=True)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        arguments = scene_files(Path(folder))
        for name in given.only:
            out = Path(folder) / (name if name != "export" else "export/model.onnx")
            out.parent.mkdir(exist_ok=True)
            found = trials(name, arguments[name], out, given.trials, random.Random(given.seed))
            print(f"{name}: {found}", flush=True)
            failed += found["failed"]
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())

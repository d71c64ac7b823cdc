"""What a training survives: `kill -9`, a full disk, malformed images, and a checkpoint with code in
it.

    python benchmarks/faults.py --kills 30
    python benchmarks/faults.py --kills 30 --processes 2
    python benchmarks/faults.py --kills 0 --disk --images FOLDER

Each kill is a run of `ardiff train` of its own that `kill -9` ends at a random moment, in half of
them while a checkpoint is being written. `ardiff resume` then goes on with it, and its last
checkpoint is compared, bit by bit, with that of a run that nobody killed. `--disk` does the same
with a disk that is too small (a tmpfs of its own, which takes root). `--images` changes the bytes
of 300 images of a folder, and looks at what comes of reading them.
"""

import argparse
import contextlib
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image
from safetensors.torch import load_file

from autoregressive_diffusion_pytorch.data.folder_listing import list_folder
from autoregressive_diffusion_pytorch.data.image_files import DamagedImageError, read_image
from autoregressive_diffusion_pytorch.training.checkpoints import write_checkpoint
from autoregressive_diffusion_pytorch.utils.manifests import (
    check_checkpoint,
    list_checkpoints,
    newest_checkpoint,
)

STEPS, EVERY = 60, 4
TIMEOUT = 600  # seconds for a command
# augmented by dropped labels, accumulated, validated, read by a worker, in the device's precision
TRAINING = (
    "train digits --labels --dim 64 --depth 2 --heads 2 --mlp-width 64 --batch-size 16 "
    f"--accumulate 2 --steps {STEPS} --workers 1 "
    f"--checkpoint-every {EVERY} --sample-every 25 --hold-out 0.02 --lr-schedule cosine"
).split()


def command(arguments: list[str], processes: int) -> list[str]:
    package = ["-m", "autoregressive_diffusion_pytorch"]
    if processes == 1:
        return [sys.executable, "-W", "ignore", *package, *arguments]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return [sys.executable, "-W", "ignore", *launcher, *package, "--", *arguments]


def start(arguments: list[str], processes: int, log: Path) -> subprocess.Popen:
    """A command in the background."""
    environment = os.environ | dict(ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
    with log.open("ab") as file:
        return subprocess.Popen(
            command(arguments, processes), stdout=file, stderr=file, env=environment
        )


def end(process: subprocess.Popen) -> None:
    """Kills a command with all its processes: the launcher's have groups of their own."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [
            psutil.Process(process.pid),
            *psutil.Process(process.pid).children(recursive=True),
        ]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family[1:])
    process.wait()


def exit_code(process: subprocess.Popen) -> int:
    """Waits for a command; one that hangs is killed, and raises `subprocess.TimeoutExpired`."""
    try:
        return process.wait(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        end(process)
        raise


def finish(arguments: list[str], processes: int, log: Path) -> None:
    if exit_code(start(arguments, processes, log)) != 0:
        raise RuntimeError(f"{arguments} failed:\n{log.read_text(errors='replace')[-3000:]}")


def contents(checkpoint: Path) -> dict[str, torch.Tensor | object]:
    """All that a checkpoint holds, by name."""
    found = {}
    for name in ("model", "online"):
        found |= {
            f"{name}: {key}": value
            for key, value in load_file(checkpoint / f"{name}.safetensors").items()
        }

    def walk(prefix: str, value) -> None:
        if isinstance(value, (dict, list, tuple)):
            for key, part in value.items() if isinstance(value, dict) else enumerate(value):
                walk(f"{prefix} {key}", part)
        else:
            found[prefix] = value

    walk("training:", torch.load(checkpoint / "training.pt", weights_only=True))
    return found


def same(first: Path, second: Path) -> bool:
    """Whether two checkpoints hold the same bits: weights, average, moments, random states,
    counters."""
    one, other = contents(first), contents(second)
    if one.keys() != other.keys():
        return False
    return all(
        torch.equal(a, other[key]) if isinstance(a, torch.Tensor) else a == other[key]
        for key, a in one.items()
    )


def kill(
    run: Path, process: subprocess.Popen, step: int, delay: float, while_saving: bool
) -> tuple[int, bool]:
    """Kills a training a while after it saved a step, or at the next save: the last step it was
    seen to save, if it was saving. One that hangs before raises `subprocess.TimeoutExpired`."""
    deadline = math.inf
    patience = time.monotonic() + TIMEOUT
    saved = 0
    while process.poll() is None:
        names = os.listdir(run / "checkpoints") if (run / "checkpoints").is_dir() else []
        saved = max([saved, *(int(name.split(".")[1]) for name in names if name.count(".") == 1)])
        if saved >= step:
            deadline = min(deadline, time.monotonic() + delay)
        saving = any(name.endswith(".partial") for name in names)
        if time.monotonic() > deadline and (saving or not while_saving):
            break
        if time.monotonic() > patience:
            end(process)
            raise subprocess.TimeoutExpired(process.args, TIMEOUT)
    end(process)
    left = os.listdir(run / "checkpoints") if (run / "checkpoints").is_dir() else []
    return saved, any(name.endswith((".partial", ".replaced")) for name in left)


def kills(folder: Path, count: int, processes: int) -> bool:
    log = folder / "log"
    undisturbed = folder / "undisturbed"
    finish([*TRAINING, "--run", str(undisturbed)], processes, log)
    expected = newest_checkpoint(undisturbed / "checkpoints")
    times = [
        checkpoint.stat().st_mtime for checkpoint in list_checkpoints(undisturbed / "checkpoints")
    ]
    pause = (times[-1] - times[0]) / (len(times) - 1)
    moments = random.Random(0)
    identical = lost = hung = saving = early = 0
    for i in range(count):
        run = folder / f"killed-{i}"
        while_saving = i % 2 == 1
        process = start([*TRAINING, "--run", str(run)], processes, log)
        moment = moments.randrange(0, STEPS - EVERY, EVERY), moments.uniform(0, pause)
        try:
            step, was_saving = kill(run, process, *moment, while_saving)
        except subprocess.TimeoutExpired:
            hung += 1
            print(f"{i + 1:3} DID NOT END before it was killed", flush=True)
            shutil.rmtree(run, ignore_errors=True)
            continue
        saving += was_saving
        checkpoints = list_checkpoints(run / "checkpoints")
        for checkpoint in checkpoints:
            check_checkpoint(checkpoint)  # none is damaged
        newest = max((int(checkpoint.name.split(".")[1]) for checkpoint in checkpoints), default=0)
        lost += newest < step
        again = ["resume", str(run)]
        if newest == 0:  # killed before its first checkpoint: there is nothing to resume
            early += 1
            shutil.rmtree(run, ignore_errors=True)
            again = [*TRAINING, "--run", str(run)]
        try:
            if newest < STEPS:
                finish(again, processes, log)
            equal = same(newest_checkpoint(run / "checkpoints"), expected)
            identical += equal
            outcome = "the same bits" if equal else "OTHER BITS"
        except subprocess.TimeoutExpired:
            hung += 1
            outcome = "DID NOT END when it went on"
        print(
            f"{i + 1:3} killed after step {newest:2}"
            f"{' in the midst of a save' if was_saving else '':23} {outcome}",
            flush=True,
        )
        shutil.rmtree(run)
    print(
        f"{count} runs of {processes} process{'es' if processes > 1 else ''} killed, {saving} of "
        f"them in the midst of a save and {early} before the first: {identical} ended with the "
        f"bits of the undisturbed run, {lost} lost a checkpoint, {hung} did not end"
    )
    return identical == count and not lost


def full_disk(folder: Path) -> bool:
    """Runs on disks of several sizes: each must stop with an error that says so, and go on when
    there is room."""
    log = folder / "log"
    undisturbed = folder / "undisturbed"
    finish([*TRAINING, "--run", str(undisturbed)], 1, log)
    expected = newest_checkpoint(undisturbed / "checkpoints")
    size = sum(path.stat().st_size for path in expected.iterdir())
    good = 0
    sizes = [round(size * factor) for factor in (0.5, 1.5, 2.2, 2.9, 3.3, 3.8)]
    for bytes_there in sizes:
        disk = folder / "disk"
        disk.mkdir(exist_ok=True)
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={bytes_there}", "tmpfs", str(disk)], check=True
        )
        try:
            own_log = folder / f"log-{bytes_there}"
            code = exit_code(start([*TRAINING, "--run", str(disk / "run")], 1, own_log))
            said = "could not be written, what was saved before is untouched" in own_log.read_text(
                errors="replace"
            )
            checkpoints = list_checkpoints(disk / "run" / "checkpoints")
            for checkpoint in checkpoints:
                check_checkpoint(checkpoint)
            subprocess.run(["mount", "-o", f"remount,size={20 * size}", str(disk)], check=True)
            if checkpoints:
                finish(["resume", str(disk / "run")], 1, own_log)
                equal = same(newest_checkpoint(disk / "run" / "checkpoints"), expected)
                went_on = f"went on to {'the same bits' if equal else 'OTHER BITS'}"
            else:
                equal, went_on = True, "had none to go on from"
            print(
                f"disk of {bytes_there / size:.1f} checkpoints: exit code {code}, "
                f"{len(checkpoints)} whole ones, {went_on}",
                flush=True,
            )
            good += code != 0 and said and equal
        finally:
            subprocess.run(["umount", "--lazy", str(disk)], check=True)
    print(f"{good} of {len(sizes)} full disks stopped the run with an error and lost nothing")
    return good == len(sizes)


def mutated(data: bytes, numbers: np.random.Generator) -> bytes:
    """A file that is cut off, changed in some bytes, with a part taken out or overwritten, or
    nothing but noise."""
    changed = bytearray(data)
    start, length = int(numbers.integers(len(data))), int(numbers.integers(1, 1 + len(data) // 4))
    kind = numbers.integers(5)
    if kind == 0:
        del changed[start:]
    elif kind == 1:
        for i in numbers.integers(len(data), size=numbers.integers(1, 64)):
            changed[i] = numbers.integers(256)
    elif kind == 2:
        del changed[start : start + length]
    elif kind == 3:
        changed[start : start + length] = numbers.bytes(len(changed[start : start + length]))
    else:
        changed[:] = numbers.bytes(len(data))
    return bytes(changed)


COUNT = 300  # of malformed images


def malformed(folder: Path, source: Path) -> bool:
    numbers = np.random.default_rng(0)
    images = list_folder(source).images
    files = folder / "images"
    files.mkdir()
    endings = ("jpg", "png", "webp", "bmp", "tif", "gif")
    outcomes = {ending: dict(named=0, unchanged=0, changed=0, crashed=0) for ending in endings}
    for i in range(COUNT):
        ending = endings[i % len(endings)]
        path = files / f"{i:03}.{ending}"
        original = Image.open(images[i * len(images) // COUNT]).convert("RGB")
        original.save(path)
        before = read_image(path, (64, 64), 3)  # a GIF has lost colours already
        path.write_bytes(mutated(path.read_bytes(), numbers))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                difference = (read_image(path, (64, 64), 3) - before).abs().mean()
            except DamagedImageError as error:
                outcomes[ending]["named" if str(path) in str(error) else "crashed"] += 1
            except Exception:
                outcomes[ending]["crashed"] += 1
            else:
                outcomes[ending]["unchanged" if difference < 0.02 else "changed"] += 1
    print(f"{'':6}{'named':>8}{'as before':>11}{'changed':>9}{'crashed':>9}")
    for ending, outcome in outcomes.items():
        print(
            f"{ending:6}{outcome['named']:8}{outcome['unchanged']:11}{outcome['changed']:9}{outcome['crashed']:9}"
        )
    finish(
        [
            *(
                "train",
                str(files),
                "--skip-damaged",
                "--run",
                str(folder / "run"),
                "--steps",
                "2",
                "--image-size",
                "16",
            ),
            *(
                "--patch-size",
                "8",
                "--dim",
                "32",
                "--depth",
                "1",
                "--heads",
                "2",
                "--mlp-width",
                "32",
            ),
        ],
        1,
        folder / "log",
    )
    print("a training with --skip-damaged on them ran to its end")
    return not any(outcome["crashed"] for outcome in outcomes.values())


class Payload:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def payload(folder: Path) -> bool:
    run, log = folder / "run", folder / "log"
    finish([*TRAINING, "--steps", "4", "--run", str(run)], 1, log)
    checkpoint = newest_checkpoint(run / "checkpoints")
    state = torch.load(checkpoint / "training.pt", weights_only=True)

    def forge(partial: Path) -> None:
        for name in ("config.json", "model.safetensors", "online.safetensors"):
            shutil.copy(checkpoint / name, partial)
        torch.save(state | dict(payload=Payload()), partial / "training.pt")

    write_checkpoint(run / "checkpoints", 5, forge)
    own_log = folder / "log-payload"
    code = exit_code(start(["resume", str(run), "--steps", "9"], 1, own_log))
    refused = (
        code != 0
        and "is refused" in own_log.read_text(errors="replace")
        and not Path("executed").exists()
    )
    print(
        f"a checkpoint with a payload is {'refused' if refused else 'LOADED'}: "
        f"{own_log.read_text(errors='replace').strip()}"
    )
    return refused


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=30, help="runs to kill")
    parser.add_argument("--processes", type=int, default=1, help="of each run")
    parser.add_argument("--disk", action="store_true", help="runs on small disks; takes root")
    parser.add_argument(
        "--images", type=Path, metavar="FOLDER", help="images to change the bytes of"
    )
    args = parser.parse_args()
    good = True
    for wanted, check in (
        (args.kills > 0, lambda folder: kills(folder, args.kills, args.processes)),
        (args.disk, full_disk),
        (args.images, lambda folder: malformed(folder, args.images.resolve())),
        (True, payload),
    ):
        if wanted:
            with tempfile.TemporaryDirectory() as folder:
                os.chdir(folder)  # payloads would act here
                good = check(Path(folder)) and good
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()

"""What a training run says of itself: metrics.jsonl, speed.jsonl, TensorBoard, progress bar."""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import numpy as np
from tqdm import tqdm

from progemu_jax.files.records import write_text


class Metrics:
    """metrics.jsonl and TensorBoard, cut back to the step that training goes on from."""

    def __init__(self, workdir: Path, start: int, writing: bool):
        self.path, self.writing, self.file, self.board = workdir / "metrics.jsonl", writing, None, None
        self.speed = None
        if not writing:
            return
        from tensorboardX import SummaryWriter

        rows = []
        if start and self.path.exists():
            rows = [line for line in self.path.read_text().splitlines() if _step_of(line) <= start]
        write_text(self.path, "".join(f"{line}\n" for line in rows))
        self.board = SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1 if start else None)
        self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (closed in __exit__)
        self.speed = open(workdir / "speed.jsonl", "a", encoding="utf-8")  # noqa: SIM115

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.writing:
            self.file.close()
            self.speed.close()
            self.board.close()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """A row of metrics.jsonl; names without a "/" are TensorBoard's train/*."""
        if not self.writing:
            return
        # JSON has no NaN: an undefined metric is null.
        clean = {name: value if math.isfinite(value) else None for name, value in sorted(metrics.items())}
        self.file.write(json.dumps({"step": step, **clean}) + "\n")
        self.file.flush()
        for name, value in metrics.items():
            self.board.add_scalar(name if "/" in name else f"train/{name}", value, step)

    def write_speed(self, step: int, values: Mapping[str, float]) -> None:
        """A row of speed.jsonl."""
        if not self.writing:
            return
        self.speed.write(json.dumps({"step": step, "time": round(time.time(), 1), **values}) + "\n")
        self.speed.flush()
        for name, value in values.items():
            self.board.add_scalar(f"speed/{name}", value, step)

    def pictures(self, step: int, images: np.ndarray) -> None:
        """uint8 [N, H, W], as one grid under each other."""
        if self.writing:
            self.board.add_image("validation", np.concatenate(list(images)), step, dataformats="HW")
            self.board.flush()

    def flush(self) -> None:
        """On the disk before the checkpoint that counts on these rows."""
        if self.writing:
            self.file.flush()
            os.fsync(self.file.fileno())


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf  # half a line: the process was killed while writing it


class Bar(contextlib.AbstractContextManager):
    """Progress bar with loss, steps per second and time left; a line every half minute without a terminal."""

    def __init__(self, name: str, steps: int, start: int, writing: bool):
        self.bar = tqdm(
            total=steps,
            initial=start,
            desc=name,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 30.0,
            disable=not writing,
        )
        self.done, self.clock = start, time.monotonic()
        self.write = self.bar.write

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def advance(self, done: int, loss: float) -> tuple[int, float]:
        """Moves to step `done`; returns the steps and the seconds since the last call."""
        now = time.monotonic()
        steps, seconds = done - self.done, now - self.clock
        self.bar.set_postfix_str(f"loss {loss:.4f}, {steps / max(seconds, 1e-9):.2f} steps/s", refresh=False)
        self.bar.update(steps)
        self.done, self.clock = done, now
        return steps, seconds

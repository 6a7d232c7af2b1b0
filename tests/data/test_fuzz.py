"""Mutated images, DICOM files, JSON, CSV and gzip: accepted or rejected with a reason, never anything else.

The readers run in a process of their own with 3 GiB of address space, so a crash in a decoder, a hang or a
decompression bomb fails the test and nothing else.
"""

import io
import json
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

KINDS = ("png", "jpeg", "dicom", "json", "csv", "gz")
SLOWEST, GROWTH = 20.0, 700  # seconds of one input; MiB of resident memory


def run(count, seed, folder):
    done = subprocess.run(
        [sys.executable, __file__, str(count), str(seed), str(folder)],
        capture_output=True, text=True, timeout=280, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(found, count):
    assert sum(found["accepted"].values()) + sum(found["rejected"].values()) == count
    assert all(found["rejected"].get(kind, 0) > 0 for kind in KINDS), found  # the mutations do bite
    assert sum(found["accepted"].values()) > 0
    assert found["slowest_s"] < SLOWEST
    assert found["growth_mib"] < GROWTH


def test_mutated_inputs_are_accepted_or_rejected_with_a_reason(tmp_path):
    check(run(300, 0, tmp_path), 300)


@pytest.mark.slow
def test_two_thousand_mutated_inputs(tmp_path):
    found = run(2000, 1, tmp_path)
    print(found)
    check(found, 2000)


# What follows runs in the other process.


def mutate(rng, content: bytes) -> bytes:
    """One to four of: bits, bytes, numbers changed; a part cut out, doubled, blanked, filled with noise; cut off."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        if not data:
            break
        at = int(rng.integers(len(data) if rng.random() < 0.5 else min(len(data), 800)))  # headers break more
        length = int(rng.integers(1, 64))
        what = rng.integers(8)
        if what == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif what == 1:
            data[at] = int(rng.integers(256))
        elif what == 2:
            data[at : at + 4] = rng.choice(
                [b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\0\0\xff\xff", b"\x80\0\0\0"]
            )
        elif what == 3:
            del data[at : at + length]
        elif what == 4:
            data[at:at] = data[at : at + length] * int(rng.integers(1, 50))
        elif what == 5:
            data[at : at + length] = bytes(length)
        elif what == 6:
            data[at : at + length] = rng.bytes(length)
        else:
            del data[at:]
    return bytes(data)


def bases(folder):
    """kind -> contents to start from."""
    import numpy as np
    from PIL import Image
    from support import cohorts, dicoms

    gray = cohorts.chest(0, 96)

    def saved(image, name):
        buffer = io.BytesIO()
        image.save(buffer, name)
        return buffer.getvalue()

    deep = Image.fromarray(gray.astype(np.uint16) * 200)
    files = []
    for syntax in ("implicit", "explicit", "big", *dicoms.COMPRESSED):
        lossy = syntax in ("JPEGBaselineProcess1", "JPEGExtendedProcess2_4")
        values, bits = (gray, 8) if lossy else (gray.astype(np.uint16) * 14, 12)
        files.append(dicoms.write(folder / f"{syntax}.dcm", values, bits=bits, syntax=syntax))
    plus = cohorts.chexpertplus(folder / "plus", patients=2, studies=2)
    mimic = cohorts.write(folder / "mimic", patients=2, studies=2)
    icg = cohorts.icg_cxr(folder / "icg", plus, mimic)
    return {
        "png": [saved(image, "PNG") for image in (Image.fromarray(gray), deep, Image.fromarray(gray).convert("P"))],
        "jpeg": [saved(Image.fromarray(gray), "JPEG"), saved(Image.fromarray(gray).convert("CMYK"), "JPEG")],
        "dicom": [path.read_bytes() for path in files],
        "json": [path.read_bytes() for path in sorted(icg.rglob("*.json"))],
        "csv": [(plus / "df_chexpert_plus_240401.csv").read_bytes()],
        "gz": [(mimic / f"mimic-cxr-2.0.0-{name}.csv.gz").read_bytes() for name in ("metadata", "chexpert", "split")],
    }, (plus, mimic, icg)  # fmt: skip


def main(count, seed, folder):
    import numpy as np
    from support import cohorts

    from progemu_jax.data import images, radiograph
    from progemu_jax.data.sources import Rejected, open_source
    from progemu_jax.errors import UserError

    contents, (plus, mimic, icg) = bases(folder)
    victims = {
        "csv": [plus / "df_chexpert_plus_240401.csv"],
        "json": sorted(icg.rglob("*.json")),
        "gz": [mimic / f"mimic-cxr-2.0.0-{name}.csv.gz" for name in ("metadata", "chexpert", "split")],
    }
    limit = 3 << 30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    suffix = {"png": "x.png", "jpeg": "x.jpg", "dicom": "x.dcm"}
    accepted, rejected, slowest, reasons = Counter(), Counter(), 0.0, []

    def attempt(kind, which, data):
        """Why the input is rejected, or None."""
        if kind in suffix:
            path = folder / suffix[kind]
            path.write_bytes(data)
            try:
                image = radiograph.read_gray(path)
            except images.BrokenImage as error:
                return str(error)
            assert (image.dtype, image.ndim) == (np.uint8, 2)
            assert image.size <= images.MAX_PIXELS
            return None
        victim = victims[kind][which]
        victim.write_bytes(data)
        name, root = {"csv": ("chexpertplus", plus), "json": ("icg_cxr", icg), "gz": ("mimic_cxr", mimic)}[kind]
        places = {"mimic_cxr": mimic, "chexpertplus": plus} if kind == "json" else {}
        try:
            reader = open_source(name, root, **places)
            items = list(reader.pairs() if kind == "json" else reader.studies())
        except UserError as error:
            return str(error)
        finally:
            victim.write_bytes(contents[kind][which])
        bad = [item for item in items if isinstance(item, Rejected)]
        return bad[0].reason if bad else None

    for kind in KINDS:
        for which, data in enumerate(contents[kind]):
            assert attempt(kind, which, data) is None, kind  # as they are, all are accepted
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        kind = KINDS[number % len(KINDS)]
        which = int(rng.integers(len(contents[kind])))
        data = mutate(rng, contents[kind][which])
        start = time.monotonic()
        try:
            why = attempt(kind, which, data)
        except BaseException:
            print(f"seed {seed}, input {number}, {kind}", file=sys.stderr)
            raise
        slowest = max(slowest, time.monotonic() - start)
        (rejected if why else accepted)[kind] += 1
        assert why is None or (why.strip() and "\n" not in why and cohorts.SECRET not in why and len(why) < 400), why
        reasons.append(why)
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps({"accepted": accepted, "rejected": rejected, "slowest_s": round(slowest, 2),
                      "growth_mib": round(growth), "reasons": len(set(reasons))}))  # fmt: skip


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))

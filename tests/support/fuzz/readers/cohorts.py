"""Readers of cohorts: tables, reports, labels and demographics of every source, trees, shards, and images by bytes."""

import json
import threading
from functools import cache, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from PIL import Image

from progemu_jax.data import icg_cxr, images, memorisation, radiograph
from progemu_jax.data.batches import Examples
from progemu_jax.data.build import build_tree
from progemu_jax.data.references import build_references
from progemu_jax.data.texts import TextOptions
from progemu_jax.errors import UserError
from progemu_jax.files import records
from support import cohorts, dicoms, label_cohorts
from support.fuzz.readers.reader import Reader
from support.trees import make_tree

ALL = {"pairs": "all", "duplicates": False}


def built(source, options=None, **places):
    """Builds a tree of the cohort in `cohort`."""
    build_tree(source, "cohort", "out", options=options, source_options=places, **cohorts.QUIET)


def mimic(folder):
    cohorts.write(folder / "cohort", patients=2, studies=2)


def mimic_tables():
    built("mimic_cxr", ALL, mimic_iv="cohort")


def plus(folder):
    cohorts.chexpertplus(folder / "cohort", patients=2, studies=2)


def icg(folder):
    one = cohorts.chexpertplus(folder / "plus", patients=1, studies=2)
    other = cohorts.write(folder / "mimic", patients=1, studies=2)
    cohorts.icg_cxr(folder / "cohort", one, other)


def plain(folder):
    cohorts.plain_folder(folder / "cohort", pairs=2)


def open_cxr(folder):
    root = folder / "cohort"
    (root / "images").mkdir(parents=True)
    lines = ["patientid,offset,sex,age,view,modality,folder,filename,clinical_notes"]
    for n, note in enumerate(("Clear lungs, no effusion.", "Small left pleural effusion.") * 2):
        Image.fromarray(cohorts.chest(n, 64)).save(root / f"images/{n}.png")
        lines.append(f'{n // 2},{n % 2},F,50,PA,X-ray,images,{n}.png,"{note} {cohorts.SECRET}"')
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")


def labelled(write, folder):
    """A cohort of labels: two patients with two studies."""
    write(folder / "cohort", patients=2, studies=2)


def tree(folder):
    make_tree(folder / "tree", pairs=3, singles=2)


def shards_of_tree():
    build_references("tree", "out/references", size=32, processes=1, progress=False)
    icg_cxr.build_shards("tree", "out/shards", 32, processes=1, progress=False)


def shards(folder):
    icg_cxr.build_shards(make_tree(folder / "tree", pairs=3, singles=2), folder / "shards", 32, progress=False)


def examples():
    for config, split in (("pairs", "train"), ("single", "train")):
        list(Examples("shards", config, split))


def audited(folder):
    """Shards, references and predictions of the audit for copies."""
    shards(folder)
    for name, seed in (("references", 50), ("predictions", 60)):
        (folder / name).mkdir()
        Image.fromarray(cohorts.chest(seed)).save(folder / name / "0.png")
    (folder / "references/references.jsonl").write_text(json.dumps({"pair_id": "c", "followup": "0.png"}) + "\n")
    (folder / "predictions/predictions.jsonl").write_text(json.dumps({"pair_id": "c", "image": "0.png"}) + "\n")


def audit():
    return memorisation.main(["--shards=shards", "--predictions=predictions", "--references=references"])


def pictures(folder):
    """Gray, deep and palette PNG, gray and CMYK JPEG, and DICOM of every transfer syntax."""
    gray = cohorts.chest(0, 96)
    deep = Image.fromarray(gray.astype(np.uint16) * 200)
    for name, image in (("gray", Image.fromarray(gray)), ("deep", deep), ("few", Image.fromarray(gray).convert("P"))):
        image.save(folder / f"{name}.png")
    for name, mode in (("gray", "L"), ("four", "CMYK")):
        Image.fromarray(gray).convert(mode).save(folder / f"{name}.jpg")
    for syntax in ("implicit", "explicit", "big", *dicoms.COMPRESSED):
        lossy = syntax in ("JPEGBaselineProcess1", "JPEGExtendedProcess2_4")
        pixels, bits = (gray, 8) if lossy else (gray.astype(np.uint16) * 14, 12)
        dicoms.write(folder / f"{syntax}.dcm", pixels, bits=bits, syntax=syntax)


def radiographs():
    """Reads every image: gray, of eight bits and bounded size."""
    broken = []
    for path in sorted(Path().iterdir()):
        try:
            image = radiograph.read_gray(path)
        except images.BrokenImage as error:
            broken.append(f"{path}: {error}")
            continue
        assert (image.dtype, image.ndim) == (np.uint8, 2)
        assert image.size <= images.MAX_PIXELS
    if broken:
        raise UserError(broken[0])


ANSWER = {"prompt": "New small left effusion.", "interpretation": "A new effusion.", "confidence": 4, "reason": "Said."}
CALL = {
    "id": "x", "object": "chat.completion", "created": 0, "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": json.dumps(ANSWER)}}],
    "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
}  # fmt: skip


def asked(folder):
    """A cohort of one patient, what a language model's server answers, and what the model itself says in it."""
    cohorts.write(folder / "cohort", patients=1, studies=2)
    (folder / "call.json").write_text(json.dumps(CALL))
    (folder / "answer.json").write_text(json.dumps(ANSWER))


class _Answers(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        try:
            data, said = (records.read_text(name) for name in ("call.json", "answer.json"))
        except (OSError, ValueError):
            data = said = ""
        data = data.replace(json.dumps(json.dumps(ANSWER))[1:-1], json.dumps(said)[1:-1]).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@cache
def _server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port


def ask():
    texts = TextOptions("llm", endpoint=f"http://127.0.0.1:{_server()}/v1", model="m", retries=0, parallel=1, timeout=5)
    build_tree("mimic_cxr", "cohort", "out", options=ALL, text_options=texts, **cohorts.QUIET)


READERS = (
    Reader("mimic_cxr", mimic, mimic_tables, ("cohort/mimic-*.csv.gz", "cohort/files/*/*/*.txt")),
    Reader("mimic_iv", mimic, mimic_tables, ("cohort/patients.csv.gz", "cohort/admissions.csv.gz")),
    Reader("chexpertplus", plus, partial(built, "chexpertplus", ALL), ("cohort/*.csv", "cohort/chexbert_labels/*")),
    Reader("icg_cxr", icg, partial(built, "icg_cxr", mimic_cxr="mimic", chexpertplus="plus"), ("cohort/**/*.json",)),
    Reader("nih_cxr14", partial(labelled, label_cohorts.nih), partial(built, "nih_cxr14", ALL),
           ("cohort/*.csv", "cohort/*.txt")),
    Reader("padchest", partial(labelled, label_cohorts.padchest), partial(built, "padchest", ALL), ("cohort/*.csv",)),
    Reader("chexpert", partial(labelled, label_cohorts.chexpert), partial(built, "chexpert", ALL), ("cohort/*.csv",)),
    Reader("open_cxr", open_cxr, partial(built, "open_cxr", ALL), ("cohort/metadata.csv",)),
    Reader("folder", plain, partial(built, "folder"), ("cohort/prompts.csv",)),
    Reader("tree", tree, shards_of_tree, ("tree/**/*.json", "tree/singles.jsonl")),
    Reader("shards", shards, examples, ("shards/**/*",)),
    Reader("memorisation", audited, audit, ("*/*.jsonl",), ("predictions/memorisation.json",)),
    Reader("images", pictures, radiographs, ("*",), ()),
    Reader("answers", asked, ask, ("call.json", "answer.json"), ("out", "texts")),
)  # fmt: skip

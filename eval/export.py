"""Predictions written as other evaluations read them: CheXGenBench, M3-Score, RadMatch and TEA.

Images keep their bytes, but for TEA's; follow-ups of the references are written anew, as gray PNG. Names say nothing
of the patient: `export.csv` tells which case is which. What is exported of a credentialed cohort stays under its
agreement.
"""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from progemu_jax.errors import UserError
from progemu_jax.eval.predictions import Rows, read_image, read_predictions, read_references
from progemu_jax.files.records import write_bytes, write_text
from progemu_jax.text.findings import CHEXPERT


@dataclass
class _Export:
    folder: Path
    refs: object
    rows: Rows
    subject: dict  # patient_id -> number

    def case(self, i):
        """Name of a case (position in the references)."""
        return f"case{i:05d}"

    def row_name(self, r):
        """Name of a row of the predictions."""
        return f"{self.case(int(self.rows.case[r]))}_{int(self.rows.sample[r])}"

    def subject_name(self, i):
        """Name of a case's patient."""
        return f"subject{self.subject[self.refs.rows[i]['patient_id']]:05d}"

    def generated(self, name, r):
        """Writes the image of row r to `name` in the folder."""
        path = self.rows.images[r]
        read_image(path, self.refs.shape)
        self._write(name, Path(path).read_bytes())

    def real(self, name, i):
        """Writes the follow-up of case i to `name` in the folder."""
        self._image(name, Image.fromarray(self.refs.image(i, "followup")), "PNG")

    def intensities(self, name, image):
        """Writes uint8 [H, W] as a TIFF of float32 from 0 to 1 to `name` in the folder."""
        self._image(name, Image.fromarray(image.astype(np.float32) / 255), "TIFF")

    def _image(self, name, image, kind):
        out = io.BytesIO()
        image.save(out, kind)
        self._write(name, out.getvalue())

    def table(self, name, columns, rows):
        """Writes a CSV to `name` in the folder."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([columns, *rows])
        self._write(name, text.getvalue().encode())

    def text(self, name, text):
        """Writes a text to `name` in the folder."""
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / name, text + "\n")

    def _write(self, name, content):
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(self.folder / name, content, durable=False)


def _chexgenbench(out):
    """Its prompt_INFO.csv and images, and a CSV of the real follow-ups in the columns that its metrics/fid.py reads.

    It keeps one real image of those with one prompt, and finds a pathology's images by their prompts. Progression
    prompts repeat, so `annotated_prompt` begins with the case's name; `prompt` is what the system was given.
    """
    refs, rows = out.refs, out.rows
    unique = [f"{out.case(i)}: {row['prompt']}" for i, row in enumerate(refs.rows)]
    made = []
    for r, i in enumerate(map(int, rows.case)):
        name = f"{out.row_name(r)}.png"
        out.generated(f"assets/synthetic_images/{name}", r)
        made.append((rows.prompts[r], unique[i], name))
    real = []
    for i in sorted({*map(int, rows.case)}):
        labels = refs.rows[i].get("labels_after") or {}
        out.real(f"real_images/{out.case(i)}.png", i)
        real.append((f"{out.case(i)}.png", unique[i], repr({name: labels.get(name) for name in CHEXPERT})))
    out.table("real.csv", ("path", "annotated_prompt", "chexpert_labels"), real)
    out.table("assets/CSV/prompt_INFO.csv", ("prompt", "annotated_prompt", "img_savename"), made)


def _m3(out):
    """Two folders, real/ and generated/; the patient is in the names, for --group-pattern="(subject[0-9]+)"."""
    for r, i in enumerate(map(int, out.rows.case)):
        out.generated(f"generated/{out.subject_name(i)}_{out.row_name(r)}.png", r)
    for i in sorted({*map(int, out.rows.case)}):
        out.real(f"real/{out.subject_name(i)}_{out.case(i)}.png", i)


def _radmatch(out):
    """reports_gt/ and reports_pred/ of .txt files of one name, the first sample of each case."""
    for r, i in enumerate(map(int, out.rows.case)):
        if r and out.rows.case[r - 1] == i:
            continue
        out.text(f"reports_pred/{out.case(i)}.txt", out.rows.texts[r])
        out.text(f"reports_gt/{out.case(i)}.txt", out.refs.rows[i]["interpretation"])


def _teacsv(out):
    """The folder of an experiment that TEA's 5_TEA.ipynb reads, with mode = "add" and cgm = "system".

    One file name stands for prior (test/no_bias), true counterfactual (test/bias) and generated image
    (system_cfs/bias). It takes three numbers from the name: here patient, case and sample. What only colours its
    figures is not known, and empty: the distance between subjects (isv_dst), its pseudo-oracle's predictions.
    """
    rows = []
    for r, i in enumerate(map(int, out.rows.case)):
        row, true = out.refs.rows[i], out.refs.image(i, "counterfactual")
        if true is None:
            raise UserError(
                f"{out.refs.root}: case {row['pair_id']} has no true counterfactual, which TEA compares with; "
                "export teacsv of the phantom"
            )
        patient, sample = out.subject[row["patient_id"]], int(out.rows.sample[r])
        name = f"subject_{patient:05d}_case_{i:05d}_sample_{sample}_.tiff"
        for folder, image in (
            ("test/no_bias", out.refs.image(i, "prior")),
            ("test/bias", true),
            ("system_cfs/bias", read_image(out.rows.images[r], out.refs.shape)),
        ):
            out.intensities(f"{folder}/{name}", image)
        asked = {f: "+" if way > 0 else "-" for f, way in (row.get("prompt_changes") or {}).items() if way}
        changes = "; ".join(f"{way}{finding}" for finding, way in asked.items())
        who = [row.get(key) for key in ("age", "sex", "group")]
        rows.append((name, "", out.row_name(r), out.rows.prompts[r], changes, *who))
    out.table("test.csv", ("filename", "isv_dst", "name", "prompt", "changes", "age", "sex", "group"), rows)
    out.table("system_cfs/bias/predictions.csv", ("filename", "predictions"), [(row[0], "") for row in rows])


# Protocol -> (function, what of a system it needs).
EXPORTS = {
    "chexgenbench": (_chexgenbench, "images"),
    "m3": (_m3, "images"),
    "radmatch": (_radmatch, "texts"),
    "teacsv": (_teacsv, "images"),
}


def export(protocol, predictions, references, folder):
    """Writes one system's predictions as `protocol` (of EXPORTS) reads them.

    Args:
      predictions: predictions folder. references: folder of references.jsonl.
      folder: to write to; must not be there, or be empty, because others count whatever lies in it. export.csv is
        written last.

    Raises:
      UserError: unreadable input, a system without images or texts, or a case without a true counterfactual, where the
        protocol wants them, a folder in use.
    """
    refs, folder = read_references(references), Path(folder)
    rows = read_predictions(predictions, refs)
    write, need = EXPORTS[protocol]
    if getattr(rows, need) is None:
        raise UserError(f"{predictions}: has no {need}, which {protocol} is about; export another system")
    try:
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder}: is there and not empty; delete it or choose another --out")
        patients = dict.fromkeys(row["patient_id"] for row in refs.rows)
        out = _Export(folder, refs, rows, {p: n for n, p in enumerate(patients)})
        write(out)
        known = [(out.row_name(r), refs.pair_ids[int(i)], int(rows.sample[r])) for r, i in enumerate(rows.case)]
        out.table("export.csv", ("name", "pair_id", "sample"), known)
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot be written ({error.strerror}); mend that") from None
    return folder

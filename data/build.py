"""Cohort -> ICG-CXR tree -> references and shards: in several processes, resumable after a kill at any time.

A patient is the unit of work (`data.patients`). What one gave is a line of a journal, so a second run goes on behind
it. Singles, rejections and the funnel are written from the journal, in the patients' order, at the end.
"""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from progemu_jax.data import (
    duplicates,
    icg_cxr,
    images,
    journeys,
    leaks,
    patients,
    registration_sheets,
    texts,
)
from progemu_jax.data.beam import map_on_beam, require
from progemu_jax.data.pool import ordered_map
from progemu_jax.data.references import build_references
from progemu_jax.data.sources import SOURCES, Given, Study, open_source
from progemu_jax.data.texts import TextOptions
from progemu_jax.errors import UserError
from progemu_jax.files import findings as findings_file
from progemu_jax.files import records
from progemu_jax.files.settings import filled
from progemu_jax.text.findings import PHANTOM


def build(
    source: str,
    root: str | Path,
    workdir: str | Path,
    *,
    size: int = 512,
    image_size: int | None = None,
    options: journeys.Options | dict | None = None,
    unchanged: float = 1.0,
    text_options: TextOptions | None = None,
    exclude: str | Path | None = None,
    truth: str | Path | None = None,
    processes: int | None = None,
    progress: bool = True,
    source_options: dict | None = None,
    beam: Sequence[str] = (),
) -> dict:
    """Source cohort -> `workdir`/tree, /references (test split) and /shards (configs pairs, single).

    size: working resolution, of registration and the tree; image_size: of references and shards (default:
    size). unchanged: share of the pairs without change to keep, chosen by a hash. text_options: where prompts come
    from, default our rules; a language model's answers are kept in `workdir`/texts. exclude: a file with a patient
    id a line, to be left out. truth: the phantom's truth/ folder. processes: workers over patients, default all
    cores. beam: arguments of Apache Beam, which then works on patients and shards instead (`data.beam`). What is
    complete is left; unfinished work is taken up. Returns {"funnel": {step: count}, "tree", "references",
    "shards": paths}. Raises UserError for bad options, a source that cannot be read, a cohort that
    leaves no pair, and a tree built with other options.
    """
    workdir = Path(workdir)
    funnel = build_tree(
        source, root, workdir / "tree", size=size, options=options, unchanged=unchanged, text_options=text_options,
        exclude=exclude, processes=processes, progress=progress, source_options=source_options, beam=beam,
    )  # fmt: skip
    if not funnel["single images kept"]:
        raise UserError(f"{root}: no image has a text of its own; the tokenizer and stage 1 learn from such images")
    image_size = image_size or size
    common = {"processes": processes, "progress": progress}
    build_references(workdir / "tree", workdir / "references", truth=truth, size=image_size, **common)
    icg_cxr.build_shards(workdir / "tree", workdir / "shards", image_size, beam=beam, **common)
    return {
        "funnel": funnel,
        "tree": workdir / "tree",
        "references": workdir / "references",
        "shards": workdir / "shards",
    }


def build_tree(
    source: str,
    root: str | Path,
    out: str | Path,
    *,
    size: int = 512,
    options: journeys.Options | dict | None = None,
    unchanged: float = 1.0,
    text_options: TextOptions | None = None,
    exclude: str | Path | None = None,
    processes: int | None = None,
    progress: bool = True,
    source_options: dict | None = None,
    beam: Sequence[str] = (),
) -> dict[str, int]:
    """Source cohort -> ICG-CXR tree at `out`; see `build`. Returns the funnel, which is printed too."""
    if isinstance(options, dict):
        options = journeys.Options(**options)
    options = options or journeys.Options()
    if not images.LEAST <= size <= 4096:
        raise UserError(f"size={size}: between {images.LEAST} and 4096 pixels are supported")
    if not 0 <= unchanged <= 1:
        raise UserError(f"unchanged={unchanged}: a share between 0 and 1 is needed")
    if beam:
        require()
    out = Path(out)
    plan = _plan(source, size, unchanged, options, text_options, exclude, source_options)
    finished = records.read_json(out / "funnel.json")
    if finished:
        _same(finished.get("settings"), plan.settings, out)
        _say(f"{out}: complete, {finished['funnel'].get('pairs kept', 0)} pairs", progress)
        return finished["funnel"]
    cohort = read_cohort(source, root, options, plan.exclude, source_options, progress)
    work = prepare(source, cohort, out, plan, progress)
    mapper = partial(map_on_beam, arguments=beam) if beam else partial(ordered_map, processes=processes)
    results = _run(cohort.journeys, work, out / "journal.jsonl", plan.settings, mapper, progress)
    funnel = finish(out, cohort, results, plan.settings)
    _say(_table(funnel), progress)
    return funnel


@dataclass(frozen=True)
class Plan:
    """The settings that a tree depends on, as JSON, and what they stand for."""

    settings: dict
    size: int
    unchanged: float
    texts: TextOptions
    exclude: frozenset[str]
    options: journeys.Options


def _plan(source, size, unchanged, options, text_options, exclude, source_options) -> Plan:
    text_options = text_options or TextOptions()
    left_out = journeys.read_list(exclude) if exclude else frozenset()
    if options.pairs == "both" and text_options.mode == "impression":
        raise UserError(
            "texts.mode=impression with journeys.pairs=both: an impression may speak of another study; use rules or llm"
        )
    if text_options.mode != "rules" and source in SOURCES and SOURCES[source].labelled:
        raise UserError(f"texts.mode={text_options.mode}: {source} has labels and no reports; use rules")
    settings = {"source": source, "size": size, "unchanged": unchanged, "options": asdict(options)}
    matters = {
        "max_pairs_per_patient": options.pairs == "both",
        "history": options.history > 0,
        "coarse_days": options.coarse_days and not options.history,
    }
    for key in (key for key, does in matters.items() if not does):
        del settings["options"][key]  # nothing depends on it, and trees from before the key go on
    places = {k: str(v) for k, v in (source_options or {}).items()}
    settings |= {
        "source_options": places,
        "texts": text_options.identity(),
        "exclude": records.digest(sorted(left_out)),
    }
    return Plan(records.normal(settings), size, unchanged, text_options, left_out, options)


def read_cohort(
    source, root, options: journeys.Options, exclude=frozenset(), source_options=None, progress=False
) -> journeys.Cohort:
    """The journeys of a source; UserError where no pair is left."""
    reader = open_source(source, root, **{"views": tuple(options.view_of()), **(source_options or {})})
    given = hasattr(reader, "pairs")
    items, same = reader.pairs() if given else reader.studies(), None
    unit = "pair" if given else "image"
    items = tqdm(items, desc=f"{unit}s of the source", unit=unit, disable=not progress)
    if options.duplicates and journeys.split_method(source, options) == "hash":
        items, views = list(items), options.view_of()
        found = [s for i in items for s in ((i.prior, i.followup) if isinstance(i, Given) else (i,))]
        found = [s for s in found if isinstance(s, Study) and (given or s.view in views)]
        same = duplicates.same_patients(tqdm(found, desc="duplicates", unit="image", disable=not progress))
    group = journeys.given_journeys if given else journeys.journeys
    cohort = group(items, options, same, exclude)
    cohort.findings = getattr(reader, "findings", PHANTOM)
    if not any(j.pairs for j in cohort.journeys):
        raise UserError(f"{root}: no pair of studies is left; {_table(cohort.funnel, one_line=True)}")
    return cohort


def prepare(source: str, cohort: journeys.Cohort, out: Path, plan: Plan, progress: bool) -> patients.Work:
    """Makes the folder, has the texts written where a language model writes them, and says what workers do."""
    pairs = [pair for journey in cohort.journeys for pair in journey.pairs]
    cache = out.parent / "texts"
    if plan.texts.mode == "llm":
        texts.ask(
            pairs, plan.texts, cache, source=SOURCES[source].what, credentialed=SOURCES[source].credentialed,
            progress=progress,
        )  # fmt: skip
        _say(f"{cache}: {texts.cost(cache)}", progress)
    out.mkdir(parents=True, exist_ok=True)
    findings_file.write(out, cohort.findings)
    shutil.rmtree(out / ".tmp", ignore_errors=True)
    share = min(1.0, registration_sheets.SAMPLE / max(1, len(pairs)))
    return patients.Work(out, plan.size, plan.unchanged, plan.texts, cache, share, plan.options, cohort.findings)


def finish(out: Path, cohort: journeys.Cohort, results: dict[str, dict], settings: dict) -> dict[str, int]:
    """Writes what is gathered over patients, the funnel last: it marks the tree complete."""
    ordered = [results[patients.key(j)] for j in cohort.journeys]
    records.write_lines(out / "singles.jsonl", (row for r in ordered for row in r["singles"]))
    dropped = [row for r in ordered for row in r["rejected"]]
    records.write_lines(out / "images.jsonl", (row for r in ordered for row in r["images"]))
    records.write_lines(out / "rejected.jsonl", [asdict(r) for r in cohort.rejected] + dropped)
    funnel = dict(cohort.funnel)
    for row in dropped:
        step = f"dropped: {row['reason'].split(' (')[0].split(':')[0]}"
        funnel[step] = funnel.get(step, 0) + 1
    kept = Counter(j.split for j in cohort.journeys for _ in results[patients.key(j)]["pairs"])
    funnel["pairs kept"] = sum(kept.values())
    funnel.update({f"pairs kept, {split}": kept[split] for split in journeys.SPLITS})
    if "candidate pairs, reversed" in funnel:
        names = {name for j in cohort.journeys for name in results[patients.key(j)]["pairs"]}
        made = [p for j in cohort.journeys for p in j.pairs if p.pair_id in names]
        funnel["pairs kept, reversed"] = sum(p.reversed for p in made)
        funnel["pairs kept, not consecutive"] = sum(not p.consecutive for p in made)
    if settings["options"].get("history"):
        counts = zip(*(r["older"] for r in ordered), strict=True)
        funnel["older films kept"], funnel["older films left out"] = map(sum, counts)
    funnel["single images kept"] = sum(len(r["singles"]) for r in ordered)
    funnel["leaks between splits"] = sum(1 for _ in leaks.crossing(row for r in ordered for row in r["images"]))
    if not funnel["pairs kept"]:
        raise UserError(f"{out}: no pair is left; rejected.jsonl there says why")
    shutil.rmtree(out / ".tmp", ignore_errors=True)
    for folder in out.glob(".beam-*"):
        shutil.rmtree(folder)
    records.remove_leftovers(out)
    registration_sheets.finish(out)
    records.write_text(out / "funnel.json", json.dumps({"settings": settings, "funnel": funnel}, indent=1) + "\n")
    records.delete(out / "journal.jsonl")
    return funnel


def _run(todo, work: patients.Work, journal: Path, settings: dict, mapper, progress) -> dict[str, dict]:
    """Patient key -> result, for every journey; those in the journal are not done again."""
    done = _read_journal(journal, settings, work.root)
    left = [j for j in todo if patients.key(j) not in done]
    with (
        open(journal, "a", encoding="utf-8") as file,
        tqdm(total=len(todo), initial=len(done), unit="patient", desc="pairs", disable=not progress) as bar,
    ):
        for result in mapper(partial(patients.process, work=work), left):
            file.write(json.dumps(result) + "\n")
            file.flush()
            done[result["patient"]] = result
            bar.update()
    return done


def _read_journal(path: Path, settings: dict, out: Path) -> dict[str, dict]:
    """Results in the journal; a half-written last line is cut off, and a new journal gets the settings."""
    done, good = {}, 0
    if path.exists():
        content = path.read_bytes()
        for line in content.splitlines(keepends=True):
            try:
                row = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                row = None
            if row is None:
                break
            if good == 0:
                _same(row.get("settings"), settings, out)
            else:
                done[row["patient"]] = row
            good += len(line)
        with open(path, "r+b") as file:
            file.truncate(good)
    if good == 0:
        with open(path, "w", encoding="utf-8") as file:
            file.write(json.dumps({"settings": settings}) + "\n")
    return done


def _same(old, new: dict, out: Path) -> None:
    kinds = {"options": journeys.Options, "texts": TextOptions}
    difference = records.first_difference(filled(kinds, old, new), filled(kinds, new, old))
    if difference:
        key, before, now = difference
        raise UserError(f"{out}: built with {key}={before!r}, asked for {now!r}; give another folder or delete it")


def _table(funnel: dict[str, int], one_line: bool = False) -> str:
    if one_line:
        return ", ".join(f"{step}: {count}" for step, count in funnel.items())
    width = max(map(len, funnel))
    return "\n".join(f"{step:<{width}}  {count:>9,}" for step, count in funnel.items())


def _say(text: str, progress: bool) -> None:
    if progress:
        print(text, flush=True)

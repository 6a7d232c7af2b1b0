"""Pieces of the page as HTML; all that a stranger wrote is escaped. Images are in it as data, so no file is served."""

from __future__ import annotations

import base64
from html import escape

import numpy as np

from progemu_jax.app.service import Answer, Service, Step
from progemu_jax.data import images
from progemu_jax.eval.page_images import DIFFERENCE, difference_map, overlay
from progemu_jax.text.understood import Understood, known

SPREAD = 48  # gray levels of standard deviation at full colour
_MARKS = {True: ("good", "✓", "the image agrees"), False: ("bad", "✗", "the image does not agree"), None: ("", "–", "")}


def data_uri(png: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(png).decode('ascii')}"


def picture(image: np.ndarray, name: str) -> str:
    """uint8 [H, W] or [H, W, 3] with its name as the text for who does not see it, and below it."""
    name, source = escape(name), data_uri(images.png(image))
    return f'<figure><img alt="{name}" src="{source}"><figcaption>{name}</figcaption></figure>'


def said(text: str, kind: str = "note") -> str:
    """One line; kind: "note", "warn" or "error"."""
    role = "alert" if kind == "error" else "status"
    return f'<p class="pe-{kind}" role="{role}">{escape(text)}</p>' if text else ""


def reading(sent: str, typed: str, read: Understood, service: Service) -> str:
    """How a prompt is understood, for who types it."""
    if not typed.strip():
        return said("Type what changed, for example: New small left pleural effusion.")
    rows = "".join(f"<li>{escape(one.in_words())}</li>" for one in read.read)
    parts = [f"<p><b>Understood:</b></p><ul>{rows}</ul>" if rows else "<p><b>Understood:</b> nothing</p>"]
    if sent != typed:
        parts.append(said(f"Sent as: {sent}"))
    if read.rest:
        parts.append(said(f"Not read: {read.rest}"))
    if read.warning:
        ask = f" Ask for {', '.join(known(service.findings))}." if read.unknown or not read.read else ""
        parts.append(said(read.warning + ask, "warn"))
    return f'<div class="pe-reading" aria-live="polite">{"".join(parts)}</div>'


def comparison(step: Step, future: int) -> str:
    """Before and after under one slider, the difference, and where the futures disagree."""
    before, out = step.before(future), step.out
    after = f'<img class="pe-after" alt="After: synthetic image" src="{data_uri(step.pngs[future])}">'
    slider = (
        '<input type="range" min="0" max="100" value="50" aria-label="Before and after: right shows more of before" '
        "oninput=\"this.parentNode.style.setProperty('--at', this.value + '%')\">"
    )
    parts = [
        f'<figure><div class="pe-compare"><img alt="Before: the prior as the model sees it" '
        f'src="{data_uri(images.png(before))}">{after}{slider}</div>'
        "<figcaption>Before | after (synthetic)</figcaption></figure>",
        picture(difference_map(out.images[future], before), "Difference: red brighter, blue darker"),
    ]
    if len(out.images) > 1:
        heat = np.clip(out.uncertainty / SPREAD, 0, 1)
        parts.append(
            picture(overlay(before, heat), f"Spread of the {len(out.images)} futures: red where they disagree")
        )
    scale = f"Full colour at {DIFFERENCE} gray levels of difference, {SPREAD} of standard deviation."
    return f'<div class="pe-images">{"".join(parts)}</div><p class="pe-soft">{scale}</p>'


def course(answer: Answer, future: int) -> str:
    """The steps of a course beside each other; "" for one step."""
    if len(answer.steps) < 2:
        return ""
    shown = [picture(answer.steps[0].before(future), "Prior")]
    shown += [
        f'<figure><img alt="Step {n}, synthetic" src="{data_uri(step.pngs[future])}">'
        f"<figcaption>{n}. {escape(step.out.prompt)}</figcaption></figure>"
        for n, step in enumerate(answer.steps, 1)
    ]
    return f'<div class="pe-images pe-strip">{"".join(shown)}</div>'


def futures(step: Step) -> str:
    """All futures, small; "" for one."""
    if len(step.pngs) < 2:
        return ""
    shown = [
        f'<figure><img alt="Future {n}, synthetic" src="{data_uri(png)}"><figcaption>Future {n}</figcaption></figure>'
        for n, png in enumerate(step.pngs, 1)
    ]
    return f'<div class="pe-images pe-strip">{"".join(shown)}</div>'


def words(step: Step, future: int, service: Service) -> str:
    """The text, its sentences marked, and what the scorer says of the findings that the prompt moves."""
    parts = []
    if step.out.texts is None:
        parts.append(said("A diffusion model writes no text."))
    else:
        marks = ((sentence, *_MARKS[verdict]) for sentence, verdict in step.marks[future])
        rows = [
            f'<li class="{kind}"><span aria-hidden="true">{mark}</span> {escape(text)}'
            f"{f' <small>({told})</small>' if told else ''}</li>"
            for text, kind, mark, told in marks
        ]
        parts.append(f'<ul class="pe-text">{"".join(rows)}</ul>' if rows else said("The model wrote no text."))
        if service.scorer is None:
            parts.append(said("No sentence is marked: there is no scorer for what this model was trained on."))
    for name, pair in step.scores.items():
        before, after = pair[future]
        parts.append(f'<span class="pe-chip">{escape(name)} {before:.2f} → {after:.2f}</span>')
    if step.scores:
        parts.append(said(f"Probabilities by the scorer, before → after. {service.scorer.caveat}"))
    return "".join(parts)


def downloads(answer: Answer, step: int, future: int) -> str:
    """Two links that hold their files."""
    png = data_uri(answer.steps[step].pngs[future])
    packed = data_uri(answer.folder, "application/zip")
    return (
        f'<p class="pe-downloads"><a download="synthetic-{step + 1}-{future + 1}.png" href="{png}">'
        "Download this image (PNG, says that it is synthetic)</a>"
        f'<a download="predictions.zip" href="{packed}">Download all (predictions folder, ZIP)</a></p>'
    )

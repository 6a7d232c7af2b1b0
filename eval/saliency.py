"""Where the scorer looks: Grad-CAM maps of findings on generated and on real images, side by side on the page."""

from html import escape

from progemu_jax.eval.page_images import drawn_cases, figure, overlay

SHOWN = 6


def saliency_section(candidates, refs, seed):
    """HTML section with the maps of findings that prompts name, of the system under test; '' without maps."""
    first = candidates[0]
    followup = next((c for c in candidates if c.image_kind == "followup"), None)
    scored = followup is not None and first.scores is not None and followup.scores is not None
    if not (scored and first.has_images and first.scores.saliency is not None and followup.scores.saliency is not None):
        return ""
    cards = []
    for r in drawn_cases(first.rows, len(first.rows), seed):
        case, sample = int(first.rows.case[r]), int(first.rows.sample[r])
        pair, row = refs.pair_ids[case], refs.rows[case]
        named = [f for f, way in (row.get("prompt_changes") or {}).items() if way and f in first.scores.findings]
        if not named:
            continue
        finding = first.scores.findings.index(named[0])
        maps = [
            scores.saliency[scores.keys[pair, number], finding]
            for scores, number in ((first.scores, sample), (followup.scores, 0))
        ]
        images = (first.image(refs, int(r)), refs.image(case, "followup"))
        shown = "".join(
            figure(picture, caption)
            for image, heat, name in zip(images, maps, ("Generated", "Real follow-up"), strict=True)
            for picture, caption in ((image, name), (overlay(image, heat), f"{name}: {named[0]}"))
        )
        cards.append(
            f'<div class="maps case"><div class="note">{escape(pair)}: {escape(row["prompt"])}</div>'
            f'<div class="images">{shown}</div></div>'
        )
        if len(cards) == SHOWN:
            break
    if not cards:
        return ""
    return (
        "<h2>Where the scorer looks</h2><p>Grad-CAM of the finding that the prompt names, on the generated image and "
        f"on the real follow-up; {len(cards)} cases drawn at random.</p>" + "".join(cards)
    )

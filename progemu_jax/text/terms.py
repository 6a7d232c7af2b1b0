"""The words for findings, and what each says by the definitions of CheXpert's labels.

A prompt may ask for one finding in many words: "airspace disease" for a consolidation, "congestion" for edema, a
blunted angle for an effusion. A report means what it says: airspace disease is a Lung Opacity until somebody calls it
a consolidation; congestion, a blunted angle and volume loss are signs, of which fluid in the lung, fluid in the
pleura and atelectasis are causes among others. Both readings stand here, side by side.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

from progemu_jax.text.findings import Finding


class Term(NamedTuple):
    """What a word or phrase stands for.

    finding: the CheXpert observation that it is nearest to, or None: a structure or finding beside them.
    form: plain, many, heart, angle, lungs, vessels (structures that are normal or not) or other.
    labels: the observations that it says something of by their definitions; () is (finding,).
    sign: it only suggests the finding; where it is present the finding is uncertain.
    """

    finding: str | None
    form: str
    labels: tuple[str, ...] = ()
    sign: bool = False


# Where fluid is an effusion and air a pneumothorax; the side in it is read by itself.
_OF_SIDE = r"(?:the |both )?(?:left |right )?"
_FLUID = (
    rf"(?:fluid|water|liquid)(?= (?:(?:at|in) {_OF_SIDE}(?:lung )?(?:bases?|pleural|hemithora|chest(?! wall))"
    rf"|(?:around|between|above|outside) {_OF_SIDE}(?:lungs?|hemidiaphragm)|on the (?:left|right)))"
)
_AIR = (
    rf"(?<!subcutaneous )(?:free )?(?:air|gas)(?= (?:trapped )?(?:in {_OF_SIDE}(?:pleural|hemithora)"
    rf"|(?:around|between|outside) {_OF_SIDE}lungs?))"
)
_OPACITY = r"opacit(?:y|ies)|opacifications?|densit(?:y|ies)"
_AIRSPACE = r"(?:airspace|air-space|air space)"

# (term, pattern). The order matters.
TERMS: list[tuple[Term, str]] = [
    (
        Term(None, "other"),
        r"pericardial effusions?|joint effusions?|heart border|heart failure (?:history|exacerbation)"
        r"|left heart|right heart|mediastinal shift|tracheal deviation|shift(?:ed)?"
        r"|(?:respiratory|renal|kidney|liver|hepatic|hardware) failure",
    ),
    (
        Term("Edema", "plain", sign=True),
        r"(?:pulmonary|lung|hilar) congestion|congestive (?:changes|failure)"
        r"|congestion of the lungs|lungs(?= (?:are |have )?(?:now |become )?(?:more |less |no longer )?congested)"
        r"|(?:acute |chronic |congestive |left ){0,4}(?:heart|cardiac) failure|chf"
        r"|(?:central |pulmonary |peri-?hilar ){0,4}(?:vascular|venous) (?:congestion|engorgement|plethora"
        r"|congestive changes?)"
        r"|(?:fluid|volume) overload|perihilar (?:haze|haziness|opacities|indistinctness)"
        r"|kerley(?:[- ]?b)?(?: lines)?|cephali[sz]ation|septal (?:lines|thickening)|failure",
    ),
    (
        Term("Edema", "plain"),
        r"fluid (?:in|on) (?:the|both|his|her) lungs|wet lungs|lung o?edema|interstitial fluid"
        r"|(?:(?:interstitial|alveolar|pulmonary|perihilar|hydrostatic|cardiogenic|airspace"
        r"|air-space)[- /]*(?:and )?){0,4}o?edema(?:tous)?",
    ),
    (
        Term("Edema", "vessels", sign=True),
        r"(?:pulmonary |central ){0,4}(?:vasculature|vascularity|vascular markings|vessels)",
    ),
    (Term("Pleural Effusion", "many"), r"(?:pleural )?effusions|hydrothoraces"),
    (
        Term("Pleural Effusion", "plain", ("Pleural Effusion", "Pneumothorax")),
        r"(?:pyo|haemo|hemo|hydro)pneumothora(?:x|ces)",
    ),
    (
        Term("Pleural Effusion", "plain"),
        rf"{_FLUID}|pleural (?:liquid|eff|(?:fluid )?collection)"
        r"|(?:pleural )?effusion|pleural fluid|fluid in the pleural spaces?|(?:sub-?pulmonic"
        r"|loculated) fluid|hydrothorax|meniscus",
    ),
    (
        Term("Pleural Effusion", "angle", sign=True),
        r"(?:costo(?:phrenic|diaphragmatic)|cp) (?:angles?|sulc(?:us|i)|recess(?:es)?)",
    ),
    (Term("Pneumothorax", "many"), r"pneumothora(?:ces|xes)|ptxs"),
    (
        Term("Pneumothorax", "plain"),
        rf"{_AIR}|pneumo|pnx|(?:free |intra)?pleural (?:air|gas)(?: collections?)?|visible pleural line"
        r"|pneumothorax|ptx|air in the pleural space|visceral pleural line",
    ),
    (
        Term("Cardiomegaly", "plain"),
        r"cardiomegaly|(?:cardiac|heart) dilat(?:at)?ion|dilat(?:at)?ion of the heart|(?:big|wide) heart"
        r"|enlargement of the heart shadow|cardiac silhouette enlargement|cardiac enlargement"
        r"|enlargement of the (?:heart|cardiac (?:silhouette|contour"
        r"|shadow)|cardiomediastinal silhouette)|heart enlargement",
    ),
    (
        Term("Cardiomegaly", "heart"),
        r"(?:the )?(?:cardiac|heart|cardiomediastinal|cardio-mediastinal"
        r"|cardiopericardial)(?: and mediastinal)? (?:silhouettes?|contours?|size|shadow"
        r"|diameter)(?: size)?|size of the (?:heart|cardiac silhouette)|\bheart\b|cardiothoracic ratio",
    ),
    (
        Term("Atelectasis", "plain"),
        r"(?:plate-?like |discoid |linear |sub-?segmental |compressive |band-?like |plate |streaky "
        r"|segmental ){0,4}(?:atelectas[ei]s"
        r"|atelectatic (?:changes?|bands?|opacit(?:y|ies)|streaks?|lung))|(?:lobar|lobe|lung"
        r"|sub-?segmental|segmental) collapse|collapse|airless lung",
    ),
    (
        Term("Atelectasis", "plain", sign=True),
        r"volume loss|loss of (?:volume|aeration)|(?:poor|under-?|reduced )(?: ?aeration|expansion)(?= of)"
        r"|incomplete expansion(?= of)|deflation(?= of)",
    ),
    (
        Term("Consolidation", "many"),
        rf"consolidations|consolidative (?:{_AIRSPACE} )?(?:opacities|changes)|{_AIRSPACE} consolidations",
    ),
    (Term("Consolidation", "many", ("Lung Opacity",)), rf"{_AIRSPACE} opacities"),
    (
        Term("Consolidation", "plain"),
        rf"consolidation|consolidat(?:ive|ed)(?: (?:{_AIRSPACE} )?(?:{_OPACITY}|process|disease|change|lung))?"
        r"|alveolar consolidation",
    ),
    (
        Term("Consolidation", "plain", ("Lung Opacity",)),
        rf"{_AIRSPACE} (?:disease|process|{_OPACITY}|shadowing|filling)|air bronchograms?|alveolar filling",
    ),
    (Term("Pneumonia", "plain"), r"(?:broncho)?pneumonias?|infection|infectious process|pneumonitis"),
    (
        Term("Lung Lesion", "plain"),
        r"nodul(?:es?|arity)|mass(?:es)?|granulomas?|metastas[ei]s|tumou?r|lesions?|neoplasm",
    ),
    (Term("Fracture", "plain"), r"(?:rib )?fractures?"),
    (
        Term("Pleural Other", "plain"),
        r"pleural (?:thickening|plaques?|scarring|calcifications?)|pleuroparenchymal scarring|fibrothorax",
    ),
    (
        Term("Enlarged Cardiomediastinum", "plain"),
        r"(?:mediastinal )?widening(?: of the mediastinum)?|widened mediastinum",
    ),
    (
        Term("Support Devices", "plain"),
        r"(?:endotracheal |ett? |enteric |nasogastric |orogastric |ng |chest |feeding |tracheostomy "
        r"|dobhoff |pigtail |thoracostomy |drainage ){0,4}(?:tubes?|catheters?|drains?|picc|lines?(?= (?:tip"
        r"|terminat|ends|in place))|pacemakers?|defibrillators?|icd|leads?|stents?|port-?a-?cath|swan-ganz"
        r"|sternotomy wires|wires|clips|ett|valve (?:replacement|prosthesis)|balloon pump|hardware)",
    ),
    (
        Term("No Finding", "plain"),
        r"acute (?:cardio-?pulmonary|intrathoracic|cardio-?thoracic|pulmonary|chest) (?:process"
        r"|abnormalit(?:y|ies)|disease|findings?|pathology)",
    ),
    (Term("Lung Opacity", "plain"), rf"(?:{_OPACITY})|infiltrat(?:es?|ions?)|haziness|haze"),
    (
        Term(None, "other"),
        r"lung volumes?(?! loss)|inspirat(?:ion|ory effort|ory)|aeration|ventilation|mediastin(?:um"
        r"|al(?: contours?| silhouette)?)|hil(?:um|a|ar(?: contours?)?)|aort(?:a|ic(?: knob| arch"
        r"| calcifications?)?)|hemi-?diaphragms?|diaphragms?|(?:osseous|bony|skeletal)(?: structures"
        r"| abnormalit(?:y|ies))?|spine|scoliosis|ribs?|trachea|scar(?:ring)?|hernia|emphysema|copd"
        r"|hyperinflation|free air|pneumoperitoneum|interstitial (?:markings|lung disease)"
        r"|calcifications?|structures|abnormalit(?:y|ies)|stomach|bowel"
        # "no findings of edema" is about edema.
        r"|exam(?:ination)?|radiographs?|findings?(?! (?:of|for|that|to suggest|suggest|indicat|typical|character))",
    ),
    (
        Term(None, "lungs"),
        r"(?:both |bilateral |remaining |remainder of the |the ){0,4}lungs?(?: fields?"
        r"| parenchyma)?(?= (?:is "
        r"|are |remain |remains |appear |appears )?(?:otherwise |otherwise well |both |now |grossly "
        r"|essentially |well ){0,4}(?:expanded and |aerated and )?clear\b)",
    ),
]  # fmt: skip

_READ_AS = {
    "pleural effusion": "Pleural Effusion",
    "pneumothorax": "Pneumothorax",
    "cardiomegaly": "Cardiomegaly",
    "pulmonary edema": "Edema",
    "atelectasis": "Atelectasis",
    "consolidation": "Consolidation",
    "pneumonia": "Pneumonia",
    "lung opacity": "Lung Opacity",
    "lung lesion": "Lung Lesion",
    "enlarged cardiomediastinum": "Enlarged Cardiomediastinum",
    "pleural abnormality": "Pleural Other",
    "fracture": "Fracture",
    "support devices": "Support Devices",
}
"""Names without a side -> observation, of the findings whose words are all among TERMS."""

# Words for the findings of further lists; any other name stands for itself, one or several.
_WORDS = {
    "mass": r"mass(?:es)?|mass lesions?",
    "nodule": r"nodul(?:es?|arity)|nodular (?:lesions?|opacit(?:y|ies))|coin lesions?",
    "infiltration": r"infiltrat(?:es?|ions?)",
    "infiltrates": r"infiltrat(?:es?|ions?)",
    "emphysema": r"(?<!subcutaneous )emphysema(?:tous changes?)?",
    "pulmonary fibrosis": r"(?:pulmonary |interstitial |lung )?fibro(?:sis|tic changes?)|fibrosis of the lungs?",
    "pleural thickening": r"pleural thickening|thickening of the pleura|thickened pleura",
    "hiatal hernia": r"(?:(?:hiatal|hiatus|diaphragmatic) )?hernias?",
    "pleural abnormality": r"pleural abnormalit(?:y|ies)",
    "enlarged cardiomediastinum": r"enlarged cardiomediastinum",
    "support devices": r"support devices?",
}


def read_as(finding: Finding) -> str:
    """What a mention of a finding of any list has for its own: an observation, or the name without a side."""
    return _READ_AS.get(finding.noun, finding.noun)


@functools.lru_cache(maxsize=64)
def further(findings: tuple[Finding, ...]) -> tuple[tuple[Term, str], ...]:
    """(term, pattern) of what a list of findings names beside TERMS, long names first; () for the phantom's list."""
    nouns = sorted({f.noun: f for f in findings}.values(), key=lambda f: -len(f.noun))
    return tuple(
        (Term(read_as(f), "plain"), _WORDS.get(f.noun, rf"{re.escape(f.noun.lower())}s?"))
        for f in nouns
        if f.noun in _WORDS or f.noun not in _READ_AS
    )

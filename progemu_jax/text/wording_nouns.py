"""The words for findings: medical, lay and shortened, direct ("pleural effusion") and by their sign ("blunting ...").

One line a form, common ones first. A line reads `[*] [letter] form [| form for both sides] [~style] [=directions]`:

  *           held out: training never sees the form. A fifth of each table, fixed before the first training, spread
              over common and rare forms; the same rule as in `wordings`.
  letter      the class that the verbs ask for (`wordings`): e f p g c h o a k s
  form        with its article where it is counted ("a pleural effusion"), "pl" where it is a plural, neither else.
              `{s}` is the side, `{w}` the place ("the left lower lobe"); a form with neither gets the place from
              the grammar, in front or behind.
  ~style      how it takes a grade: size ("small"), degree ("mild"), amount ("a small amount of"), adverb ("mildly"),
              none. By default counted effusions and pneumothoraces have sizes, what cannot be counted has an amount,
              the rest a degree.
  =directions the only directions that it can be said of
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from progemu_jax.text.findings import is_plural


@dataclass(frozen=True)
class Noun:
    """One form of a finding's name; see the module for the fields' values.

    Attributes:
      text, many: the form and its form for both sides ("" where it has none), without the article.
      number: "count", "mass" or "plural". kind: letter of its class. style: of its grade.
      held: training never sees it. only: directions, empty for all.
    """

    text: str
    many: str
    number: str
    kind: str
    style: str
    held: bool
    only: tuple[str, ...]


_LINE = re.compile(r"(\*)?\s*([efpgchoaks]) (.+?)(?: ~(\w+))?(?: =([\w,]+))?$")
_STYLE = {"e": "size", "p": "size", "f": "amount", "g": "amount", "h": "heart"}


def _nouns(table: str) -> tuple[Noun, ...]:
    out = []
    for line in table.strip().splitlines():
        star, kind, text, style, only = _LINE.match(line.strip()).groups()
        text, _, many = (part.strip() for part in text.partition("|"))
        number = "plural" if text.startswith("pl ") else "count" if re.match(r"an? ", text) else "mass"
        text = re.sub(r"^(?:pl|an?) ", "", text)
        only = tuple(only.split(",")) if only else ()
        out.append(Noun(text, many, number, kind, style or _STYLE.get(kind, "degree"), bool(star), only))
    return tuple(out)


EFFUSION = _nouns("""
    e a pleural effusion | pleural effusions
    e an effusion | effusions
    f pleural fluid
    * e a hydrothorax | hydrothoraces
    f fluid in the {s} pleural space | fluid in both pleural spaces
    f fluid at the {s} base | fluid at both bases
    e a pleural fluid collection | pleural fluid collections
    e a pleural collection | pleural collections
    * f fluid around the {s} lung | fluid around both lungs
    s blunting of the {s} costophrenic angle | blunting of both costophrenic angles
    e an effusion at the {s} base | effusions at both bases
    f fluid in the {s} pleural cavity | fluid in both pleural cavities
    s costophrenic angle blunting | costophrenic angle blunting
    * f fluid in the {s} chest | fluid in both sides of the chest
    f pleural liquid
    e a layering effusion | layering effusions
    f layering fluid at the {s} base | layering fluid at both bases
    e a pleural eff | pleural effs
    * f fluid in the {s} costophrenic angle | fluid in both costophrenic angles
    e a basal effusion | basal effusions
    f fluid in the {s} hemithorax | fluid in both hemithoraces
    f water around the {s} lung | water around both lungs
    e a fluid collection in the {s} pleural space | fluid collections in both pleural spaces
    * f free pleural fluid
    f fluid between the {s} lung and the chest wall
    s blunting of the {s} costophrenic sulcus | blunting of both costophrenic sulci
    f dependent pleural fluid
    s a meniscus at the {s} base ~none =new,resolved,same
""")

PNEUMOTHORAX = _nouns("""
    p a pneumothorax | pneumothoraces
    p a PTX | PTXs
    g air in the {s} pleural space | air in both pleural spaces
    g pleural air
    p a pneumo | pneumos
    g air around the {s} lung | air around both lungs
    * g free air in the {s} pleural cavity | free air in both pleural cavities
    s a visible pleural line | visible pleural lines ~none =new,resolved,same
    * g gas in the {s} pleural space | gas in both pleural spaces
    g air between the {s} lung and the chest wall
    p a pleural air collection | pleural air collections
    p a rim of air around the {s} lung
    g intrapleural air
    * g air outside the {s} lung | air outside both lungs
    p a pnx
    g free pleural air
    p a collection of air in the {s} pleural space
    p a rim of pleural air
    * s a visceral pleural line | visceral pleural lines ~none =new,resolved,same
    g pleural gas
    g air in the {s} hemithorax
    p a gap between the {s} lung and the chest wall
    s separation of the {s} lung from the chest wall ~none
    * g air trapped around the {s} lung
    p a pocket of pleural air
""")

CARDIOMEGALY = _nouns("""
    c cardiomegaly
    c cardiac enlargement
    * c enlargement of the heart
    c enlargement of the cardiac silhouette
    h a heart =worse,better,same
    c an enlarged heart ~adverb =new,same
    c heart enlargement
    h a cardiac silhouette =worse,better,same
    * c an enlarged cardiac silhouette ~adverb =new,same
    c a big heart ~none =new,same
    c enlargement of the cardiac shadow
    h a heart shadow =worse,better,same
    c cardiac dilatation
    * h a cardiac outline =worse,better,same
    c an increased cardiothoracic ratio ~adverb =new
    c dilatation of the heart
    h a cardiac contour =worse,better,same
    c an enlarged cardiac shadow ~adverb =new,same
    * c cardiac silhouette enlargement
    c enlargement of the cardiac contour
    c a raised cardiothoracic ratio ~adverb =new
    h a cardiac shadow =worse,better,same
    c a dilated heart ~adverb =new,same
    * c an elevated cardiothoracic ratio ~adverb =new
    c a wide heart ~none =new,same
    c heart dilatation
    c an enlarged heart shadow ~adverb =new,same
""")

EDEMA = _nouns("""
    o pulmonary edema
    o edema
    o pulmonary congestion
    * o vascular congestion
    o interstitial edema
    o fluid in the lungs ~amount
    o lung edema
    o a CHF pattern
    * o fluid overload
    o hilar congestion
    o congestive changes of the lungs
    o interstitial pulmonary edema
    o a congestive failure pattern
    * o pl wet lungs ~none =new,same,resolved
    o perihilar edema
    o volume overload
    o a heart failure pattern
    o interstitial fluid
    * o pulmonary venous congestion
    o lung congestion
    o hydrostatic edema
    s perihilar haze
    o edema of the lungs
    * s pl Kerley B lines ~none
    o pulmonary vascular engorgement
    o congestion of the lungs
    s pl septal lines ~none
    o cardiogenic edema
    o CHF
    * s interlobular septal thickening
""")

ATELECTASIS = _nouns("""
    a atelectasis
    a volume loss
    a collapse of {w}
    * a loss of volume in {w}
    a subsegmental atelectasis
    a atelectatic change
    a volume loss in {w}
    a linear atelectasis
    * a plate-like atelectasis
    a atelectasis of {w}
    a poor aeration of {w}
    a an atelectatic band
    a segmental atelectasis
    * a underaeration of {w}
    a reduced expansion of {w}
    a band-like atelectasis
    a incomplete expansion of {w}
    a discoid atelectasis
    * a airless lung in {w}
    a pl atelectatic bands
    a loss of aeration in {w}
    a partial collapse of {w} ~none
    a streaky atelectasis
    * a collapsed lung in {w}
    a deflation of {w}
    a plate atelectasis
""")

CONSOLIDATION = _nouns("""
    k consolidation
    k airspace consolidation
    k an infiltrate
    * k pneumonia
    k airspace disease
    k a consolidative opacity
    k focal consolidation
    k an airspace opacity
    k lobar consolidation
    k opacification of {w}
    k an area of consolidation
    k consolidation of {w}
    k air-space opacification
    * k consolidated lung in {w}
    k a patch of consolidation
    k a pneumonic infiltrate
    * k alveolar consolidation
    k consolidative change
    * k a pneumonic opacity
    k an alveolar opacity
    k airspace filling
    k a consolidative process
    k airspace shadowing in {w}
    * k a focus of consolidation
    k parenchymal consolidation
    k alveolar filling in {w}
    k pneumonic change
""")

PNEUMONIA = _nouns("""
    k pneumonia
    k a pneumonia | pneumonias
    * k a lung infection | lung infections ~degree
    k an infectious process | infectious processes
    k bronchopneumonia
""")

INFILTRATION = _nouns("""
    k an infiltrate | infiltrates
    k infiltration
    k a pulmonary infiltrate | pulmonary infiltrates
    * k a lung infiltrate | lung infiltrates
    k infiltration of {w}
""")

MASS = _nouns("""
    s a mass | masses ~size
    s a lung mass | lung masses ~size
    s a pulmonary mass | pulmonary masses ~size
    * s a mass lesion | mass lesions ~size
    s a mass in {w} ~size
""")

NODULE = _nouns("""
    s a nodule | nodules ~size
    s a pulmonary nodule | pulmonary nodules ~size
    s a lung nodule | lung nodules ~size
    * s a nodular opacity | nodular opacities ~size
    s a nodule in {w} ~size
""")

EMPHYSEMA = _nouns("""
    s emphysema
    s pulmonary emphysema
    s pl emphysematous changes
    * s pl emphysematous changes of the lung
    s an emphysematous change | emphysematous changes
""")

FIBROSIS = _nouns("""
    s pulmonary fibrosis
    s fibrosis
    s pl fibrotic changes
    * s interstitial fibrosis
    s lung fibrosis
""")

THICKENING = _nouns("""
    s pleural thickening
    s thickening of the pleura
    * s a pleural thickening | pleural thickenings
""")

HERNIA = _nouns("""
    s a hiatal hernia | hiatal hernias ~size
    s a hernia | hernias ~size
    * s a hiatus hernia | hiatus hernias ~size
""")

OPACITY = _nouns("""
    k a lung opacity | lung opacities
    k an opacity | opacities
    k opacification of {w}
    * k a hazy opacity | hazy opacities
""")

LESION = _nouns("""
    s a lung lesion | lung lesions ~size
    s a pulmonary lesion | pulmonary lesions ~size
    * s a lesion of the lung | lesion of the lungs ~size
""")

NOUNS = {
    "pleural effusion": EFFUSION,
    "pneumothorax": PNEUMOTHORAX,
    "cardiomegaly": CARDIOMEGALY,
    "pulmonary edema": EDEMA,
    "atelectasis": ATELECTASIS,
    "consolidation": CONSOLIDATION,
}
"""Finding of the phantom, without its side -> its forms."""
FURTHER = {
    "pneumonia": PNEUMONIA,
    "infiltration": INFILTRATION,
    "infiltrates": INFILTRATION,
    "mass": MASS,
    "nodule": NODULE,
    "emphysema": EMPHYSEMA,
    "pulmonary fibrosis": FIBROSIS,
    "pleural thickening": THICKENING,
    "hiatal hernia": HERNIA,
    "lung opacity": OPACITY,
    "lung lesion": LESION,
}
"""The same of findings that other cohorts have."""


@functools.cache
def of(noun: str) -> tuple[Noun, ...]:
    """The forms of a finding without its side; one that no table has is said by its name alone."""
    for table in (NOUNS, FURTHER):
        if noun in table:
            return table[noun]
    number = "plural" if is_plural(noun) else "mass"
    return tuple(Noun(noun, "", number, "s", "degree", held, ()) for held in (False, True))


# Where a sided finding is; `{n}` is the noun.
SIDES = {
    "left": ("left {n}", "left {n}", "left-sided {n}", "{n} on the left", "{n} on the left side"),
    "right": ("right {n}", "right {n}", "right-sided {n}", "{n} on the right", "{n} on the right side"),
    "both": ("bilateral {n}", "bilateral {n}", "{n} on both sides"),
}
SHORT_SIDES = {
    "left": ("left {n}", "L {n}", "lt {n}", "{n} L", "left sided {n}"),
    "right": ("right {n}", "R {n}", "rt {n}", "{n} R", "right sided {n}"),
    "both": ("bilateral {n}", "bilat {n}", "b/l {n}", "{n} bilaterally"),
}

# (side, zone) of atelectasis and consolidation: (in front of the noun, as a place after "in" or "of").
PLACES = {
    ("left", None): (("left", "left-sided", "left lung"), ("the left lung",)),
    ("right", None): (("right", "right-sided", "right lung"), ("the right lung",)),
    ("both", None): (("bilateral",), ("both lungs",)),
    ("left", "lower"): (
        ("left lower lobe", "left basal", "left basilar", "left lower lung", "left lower zone"),
        ("the left lower lobe", "the left lower lung", "the left base", "the left lung base", "the left lower zone"),
    ),
    ("right", "lower"): (
        ("right lower lobe", "right basal", "right basilar", "right lower lung", "right lower zone"),
        ("the right lower lobe", "the right lower lung", "the right base", "the right lung base"),
    ),
    ("both", "lower"): (
        ("bibasilar", "bibasal", "bilateral lower lobe", "bilateral basal"),
        ("both lower lobes", "both lung bases", "both lower lungs"),
    ),
    ("left", "mid"): (
        ("left mid lung", "left mid zone", "left midzone"),
        ("the left mid lung", "the left mid zone", "the middle of the left lung"),
    ),
    ("right", "mid"): (
        ("right mid lung", "right mid zone", "right midzone"),
        ("the right mid lung", "the right mid zone", "the middle of the right lung"),
    ),
    ("both", "mid"): (("bilateral mid lung", "bilateral midzone"), ("both mid lungs", "both mid zones")),
    ("left", "upper"): (
        ("left upper lobe", "left upper lung", "left upper zone"),
        ("the left upper lobe", "the left upper lung", "the left upper zone"),
    ),
    ("right", "upper"): (
        ("right upper lobe", "right upper lung", "right upper zone"),
        ("the right upper lobe", "the right upper lung", "the right upper zone"),
    ),
    ("both", "upper"): (
        ("bilateral upper lobe", "bilateral upper zone"),
        ("both upper lobes", "both upper lungs", "both upper zones"),
    ),
    (None, "lower"): (("lower lobe", "basal", "basilar"), ("the lower lung",)),
    (None, "mid"): (("mid lung", "midzone"), ("the mid lung",)),
    (None, "upper"): (("upper lobe", "upper zone"), ("the upper lung",)),
    (None, None): (("",), ("the lung",)),
}
SHORT_PLACES = {
    ("left", "lower"): ("LLL",),
    ("right", "lower"): ("RLL",),
    ("left", "upper"): ("LUL",),
    ("right", "upper"): ("RUL",),
    ("left", None): ("L", "lt"),
    ("right", None): ("R", "rt"),
    ("both", None): ("bilat", "b/l"),
}

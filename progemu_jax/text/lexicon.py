"""The lexicon of `radtext`: what each word or phrase of a chest X-ray report is to the rules.

`atoms(sentence)` cuts a sentence into atoms; the first pattern that matches at a place wins, so longer and
more special phrases come first. Kinds:

  TERM      a finding or a structure whose state is a finding; value = `terms.Term`
  SIDE      "left", "right" or "both"
  CHANGE    "new", "up", "down", "same" or "gone"
  SEVERITY  float in [0, 1]
  NEG       denies what follows ("no", "without", "free of");  DENIED denies what stands before it
  UNSURE    "possible", "may", "cannot be excluded";  ASKED hypothetical ("evaluate for", "history of")
  BIG       "enlarged", "blunted": abnormal for structures, growth for findings;  FINE  "normal", "clear"
  JOIN      "," "and" "or" ...; value "list", "hard" (ends every scope), "with" or "link" ("due to")
  VERB      value "one", "many" or "";  ARTICLE, PLACE, PAST ("previously"), THEN (a mention of time)
  WORD      anything else
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from progemu_jax.text.terms import TERMS, Term

Further = tuple[tuple[Term, str], ...]

_STUDY = (
    r"(?:study|studies|exam|exams|examination|radiographs?|films?|chest|cxr|x-?rays?|ct"
    r"|images?|imaging|day|date|one)"
)
_ADV = (
    r"(?:slight(?:ly)?|mild(?:ly)?|minimal(?:ly)?|minor|small|tiny|moderate(?:ly)?|marked(?:ly)?"
    r"|substantial(?:ly)?"
    r"|significant(?:ly)?|considerabl[ey]|dramatic(?:ally)?|large|great(?:ly)?|subtl[ey]"
    r"|modest(?:ly)?|somewhat|much"
    r"|definite(?:ly)?|appreciabl[ey]|notabl[ey]|a bit|a little|overall|further|gradual(?:ly)?"
    r"|progressive(?:ly)?)"
)
_UP = (
    r"increas(?:e|es|ed|ing)|worsen(?:s|ed|ing)?|worse|larger|bigger|greater|enlarging|grown|growing|growth"
    r"|progress(?:ed|ing|ion|ive|ively)|accumulat(?:ed|ing|ion)|exacerbat(?:ed|ion)|deteriorat(?:ed|ing|ion)"
    r"|expanded|expanding|heavier|denser|deteriorate|accumulate|enlarge|grow|grew|(?:go(?:ne|ing)?|went|is|are) up"
    r"|built up further|further build-up|escalat(?:ed|ing|ion)|intensif(?:ied|ying|ication)|aggravat(?:ed|ing|ion)"
    r"|flar(?:ed|ing) up|doubled in size|fuller|climb(?:ed|ing)|balloon(?:ed|ing)|deepen(?:ed|ing)|heightened"
    r"|soar(?:ed|ing)|compounded|proliferat(?:ed|ing|ion)|jump(?:ed|ing)|pil(?:ed|ing) up"
    r"|more (?:enlarged|prominent|extensive|pronounced|conspicuous|severe|marked|dense|confluent|evident"
    r"|apparent|widespread|noticeable|obvious|congested)|up from"
)
_DOWN = (
    r"decreas(?:e|es|ed|ing)|improv(?:e|es|ed|ing|ement|ements)|smaller|reduc(?:ed|tion|ing)"
    r"|diminish(?:ed|ing)"
    r"|regress(?:ed|ing|ion)|lessen(?:ed|ing)|receded|receding|better(?! (?:seen|visuali|appreciated"
    r"|assessed|evaluated|defined|inspir|aerat|expan))|shrunk(?:en)?|shrinking|shrank|subsid(?:ed|ing)"
    r"|declin(?:ed|ing)|abat(?:ed|ing)|lighter|down from|(?:gone|going|went|come|coming|came|is|are) down|eas(?:ed|ing)"
    r"|fad(?:ed|ing)(?! away)|wan(?:ed|ing)|dwindl(?:ed|ing)|retreat(?:ed|ing)|ameliorat(?:ed|ing|ion)|dropp(?:ed|ing)"
    r"|less (?:prominent|extensive|pronounced|conspicuous|severe|marked|dense|confluent|evident|apparent|widespread"
    r"|noticeable|obvious|congested)|soften(?:ed|ing)|weaken(?:ed|ing)|(?:partly |partially )?alleviated|minimi[sz]ed"
    r"|mitigated|s[au]nk|sinking|let(?:ting)? up|attenuat(?:ed|ion)|dipp(?:ed|ing)|on the mend|relent(?:ed|ing)"
    r"|calm(?:ed|ing) down"
)
_GONE = r"resolved|resolution|clear(?:ed|ance|ing)|disappear(?:ed|ance)|vanished|gone(?! (?:up|down|into))"
_GONE += r"|(?:gone|went) away|re-?absorbed|re-?sorbed|dissipated|melted away|faded away|dried up|dissol(?:ved|ution)"
_GONE += r"|dispell?ed|dispers(?:ed|al)|discarded|purged|obliterat(?:ed|ion)|subtracted|cleaned up|expelled|banished"
_GONE += r"|scrubbed out"
# A user's order, in front of all but a few words of courtesy; no report begins so.
_ORDER = r"(?:^|(?<=^please )|(?<=^now )|(?<=you to )|(?<=image to )|(?<=film, )|(?<=prior, )|(?<=graph: )|(?<=[.;] ))"
_AFTER_LETTER = r"(?= (?:pleural|effusion|ptx|pneumo|hydrothorax|lung|base|lower|upper))"
_SEEN = (
    r"(?:seen|noted|identified|present|visuali[sz]ed|visible|evident|appreciated|detected|demonstrated"
    r"|apparent|found)"
)

SEVERITIES = (
    (0.35, r"small[- ](?:to|or)[- ]moderate|mild[- ](?:to|or)[- ]moderate"),
    (0.65, r"moderate(?:ly)?[- ](?:to|or)[- ](?:large|severe|marked)"),
    (0.15, r"(?:very |extremely )(?:small|mild)"),
    (0.85, r"(?:very |extremely )(?:large|severe)"),
    (0.2, r"traces?|tiny|minimal(?:ly)?|minute|trivial|minuscule|slight(?:ly)?"),
    (0.27, r"small(?:-sized)?|mild(?:ly)?|minor|subtle|limited|little|low-grade"),
    (0.5, r"moderate(?:ly)?(?:-sized)?|medium-sized|medium"),
    (0.8, r"large|severe(?:ly)?|marked(?:ly)?|massive(?:ly)?|extensive|substantial|gross(?:ly)?|siz(?:e|)able"
          r"|considerable|huge|big|advanced|florid|frank|high-grade|tension"),
)  # fmt: skip

# (kind, value, pattern). The order matters.
_PATTERNS: list[tuple[str, object, str]] = [
    # Comparisons between the sides and with other times say nothing about change.
    (
        "SIDE", "both",
        r"(?:left|right) (?:side )?(?:greater|larger|more|worse|bigger|>) ?(?:than"
        r"|so than)? ?(?:the )?(?:left|right)",
    ),
    (
        "THEN", None,
        r"(?:larger|greater|more|worse|bigger|smaller) (?:on|at|in) the (?:left"
        r"|right)(?: side)? than (?:(?:on|at|in) )?the (?:left|right)",
    ),
    (
        "THEN", None,
        r"(?:greater|more so|more|most pronounced|most prominent|predominantly|dominant) (?:on|at"
        r"|in) the (?:left|right)",
    ),
    (
        "SIDE", "both",
        r"(?:left|right) (?:and|and/or|or|&) (?:the )?(?:left|right)(?=[- ](?:sided )?(?:pleural|pneumo"
        r"|effusion|basal|basilar|base|lower|upper|apical|lung|ptx|hemithora|costophrenic|atelecta"
        r"|consolid))",
    ),
    ("SIDE", "both", r"both (?:the )?(?:left and right|right and left)"),
    (
        "THEN", None,
        r"(?:(?:as |when )?(?:compared|comparison|relative|in comparison)(?: (?:to|with))?|since|from"
        r"|versus|than|to|on|over) (?:the )?(?:most )?(?:prior|previous|earlier|last|preceding|recent"
        rf"|comparison|outside)(?: {_STUDY}){{0,2}}",
    ),
    (
        "THEN", None,
        rf"(?:prior|previous|earlier|last|preceding|most recent|comparison|outside) (?:chest )?{_STUDY}",
    ),
    ("THEN", None, r"(?:in the interval|in the interim|again today|since (?:the )?(?:yesterday|\w+))"),
    # No change, before "no" and "not" are read as denials.
    (
        "CHANGE", "same",
        rf"(?:no|without|little(?: if any)?|minimal)(?: {_ADV}| interval| other| definite| real| short-term"
        r"| obvious){0,4} changes?",
    ),
    (
        "CHANGE", "same",
        rf"not (?:been )?(?:{_ADV} )?(?:changed|altered|different)|(?:has|have) not(?: {_ADV})? changed",
    ),
    (
        "CHANGE", "same",
        rf"(?:no|not|without|neither|nor|never)(?: {_ADV}| interval| evidence of| signs? of"
        rf"| any){{0,4}} (?:{_UP}"
        rf"|{_DOWN})(?: or (?:{_UP}|{_DOWN}))?",
    ),
    ("CHANGE", "same", rf"(?:neither|not) (?:{_UP}|{_DOWN}) (?:nor|or) (?:{_UP}|{_DOWN})"),
    (
        "CHANGE", "same",
        r"(?:has|have|had) not (?:yet )?(?:resolved|cleared|disappeared)|not (?:yet )?(?:resolved|cleared)"
        r"|unresolved|without resolution|no resolution",
    ),
    # Partly gone is better, not gone.
    (
        "CHANGE", "down",
        r"(?:near(?:ly)?|almost|partial(?:ly)?|incomplete(?:ly)?|not (?:completely|fully|entirely)|largely"
        r"|mostly|virtually|practically|some"
        r"|substantial(?:ly)?|significant(?:ly)?)(?:[- ]"
        r"(?:complete(?:ly)?|total(?:ly)?|entire(?:ly)?|interval"
        rf"|all|fully)){{0,4}}[- ](?:{_GONE})",
    ),
    ("CHANGE", "down", r"resolving|clearing|re-?expansion|re-?expanded"),
    (
        "CHANGE", "gone",
        r"no longer(?! (?:reach|expand|sharp|normal|clear |clear$|fill|aerat))(?: be| been| being)?(?: clearly"
        r"| definitely| well)?(?: seen| present| visible"
        r"| visuali[sz]ed| identified| evident| apparent| appreciated| detected| noted| enlarged"
        r"| demonstrated)?",
    ),
    ("CHANGE", "gone", r"(?:no|without)(?: \w+)? (?:residual|remaining|persist(?:ent|ing))"),
    (
        "CHANGE", "gone",
        rf"(?:completely |fully |entirely |totally |now |since )?(?:{_GONE})|normali[sz](?:ed|ation)"
        r"|(?:returned|reverted|back) to (?:a )?normal(?: size| limits)?",
    ),
    (
        "CHANGE", "new",
        r"(?<!no )(?<!not )(?:newly (?:developed|apparent|seen|visible|evident|appeared)|newly|(?:has"
        r"|have) (?:newly )?(?:developed|appeared|arisen|emerged|occurred|recurred)|develop(?:ed|ment|ing)"
        r"|(?<!in the )appearance of an?|emergence of|onset of|new(?! york)|recurren(?:t|ce)"
        r"|re-?accumulat(?:ed|ion)|re-?appear(?:ed|ance)|occurrence of|formation of|return of|(?:has"
        r"|have) returned(?! to)"
        r"|(?:(?:is|are) now|(?:has|have) become)(?= (?:\w+ly )?(?:enlarged|blunted|congested|dilated))"
        r"|new(?:ly)?[- ](?:onset|formed|arisen)|came back|(?:is|are) there now|now there"
        r"|now (?:present|seen|visible|noted|evident|apparent|has|fills?)|can now be seen|there (?:is|are) now"
        r"|(?:that (?:was|were) )?not (?:there|seen|present) (?:before|on (?:the )?prior)"
        r"|interval appearance|newly (?:apparent|found|visuali[sz]ed)|(?:has|have) (?:manifested|sprung up|ensued"
        r"|come into view|begun to form)|beginning of)",
    ),
    (
        "CHANGE", "new",
        rf"{_ORDER}(?:add|introduce|create|insert|simulate|generate|draw|render|depict|produce|include|put in|paint in"
        r"|overlay|bring (?:in|about)|superimpose|model|give (?:the patient|him|her)|show|incorporate|induce|picture"
        r"|trigger|portray|mimic|sketch in|illustrate)",
    ),
    (
        "CHANGE", "gone",
        rf"{_ORDER}(?:remove|delete|erase|take (?:away|out)|get rid of|eliminate|wipe out|undo|lose|edit out|strip out"
        r"|cut out|clear(?: up)? (?=the |this |his |her )|drain|evacuate|resolve|cure|omit|do away with|dispel|discard"
        r"|purge|obliterate|subtract|dispose of|clean up|expel|banish|scrub out|blot out|nullify)|any ?more|(?:(?:is"
        r"|are) )?now absent|nowhere to be seen|undetectable"
        r"|out of the picture|(?:completely|fully) (?:drained|evacuated|reversed)",
    ),
    (
        "CHANGE", "same",
        rf"{_ORDER}(?:keep|leave|preserve|retain|maintain|freeze|spare|hold|carry|do not (?:touch|change|alter))",
    ),
    (
        "CHANGE", "up",
        rf"{_ORDER}(?:boost|amplify|augment|expand|aggravate|step up|turn up|intensify|raise|heighten|magnify|ramp up"
        r"|compound|strengthen|dial up)"
        r"|more(?= (?:pleural |perihilar )?(?:air|fluid|gas|haze|volume loss|effusion|o?edema|atelectasis|consolidation"
        r"|congestion))",
    ),
    (
        "CHANGE", "down",
        rf"{_ORDER}(?:shrink|lighten|partly (?:clear|drain)|turn down|tone down|scale back|cut down|lessen|diminish"
        r"|reduce|soften|weaken|alleviate|minimi[sz]e|mitigate|dampen|dial down|attenuate|curb|pare down|downsize)"
        r"|less(?= (?:pleural |perihilar )?(?:air|fluid|gas|haze|volume loss|effusion|o?edema|atelectasis"
        r"|consolidation|congestion))|(?:partly|partially) (?:drained|relieved|cleared)",
    ),
    ("CHANGE", "new!", r"(?<=no )new|(?<=not )new"),
    ("CHANGE", "up", rf"(?:{_ADV} ){{0,4}}(?:interval )?(?:{_UP})(?: in size)?"),
    ("CHANGE", "up", rf"(?:has|have|had)(?: been)?(?: {_ADV})? enlarged"),
    (
        "PLACE", None,
        r"(?:left |right )?lower lung volumes?|lower (?:lobes?|lungs?|zones?|thora(?:x|cic)|field|pole)",
    ),
    ("CHANGE", "down", rf"(?:{_ADV} ){{0,4}}(?:interval )?(?:{_DOWN})(?: in size)?"),
    (
        "CHANGE", "same",
        r"unchanged|unaltered|stabl[ey]|stability|persist(?:s|ed|ent|ently|ence"
        r"|ing)?|similar(?:ly)?(?: in (?:size|extent|appearance))?|again|re-?demonstrated|redemonstration"
        r"|still|constant|static|(?:the )?same|as before|continu(?:es?|ed|ing)|ongoing|remain(?:s|ed"
        r"|ing)?|stationary|comparable|not new|no different|not different|identical|carried over|steady"
        r"|linger(?:s|ed|ing)?"
        r"|plateau(?:ed|s)?|as they were|as it was",
    ),
    # Denials.
    (
        "UNSURE", None,
        r"(?:cannot|can not|can't|could not|not)(?: be)?(?: entirely| completely| definitively"
        r"| reliably)? (?:exclude[d]?|ruled? out)|difficult to exclude|hard to exclude"
        r"|not (?:entirely )?excluded",
    ),
    (
        "DENIED", None,
        rf"(?:is|are|was|were|has|have)(?: not|n't)(?: been)?(?: clearly| definitely| currently)? {_SEEN}"
        rf"|not(?: clearly| definitely)?(?: be)? {_SEEN}|(?:can|could)(?:not| not) be(?: clearly)? {_SEEN}"
        r"|(?:is|are|was|were) (?:now )?absent|(?:is|are) (?:excluded"
        r"|ruled out)|has been (?:excluded|ruled out)|un-?seen|not appreciated",
    ),
    (
        "FINE", None,
        r"not(?: appear)?(?: significantly| definitely| frankly)? enlarged|no(?: evidence of)? enlargement"
        r"|non-?enlarged|not dilated|not (?:blunted|congested|engorged)|without (?:blunting|enlargement)",
    ),
    (
        "NEG", None,
        r"no (?:\w+ )?(?:evidence|signs?|suggestion|indication) (?:of|for)|negative for|absence of|absent"
        r"|free of|free from|clear of|devoid of|lack of|lacks|without|w/o|no|nor|neither|none|not|denies"
        r"|rather than|instead of",
    ),
    # Sure enough, before "suggestive of" is read as a doubt.
    ("JOIN", "link", r"(?:most|strongly|highly) suggestive of|combination of"),
    # Hypothetical.
    (
        "ASKED", None,
        r"(?:please )?(?:evaluat(?:e|ion|ing)|assess(?:ment)?|looking|check|query|screen(?:ing)?) for"
        r"|rule[- ]out|r/o|to exclude|history of|hx of|h/o|status post|s/p|at risk for"
        r"|if there is concern for|evaluate|assess",
    ),
    (
        "UNSURE", None,
        r"possib(?:le|ly|ility)(?: of)?|may|might|could|would|suspect(?:ed)?|suspicio(?:n|us)(?: for"
        r"| of)?|concern(?:ing|s)?(?: for)?|question(?:able|ed)?(?: of)?|equivocal(?:ly)?|suggest(?:s|ing"
        r"|ive|ion)?(?: of)?|versus|vs\.?|if any|unclear|borderline|indeterminate|perhaps|(?:un|less |not )likely"
        r"|doubtful|alternatively|consider(?:ed|ations?)?(?: of| for)?"
        r"|differential(?: diagnos[ei]s| considerations?)?(?: would)?(?: includ(?:es?|ing))?",
    ),
    ("PAST", None, r"previous(?:ly)?|formerly|earlier|prior|was once|pre-?existing"),
    # Joints.
    (
        "JOIN", "link",
        r"(?:(?:most )?consistent|compatible)(?: with)?|in keeping with|reflect(?:s|ing|ive of)?|represent(?:s"
        r"|ing|ative of)?|indicat(?:es|ing|ive of)|due to|secondary to|related to|attributable to"
        r"|because of|caus(?:es|ing)|owing to|accompan(?:ied|ying)(?: by)?",
    ),
    (
        "JOIN", "hard",
        r";|:|\bbut\b|however|although|though|while|whereas|yet|despite|except(?: for)?|aside from"
        r"|other than|apart from",
    ),
    (
        "JOIN", "with",
        r"associated with|along with|together with|with|in addition to|adjacent to|overlying"
        r"|superimposed on|obscur(?:es|ing)",
    ),
    ("JOIN", "list", r",|/|&|\band\b|\bor\b|as well as|\bplus\b|-->"),
    *[("TERM", term, pattern) for term, pattern in TERMS],
    (
        "BIG", None,
        r"enlarg(?:ed|ement|es)|blunt(?:ed|ing)|prominen(?:t|ce)|engorge(?:d|ment)|congest(?:ed|ion)"
        r"|dilated|obliterat(?:ed|ion)|globular",
    ),
    (
        "FINE", None,
        r"(?:within |(?:at )?(?:the )?upper limits? of |top[- ]|high |upper )?normal"
        r"(?: limits| size| in size| in caliber)?"
        r"|within (?:the )?limits(?: of normal)?|unremarkable"
        r"|clear|sharp(?:ly)?|preserved|intact|well[- ]defined",
    ),
    (
        "SIDE", "both",
        r"bilateral(?:ly)?|bi-?basilar|bi-?basal|bi-?apical|both|b/l|bi-?lateral(?:ly)?|two-sided|either",
    ),
    ("SIDE", "left", rf"left(?:[- ]sided|ward)?|lt\.?|lll|lul|lingula(?:r)?|l{_AFTER_LETTER}"),
    ("SIDE", "right", rf"right(?:[- ]sided|ward)?|rt\.?|rll|rul|rml|r{_AFTER_LETTER}"),
    *[("SEVERITY", value, pattern) for value, pattern in SEVERITIES],
    ("VERB", "one", r"is|was|has(?: been)?|appears|shows|demonstrates"),
    ("VERB", "many", r"are|were|have(?: been)?|appear|show|demonstrate"),
    (
        "VERB", "",
        r"been|be|being|seen|noted|present|identified|visuali[sz]ed|visible|becom(?:e|es|ing)|became|had",
    ),
    ("ARTICLE", "a", r"an?|some|another"),
    ("ARTICLE", "the", r"the|any|its|this|these|that"),
    (
        "PLACE", None,
        r"bas(?:al|ilar|es?)|apic(?:al|es)|apex|lobes?|lobar|lungs?|upper|middle|mid|perihilar"
        r"|hemithora(?:x|ces)|zones?|side[sd]?|retrocardiac|lateral|medial|posterior|anterior|focal"
        r"|multifocal|patchy|diffuse|hazy|dense|dependent|overt|pleural|interstitial|pulmonary|layering"
        r"|loculated|simple|adjacent|associated|compressive|underlying|acute|subsegmental|linear|streaky"
        r"|confluent|in|at|on|of|within|to|involving",
    ),
]  # fmt: skip

_FIRST_TERM = next(i for i, (kind, _, _) in enumerate(_PATTERNS) if kind == "TERM")


@functools.cache
def _scanner(further: Further) -> tuple[re.Pattern, list[tuple]]:
    """The pattern of one atom, and what each of its groups stands for."""
    patterns = [*_PATTERNS[:_FIRST_TERM], *(("TERM", *words) for words in further), *_PATTERNS[_FIRST_TERM:]]
    each = (
        f"(?P<g{i}>{pattern if pattern[0] in ',;' else rf'(?<![A-Za-z0-9])(?:{pattern})(?![A-Za-z0-9])'})"
        for i, (_, _, pattern) in enumerate(patterns)
    )
    return re.compile("|".join(each) + r"|(?P<word>[a-z0-9'_.-]+)"), patterns


_REDACTED = re.compile(r"(?:x{2,}|_{2,})(?:'[a-z]+)?[.,]?")  # a word that de-identification took out: it says nothing


@dataclass(frozen=True)
class Atom:
    """One piece of a sentence: its kind and value (see the module's docstring) and its text."""

    kind: str
    value: object
    text: str


def atoms(sentence: str, further: Further = ()) -> list[Atom]:
    """Cuts a sentence (any case) into atoms, left to right; punctuation without meaning is skipped.

    further: terms beside TERMS, found before those (`terms.further`).
    """
    text = re.sub(r"\s+", " ", sentence.lower().replace("–", "-").replace("’", "'")).strip().rstrip(".")
    return [atom for atom, _ in spans(text, further)]


def spans(text: str, further: Further = ()) -> list[tuple[Atom, tuple[int, int]]]:
    """Atoms of a lower-case sentence with single spaces, and where each stands in it."""
    scanner, patterns = _scanner(further)
    out = []
    for found in scanner.finditer(text):
        name = found.lastgroup
        if name == "word" and _REDACTED.fullmatch(found.group()):
            continue
        kind, value = ("WORD", None) if name == "word" else patterns[int(name[1:])][:2]
        out.append((Atom(kind, value, found.group()), found.span()))
    return out

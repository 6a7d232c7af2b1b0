"""The words of direction: how English says that a finding is new, worse, better, gone or as before.

A `Family` is one lemma with every form in which the grammar (`restate`) uses it, so that holding out a lemma holds out
its verb, its noun and its participles together. Each table runs from common to rare. `_held` marks the fifth of each
table that training never sees; it was fixed before the first training by going down each table and marking about every
fifth entry, common and rare ones alike, unless a word of it is part of a noun that training needs ("enlarge"). A line
that moves from one side to the other makes held-out figures of earlier runs untrue: add lines, do not re-mark any.
"""

from __future__ import annotations

from dataclasses import dataclass

DIRECTIONS = ("new", "worse", "better", "resolved", "same")

# What a family can be said of, a letter for a class of nouns (`wording_nouns.Noun.kind`):
#   e effusion   f fluid (no plural)   p pneumothorax   g air (no plural)   c cardiomegaly   h the heart itself
#   o edema   a atelectasis   k consolidation   s a sign, such as a blunted angle
ALL = "efpgcoaks"
SIZED = "eph"


@dataclass(frozen=True)
class Family:
    """One lemma.

    Attributes:
      key: the lemma. held: training never sees it. on: letters of the classes of nouns that it goes with.
      verb: intransitive verb, its first word inflected ("get worse"), or "".
      noun: noun with its preposition ("increase in"), or "".
      adjectives: participles and adjectives before a noun ("increased", "increasing").
      after: what stands after "is" or "has become" ("larger"), or "".
      done: participle of the passive ("drained"), or "".
      do: an order with `{d}` for the finding ("make {d} larger"), or "".
    """

    key: str
    held: bool
    on: str
    verb: str = ""
    noun: str = ""
    adjectives: tuple[str, ...] = ()
    after: str = ""
    done: str = ""
    do: str = ""

    def has(self, part: str) -> bool:
        """Whether it has a form: "verb", "noun", "adjectives", "after", "done" or "do"."""
        return bool(getattr(self, part))


def _family(key, on=ALL, *, held=False, verb="", noun="", adj="", after="", done="", do="") -> Family:
    return Family(key, held, on, verb, noun, tuple(a for a in adj.split("|") if a), after, done, do)


def _held(key, on=ALL, **forms) -> Family:
    return _family(key, on, held=True, **forms)


_f = _family

NEW = (
    _f("new", adj="new", after="new"),
    _f("develop", verb="develop", noun="development of", adj="newly developed"),
    _f("appear", verb="appear", noun="appearance of", adj="newly appeared", do="make {d} appear"),
    _held("emerge", verb="emerge", noun="emergence of", adj="newly emerged", do="let {d} emerge"),
    _f("add", do="add {d}"),
    _f("show", do="show {d}"),
    _f("now present", after="now present"),
    _f("now visible", adj="newly visible", after="now visible"),
    _held("now evident", adj="newly evident", after="now evident"),
    _f("occur", verb="occur", noun="occurrence of"),
    _f("form", "efpgaks", verb="form", noun="formation of", adj="newly formed"),
    _f("arise", verb="arise", adj="newly arisen"),
    _f("recur", "efpgoak", verb="recur", noun="recurrence of", adj="recurrent"),
    _held("reappear", "efpgoaks", verb="reappear", noun="reappearance of"),
    _f("onset", "efpgcoak", noun="onset of", adj="new-onset"),
    _f("newly seen", adj="newly seen|newly noted|newly detected"),
    _f("accumulate", "fg", verb="accumulate", noun="accumulation of"),
    _f("collect", "fg", verb="collect"),
    _held("create", do="create {d}"),
    _f("introduce", do="introduce {d}"),
    _f("show up", verb="show up"),
    _f("come up", verb="come up"),
    _f("build up", "fg", verb="build up"),
    _f("include", do="include {d}"),
    _held("insert", do="insert {d}"),
    _f("draw", do="draw {d}"),
    _f("simulate", do="simulate {d}"),
    _f("generate", do="generate {d}"),
    _f("return", "efpgoak", verb="return", noun="return of"),
    _f("come back", "efpgoak", verb="come back"),
    _held("fresh", "efpgoak", adj="fresh"),
    _f("set in", "oa", verb="set in"),
    _f("give", do="give the patient {d}"),
    _f("put in", do="put in {d}"),
    _f("start", "efpgoak", verb="start to form"),
    _f("reaccumulate", "efg", verb="reaccumulate", noun="reaccumulation of"),
    _held("depict", do="depict {d}"),
    _f("render", do="render {d}"),
    _f("pop up", verb="pop up"),
    _f("gather", "fg", verb="gather"),
    _f("produce", do="produce {d}"),
    _held("crop up", "efpgoak", verb="crop up"),
    _f("bring in", do="bring in {d}"),
    _f("supervene", "efpgoak", verb="supervene"),
    _f("now there", after="now there"),
    _f("paint", do="paint in {d}"),
    _held("surface", "efpgoak", verb="surface"),
    _f("overlay", do="overlay {d}"),
    _f("materialise", verb="materialize"),
    _f("model", do="model {d}"),
    _held("superimpose", do="superimpose {d}"),
    _f("manifest", "efpgoak", verb="manifest"),
    _f("newly apparent", adj="newly apparent", after="newly apparent"),
    _f("incorporate", do="incorporate {d}"),
    _held("induce", do="induce {d}"),
    _f("picture", do="picture {d}"),
    _f("come into view", verb="come into view"),
    _f("newly found", adj="newly found|newly visualized"),
    _f("begin", "efpgoak", verb="begin to form", noun="beginning of"),
    _held("ensue", "efpgoak", verb="ensue"),
    _f("bring about", do="bring about {d}"),
    _f("trigger", do="trigger {d}"),
    _f("portray", do="portray {d}"),
    _f("spring up", "efpgoak", verb="spring up"),
    _held("mimic", do="mimic {d}"),
    _f("sketch in", do="sketch in {d}"),
    _f("illustrate", do="illustrate {d}"),
)

WORSE = (
    _f("increase", noun="increase in", verb="increase", adj="increased|increasing", do="increase {d}"),
    _f("worsen", verb="worsen", noun="worsening of", adj="worsening|worsened", do="worsen {d}"),
    _held("progress", verb="progress", noun="progression of", adj="progressing|progressive", do="let {d} progress"),
    _f("larger", SIZED, adj="larger", after="larger", do="make {d} larger"),
    _f("worse", after="worse", do="make {d} worse"),
    _f("enlarge", SIZED, verb="enlarge", noun="enlargement of", adj="enlarging", do="enlarge {d}"),
    _f("bigger", SIZED, adj="bigger", after="bigger", do="make {d} bigger"),
    _held("grow", "efpgh", verb="grow", noun="growth of", adj="growing", do="let {d} grow"),
    _f("more extensive", "efpgoaks", adj="more extensive", after="more extensive", do="make {d} more extensive"),
    _f("more prominent", "epcoaksh", adj="more prominent", after="more prominent", do="make {d} more prominent"),
    _f("increase in size", SIZED, verb="increase in size", do="increase the size of {d}"),
    _f("expand", "eph", verb="expand", noun="expansion of", adj="expanding", do="expand {d}"),
    _held("more pronounced", ALL, adj="more pronounced", after="more pronounced", do="make {d} more pronounced"),
    _f("more severe", "coaks", adj="more severe", after="more severe", do="make {d} more severe"),
    _f("accumulate", "fg", verb="accumulate further", noun="further accumulation of"),
    _f("advance", "efpgcoak", verb="advance", adj="advancing"),
    _f("deteriorate", "coaks", verb="deteriorate", noun="deterioration of", adj="deteriorating"),
    _held("greater", "efpgoaks", after="greater", do="make {d} greater"),
    _f("get worse", verb="get worse"),
    _f("spread", "oak", verb="spread", noun="spread of", adj="spreading", do="spread {d}"),
    _f("more marked", "coaks", adj="more marked", after="more marked"),
    _f("extend", "oak", verb="extend", noun="extension of", adj="extending", do="extend {d}"),
    _f("build up", "fg", verb="build up further", noun="further build-up of"),
    _held("rise", "fgo", verb="rise", noun="rise in", adj="rising"),
    _f("up", "efpgo", after="up"),
    _f("aggravate", "coaks", done="aggravated", noun="aggravation of", do="aggravate {d}"),
    _f("denser", "ak", adj="denser", after="denser", do="make {d} denser"),
    _f("heavier", "ok", adj="heavier", after="heavier", do="make {d} heavier"),
    _held("intensify", "oaks", verb="intensify", noun="intensification of", adj="intensifying", do="intensify {d}"),
    _f("get bigger", SIZED, verb="get bigger", do="let {d} get bigger"),
    _f("turn up", "efpgo", do="turn up {d}"),
    _f("widen", "ph", verb="widen", noun="widening of", adj="widening", do="widen {d}"),
    _f("more widespread", "oak", adj="more widespread", after="more widespread"),
    _f("more confluent", "ok", after="more confluent", adj="more confluent"),
    _held("exacerbate", "coak", done="exacerbated", noun="exacerbation of", do="exacerbate {d}"),
    _f("more noticeable", ALL, after="more noticeable", do="make {d} more noticeable"),
    _f("go up", "efgo", verb="go up"),
    _f("boost", do="boost {d}"),
    _f("amplify", do="amplify {d}"),
    _held("escalate", "coak", verb="escalate", noun="escalation of", adj="escalating", do="escalate {d}"),
    _f("gain", SIZED, verb="gain in size"),
    _f("mount", "fo", verb="mount", adj="mounting"),
    _f("double in size", "ep", verb="double in size", do="double the size of {d}"),
    _f("step up", do="step up {d}"),
    _held("swell", "eh", verb="swell", adj="swelling"),
    _f("flare up", "ok", verb="flare up"),
    _f("coalesce", "k", verb="coalesce", noun="coalescence of", adj="coalescing"),
    _f("augment", do="augment {d}"),
    _f("broaden", "h", verb="broaden", do="broaden {d}"),
    _held("creep up", "efo", verb="creep up"),
    _f("surge", "fo", verb="surge"),
    _f("fuller", "e", after="fuller"),
    _f("more conspicuous", ALL, adj="more conspicuous", after="more conspicuous", do="make {d} more conspicuous"),
    _f("more evident", ALL, adj="more evident", after="more evident"),
    _held("more apparent", ALL, adj="more apparent", after="more apparent"),
    _f("raise", "efgo", do="raise {d}"),
    _f("climb", "fo", verb="climb", adj="climbing"),
    _f("heighten", "coaks", done="heightened", do="heighten {d}"),
    _f("deepen", "oak", verb="deepen", adj="deepening"),
    _held("soar", "fo", verb="soar", adj="soaring"),
    _f("magnify", do="magnify {d}"),
    _f("ramp up", do="ramp up {d}"),
    _f("compound", "coak", done="compounded", do="compound {d}"),
    _f("balloon", "eh", verb="balloon", adj="ballooning"),
    _held("proliferate", "oak", verb="proliferate", noun="proliferation of"),
    _f("strengthen", do="strengthen {d}"),
    _f("dial up", do="dial up {d}"),
    _f("pile up", "f", verb="pile up"),
    _f("jump", "fo", verb="jump"),
)

BETTER = (
    _f("decrease", verb="decrease", noun="decrease in", adj="decreased|decreasing", do="decrease {d}"),
    _f("improve", verb="improve", noun="improvement in", adj="improving|improved", do="improve {d}"),
    _f("smaller", SIZED, adj="smaller", after="smaller", do="make {d} smaller"),
    _held("diminish", verb="diminish", adj="diminishing|diminished", do="diminish {d}"),
    _f("reduce", noun="reduction in", adj="reduced", done="reduced", do="reduce {d}"),
    _f("better", "coaks", after="better", do="make {d} better"),
    _f("partly resolve", verb="partially resolve", noun="partial resolution of", adj="resolving|partially resolved"),
    _f(
        "partly clear",
        "efpgoak",
        verb="partly clear",
        noun="partial clearing of",
        adj="clearing",
        do="partly clear {d}",
    ),
    _held("regress", verb="regress", noun="regression of", adj="regressing"),
    _f("less extensive", "efpgoaks", adj="less extensive", after="less extensive", do="make {d} less extensive"),
    _f("less prominent", "epcoaksh", adj="less prominent", after="less prominent", do="make {d} less prominent"),
    _f("shrink", SIZED, verb="shrink", adj="shrinking", do="shrink {d}"),
    _held("lessen", verb="lessen", noun="lessening of", adj="lessening", do="lessen {d}"),
    _f("less severe", "coaks", adj="less severe", after="less severe", do="make {d} less severe"),
    _f("decrease in size", SIZED, verb="decrease in size", do="reduce the size of {d}"),
    _f("recede", "efpgoaks", verb="recede", adj="receding", do="let {d} recede"),
    _f("less marked", "coaks", adj="less marked", after="less marked"),
    _held("subside", "efgoaks", verb="start to subside", adj="subsiding"),
    _f("get better", "coaks", verb="get better"),
    _f("ease", "o", verb="ease", noun="easing of", adj="easing", do="ease {d}"),
    _f("down", "efpgo", after="down"),
    _f("go down", "efgo", verb="go down"),
    _f("get smaller", SIZED, verb="get smaller", do="let {d} get smaller"),
    _held("less pronounced", ALL, adj="less pronounced", after="less pronounced", do="make {d} less pronounced"),
    _f("less dense", "ak", adj="less dense", after="less dense", do="make {d} less dense"),
    _f("lighter", "ok", adj="lighter", after="lighter", do="lighten {d}"),
    _f("abate", "oak", verb="abate", adj="abating"),
    _f("drop", "efgo", verb="drop", noun="drop in"),
    _held("decline", "efgo", verb="decline", noun="decline in", adj="declining"),
    _f("fade", "oaks", verb="start to fade", adj="fading"),
    _f("wane", "oak", verb="wane", adj="waning"),
    _f("turn down", "efpgo", do="turn down {d}"),
    _f("fall", "fg", verb="fall", noun="fall in"),
    _f("less noticeable", ALL, after="less noticeable", do="make {d} less noticeable"),
    _held("dwindle", "efpgo", verb="dwindle", adj="dwindling"),
    _f("partly drain", "ef", done="partially drained", noun="partial drainage of", do="partly drain {d}"),
    _f("tone down", do="tone down {d}"),
    _f("retreat", "efpgoak", verb="retreat", adj="retreating"),
    _f("less obvious", ALL, after="less obvious", do="make {d} less obvious"),
    _held("scale back", do="scale back {d}"),
    _f("ebb", "fo", verb="ebb"),
    _f("narrow", "ph", verb="narrow", adj="narrowing", do="narrow {d}"),
    _f("relieve", "o", done="partly relieved", do="partly relieve {d}"),
    _f("thin out", "k", verb="thin out", adj="thinning"),
    _held("taper off", "efgo", verb="start to taper off"),
    _f("cut down", do="cut down {d}"),
    _f("come down", "efgo", verb="come down"),
    _f("settle", "ok", verb="start to settle", adj="settling"),
    _f("contract", "eh", verb="contract", noun="contraction of"),
    _held("ameliorate", "coak", verb="ameliorate", noun="amelioration of", do="ameliorate {d}"),
    _f("trim", SIZED, do="trim {d}"),
    _f("less conspicuous", ALL, adj="less conspicuous", after="less conspicuous", do="make {d} less conspicuous"),
    _f("less evident", ALL, adj="less evident", after="less evident"),
    _held("less apparent", ALL, adj="less apparent", after="less apparent"),
    _f("soften", "oak", verb="soften", adj="softening", do="soften {d}"),
    _f("weaken", "oak", verb="weaken", adj="weakening", do="weaken {d}"),
    _f("alleviate", "o", done="partly alleviated", do="alleviate {d}"),
    _f("minimise", done="minimized", do="minimize {d}"),
    _held("mitigate", done="mitigated", do="mitigate {d}"),
    _f("sink", "fg", verb="sink", adj="sinking"),
    _f("dampen", do="dampen {d}"),
    _f("dial down", do="dial down {d}"),
    _f("let up", "oak", verb="let up"),
    _held("attenuate", "oaks", done="attenuated", noun="attenuation of", do="attenuate {d}"),
    _f("dip", "efgo", verb="dip"),
    _f("curb", do="curb {d}"),
    _f("on the mend", "oak", after="on the mend"),
    _f("pare down", do="pare down {d}"),
    _held("relent", "oak", verb="relent", adj="relenting"),
    _f("downsize", SIZED, do="downsize {d}"),
    _f("calm down", "o", verb="calm down"),
)

RESOLVED = (
    _f("resolve", verb="resolve", noun="resolution of", adj="resolved", do="resolve {d}"),
    _f("clear", "efpgoak", verb="clear", noun="clearance of", adj="cleared", do="clear {d}"),
    _f("remove", done="removed", noun="removal of", do="remove {d}"),
    _held("disappear", verb="disappear", noun="disappearance of", do="make {d} disappear"),
    _f("gone", after="gone"),
    _f("no longer seen", after="no longer seen"),
    _f("no longer present", after="no longer present"),
    _f("go away", verb="go away", do="make {d} go away"),
    _held("no longer visible", after="no longer visible", do="make {d} invisible"),
    _f("take away", done="taken away", do="take away {d}"),
    _f("completely resolve", verb="completely resolve", noun="complete resolution of", adj="fully resolved"),
    _f("completely clear", "efpgoak", verb="clear completely", noun="complete clearing of", do="fully clear {d}"),
    _f("absent", after="now absent"),
    _f("get rid of", do="get rid of {d}"),
    _held("vanish", verb="vanish", adj="vanished", do="make {d} vanish"),
    _f("drain", "ef", done="completely drained", noun="complete drainage of", do="drain {d} completely"),
    _f("reabsorb", "efpg", done="fully reabsorbed", noun="complete reabsorption of"),
    _f("no longer there", after="no longer there"),
    _f("delete", done="deleted", do="delete {d}"),
    _f("take out", done="taken out", do="take out {d}"),
    _f("clear up", "efpgoak", verb="clear up", do="clear up {d}"),
    _held("eliminate", done="eliminated", noun="elimination of", do="eliminate {d}"),
    _f("evacuate", "efpg", done="completely evacuated", noun="complete evacuation of", do="evacuate {d}"),
    _f("no longer apparent", after="no longer apparent"),
    _f("erase", done="erased", do="erase {d}"),
    _f("heal", "ka", verb="heal"),
    _held("dissipate", "efgoak", verb="dissipate", noun="dissipation of"),
    _f("undetectable", after="undetectable"),
    _f("not seen any more", after="not seen any more"),
    _f("wipe out", done="wiped out", do="wipe out {d}"),
    _f("no longer detectable", after="no longer detectable"),
    _held("resorb", "efpg", done="fully resorbed", noun="complete resorption of"),
    _f("dry up", "ef", verb="dry up", do="dry up {d}"),
    _f("cure", "oak", done="cured", do="cure {d}"),
    _f("fade away", "efgoaks", verb="fade away"),
    _f("lose", do="lose {d}"),
    _f("strip out", done="stripped out", do="strip out {d}"),
    _held("eradicate", "efpgoak", done="eradicated", do="eradicate {d}"),
    _f("undo", do="undo {d}"),
    _f("melt away", "efoak", verb="melt away"),
    _f("cancel", do="cancel {d}"),
    _f("invisible now", after="nowhere to be seen"),
    _held("drop out", do="leave out {d}", after="out of the picture"),
    _f("edit out", done="edited out", do="edit out {d}"),
    _f("evaporate", "efo", verb="evaporate"),
    _f("reverse", "oa", done="completely reversed", noun="complete reversal of", do="fully reverse {d}"),
    _f("cut out", do="cut out {d}"),
    _held("abolish", done="abolished", noun="abolition of", do="abolish {d}"),
    _f("rub out", done="rubbed out", do="rub out {d}"),
    _f("no longer identified", after="no longer identified"),
    _f("no longer noted", after="no longer noted"),
    _held("no longer appreciated", after="no longer appreciated"),
    _f("dissolve", "efoak", verb="dissolve", noun="dissolution of"),
    _f("omit", do="omit {d}"),
    _f("do away with", do="do away with {d}"),
    _held("dispel", "oak", done="dispelled", do="dispel {d}"),
    _f("disperse", "fgo", verb="disperse", noun="dispersal of"),
    _f("discard", done="discarded", do="discard {d}"),
    _f("purge", done="purged", do="purge {d}"),
    _held("obliterate", done="obliterated", noun="obliteration of", do="obliterate {d}"),
    _f("subtract", done="subtracted", do="subtract {d}"),
    _f("dispose of", do="dispose of {d}"),
    _f("clean up", "ok", done="cleaned up", do="clean up {d}"),
    _held("expel", "efpg", done="fully expelled", do="expel {d}"),
    _f("banish", done="banished", do="banish {d}"),
    _f("scrub out", done="scrubbed out", do="scrub out {d}"),
    _f("blot out", do="blot out {d}"),
    _f("nullify", do="nullify {d}"),
)

SAME = (
    _f("unchanged", ALL + "h", adj="unchanged", after="unchanged", do="leave {d} unchanged"),
    _f("stable", ALL + "h", adj="stable", after="stable", do="keep {d} stable"),
    _f("persist", verb="persist", noun="persistence of", adj="persistent|persisting"),
    _held("unaltered", ALL + "h", adj="unaltered", after="unaltered", do="leave {d} unaltered"),
    _f("the same", ALL + "h", after="the same", do="keep {d} the same"),
    _f("no change", ALL, noun="no change in"),
    _f("no significant change", ALL, noun="no significant change in"),
    _f("remain", ALL, verb="remain"),
    _held("constant", ALL + "h", after="constant", do="keep {d} constant"),
    _f("as before", ALL + "h", after="as before", do="leave {d} as before"),
    _f("similar", ALL + "h", after="similar to before"),
    _f("not changed", ALL + "h", after="not changed", do="do not change {d}"),
    _f("still present", after="still present"),
    _f("still seen", after="still seen"),
    _held("static", ALL + "h", after="static"),
    _f("keep", ALL + "h", do="keep {d} as {it} {is}"),
    _f("leave", ALL + "h", do="leave {d} alone"),
    _f("again seen", after="again seen"),
    _f("ongoing", "efpgcoak", adj="ongoing", after="ongoing"),
    _held("steady", ALL + "h", after="steady", do="hold {d} steady", verb="hold steady"),
    _f("stability", "efpgcoaks", noun="stability of"),
    _f("stay the same", ALL + "h", verb="stay the same", do="let {d} stay the same"),
    _f("preserve", ALL, do="preserve {d}"),
    _f("continue", "efpgoak", verb="continue unchanged", adj="continued"),
    _held("comparable", ALL + "h", after="comparable to the prior"),
    _f("maintain", ALL, do="maintain {d}"),
    _f("no different", ALL + "h", after="no different"),
    _f("retain", ALL, do="retain {d}"),
    _f("still there", after="still there"),
    _held("linger", "efpgoak", verb="linger", adj="lingering"),
    _f("no interval change", ALL, noun="no interval change in"),
    _f("not different", ALL + "h", after="not different", do="do not alter {d}"),
    _f("freeze", ALL, do="freeze {d}"),
    _f("identical", ALL + "h", after="identical"),
    _held("stationary", ALL + "h", after="stationary"),
    _f("little changed", ALL + "h", after="essentially unchanged"),
    _f("do not touch", ALL + "h", do="do not touch {d}"),
    _f("carry over", ALL, do="carry {d} over", done="carried over"),
    _held("conserve", ALL, do="conserve {d}"),
    _f("spare", ALL, do="spare {d}"),
    _f("redemonstrate", "efpgcoaks", done="redemonstrated", noun="redemonstration of", adj="redemonstrated"),
    _f("plateau", "efpgoak", verb="plateau"),
    _held("stand still", "efpgcoak", verb="stand still"),
    _f("long-standing", "efpgcoak", adj="unchanged long-standing"),
)

FAMILIES = {"new": NEW, "worse": WORSE, "better": BETTER, "resolved": RESOLVED, "same": SAME}
"""Direction -> its families."""

# Grades of what results. Fluid and air have sizes or amounts, the others degrees; the first word is the commonest.
SIZES = {
    "mild": ("small", "small", "tiny", "minor"),
    "moderate": ("moderate", "moderate", "moderate-sized", "medium-sized"),
    "severe": ("large", "large", "big", "massive", "sizable"),
}
DEGREES = {
    "mild": ("mild", "mild", "slight", "minimal", "minor"),
    "moderate": ("moderate", "moderate"),
    "severe": ("severe", "severe", "marked", "extensive"),
}
AMOUNTS = {
    "mild": ("a small amount of", "a tiny amount of", "a small volume of"),
    "moderate": ("a moderate amount of", "a medium amount of"),
    "severe": ("a large amount of", "a massive amount of", "a large volume of"),
}
ADVERBS = {
    "mild": ("mildly", "slightly"),
    "moderate": ("moderately",),
    "severe": ("severely", "markedly"),
}
# After "now": what a finding has become.
NOW = {
    "size": {"mild": ("small", "tiny"), "moderate": ("moderate", "moderate in size"), "severe": ("large", "massive")},
    "degree": {"mild": ("mild", "slight"), "moderate": ("moderate",), "severe": ("severe", "marked")},
    "amount": {
        "mild": ("small", "small in amount"),
        "moderate": ("moderate", "moderate in amount"),
        "severe": ("large", "large in amount"),
    },
    "heart": {
        "mild": ("mildly enlarged", "slightly enlarged"),
        "moderate": ("moderately enlarged",),
        "severe": ("severely enlarged", "markedly enlarged"),
    },
}
NOW["adverb"] = NOW["heart"]

_IRREGULAR = {
    "grow": ("grew", "grown"), "shrink": ("shrank", "shrunk"), "arise": ("arose", "arisen"), "get": ("got", "got"),
    "go": ("went", "gone"), "spread": ("spread", "spread"), "rise": ("rose", "risen"), "fall": ("fell", "fallen"),
    "come": ("came", "come"), "build": ("built", "built"), "show": ("showed", "shown"), "set": ("set", "set"),
    "swell": ("swelled", "swollen"), "creep": ("crept", "crept"), "hold": ("held", "held"),
    "stand": ("stood", "stood"), "become": ("became", "become"), "begin": ("began", "begun"), "let": ("let", "let"),
    "spring": ("sprang", "sprung"), "sink": ("sank", "sunk"),
}  # fmt: skip
_DOUBLED = {"drop", "pop", "crop", "recur", "occur", "get", "set", "let", "begin", "dip"}
_BEFORE = ("partially", "partly", "completely", "fully")  # stand before the verb of a phrase


def inflected(phrase: str) -> dict[str, str]:
    """Forms of a verb phrase: {"base", "third" (person), "past", "perfect" (participle), "going" (-ing form)}.

    The verb is the first word, after an adverb of degree where there is one ("partially resolve").
    """
    words = phrase.split(" ")
    at = 1 if words[0] in _BEFORE else 0
    stem = words[at]
    if stem.endswith("e"):
        third, past, going = f"{stem}s", f"{stem}d", f"{stem[:-1]}ing"
    elif stem.endswith("y") and stem[-2] not in "aeiou":
        third, past, going = f"{stem[:-1]}ies", f"{stem[:-1]}ied", f"{stem}ing"
    else:
        double = stem + stem[-1] if stem in _DOUBLED else stem
        third = f"{stem}es" if stem.endswith(("s", "sh", "ch", "x", "go")) else f"{stem}s"
        past, going = f"{double}ed", f"{double}ing"
    past, perfect = _IRREGULAR.get(stem, (past, past))
    forms = {"base": stem, "third": third, "past": past, "perfect": perfect, "going": going}
    return {name: " ".join([*words[:at], form, *words[at + 1 :]]) for name, form in forms.items()}


def surface_forms(family: Family) -> set[str]:
    """Every string by which a family shows in a text, lower case; for tests that nothing held out is trained on."""
    out = {*family.adjectives, family.after, family.done}
    if family.noun:
        out.add(family.noun.rsplit(" ", 1)[0])
    if family.verb:
        out |= set(inflected(family.verb).values())
    if family.do:
        out |= {part.strip() for part in family.do.split("{d}") if part.strip() not in _PLAIN}
    return {text for text in out if text and text not in _PLAIN}


# Words of orders that every family uses: no sign of one.
_PLAIN = {"", "make", "let", "keep", "leave", "hold", "the size of", "completely"}

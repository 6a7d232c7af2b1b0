"""Patient + disease state + acquisition -> radiograph and organ masks, in NumPy alone.

The picture is a sum of smooth attenuation fields of (u, v), the patient's own coordinates, evaluated at the
centres of the requested pixels: no raster is resized, so a study looks the same at 64 and at 512 pixels.
Edges are ramps at least a pixel wide and lines keep their integrated density when they get thinner than a
pixel, which is what anti-aliases them. The sum goes through a film curve (bright = attenuating).

u > 0 is the patient's left (on the right of the image), v grows towards the feet. `a` = |u|.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from progemu_jax.text.findings import FINDINGS, ORGANS, PRESENT

from .fields import AXIS, F, Places, bump, grid, hill, noise, ramp, read_cycle
from .patient import LEFT, RIGHT, Acquisition, Patient, State

SIDES = (LEFT, RIGHT)


@dataclass(frozen=True)
class Rendered:
    """image: uint8 [S, S]; masks: bool [6, S, S] in the order of ORGANS."""

    image: np.ndarray
    masks: np.ndarray


class _Body:
    """The fields that several parts share: coordinates, lungs, diaphragm, heart, spine (one study)."""

    def __init__(self, p: Patient, s: State, q: Acquisition, size: int):
        self.p, self.s, self.q = p, s, q
        self.pixel = pixel = 2.0 / size / q.scale
        self.h = max(0.75 * pixel, 0.020)  # sharp edges
        centres = grid(size)
        c, sn = np.cos(q.angle) / q.scale, np.sin(q.angle) / q.scale
        x, y = centres[None, :] - F(q.shift_x), centres[:, None] - F(q.shift_y)
        self.u = u = F(c) * x + F(sn) * y
        self.v = v = F(c) * y - F(sn) * x
        shown = np.minimum(np.asarray(p.expression, F) * s.severities, 1)
        self.shown = shown = {name: float(x) for name, x in zip(FINDINGS, shown, strict=True)}
        self.effusion = {LEFT: shown["left pleural effusion"], RIGHT: shown["right pleural effusion"]}
        self.ptx = {LEFT: shown["left pneumothorax"], RIGHT: shown["right pneumothorax"]}
        atelectasis = shown["atelectasis"]
        self.collapse = {side: atelectasis * (1.0 if s.atelectasis_side in (side, 0) else 0.0) for side in SIDES}

        # Volume loss pulls the mediastinum, large effusions and pneumothoraces push it.
        push = {k: 0.05 * max(self.effusion[k] - 0.4, 0) + 0.09 * max(self.ptx[k] - 0.3, 0) for k in SIDES}
        pull = {k: 0.035 * self.collapse[k] for k in SIDES}
        self.shift = push[RIGHT] - push[LEFT] + pull[LEFT] - pull[RIGHT]
        self.um = u - F(self.shift) * ramp(v + F(0.35), 0.5)  # mediastinal u: the neck stays

        # Rib cage: the inner wall as a half width over v, rounded at the apex.
        vs = AXIS
        t = np.clip((vs - p.apex) / (0.35 - p.apex), 0, 1)
        wall = p.thorax_width * (1 - (1 - t) ** 2.4) ** 0.62 * (1 - 0.05 * np.clip((vs - 0.5) / 0.5, 0, 1))
        wall = np.where(vs < p.apex, -0.12 * np.clip((p.apex - vs) / 0.1, 0, 1), wall)
        self.wall_of_v, self.at_v = wall, Places(v)
        self.a = np.abs(u)
        self.left = u > 0
        self.wall = self.at_v.read(wall)

        # Diaphragm: one dome a side over u, the costophrenic angle at the wall.
        us = AXIS
        au = np.clip(np.abs(us) / p.thorax_width, 0, 1.15)
        dome = np.where(au < 0.5, 0.35 * (2 * (0.5 - au)) ** 2, (2 * np.maximum(au - 0.5, 0)) ** 2.2)
        lift = {k: 0.09 * q.inspiration + 0.20 * self.collapse[k] for k in SIDES}
        top = np.where(us > 0, p.diaphragm + 0.045 - lift[LEFT], p.diaphragm - lift[RIGHT])
        blend = ramp(us, 0.06)
        top = (p.diaphragm + 0.045 - lift[LEFT]) * blend + (p.diaphragm - lift[RIGHT]) * (1 - blend)
        self.top = {LEFT: p.diaphragm + 0.045 - lift[LEFT], RIGHT: p.diaphragm - lift[RIGHT]}
        old = p.blunting * 0.10 * np.clip((au - 0.72) / 0.28, 0, 1) ** 1.5 * (us * p.blunting_side > 0)
        self.diaphragm = Places(u).read(top + p.dome * dome - old)

        # Cardiac and mediastinal silhouette: how far it reaches to each side of the midline, over v.
        c, m = shown["cardiomegaly"], p.mediastinum
        c *= 1.35 - 0.35 * c  # a mild one already shows
        magnified = p.heart_size * (1.05 if q.view == "AP" else 1.0) * (1 + 0.03 * q.inspiration)
        floor = 0.5 * (self.top[LEFT] + self.top[RIGHT]) + 0.10
        lower = np.clip(vs / 0.5, 0, 1)
        neck = np.clip((-0.5 - vs) / 0.4, 0, 1)
        knob = (0.03 + 0.075 * p.aorta) * hill(vs, -0.36, 0.085)
        trunk = 0.045 * hill(vs, -0.15, 0.11)
        descending = 0.03 * p.aorta * hill(vs, 0.05, 0.4)
        right = m * (0.105 + 0.025 * hill(vs, -0.2, 0.2) + 0.02 * lower + 0.05 * neck)
        left = m * (0.10 + knob + trunk + descending + 0.02 * lower + 0.06 * neck)
        top_left, top_right = -0.20 - 0.06 * c, -0.10 - 0.05 * c
        t = np.clip((vs - top_left) / (floor - top_left), 0, 1.3)
        ventricle = (0.445 + 0.27 * c) * magnified * (1 + 0.25 * p.heart_tilt)
        bulge = np.sin(0.5 * np.pi * np.clip(t, 0, 1) ** (1.25 - 0.35 * c)) * np.sqrt(
            np.clip(1 - np.clip((t - 0.72) / 0.62, 0, 1) ** 2, 0, 1)
        )
        heart_left = ventricle * bulge
        t = np.clip((vs - top_right) / (floor - top_right), 0, 1.3)
        heart_right = (
            (0.225 + 0.14 * c)
            * magnified
            * (1 - 0.2 * p.heart_tilt)
            * np.clip(1 - (1.55 * t - 0.95) ** 2, 0, None) ** 0.5
        )
        um = self.um
        heart_left, heart_right = self.at_v.read(heart_left), self.at_v.read(heart_right)
        self.heart_d = np.minimum(um + heart_right, heart_left - um) * F(0.85)
        self.heart = ramp(self.heart_d, self.h + 0.008)
        med_left, med_right = self.at_v.read(left), self.at_v.read(right)
        edge = np.minimum(um + med_right, med_left - um)
        self.med = ramp(edge, self.h + 0.014)

        # Hemithoraces: inside the wall and above the diaphragm (heart and mediastinum included).
        medial = F(p.apex) + F(2.6) * np.maximum(F(0.33) - self.a, 0) ** 2  # the two apices are apart
        self.cage = ramp(np.minimum(self.wall - self.a, v - medial), self.h)
        self.above = ramp(self.diaphragm - v, self.h)
        self.field = self.cage * self.above * (F(1) - F(0.8) * self.med)


def _onset(x):
    """0 -> 1 up to the threshold of presence: traces fade in instead of jumping to the first picture."""
    return min(x / PRESENT, 1.0)


def _pleura(b: _Body, side: int):
    """Fluid [S, S] in 0..1, free air [S, S] in 0..1 and the visceral line [S, S] of one hemithorax."""
    p, v, a = b.p, b.v, b.a
    on = (b.left if side == LEFT else ~b.left).astype(F)
    fluid = air = line = None
    e, x = b.effusion[side], b.ptx[side]
    if x > 0:
        # The lung edge is the wall moved down and inward, less so towards the base.
        q = 0.045 * _onset(x) + 0.27 * x
        taper = F(q) * (F(1) - F(0.45) * ramp(v - F(0.1), 0.45))
        edge = Places(v - F(0.75 * q)).read(b.wall_of_v) - taper
        d = (a - edge) * F(0.8)
        air = ramp(d, b.h) * on * b.field
        w = np.hypot(0.011, 0.6 * b.pixel)
        line = F(_onset(x) * 0.011 / w) * bump(d * d * F(1 / (1.9 * w) ** 2)) * on * b.field
    if e > 0:
        t = np.clip(a * F(1 / p.thorax_width), 0, 1.05)
        floor = b.top[side] + p.dome
        rise = 0.14 * _onset(e) + 0.30 * e
        level = F(floor + 0.02 - 0.04 * _onset(e) - 0.62 * max(e - 0.12, 0.0))
        if x < PRESENT:  # the meniscus; fluid under free air has a flat level instead
            level = level - F(rise) * t**5 + F(0.05) * (F(1) - t)
        else:
            level = level - F(0.10)
        fluid = ramp(v - level, b.h + 0.012) * b.cage * on * (F(1) - b.med)
    return fluid, air, line


def _bones(b: _Body):
    """Ribs, clavicles, scapulae and spine as attenuation [S, S]."""
    p, v, a, u = b.p, b.v, b.a, b.u
    rng = np.random.default_rng([p.seed, 1])
    density = p.bone
    w = np.hypot(0.10, 0.45 * b.pixel / p.rib_spacing)  # in rib phases
    # One rib: a band, brighter at both cortices.
    phase = np.linspace(0, 1, 512, endpoint=False)
    d = np.abs(phase - 0.5)
    band = 1 / (1 + np.exp((d - 0.23) / (0.35 * w)))
    cortex = np.exp(-(((d - 0.21) / (0.8 * w)) ** 2))
    rib = 0.6 * band + 0.55 * cortex
    jitter = rng.normal(0, 0.006, 2)
    slope = np.where(b.left, F(p.rib_slope + jitter[0]), F(p.rib_slope + jitter[1]))
    # Posterior ribs arch up and then down laterally; anterior ends climb towards the side.
    arch = F(0.55) * (a - F(0.22)) ** 2
    posterior = (v - slope * a - arch) * F(1 / p.rib_spacing) + F(p.rib_phase)
    inside = ramp(b.wall + F(0.05) - a, 0.03)
    out = read_cycle(rib, posterior) * F(0.17 * density) * ramp(a - F(0.06), 0.03)
    anterior = (v + F(0.95) * a - F(0.55) * a * a) * F(1 / (1.15 * p.rib_spacing)) + F(p.rib_phase + 0.3)
    front_ribs = read_cycle(rib, anterior)
    front = ramp(a - F(0.24), 0.10)
    out += front_ribs * front * F(0.085 * density)
    out *= inside * ramp(v - F(p.apex - 0.03), 0.04)
    # Calcified costal cartilage continues the anterior ribs medially.
    if p.calcification > 0.02:
        speckle = bump(((a - F(0.21)) * F(1 / 0.10)) ** 2) * ramp(v, 0.2)
        out += speckle * front_ribs * F(0.16 * p.calcification)
    # Clavicles: S-shaped, from the manubrium up and out to the shoulder.
    tilt = rng.normal(0, 0.02, 2)
    centre = F(p.apex + 0.27) - np.where(b.left, F(0.24 + tilt[0]), F(0.24 + tilt[1])) * a
    centre = centre + F(0.035) * np.sin(a * F(6.5) + F(0.3))
    d = (v - centre) * F(1 / np.hypot(0.036, 0.5 * b.pixel))
    q = d * d * F(0.5)
    shaft = bump(q) + F(0.8) * bump(np.abs(q - F(0.35)) * F(4))
    out += shaft * ramp(a - F(0.075), 0.025) * ramp(F(0.95) - a, 0.15) * F(0.20 * density)
    # Scapulae: broad, faint, outside the upper lateral wall.
    d = (a - F(0.80) + F(0.20) * (v + F(0.35))) * F(1 / 0.15)
    e = (v + F(0.38)) * F(1 / 0.36)
    out += np.sqrt(bump(d * d + e * e)) * F(0.22 * density)
    # Spine: a column with end plates.
    bend = F(p.kyphosis) * np.sin(v * F(2.4))
    d = (u - bend) * F(1 / 0.085)
    column = bump(d * d * F(0.55))
    level = v * F(1 / (0.92 * p.rib_spacing)) + F(p.rib_phase)
    discs = read_cycle(0.8 + 0.2 * np.cos(2 * np.pi * phase), level)
    out += column * discs * F(0.40 * density)
    return out


def _markings(b: _Body):
    """Vessels [S, S] that branch out from each hilum, thicker in edema."""
    p, v, u = b.p, b.v, b.u
    edema = b.shown["pulmonary edema"]
    out = np.zeros_like(v)
    rng = np.random.default_rng([p.seed, 2])
    for side in SIDES:
        cols = np.flatnonzero((b.left if side == LEFT else ~b.left).any(axis=0))
        cut = slice(cols[0], cols[-1] + 1) if len(cols) else slice(0, 0)
        hx, hv = 0.15 + 0.02 * (side == LEFT), -0.07 - 0.03 * (side == LEFT)
        du = u[:, cut] * F(side) - F(hx)
        dv = v[:, cut] - F(hv)
        r = np.sqrt(du * du + dv * dv) + F(1e-3)
        theta = np.arctan2(dv, du)
        part = np.zeros_like(r)
        angles = np.linspace(-1.45, 1.45, 13) + rng.normal(0, 0.10, 13)
        curls, waves = rng.normal(0, 0.7, 13), rng.uniform(0, 6.28, 13)
        reaches, widths = rng.uniform(0.35, 0.75, 13), rng.uniform(0.014, 0.025, 13) * (1 + 0.5 * edema)
        wave = F(0.05) * np.sin(r * F(17.0))
        for angle, curl, phase, reach, width in zip(angles, curls, waves, reaches, widths, strict=True):
            # Tapers along its way; thinner than a pixel, it keeps its density.
            fade = np.maximum(F(1) - r * F(1 / (reach + 0.15 * edema)), 0)
            eff = F(np.hypot(0.8 * width, 0.45 * b.pixel))
            d = (theta - F(angle) - F(curl) * r + F(np.cos(phase)) * wave) * r / eff
            part += bump(d * d * F(0.4)) * (fade * F(width / eff))
        core = bump((r * F(1 / 0.17)) ** 2)  # the hilum itself
        out[:, cut] += F(0.5) * np.minimum(part, F(1.4)) + F(0.35) * core
    return out * F(p.vessels)


def _airspace(b: _Body):
    """Edema, atelectasis, consolidation and the old scar as attenuation [S, S] inside the lung."""
    p, s, u, v, a = b.p, b.s, b.u, b.v, b.a
    out = np.zeros_like(v)
    edema, consolidation = b.shown["pulmonary edema"], b.shown["consolidation"]
    if edema > 0:
        d = ((a - F(0.23)) * F(1 / 0.36)) ** 2 + ((v + F(0.02)) * F(1 / 0.50)) ** 2
        haze = bump(d)
        cloud = F(1) + F(0.30) * noise(u, v, seed=p.seed, stream=3, n=64, exponent=1.0, period=1.3)
        out += haze * cloud * F(0.22 * _onset(edema) + 0.85 * edema)
        # Interstitial lines: short, nearly horizontal, at the lateral bases, broken up by the cloud's noise.
        wavy = v + F(0.18) * a + F(0.012) * cloud
        lines = np.maximum(np.sin(wavy * F(2 * np.pi / 0.075)), 0) ** 2 * np.maximum(F(2.2) * cloud - F(1.4), 0)
        where = ramp(a - (b.wall - F(0.12)), 0.05) * ramp(v - F(0.05), 0.2)
        out += lines * where * F((0.10 + 0.35 * edema) * min(1.0, 0.03 / b.pixel))
        out += F(0.10 * edema)
    for side in SIDES:
        c = b.collapse[side]
        if c > 0:
            rng = np.random.default_rng([s.atelectasis_seed, side + 1])
            top = b.top[side]
            inside = ramp(u * F(side) - F(0.10), 0.05)
            for k in range(1 + (c > 0.3) + (c > 0.6)):
                centre = rng.uniform(0.30, 0.42) * p.thorax_width / 0.69
                length, tilt = 0.15 + 0.13 * c, rng.normal(-0.12, 0.12)
                line = F(top - 0.035 - 0.085 * k - rng.uniform(0, 0.02)) + F(tilt) * (a - F(centre))
                width = 0.016 + 0.012 * c
                eff = np.hypot(width, 0.5 * b.pixel)
                d = (v - line) * F(1 / (1.7 * eff))
                e = (a - F(centre)) * F(1 / (length * 1.3))
                out += bump(d * d) * np.sqrt(bump(e * e)) * inside * F(_onset(c) * (0.75 + 0.5 * c) * width / eff)
            # Crowded, denser base.
            d = np.maximum(F(top + 0.02) - v, 0) * F(1 / (0.12 + 0.14 * c))
            out += bump(d * d) * inside * F(0.20 * _onset(c) + 0.45 * c)
    if consolidation > 0:
        rng = np.random.default_rng([s.consolidation_seed, 4])
        side, zone = s.consolidation_side, s.consolidation_zone
        top = b.top[side]
        cv = -0.42 + (top - 0.10 + 0.42) * zone
        wall = float(np.interp(cv, AXIS, b.wall_of_v))
        cu = side * (0.17 + (wall - 0.17) * rng.uniform(0.45, 0.7))
        radius = 0.15 + 0.17 * consolidation
        rough = noise(u, v, seed=s.consolidation_seed, stream=5, n=32, exponent=1.9, period=0.8)
        d = np.sqrt(((u - F(cu)) * F(1 / radius)) ** 2 + ((v - F(cv)) * F(0.85 / radius)) ** 2)
        patch = ramp(F(1) - d + F(0.20) * rough, 0.46)
        out += patch * (F(1) + F(0.16) * rough) * F(0.50 * _onset(consolidation) + 0.75 * consolidation)
    if p.scar > 0:
        line = F(p.scar_y) + F(0.3) * (u - F(p.scar_x))
        eff = np.hypot(0.010, 0.5 * b.pixel)
        d = (v - line) * F(1 / (1.7 * eff))
        e = (u - F(p.scar_x)) * F(1 / 0.16)
        out += bump(d * d) * bump(e * e) * F(0.8 * p.scar * 0.010 / eff)
    return out


def _soft_tissue(b: _Body):
    """Trunk, neck, shoulders and breasts as attenuation [S, S]; 0 in the air around the patient."""
    p, v, a = b.p, b.v, b.a
    vs = AXIS
    neck = 0.30 + 0.06 * (p.soft_tissue - 1) + 0.03 * np.clip(-1.0 - vs, 0, None)
    t = np.clip((vs + 1.10) / 0.45, 0, 1)
    shoulder = neck + (p.body_width + 0.25 - neck) * t**1.3
    trunk = p.body_width - 0.05 * hill(vs, 0.2, 0.35)
    mix = 1 / (1 + np.exp(-(vs + 0.12) / 0.10))
    width = shoulder * (1 - mix) + trunk * mix
    edge = b.at_v.read(width) - a
    body = ramp(edge, 0.02 + b.h)
    # Rounded trunk: the path through it shortens towards the skin.
    depth = np.sqrt(np.clip(edge * F(3.2), 0, 1)) * F(0.75) + F(0.25)
    out = body * depth * F(1.0 + 0.5 * (p.soft_tissue - 1))
    out += body * F(0.26) * ramp(v - F(0.30), 0.6)  # thicker towards the abdomen
    if p.breast > 0:
        d = ((a - F(0.42)) * F(1 / 0.34)) ** 2 + ((v - F(0.28)) * F(1 / 0.36)) ** 2
        out += ramp(F(1) - d, 0.35) * F(0.24 * p.breast)
    return out, body


def _attenuation(b: _Body):
    p, v, u = b.p, b.v, b.u
    soft, body = _soft_tissue(b)
    parenchyma = noise(u, v, seed=p.seed, stream=5, n=64, exponent=p.texture, period=1.1)
    tissue = noise(u, v, seed=p.seed, stream=6, n=32, exponent=1.5, period=2.1)

    fluids, lines, free = np.zeros_like(v), np.zeros_like(v), np.zeros_like(v)
    for side in SIDES:
        fluid, air, line = _pleura(b, side)
        if fluid is not None:
            fluids += fluid
        if air is not None:
            free += air
            lines += line
    fluids = np.minimum(fluids, 1)
    free *= F(1) - fluids
    lung = b.field * (F(1) - fluids)
    inside = lung * (F(1) - free)  # lung with markings
    # Air takes tissue away: more where the chest is deep.
    depth = np.sqrt(np.clip((b.wall - b.a) * F(4.5), 0, 1)) * F(0.35) + F(0.65)
    out = soft - lung * depth * F(0.76)
    out -= free * F(0.16)
    squeezed = 1.0 + 0.25 * max(b.ptx.values())
    marks = _markings(b) * F(0.46 * squeezed) + parenchyma * F(0.055 * (1 + 0.5 * b.shown["pulmonary edema"]))
    marks += _airspace(b)
    # Airspace disease replaces air: it saturates at soft tissue.
    marks = np.where(marks > 0, F(1.0) * (F(1) - np.exp(-np.maximum(marks, 0))), marks)
    out += inside * marks
    out += lines * F(0.55) * (F(1) - fluids)
    # Heart and mediastinum, in front of and behind the lungs.
    centre = np.maximum(b.med, b.heart * ramp(b.diaphragm + F(0.10) - v, 0.05))
    out += centre * (F(0.35) + F(0.40) * lung * depth) * (F(1) - F(0.15) * b.heart) * (F(1) - F(0.7) * fluids)
    out += b.heart * lung * np.sqrt(np.clip(b.heart_d * F(2.5), 0, 1)) * F(0.25)
    out += fluids * F(0.16)
    below = (F(1) - b.above) * b.cage
    out += below * F(0.22)
    # Air in the trachea, the main bronchi and the stomach.
    d = (b.um - F(0.012)) * F(1 / 0.042)
    out -= bump(d * d * F(0.5)) * ramp(F(-0.20) - v, 0.05) * F(0.42)
    d = ((u - F(0.30)) * F(1 / 0.16)) ** 2 + ((v - F(b.top[LEFT] + 0.16)) * F(1 / 0.09)) ** 2
    out -= bump(d) * below * F(0.35 + 0.25 * (p.seed % 97) / 97)
    out += _bones(b) * body * (F(1) - F(0.5) * below)
    out += tissue * body * F(0.035)
    return out, body, fluids, lung


def _masks(b: _Body, fluids, body):
    """bool [6, S, S]. Lungs: the visible field, without heart, mediastinum and fluid."""
    u, v = b.u, b.v
    centre = (np.maximum(b.med, b.heart) > 0.5) & (b.above > 0.5)
    lung = (b.field > 0.5) & ~centre & (fluids < 0.5)
    below = b.cage * (F(1) - b.above)
    heart = (b.heart > 0.5) & (b.above > 0.5)
    named = {
        "left lung": lung & b.left,
        "right lung": lung & ~b.left,
        "heart": heart,
        "facies diaphragmatica": (below > 0.5) & (v < b.diaphragm + F(0.14)),
        "mediastinum": (b.med > 0.5) & (b.above > 0.5) & (v > F(b.p.apex)),
        "spine": (np.abs(u - F(b.p.kyphosis) * np.sin(v * F(2.4))) < F(0.085)) & (body > 0.5),
    }
    return np.stack([named[name] for name in ORGANS])


def render(patient: Patient, state: State, acquisition: Acquisition, size: int) -> Rendered:
    """One study as a picture of `size` x `size` pixels, deterministic in its arguments.

    Returns the image (uint8 [S, S], bright = attenuating, as a frontal film is shown) and the organ masks
    (bool [6, S, S]). Any size from 16 on; organs keep their place in the image at every size.
    """
    q = acquisition
    b = _Body(patient, state, q, size)
    attenuation, body, fluids, _ = _attenuation(b)
    if q.skin_fold:
        d = b.u - F(q.skin_fold_x) - F(0.12) * b.v
        attenuation += (
            ramp(-d * F(np.sign(q.skin_fold_x)), 0.02)
            * bump((d * F(1 / 0.10)) ** 2)
            * F(0.25 * q.skin_fold)
            * bump(((b.v + F(0.1)) * F(1 / 0.5)) ** 2)
        )
    # Film: saturates with attenuation; the air around the patient is black.
    film = F(1) - np.exp(attenuation * F(-1.0 * np.exp(q.exposure)))
    film = np.clip(film, 0, 1) ** F(q.gamma)
    film = film * (F(1) + F(q.contrast - 1) * (film - F(0.5)) * F(2))
    grain = np.random.default_rng([q.seed, size]).standard_normal(film.shape, F)
    film = film + grain * F(q.noise * min(1.0, size / 128) ** 0.5)
    # Collimation: an unexposed border. A border of 0 ends a pixel outside the image.
    centres, h = grid(size), 2.0 / size
    rows = ramp(centres + F(1 - q.border_top + h), h) * ramp(F(1 - q.border_bottom + h) - centres, h)
    cols = ramp(centres + F(1 - q.border_left + h), h) * ramp(F(1 - q.border_right + h) - centres, h)
    film = film * rows[:, None] * cols[None]
    image = np.clip(film * F(255) + F(0.5), 0, 255).astype(np.uint8)
    return Rendered(image, _masks(b, fluids, body))


def counterfactual(prior: dict, followup: dict, size: int) -> np.ndarray:
    """The true counterfactual of a pair of truth rows, uint8 [S, S].

    The prior's patient and acquisition with the follow-up's disease: what the prior would look like had the
    prompt come true and nothing else changed.
    """
    patient = Patient.from_dict(prior["patient"])
    acquisition = Acquisition.from_dict(prior["acquisition"])
    return render(patient, State.from_dict(followup["disease"]), acquisition, size).image

"""Patient + disease state + acquisition -> radiograph and organ masks, in NumPy alone.

The picture is a sum of smooth attenuation fields of (u, v), the patient's own coordinates, evaluated at the
centres of the requested pixels: no raster is resized, so a study looks the same at 64 and at 512 pixels.
Edges are ramps at least a pixel wide and lines keep their integrated density when they get thinner than a
pixel, which is what anti-aliases them. The sum goes through a film curve (bright = attenuating).

u > 0 is the patient's left (on the right of the image), v grows towards the feet. `a` = |u|.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from progemu_jax.radtext import ORGANS, PRESENT

from .patient import LEFT, RIGHT, Acquisition, Patient, State

F = np.float32
SIDES = (LEFT, RIGHT)


@dataclass(frozen=True)
class Rendered:
    """image: uint8 [S, S]; masks: bool [6, S, S] in the order of ORGANS."""

    image: np.ndarray
    masks: np.ndarray


@lru_cache(maxsize=8)
def _grid(size: int) -> np.ndarray:
    """float32 [S]: pixel centres in [-1, 1]."""
    grid = ((np.arange(size, dtype=F) + F(0.5)) * F(2 / size) - F(1)).astype(F)
    grid.setflags(write=False)
    return grid


def _ramp(d, h):
    """0 -> 1 smoothly as the signed distance d goes from -h to h."""
    t = np.clip(d * F(0.5 / h) + F(0.5), 0, 1)
    return t * t * (F(3) - F(2) * t)


def _bump(q):
    """(1 - q)^2 for q < 1, else 0, of a squared distance q: a smooth blob or line profile."""
    q = np.maximum(F(1) - q, 0)
    return q * q


class _Lookup:
    """A 1-D profile tabulated on [low, high] and read at float32 arrays (linear interpolation)."""

    def __init__(self, values, low, high):
        values = np.asarray(values, F)
        self.values, self.steps = values, np.append(np.diff(values), F(0))
        self.low, self.scale, self.last = F(low), F((len(values) - 1) / (high - low)), len(values) - 1

    def __call__(self, x):
        t = np.clip((x - self.low) * self.scale, 0, self.last)
        i = t.astype(np.int32)
        return self.values.take(i) + self.steps.take(i) * (t - i)


def _noise_table(rng, n, exponent, low=2.0):
    """float32 [n, n], periodic, unit variance, amplitude spectrum ~ 1 / f^exponent from `low` cycles on."""
    f = np.fft.fftfreq(n)[:, None] * n
    g = np.fft.rfftfreq(n)[None] * n
    radius = np.maximum(np.sqrt(f * f + g * g), 1e-3)
    spectrum = np.where(radius < low, 0.0, radius**-exponent)
    table = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((n, n))) * spectrum, s=(n, n))
    return (table / table.std()).astype(F)


def _read_table(table, u, v, period):
    """Bilinear read of a periodic table that spans `period` half image widths."""
    n = len(table)
    x = (u + F(4 * period)) * F(n / period)
    y = (v + F(4 * period)) * F(n / period)
    i, j = y.astype(np.int32), x.astype(np.int32)
    y, x = y - i, x - j
    i, j = i % n, j % n
    flat = np.pad(table, ((0, 1), (0, 1)), mode="wrap").ravel()
    k = i * (n + 1) + j
    top = flat.take(k) + (flat.take(k + 1) - flat.take(k)) * x
    k += n + 1
    bottom = flat.take(k) + (flat.take(k + 1) - flat.take(k)) * x
    return top + (bottom - top) * y


class _Body:
    """The fields that several parts share: coordinates, lungs, diaphragm, heart, spine (one study)."""

    def __init__(self, p: Patient, s: State, q: Acquisition, size: int):
        self.p, self.s, self.q = p, s, q
        self.pixel = pixel = 2.0 / size / q.scale
        self.h = max(0.75 * pixel, 0.012)  # sharp edges
        grid = _grid(size)
        c, sn = np.cos(q.angle) / q.scale, np.sin(q.angle) / q.scale
        x, y = grid[None, :] - F(q.shift_x), grid[:, None] - F(q.shift_y)
        self.u = u = F(c) * x + F(sn) * y
        self.v = v = F(c) * y - F(sn) * x
        self.effusion = {LEFT: s["left pleural effusion"], RIGHT: s["right pleural effusion"]}
        self.ptx = {LEFT: s["left pneumothorax"], RIGHT: s["right pneumothorax"]}
        atelectasis = s["atelectasis"]
        self.collapse = {
            side: atelectasis * (1.0 if s.atelectasis_side in (side, 0) else 0.0) for side in SIDES
        }

        # Volume loss pulls the mediastinum, large effusions and pneumothoraces push it.
        push = {k: 0.05 * max(self.effusion[k] - 0.4, 0) + 0.09 * max(self.ptx[k] - 0.3, 0) for k in SIDES}
        pull = {k: 0.035 * self.collapse[k] for k in SIDES}
        self.shift = push[RIGHT] - push[LEFT] + pull[LEFT] - pull[RIGHT]
        self.um = u - F(self.shift) * _ramp(v + F(0.35), 0.5)  # mediastinal u: the neck stays

        # Rib cage: the inner wall as a half width over v, narrow at the apex.
        vs = np.linspace(-1.4, 1.4, 384)
        t = np.clip((vs - p.apex) / (0.30 - p.apex), 0, 1)
        wall = p.thorax_width * (0.10 * np.sqrt(t) + 0.90 * (1 - (1 - t) ** 2.3) ** 0.75)
        wall = np.where(vs < p.apex, -0.08 * np.clip((p.apex - vs) / 0.1, 0, 1), wall)
        self.wall_of_v = _Lookup(wall, -1.4, 1.4)
        self.a = np.abs(u)
        self.left = u > 0
        self.wall = self.wall_of_v(v)

        # Diaphragm: one dome a side over u, the costophrenic angle at the wall.
        us = np.linspace(-1.4, 1.4, 384)
        au = np.clip(np.abs(us) / p.thorax_width, 0, 1.15)
        dome = np.where(au < 0.5, 0.35 * (2 * (0.5 - au)) ** 2, (2 * np.maximum(au - 0.5, 0)) ** 2.2)
        lift = {k: 0.09 * q.inspiration + 0.20 * self.collapse[k] for k in SIDES}
        top = np.where(us > 0, p.diaphragm + 0.045 - lift[LEFT], p.diaphragm - lift[RIGHT])
        blend = _ramp(us, 0.06)
        top = (p.diaphragm + 0.045 - lift[LEFT]) * blend + (p.diaphragm - lift[RIGHT]) * (1 - blend)
        self.top = {LEFT: p.diaphragm + 0.045 - lift[LEFT], RIGHT: p.diaphragm - lift[RIGHT]}
        old = p.blunting * 0.10 * np.clip((au - 0.72) / 0.28, 0, 1) ** 1.5 * (us * p.blunting_side > 0)
        self.diaphragm_of_u = _Lookup(top + p.dome * dome - old, -1.4, 1.4)
        self.diaphragm = self.diaphragm_of_u(u)

        # Heart: the left ventricle and the right atrium, both resting on the diaphragm.
        c = s["cardiomegaly"]
        ap = 1.05 if q.view == "AP" else 1.0
        size_ = p.heart_size * ap * (1 + 0.03 * q.inspiration)
        self.lv = np.array([0.30 + 0.20 * c, 0.31 + 0.05 * c]) * size_
        self.ra = np.array([0.165 + 0.105 * c, 0.25 + 0.05 * c]) * size_
        um = self.um
        bottom = 0.5 * (self.top[LEFT] + self.top[RIGHT]) + 0.03
        heart_v = bottom - 0.62 * self.lv[1]
        ct, st = np.cos(0.45 + p.heart_tilt), np.sin(0.45 + p.heart_tilt)
        du, dv = um - F(0.085 + 0.045 * c), v - F(heart_v)
        r1 = ((du * F(ct) + dv * F(st)) * F(1 / self.lv[0])) ** 2
        r1 += ((dv * F(ct) - du * F(st)) * F(1 / (0.80 * self.lv[1]))) ** 2
        r2 = ((um + F(0.03)) * F(1 / self.ra[0])) ** 2
        r2 += ((v - F(heart_v - 0.02)) * F(1 / self.ra[1])) ** 2
        # 1 - r is about 2 d / axis near the border.
        self.heart_r = np.minimum(r1 + F(0.0), r2)
        soft = self.h + 0.006
        self.heart = np.maximum(
            _ramp((F(1) - r1) * F(0.5 * self.lv[0]), soft), _ramp((F(1) - r2) * F(0.5 * self.ra[0]), soft)
        )

        # Mediastinum: half widths over v on each side of the midline.
        m = p.mediastinum
        right = 0.105 + 0.03 * _hill(vs, -0.12, 0.16) + 0.02 * np.clip((vs - 0.0) / 0.5, 0, 1)
        knob = (0.035 + 0.075 * p.aorta) * _hill(vs, -0.33, 0.085)
        trunk = 0.035 * _hill(vs, -0.13, 0.10)
        descending = 0.03 * p.aorta * _hill(vs, 0.05, 0.4)
        left = 0.095 + knob + trunk + descending + 0.02 * np.clip((vs - 0.0) / 0.5, 0, 1)
        neck = np.clip((-0.45 - vs) / 0.4, 0, 1)
        self.med_right = _Lookup(m * (right + 0.04 * neck), -1.4, 1.4)(v)
        self.med_left = _Lookup(m * (left + 0.05 * neck), -1.4, 1.4)(v)
        edge = np.minimum(um + self.med_right, self.med_left - um)
        self.med = _ramp(edge, self.h + 0.012)

        # Hemithoraces: inside the wall and above the diaphragm (heart and mediastinum included).
        self.cage = _ramp(self.wall - self.a, self.h)
        self.above = _ramp(self.diaphragm - v, self.h)
        self.field = self.cage * self.above


def _hill(x, centre, width):
    return np.exp(-(((x - centre) / width) ** 2))


def _pleura(b: _Body, side: int):
    """Fluid [S, S] in 0..1, free air [S, S] in 0..1 and the visceral line [S, S] of one hemithorax."""
    p, v, a = b.p, b.v, b.a
    on = (b.left if side == LEFT else ~b.left).astype(F)
    fluid = air = line = None
    e, x = b.effusion[side], b.ptx[side]
    if x > 0:
        # The lung edge is the wall moved down and inward, less so towards the base.
        q = 0.045 + 0.27 * x
        taper = F(q) * (F(1) - F(0.45) * _ramp(v - F(0.1), 0.45))
        edge = b.wall_of_v(v - F(0.75 * q)) - taper
        d = (a - edge) * F(0.8)
        air = _ramp(d, b.h) * on * b.field
        w = np.hypot(0.011, 0.6 * b.pixel)
        line = F(0.011 / w) * _bump(d * d * F(1 / (1.9 * w) ** 2)) * on * b.field
    if e > 0:
        t = np.clip(a * F(1 / p.thorax_width), 0, 1.05)
        floor = b.top[side] + p.dome
        rise = 0.14 + 0.30 * e
        level = F(floor - 0.02 - 0.62 * max(e - 0.12, 0.0))
        if x < PRESENT:  # the meniscus; fluid under free air has a flat level instead
            level = level - F(rise) * t**5 + F(0.05) * (F(1) - t)
        else:
            level = level - F(0.10)
        fluid = _ramp(v - level, b.h + 0.012) * b.cage * on
    return fluid, air, line


def _bones(b: _Body):
    """Ribs, clavicles, scapulae and spine as attenuation [S, S]."""
    p, v, a, u = b.p, b.v, b.a, b.u
    rng = np.random.default_rng([p.seed, 1])
    density = p.bone
    w = np.hypot(0.10, 0.45 * b.pixel / p.rib_spacing)  # in rib phases
    # One rib: a band, brighter at both cortices.
    phase = np.linspace(0, 1, 128)
    d = np.abs(phase - 0.5)
    band = 1 / (1 + np.exp((d - 0.23) / (0.35 * w)))
    cortex = np.exp(-(((d - 0.21) / (0.8 * w)) ** 2))
    rib = _Lookup(0.6 * band + 0.55 * cortex, 0, 1)
    jitter = rng.normal(0, 0.006, 2)
    slope = np.where(b.left, F(p.rib_slope + jitter[0]), F(p.rib_slope + jitter[1]))
    # Posterior ribs arch up and then down laterally; anterior ends climb towards the side.
    arch = F(0.55) * (a - F(0.22)) ** 2
    posterior = (v - slope * a - arch) * F(1 / p.rib_spacing) + F(p.rib_phase)
    inside = _ramp(b.wall + F(0.05) - a, 0.03)
    out = rib(posterior - np.floor(posterior)) * F(0.30 * density) * _ramp(a - F(0.06), 0.03)
    anterior = (v + F(0.95) * a - F(0.55) * a * a) * F(1 / (1.15 * p.rib_spacing)) + F(p.rib_phase + 0.3)
    front = _ramp(a - F(0.24), 0.10)
    out += rib(anterior - np.floor(anterior)) * front * F(0.17 * density)
    out *= inside * _ramp(v - F(p.apex - 0.03), 0.04)
    # Calcified costal cartilage continues the anterior ribs medially.
    if p.calcification > 0.02:
        speckle = _bump(((a - F(0.21)) * F(1 / 0.10)) ** 2) * _ramp(v, 0.2)
        out += speckle * rib(anterior - np.floor(anterior)) * F(0.22 * p.calcification)
    # Clavicles.
    width = 0.03
    tilt = rng.normal(0, 0.02, 2)
    centre = F(p.apex + 0.175) - np.where(b.left, F(0.16 + tilt[0]), F(0.16 + tilt[1])) * a
    centre = centre + F(0.05) * np.sin(a * F(7.0))
    d = (v - centre) * F(1 / np.hypot(width, 0.5 * b.pixel))
    out += (
        _bump(d * d * F(0.5))
        * _ramp(a - F(0.07), 0.02)
        * _ramp(F(p.thorax_width + 0.02) - a, 0.05)
        * F(0.5 * density)
    )
    # Scapulae: broad, faint, outside the upper lateral wall.
    d = (a - F(0.80) + F(0.20) * (v + F(0.35))) * F(1 / 0.15)
    e = (v + F(0.38)) * F(1 / 0.36)
    out += np.sqrt(_bump(d * d + e * e)) * F(0.22 * density)
    # Spine: a column with end plates.
    bend = F(p.kyphosis) * np.sin(v * F(2.4))
    d = (u - bend) * F(1 / 0.085)
    column = _bump(d * d * F(0.55))
    level = v * F(1 / (0.92 * p.rib_spacing)) + F(p.rib_phase)
    discs = _Lookup(0.8 + 0.2 * np.cos(2 * np.pi * np.linspace(0, 1, 128)), 0, 1)(level - np.floor(level))
    out += column * discs * F(0.55 * density)
    return out


def _markings(b: _Body):
    """Vessels [S, S] that branch out from each hilum, thicker in edema."""
    p, v, u = b.p, b.v, b.u
    edema = b.s["pulmonary edema"]
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
        for angle in np.concatenate([np.linspace(-1.35, 1.35, 9), np.linspace(-1.15, 1.15, 6)]) + rng.normal(
            0, 0.09, 15
        ):
            curl, reach, width = rng.normal(0, 0.55), rng.uniform(0.32, 0.62), rng.uniform(0.013, 0.022)
            width = width * (1 + 0.5 * edema)
            wide = np.maximum(F(width) * (F(1) - r * F(0.9 / (reach + 0.2))), F(0.006))
            eff = np.sqrt(wide * wide + F((0.5 * b.pixel) ** 2))
            d = (theta - F(angle) - F(curl) * r) * r / eff
            part += (
                _bump(d * d * F(0.4)) * (wide / eff) * np.maximum(F(1) - r * F(1 / (reach + 0.1 * edema)), 0)
            )
        core = _bump((r * F(1 / 0.17)) ** 2)  # the hilum itself
        out[:, cut] += F(0.5) * np.minimum(part, F(1.4)) + F(0.35) * core
    return out * F(p.vessels)


def _airspace(b: _Body):
    """Edema, atelectasis, consolidation and the old scar as attenuation [S, S] inside the lung."""
    p, s, u, v, a = b.p, b.s, b.u, b.v, b.a
    out = np.zeros_like(v)
    edema, consolidation = s["pulmonary edema"], s["consolidation"]
    if edema > 0:
        rng = np.random.default_rng([p.seed, 3])
        table = _noise_table(rng, 64, 1.0)
        d = ((a - F(0.23)) * F(1 / 0.36)) ** 2 + ((v + F(0.02)) * F(1 / 0.50)) ** 2
        haze = _bump(d)
        cloud = F(1) + F(0.30) * _read_table(table, u, v, 1.3)
        out += haze * cloud * F(0.25 + 0.85 * edema)
        # Interstitial lines: short, horizontal, at the lateral bases.
        lines = np.sin((v + F(0.25) * a + F(0.02) * np.sin(a * F(23))) * F(2 * np.pi / 0.085))
        lines = np.maximum(lines, 0) ** 2
        where = _ramp(a - (b.wall - F(0.20)), 0.05) * _ramp(v - F(0.0), 0.15)
        out += lines * where * F((0.15 + 0.45 * edema) * min(1.0, 0.03 / b.pixel))
        out += F(0.10 * edema)
    for side in SIDES:
        c = b.collapse[side]
        if c > 0:
            rng = np.random.default_rng([s.atelectasis_seed, side + 1])
            top = b.top[side]
            inside = _ramp(u * F(side) - F(0.10), 0.05)
            for k in range(1 + (c > 0.3) + (c > 0.6)):
                centre = rng.uniform(0.30, 0.42) * p.thorax_width / 0.69
                length, tilt = 0.15 + 0.13 * c, rng.normal(-0.12, 0.12)
                line = F(top - 0.035 - 0.085 * k - rng.uniform(0, 0.02)) + F(tilt) * (a - F(centre))
                width = 0.016 + 0.012 * c
                eff = np.hypot(width, 0.5 * b.pixel)
                d = (v - line) * F(1 / (1.7 * eff))
                e = (a - F(centre)) * F(1 / (length * 1.3))
                out += _bump(d * d) * np.sqrt(_bump(e * e)) * inside * F((0.75 + 0.5 * c) * width / eff)
            # Crowded, denser base.
            d = np.maximum(F(top + 0.02) - v, 0) * F(1 / (0.12 + 0.14 * c))
            out += _bump(d * d) * inside * F(0.20 + 0.45 * c)
    if consolidation > 0:
        rng = np.random.default_rng([s.consolidation_seed, 4])
        table = _noise_table(rng, 48, 1.4)
        side, zone = s.consolidation_side, s.consolidation_zone
        top = b.top[side]
        cv = -0.42 + (top - 0.10 + 0.42) * zone
        wall = float(b.wall_of_v(np.array([cv], F))[0])
        cu = side * (0.17 + (wall - 0.17) * rng.uniform(0.45, 0.7))
        radius = 0.15 + 0.15 * consolidation
        rough = _read_table(table, u - F(cu), v - F(cv), 1.2)
        d = np.sqrt(((u - F(cu)) * F(1 / radius)) ** 2 + ((v - F(cv)) * F(0.85 / radius)) ** 2)
        patch = _ramp(F(1) - d + F(0.24) * rough, 0.42)
        out += patch * (F(1) + F(0.16) * rough) * F(0.70 + 0.65 * consolidation)
    if p.scar > 0:
        line = F(p.scar_y) + F(0.3) * (u - F(p.scar_x))
        eff = np.hypot(0.010, 0.5 * b.pixel)
        d = (v - line) * F(1 / (1.7 * eff))
        e = (u - F(p.scar_x)) * F(1 / 0.16)
        out += _bump(d * d) * _bump(e * e) * F(0.8 * p.scar * 0.010 / eff)
    return out


def _soft_tissue(b: _Body):
    """Trunk, neck, shoulders and breasts as attenuation [S, S]; 0 in the air around the patient."""
    p, v, a = b.p, b.v, b.a
    vs = np.linspace(-1.4, 1.4, 384)
    neck, shoulder = 0.24 + 0.05 * (p.soft_tissue - 1), p.body_width + 0.12
    t = np.clip((vs + 0.98) / 0.42, 0, 1)
    width = neck + (shoulder - neck) * t**1.6 + np.where(vs < -0.98, 0.06 * (-0.98 - vs), 0)
    trunk = p.body_width - 0.04 * _hill(vs, 0.25, 0.4)
    mix = 1 / (1 + np.exp(-(vs + 0.28) / 0.09))
    width = width * (1 - mix) + trunk * mix
    edge = _Lookup(width, -1.4, 1.4)(v) - a
    body = _ramp(edge, 0.02 + b.h)
    # Rounded trunk: the path through it shortens towards the skin.
    depth = np.sqrt(np.clip(edge * F(3.2), 0, 1)) * F(0.75) + F(0.25)
    out = body * depth * F(1.05 + 0.28 * (p.soft_tissue - 1))
    out += body * F(0.32) * _ramp(v - F(0.35), 0.5)  # thicker towards the abdomen
    if p.breast > 0:
        d = ((a - F(0.42)) * F(1 / 0.34)) ** 2 + ((v - F(0.28)) * F(1 / 0.36)) ** 2
        out += _ramp(F(1) - d, 0.35) * F(0.24 * p.breast)
    return out, body


def _attenuation(b: _Body):
    p, v, u = b.p, b.v, b.u
    soft, body = _soft_tissue(b)
    rng = np.random.default_rng([p.seed, 5])
    parenchyma = _read_table(_noise_table(rng, 96, p.texture), u, v, 1.6)
    tissue = _read_table(_noise_table(rng, 32, 1.5), u, v, 2.1)

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
    out = soft - lung * depth * F(1.02)
    out -= free * F(0.16)
    squeezed = 1.0 + 0.25 * max(b.ptx.values())
    marks = _markings(b) * F(0.62 * squeezed) + parenchyma * F(0.055 * (1 + 0.5 * b.s["pulmonary edema"]))
    marks += _airspace(b)
    # Airspace disease replaces air: it saturates at soft tissue.
    marks = np.where(marks > 0, F(1.0) * (F(1) - np.exp(-np.maximum(marks, 0))), marks)
    out += inside * marks
    out += lines * F(0.55) * (F(1) - fluids)
    # Heart and mediastinum, in front of and behind the lungs.
    centre = np.maximum(b.med, b.heart * _ramp(b.diaphragm + F(0.10) - v, 0.05))
    out += centre * (F(0.55) + F(0.47) * lung * depth) * (F(1) - F(0.15) * b.heart)
    out += b.heart * lung * np.sqrt(np.clip(F(1) - b.heart_r, 0, 1)) * F(0.22)
    out += fluids * F(0.16)
    below = (F(1) - b.above) * b.cage
    out += below * F(0.22)
    # Air in the trachea, the main bronchi and the stomach.
    d = (b.um - F(0.012)) * F(1 / 0.042)
    out -= _bump(d * d * F(0.5)) * _ramp(F(-0.20) - v, 0.05) * F(0.42)
    d = ((u - F(0.30)) * F(1 / 0.16)) ** 2 + ((v - F(b.top[LEFT] + 0.16)) * F(1 / 0.09)) ** 2
    out -= _bump(d) * below * F(0.35 + 0.25 * (p.seed % 97) / 97)
    out += _bones(b) * body
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
            _ramp(-d * F(np.sign(q.skin_fold_x)), 0.02)
            * _bump((d * F(1 / 0.10)) ** 2)
            * F(0.25 * q.skin_fold)
            * _bump(((b.v + F(0.1)) * F(1 / 0.5)) ** 2)
        )
    # Film: a logistic curve; the air around the patient is black.
    film = F(1) / (F(1) + np.exp((F(0.78 - q.exposure) - attenuation) * F(2.9 * q.contrast)))
    film = np.clip((film - F(0.09)) * F(1 / 0.87), 0, 1) ** F(q.gamma)
    noise = np.random.default_rng([q.seed, size]).standard_normal(film.shape, F)
    film = film + noise * F(q.noise * min(1.0, size / 128) ** 0.5)
    grid = _grid(size)
    h = 2.0 / size
    rows = _ramp(grid + F(1 - q.border_top), h) * _ramp(F(1 - q.border_bottom) - grid, h)
    cols = _ramp(grid + F(1 - q.border_left), h) * _ramp(F(1 - q.border_right) - grid, h)
    rows = rows if q.border_top or q.border_bottom else np.ones_like(rows)
    cols = cols if q.border_left or q.border_right else np.ones_like(cols)
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

"""Plots of the report, as SVG text. Matplotlib is imported only when a plot is drawn."""

import io

from progemu_jax.eval.definitions import METRICS

COLOURS = {"first": "#1f5fa8", "system": "#1f5fa8", "baseline": "#8b95a3", "ceiling": "#1c2430"}


def forest(result, keys):
    """Forest plot: one panel a metric, one line a system, point and interval. Returns an <svg> element."""
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    systems = [
        (key, s) for key, s in result["systems"].items()
        if any(s["metrics"].get(k, {}).get("value") is not None for k in keys)
    ]  # fmt: skip
    first = next(iter(result["systems"]))
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "progemu", "font.size": 9, "font.family": "sans-serif"}):
        figure = Figure(figsize=(11, 0.7 + 0.28 * len(systems)), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots(1, len(keys), sharey=True, squeeze=False)[0]
        for axis, key in zip(axes, keys, strict=True):
            for y, (name, s) in enumerate(systems):
                e = s["metrics"].get(key)
                if e is None or e["value"] is None:
                    continue
                colour = COLOURS["first" if name == first else s["role"]]
                if e["low"] is not None:
                    axis.plot([e["low"], e["high"]], [y, y], color=colour, lw=1.6, solid_capstyle="butt")
                face = "white" if s["role"] == "ceiling" else colour
                axis.plot(e["value"], y, "o", ms=6, mfc=face, mec=colour, mew=1.4)
            if METRICS[key].chance is not None:
                axis.axvline(METRICS[key].chance, color="#b9c1cb", lw=0.9, ls=(0, (4, 3)), zorder=0)
            axis.locator_params(axis="x", nbins=4)
            axis.set_title(METRICS[key].title, fontsize=9.5, loc="left")
            axis.grid(axis="x", color="#eceff3", lw=0.8)
            axis.set_axisbelow(True)
            axis.spines[["top", "right", "left"]].set_visible(False)
            axis.tick_params(length=0)
        axes[0].set_yticks(range(len(systems)), [s["title"] for _, s in systems])
        axes[0].set_ylim(len(systems) - 0.5, -0.5)
        figure.get_layout_engine().set(wspace=0.06)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]

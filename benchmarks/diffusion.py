"""Denoising steps beside Diffusers' on the same weights; prints JSON lines.

    make bench-diffusion
    .venv-parity/bin/python benchmarks/diffusion.py [--width=128] [--size=32] [--batch=1] [--steps=4] [--rounds=3]
                                                    [--python=.venv312/bin/python] [--dtypes=float32,bfloat16]

A step is the UNet on the three rows a case that InstructPix2Pix's two guidance scales need, their combination, and
DDIM's update. The UNet has Stable Diffusion's shape with channels width, 2, 4, 4 times width (320 is the full one).
Both sides run in each of --dtypes, in turn, `rounds` times on the same cores; warm-up (compilation, thread pools) is
not counted. By default bfloat16 is left out where the CPU has no AVX-512: PyTorch takes minutes a step in it there.
Ours is in a second process, so that --python may name another interpreter, with another jax. The last line has the
medians, the ratio of the better dtype of each, and how far the results are apart.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import child
import numpy as np

RESULT = "result.npy"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    sizes = {"width": 128, "size": 32, "batch": 1, "steps": 4, "rounds": 3, "threads": 2, "tokens": 77}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--dtypes")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # a library that waits leaves the cores to the other
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if args.serve:
        return serve(Path(args.serve), args.steps)

    import torch
    from diffusers import DDIMScheduler, UNet2DConditionModel

    fast = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    dtypes = (args.dtypes or ("float32,bfloat16" if fast else "float32")).split(",")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    w = args.width
    config = {
        "in_channels": 8,
        "cross_attention_dim": 768,
        "block_out_channels": (w, 2 * w, 4 * w, 4 * w),
        "sample_size": args.size,
    }
    x = inputs(args.batch, args.size, args.tokens)
    unet = UNet2DConditionModel(**config).eval()
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1,
        set_alpha_to_one=False,
    )  # fmt: skip
    theirs = {}
    for dtype in dtypes:
        module = UNet2DConditionModel(**config).eval()
        module.load_state_dict(unet.state_dict())
        theirs[dtype] = their_steps(module.to(getattr(torch, dtype)), scheduler, x, args.steps)
    with tempfile.TemporaryDirectory() as folder:
        unet.save_pretrained(folder)
        np.savez(Path(folder) / "inputs.npz", **x)
        ours = child.Child(args.python, __file__, f"--serve={folder}", f"--steps={args.steps}")
        calls = {("ours", d): lambda d=d: (ours(d), np.load(Path(folder) / RESULT)) for d in dtypes}
        calls |= {("diffusers", d): lambda d=d: timed(theirs[d]) for d in dtypes}
        results = {key: call()[1] for key, call in calls.items()}  # warm-up
        speeds = {key: [] for key in calls}
        for index in range(args.rounds):
            row = {"round": index}
            for key, call in calls.items():
                speeds[key].append(args.steps / call()[0])
                row["_".join(key)] = round(speeds[key][-1], 4)
            print(json.dumps(row), flush=True)
        ours.close()
    best = {who: max(dtypes, key=lambda d, w=who: np.median(speeds[w, d])) for who in ("ours", "diffusers")}

    def ratio(ours, theirs):
        return round(float(np.median(np.divide(speeds["ours", ours], speeds["diffusers", theirs]))), 2)

    summary = {k: v for k, v in vars(args).items() if k in sizes} | {"jax": ours.hello, "torch": torch.__version__}
    summary |= {"_".join(key): round(float(np.median(value)), 4) for key, value in speeds.items()}
    summary |= {f"best_{who}": dtype for who, dtype in best.items()}
    summary |= {f"{dtype}_ratio": ratio(dtype, dtype) for dtype in dtypes}
    summary["ratio"] = ratio(best["ours"], best["diffusers"])
    reference = results["diffusers", dtypes[0]]
    for key, value in results.items():
        error = np.abs(value - reference).max() / np.abs(reference).max()
        summary[f"difference_{'_'.join(key)}"] = float(f"{error:.1e}")
    print(json.dumps(summary))


def inputs(batch, size, tokens, width=768):
    """What is denoised, float32: latents [B, size, size, 4] of noise and prior, states of texts [B, tokens, width]."""
    rng = np.random.default_rng(0)
    shapes = {"noise": (batch, size, size, 4), "prior": (batch, size, size, 4)}
    shapes |= {"text": (batch, tokens, width), "null_text": (tokens, width)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def timed(call):
    """(seconds, result) of a call."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def serve(folder, steps):
    """Our side: a dtype goes in, seconds come out, the result lies in a file."""
    import jax

    from progemu_jax.convert.diffusers import folder as diffusers_folder

    with np.load(folder / "inputs.npz") as file:
        x = dict(file)
    part = next(iter(diffusers_folder.open_folder(folder).parts.values()))
    params, calls = part.params(), {}

    def answer(dtype):
        if dtype not in calls:
            calls[dtype] = our_steps(params, part.model, dtype, x, steps)
        seconds, result = timed(calls[dtype])
        np.save(folder / RESULT, result)
        return seconds

    child.serve(jax.__version__, answer)


def our_steps(params, cfg, dtype, x, steps):
    """A call that denoises `inputs`, with our UNet in a dtype; -> latents [B, h, w, 4]."""
    import dataclasses

    import jax

    from progemu_jax.models.noise_schedule import Schedule
    from progemu_jax.sampling.diffusion import DiffusionSampling, generate

    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    cfg = dataclasses.replace(cfg, dtype=dtype, param_dtype=dtype)
    policy = DiffusionSampling(steps=steps)
    return lambda: np.asarray(
        generate(params, cfg, Schedule(), policy, x["noise"], x["prior"], x["text"], x["null_text"])
    )


def their_steps(unet, scheduler, x, steps):
    """The same with Diffusers' UNet and scheduler, as its InstructPix2Pix pipeline calls them."""
    import torch

    dtype = next(unet.parameters()).dtype
    first = lambda a: torch.from_numpy(np.ascontiguousarray(a.transpose(0, 3, 1, 2)))  # noqa: E731
    text = torch.from_numpy(x["text"]).to(dtype)
    null = torch.from_numpy(x["null_text"]).to(dtype).expand_as(text)
    prior = first(x["prior"]).to(dtype)
    texts, priors = torch.cat([text, null, null]), torch.cat([prior, prior, torch.zeros_like(prior)])

    @torch.inference_mode()
    def call():
        scheduler.set_timesteps(steps)
        latents = first(x["noise"]).to(dtype)
        for time_step in scheduler.timesteps:
            rows = torch.cat([torch.cat([latents] * 3), priors], dim=1)
            full, image, none = unet(rows, time_step, texts, return_dict=False)[0].chunk(3)
            noise = none + 7.5 * (full - image) + 1.5 * (image - none)
            latents = scheduler.step(noise, time_step, latents, return_dict=False)[0]
        return latents.float().numpy().transpose(0, 2, 3, 1)

    return call


if __name__ == "__main__":
    main()

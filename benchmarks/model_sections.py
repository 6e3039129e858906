"""What was measured of whole models, as Markdown: a function per kind of result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vdiff_fast.bench.profile import table

MIB = 2**20


def _table(head: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def _steps(document: dict[str, Any]) -> str:
    found = {(r["model"], r["step"], r["implementation"]): r for r in document["models"]}
    rows = []
    for (model, step, implementation), ours in found.items():
        if implementation != "vdiff_fast":
            continue
        peers = [found.get((model, step, name), {}) for name in ("reference", "reference compiled")]
        memory = [
            f"{ours[key] / MIB:.0f} ({peers[0][key] / MIB:.0f})" if ours.get(key) and peers[0].get(key) else "—"
            for key in ("saved_bytes", "peak_bytes")
        ]
        ratios = [f"{other['median_ms'] / ours['median_ms']:.2f}" if other else "—" for other in peers]
        rows.append([model, "x".join(map(str, ours["shape"])), step, f"{ours['median_ms']:.1f}", *ratios, *memory])
    head = (
        "model",
        "video",
        "step",
        "ms",
        "x reference",
        "x reference compiled",
        "kept for the backward, MiB",
        "peak, MiB",
    )
    return (
        "The same model on the reference backend is the peer; its memory is in brackets. “—” was not measured.\n\n"
        + _table(head, rows)
    )


def _noise_memory(document: dict[str, Any]) -> str:
    rows = [
        [row["case"], f"{row['video_bytes'] / MIB:.2f}", row["noise"]]
        + [f"{row[key] / MIB:.2f}" for key in ("peak_bytes", "saved_bytes")]
        for row in document["noise_memory"]
    ]
    return (
        "The noise of a training step is drawn in `q_sample` and again in the loss, or it is stored as a tensor.\n\n"
        + _table(("case", "video, MiB", "noise", "peak, MiB", "kept for the backward, MiB"), rows)
    )


def _parity(document: dict[str, Any]) -> str:
    fused, reference = document["fused"], document["reference"]
    return (
        f"VideoUNet tiny was trained for {len(fused)} steps from one seed, once on each backend. The loss fell from "
        f"{fused[0]:.4f} to {fused[-1]:.4f} on the fused kernels and from {reference[0]:.4f} to {reference[-1]:.4f} on "
        f"the reference. The largest relative difference between the losses of a step is {document['first_50']:.1e} "
        f"over the first 50 steps and {document['all']:.1e} over all of them.\n"
    )


def _long(document: dict[str, Any]) -> str:
    rows = []
    for case in document["cases"]:
        for key in ("diffusion_over_diffusion", "autoregressive", "training_video"):
            way = case[key]
            joints, identity = way["joints"], way["identity"]
            rows.append([
                str(case["frames"]), key.replace("_", " "), f"{way['seconds']:.1f}" if "seconds" in way else "—",
                f"{joints['inside']:.4f}", f"{joints['ratio']:.2f}", f"{identity['mean']:.3f}",
                f"{identity['lowest']:.3f}", f"{way['read']:.2f}" if "read" in way else "—",
            ])  # fmt: skip
    head = ("frames", "made by", "seconds", "difference inside", "joints", "identity, mean", "lowest", "read")
    return (
        f"The model was trained for {document['step']} steps. “Difference inside” is the mean difference of "
        "neighbouring frames inside a clip; “joints” is the difference where two clips meet divided by that. "
        "“Identity” is the cosine similarity of the frames with the first one. “Read” is the share of the frames "
        "that look most like the picture of the label they were asked for. The row of the training video shows what "
        "real clips give.\n\n" + _table(head, rows)
    )


def _digits(document: dict[str, Any]) -> str:
    found = document["digits"]
    return (
        f"`recipes/moving_digits_dit.yaml` was trained for {found['step']} steps of {found['batch_size']} clips with "
        f"{found['handwritings']} pictures of digits. Then {found['videos']} videos of all labels in turn were drawn "
        f"with {found['sampler']} in {found['sampling_steps']} steps at guidance {found['guidance']:g}, and every "
        f"frame was read by the best-matching training picture. {found['frames_right']:.0%} of the frames show the "
        f"digit that was asked for, and in {found['videos_right']:.0%} of the videos all frames do. The mean "
        f"correlation with that picture is {found['likeness_mean']:.2f}; training clips have "
        f"{found['likeness_of_training_clips']:.2f}.\n"
    )


def _patched(document: dict[str, Any]) -> str:
    rows = []
    for row in document["patched"]:
        memory = [
            f"{row[f'patched_{key}'] / MIB:.0f} ({row[f'plain_{key}'] / MIB:.0f})" if f"plain_{key}" in row else "—"
            for key in ("saved_bytes", "peak_bytes")
        ]
        cells = [row["model"], row["step"], f"{row['patched_ms']:.0f}", f"{row['plain_ms'] / row['patched_ms']:.2f}"]
        rows.append([*cells, str(row["modules"]), format(row["difference"], ".1e"), *memory])
    head = (
        "model",
        "step",
        "ms",
        "x unpatched",
        "patched modules",
        "difference",
        "kept for the backward, MiB",
        "peak, MiB",
    )
    return (
        "Models of diffusers before and after `vf.patch`. “Difference” is the relative difference of the outputs; the "
        "memory of the unpatched model is in brackets.\n\n" + _table(head, rows)
    )


def _profile(document: dict[str, Any]) -> str:
    tables = "\n\n".join(table(result) for result in document["profiles"])
    return f"“Before” is the reference backend, “after” what `auto` takes.\n\n{tables}\n"


# The key that tells what a result holds -> heading and writer, in the order of the page.
WRITERS: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "models": ("## Whole steps\n", _steps),
    "noise_memory": ("## Memory of a training step, its noise drawn or stored\n", _noise_memory),
    "fused": ("## Training, fused against the reference\n", _parity),
    "cases": ("## Long videos\n", _long),
    "digits": ("## Digits of the transformer\n", _digits),
    "patched": ("## Patched models of diffusers\n", _patched),
    "profiles": ("## Training steps, op by op\n", _profile),
}

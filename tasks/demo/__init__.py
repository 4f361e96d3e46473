"""Demo data: handwritten digits on photographs, real pixels that come inside scikit-learn and scikit-image.

``generate_dataset`` writes a folder in COCO layout, as a user would bring one. Most of the pool is easy and alike,
the rare classes sit in crowded, faint images: so it matters which images are labeled first.
"""

from tasks.demo.dataset import generate_dataset
from tasks.demo.params import DIGITS_PARAMS_FILE, DigitsParams, load_digits_params
from tasks.demo.sources import DIGITS_BY_NAME

__all__ = ["DIGITS_BY_NAME", "DIGITS_PARAMS_FILE", "DigitsParams", "generate_dataset", "load_digits_params"]

"""Choose images that show every class before there is any label, by what a network of pictures and words says.

Shape shorthand: P images, K classes, C numbers of a description.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def standardized_similarity(images_PC: Floats, classes_KC: Floats) -> NDArray[np.float64]:
    """Return the cosine of each image and class as deviations from the class's mean over the images, (P, K).

    Cosines of pictures with one sentence differ from those with another by more than any two pictures do: without the
    deviations, the same few classes would lead on all images. Descriptions have length 1.
    """
    cosine_PK = images_PC.astype(np.float64) @ classes_KC.astype(np.float64).T
    deviation_PK = cosine_PK - cosine_PK.mean(axis=0)
    return np.asarray(deviation_PK / np.maximum(cosine_PK.std(axis=0), 1e-12))


def cover_classes(images_PC: Floats, classes_KC: Floats, number: int) -> list[tuple[int, int]]:
    """Take images in turns: each class in its order takes the image that is most like it of those that are left.

    Args:
        images_PC: descriptions of length 1.
        classes_KC: the same of the classes.
        number: of images, at most.

    Returns:
        Row of an image and the class that took it, in the order in which they are taken.
    """
    if not len(images_PC):
        return []
    similarity_PK = standardized_similarity(images_PC, classes_KC)
    order_PK = np.argsort(-similarity_PK, axis=0, kind="stable")
    taken: dict[int, int] = {}
    next_K = [0] * len(classes_KC)
    while len(taken) < min(number, len(images_PC)):
        for k in range(len(classes_KC)):
            while next_K[k] < len(images_PC) and int(order_PK[next_K[k], k]) in taken:
                next_K[k] += 1
            if next_K[k] < len(images_PC) and len(taken) < number:
                taken[int(order_PK[next_K[k], k])] = k
    return list(taken.items())

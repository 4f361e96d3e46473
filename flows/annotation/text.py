"""Format counts for messages."""


def count(number: int, noun: str) -> str:
    """Return ``1 image`` or ``2 images``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def count_are(number: int, noun: str) -> str:
    """Return ``1 image is`` or ``2 images are``."""
    return f"{count(number, noun)} {'is' if number == 1 else 'are'}"

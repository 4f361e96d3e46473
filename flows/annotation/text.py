"""Format counts for messages."""


def count(number: int, noun: str, plural: str | None = None) -> str:
    """Return ``1 image`` or ``2 images``; ``plural`` for nouns that do not end in s."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def count_are(number: int, noun: str) -> str:
    """Return ``1 image is`` or ``2 images are``."""
    return f"{count(number, noun)} {'is' if number == 1 else 'are'}"

"""The section ``clip`` of ``params.yaml``: a model of pictures and words."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from tasks.params.base import Section


class ClipParams(Section):
    """A checkpoint of OpenCLIP that compares pictures with words (docs/guides/clip.md).

    Read by ``gleaner select --like`` and ``--cover-classes`` alone, and declared by no stage, because it changes no
    result of a round.
    """

    architecture: Annotated[str, Field(min_length=1)]
    """Name of the network in ``open_clip``, with its own tokenizer: ``ViT-B-32`` and the like."""
    weights: str
    """File of the checkpoint, ``.safetensors`` or of tensors alone, relative to the campaign. Empty: no such model."""
    weights_sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
    """SHA-256 of the file, 64 hex digits; another file is refused."""
    prompts: Annotated[list[str], Field(min_length=1)]
    """Sentences in which ``{}`` stands for the name of a class; a class is the mean direction of its sentences."""

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if bool(self.weights) != bool(self.weights_sha256):
            given, missing = ("weights", "weights_sha256") if self.weights else ("weights_sha256", "weights")
            raise ValueError(f"{missing} is empty, expected a value where {given} has one")
        without = [prompt for prompt in self.prompts if prompt.count("{}") != 1]
        if without:
            raise ValueError(f"prompts has {without[0]!r}, expected {{}} once in each")
        return self

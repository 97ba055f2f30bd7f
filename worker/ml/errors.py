"""Errors of the science side: a stable code, whether trying again can help, and a sentence for a person.

The codes are those of the job taxonomy (reliability 2.4). A sentence holds no path and no trace.
"""

from __future__ import annotations

from typing import ClassVar


class MLError(Exception):
    """Base of the typed errors; ``str(error)`` is the sentence a person reads."""

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False


class InputInvalid(MLError):
    """Photos, texts or sizes that no attempt can use."""

    code = "input_invalid"


class PromptTooLong(MLError):
    """A text of more tokens than the encoder takes. It is never cut."""

    code = "prompt_too_long"

    def __init__(self, text: str, tokens: int, limit: int) -> None:
        self.text, self.tokens, self.limit = text, tokens, limit
        shown = text if len(text) <= 80 else text[:77] + "..."
        super().__init__(
            f'"{shown}" has {tokens} tokens, {tokens - limit} more than this base model takes ({limit}).'
        )


class TrainingDiverged(MLError):
    """Loss or gradients stayed non-finite or exploded, also after going back and halving the learning rate."""

    code = "training_diverged"


class DeviceMemoryShort(MLError):
    """The device's memory does not hold a training step, not even in halves."""

    code = "gpu_out_of_memory"

    def __init__(self) -> None:
        super().__init__(
            "The device has too little memory for a training step, even for half a batch at a time. "
            "A smaller batch or a smaller base model needs less."
        )


class WeightsInvalid(MLError):
    """A weights file or its tensors are not what their header says, or do not fit the base model."""

    code = "weights_invalid"


class BaseUnusable(MLError):
    """A folder that is not a base model this code can load safely."""

    code = "base_unusable"


class MethodUnsupported(MLError):
    """A method that does not exist, or that this base model cannot serve."""

    code = "method_unsupported"


class JudgesUnusable(MLError):
    """Judges that are missing, cannot be loaded safely, or are others than an evaluation was accepted for."""

    code = "judges_unusable"

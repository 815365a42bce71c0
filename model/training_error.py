"""The error of a training that cannot go on; imports nothing, so that programs may catch it without torch."""


class TrainingError(Exception):
    """Training cannot go on; one line that says why and what to try."""

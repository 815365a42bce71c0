"""The parts of each half with their time limits, the most valuable first in case time runs out."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Part:
    """A function "module:function" that takes the Bench and yields Lines.

    Its process is killed after `limit` seconds. If it fails and `retry_with` is not empty, it runs once more in a new
    process with these environment variables, which later parts keep. An optional part starts only if the time left is
    at least its limit.
    """

    name: str
    target: str
    limit: float
    retry_with: dict[str, str] = field(default_factory=dict)
    optional: bool = False


HALVES = {
    "model": [
        Part("ceilings", "gpu.parts_model:ceilings", 40),
        Part("eager", "gpu.parts_model:eager", 40),
        Part("attention", "gpu.parts_model:attention", 40),
        Part("maskings", "gpu.parts_model:maskings", 50),
        Part("compiled per block", "gpu.parts_model:compiled_per_block", 70),
        Part("tests", "gpu.suite:model_tests", 100),
        Part("compiled whole", "gpu.parts_model:compiled_whole", 110),
        Part("compiled per block, 512", "gpu.parts_model:compiled_per_block_512", 45, optional=True),
        Part("maskings, compiled per block", "gpu.parts_model:maskings_compiled", 60, optional=True),
    ],
    "dali": [
        Part("images", "gpu.parts_dali:images", 60),
        Part("memory", "gpu.parts_dali:memory", 40, retry_with={"DALI_USE_VMM": "0"}),
        Part("hw_decoder_load 0", "gpu.parts_dali:load_0", 40),
        Part("hw_decoder_load 1", "gpu.parts_dali:load_1", 40),
        Part("read", "gpu.parts_dali:reading", 30),
        Part("end to end", "gpu.parts_dali:end_to_end", 80),
        Part("tests", "gpu.suite:dali_tests", 100),
    ],
}

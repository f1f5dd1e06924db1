"""What comes after a file: the shards of one model are loaded one after another.

Must not know whether there is such a file, or who reads. Pure.
"""

import re

_SHARD = re.compile(r"(?P<before>.*?)(?P<number>\d+)(?P<of>-of-0*(?P<count>\d+))(?P<after>\D.*|)", re.DOTALL)


def next_shard(name: str) -> str | None:
    """The name of the shard after this one: `model-00002-of-00004.safetensors` for `model-00001-of-00004.safetensors`,
    as safetensors, PyTorch and GGUF files are named; None for the last, and for what is no shard."""
    found = _SHARD.fullmatch(name)
    if found is None:
        return None
    number = int(found["number"]) + 1
    if number > int(found["count"]):
        return None
    return f"{found['before']}{number:0{len(found['number'])}}{found['of']}{found['after']}"

"""Can rows of consecutive batches go on from one another, and the model's memory with them? What a
run must be for data.order contiguous and data.carry_state. Imports no jax.
"""

from typing import Any


def check_order(spec: Any) -> None:
    """Raises ValueError, with what to write instead, for a RunSpec that cannot."""
    data = spec.data
    if data.carry_state and data.order != "contiguous":
        raise ValueError(
            "data.carry_state true goes on from the row before; write data.order=contiguous"
        )
    if data.order == "contiguous":
        if len(data.sources) > 1 or data.sources[0].gives != "text":
            raise ValueError(
                "data.order contiguous reads one source of text from end to end; write one, or "
                "data.order=shuffled"
            )
        if spec.start is not None and spec.start.data == "continue":
            raise ValueError(
                "data.order contiguous begins at places of its own; write start.data=fresh, or "
                "data.order=shuffled"
            )
    if data.carry_state:
        _check_memory(spec)


def _check_memory(spec: Any) -> None:
    model = spec.model
    for block in (*model.first, *model.repeat, *model.last):
        if block.mixer is not None and not block.mixer.carries:
            raise ValueError(
                f"data.carry_state true: the memory of mixer kind {block.mixer.kind} grows with "
                f"the context or counts positions in the row; write data.carry_state=false, or a "
                f"mixer with a state of one size, such as quasi_lstm or deltanet"
            )
    if model.learned_positions is not None:
        raise ValueError(
            "data.carry_state true: learned positions end with the row; write "
            "data.carry_state=false, or model.learned_positions=null"
        )
    if spec.objective.kind != "next_token":
        raise ValueError(
            f"data.carry_state true: objective {spec.objective.kind} rearranges its rows; write "
            f"data.carry_state=false, or objective.kind=next_token"
        )

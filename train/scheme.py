"""How do the devices of a run share its sequences: by which scheme, and how is a batch laid out for
it?

The text is shifted, weighed and numbered by document before it is laid out, and every array of a
batch is laid out alike, so that a loss is the same sum in another order. Rows whose length does not
divide are filled up with places of a document of their own that weigh nothing.
"""

from collections.abc import Mapping

import numpy as np
from jax.sharding import AbstractMesh, Mesh

from model.decoder import Model
from parallelism.errors import InputError
from parallelism.sequence import (
    AUTO,
    AXIS,
    NONE,
    Recurrent,
    Scheme,
    Softmax,
    Traffic,
    names,
    resolve,
)
from train.spec import RunSpec

# What auto takes: the first that computes every mixer. Ulysses moves least where heads divide,
# zigzag is balanced where they do not, LASP-2 takes the recurrent mixers.
PREFERRED = ("ulysses", "zigzag", "lasp2")
OUTSIDE = -1  # the document of places that are no text


def scheme_name(spec: RunSpec) -> str:
    """The scheme that a run uses; `none` where nothing is shared."""
    asked = spec.execution.sequence
    if spec.execution.mesh.sequence == 1:
        return NONE
    if asked != AUTO:
        return asked
    for name in PREFERRED:
        if name in names() and _refusal(spec, name) is None:
            return name
    return NONE


def _refusal(spec: RunSpec, name: str) -> InputError | None:
    """Why a scheme cannot compute a model on a mesh, if it cannot."""
    made, model, mesh = resolve(name), spec.model, spec.execution.mesh
    if model.encoder is not None:  # two sequences, of which a target reads the whole source
        said = f"this scheme shares one sequence, and an encoder reads another; write {NONE}"
        return InputError("execution.sequence", name, said)
    if spec.data.carry_state:  # what a row remembers goes on where its last position is
        said = f"this scheme shares a sequence that begins with nothing; write {NONE}"
        return InputError("execution.sequence", name, said)
    kinds = {}
    if spec.objective.reads_order and made.permutes:
        said = (
            f"objective {spec.objective.kind} asks for neighbours by their places, which this "
            f"scheme changes; write {NONE}, ring or ulysses"
        )
        return InputError("execution.sequence", name, said)
    for block in model.blocks:
        mixer, ffn = block.mixer, block.ffn
        if mixer is not None and mixer.sequence_form not in made.forms:
            said = f"this scheme does not compute {mixer.kind} mixers; write {NONE}"
            able = [n for n in names() if mixer.sequence_form in resolve(n).forms]
            return InputError("execution.sequence", name, ", ".join([said, *able]))
        if ffn is not None and ffn.reads_order and made.permutes:
            said = (
                f"a {ffn.kind} layer with a capacity drops tokens by their order, which this "
                f"scheme changes; write {NONE}, ring or ulysses, or capacity null in the layer"
            )
            return InputError("execution.sequence", name, said)
        if mixer is not None:
            kinds[mixer] = None
    try:
        for mixer in kinds:
            for heads, kv_heads, _ in mixer.attentions(mixer.sizes(model.shared_sizes)):
                made.check_heads(heads, kv_heads, mesh=mesh, what=mixer.kind)
    except InputError as error:
        return error
    return None


def laid_out_length(spec: RunSpec) -> int:
    """Places of a row: its tokens, and what fills it up."""
    name, length = scheme_name(spec), spec.data.seq_len
    if name == NONE:
        return length
    multiple = resolve(name).parts * spec.execution.mesh.sequence
    return -(-length // multiple) * multiple


def scheme(spec: RunSpec, model: Model, mesh: Mesh) -> Scheme | None:
    """The run's scheme, checked; None where the compiler places the collectives. Raises InputError
    for a model or a length that it cannot share.
    """
    name, length, ways = scheme_name(spec), spec.data.seq_len, mesh.shape[AXIS]
    if name == NONE:
        if length % ways:
            raise InputError(
                f"execution.mesh.{AXIS}",
                ways,
                f"does not divide data.seq_len {length}; write a divisor of it, or an "
                f"execution.sequence that fills rows up, such as ring",
            )
        return None
    if error := _refusal(spec, name):
        raise error
    if laid_out_length(spec) != length and (model.aux or _counts(model)):
        multiple = laid_out_length(spec) - length
        raise InputError(
            "data.seq_len",
            length,
            f"the layers of this model take statistics over all places of a row, and {name} on "
            f"{ways} devices would fill it up with {multiple} that are no text; write "
            f"{length + multiple}",
        )
    return resolve(name)(mesh)


def _counts(model: Model) -> bool:
    return any(d.update is not None for d in model.declarations.values())


def traffic(spec: RunSpec, mesh: Mesh | AbstractMesh, *, item: int) -> Traffic:
    """Bytes that the scheme puts on the wire for a micro-batch: of one device, all mixers, `item`
    bytes an element of the compute type. Nothing where the compiler places the collectives.
    """
    name, model, total = scheme_name(spec), spec.model, Traffic(0, 0)
    if name == NONE:
        return total
    made = resolve(name)(mesh)
    rows = spec.sequences_per_batch // spec.execution.accumulate * model.n_streams
    length = laid_out_length(spec)
    for block in model.blocks:
        mixer = block.mixer
        if mixer is None:
            continue
        sizes = mixer.sizes(model.shared_sizes)
        for heads, kv_heads, band in mixer.attentions(sizes):
            layer = Softmax(
                rows=rows,
                length=length,
                heads=heads,
                kv_heads=kv_heads,
                per_head=sizes["K"],
                item=item,
                band=band,
                ahead=0 if model.n_streams == 1 else model.shared_sizes["S"],
                causal=model.causal,
            )
            total += made.traffic(layer)
        state, form = mixer.recurrence(sizes), mixer.sequence_form
        if state is not None and form is not None:
            heads, key, value = state
            total += made.traffic(
                Recurrent(
                    form=form,
                    rows=rows,
                    length=length,
                    heads=heads,
                    key=key,
                    value=value,
                    item=item,
                )
            )
    return total


def laid_out(spec: RunSpec, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A batch in the order of the run's scheme: every array whose name ends with a T among its
    dims.
    """
    name, length = scheme_name(spec), laid_out_length(spec)
    if name == NONE:
        return dict(batch)
    order = resolve(name).order(length, ways=spec.execution.mesh.sequence)
    out = {}
    for key, value in batch.items():
        axis = key.rpartition("_")[2].find("T")
        if axis >= 0:
            more = length - value.shape[axis]
            filled = [(0, more if i == axis else 0) for i in range(value.ndim)]
            outside = OUTSIDE if key == "segments_BT" else 0
            value = np.pad(value, filled, constant_values=outside).take(order, axis=axis)
        out[key] = value
    return out

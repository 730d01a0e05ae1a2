"""On which mesh of the named devices does a production run go, and how long will it take there?"""

import dataclasses
from typing import Any

from analysis.devices import Devices
from parallelism.accelerators import find
from parallelism.axes import MeshSpec
from parallelism.candidates import GIB, said
from parallelism.cost import to_json
from parallelism.errors import InputError
from sweeps.production import Production
from train.estimate import ranked


def on_devices(run: Production, devices: Devices) -> tuple[Production, dict[str, Any] | None, str]:
    """The run on the mesh that the cost model puts first, its estimate with device hours, and a
    line about both; the run as it was, None and the reason where no mesh fits.
    """
    chip, spec = find(devices.kind), run.spec
    try:
        best = ranked(spec, devices=devices.count, chip=chip).best
    except InputError as error:
        return run, None, f"no mesh was chosen: {error}"
    execution = dataclasses.replace(spec.execution, mesh=MeshSpec(**best.mesh))
    step = best.seconds(chip)["step"]
    hours = step * spec.steps * devices.count / 3600
    note = (
        f"mesh {said(best)}: {best.memory / GIB:.3g} GiB a device, {step:.3g} seconds a step, "
        f"{hours:.4g} device hours by the cost model"
    )
    laid = {**to_json(best, chip), "device_hours": hours}
    return dataclasses.replace(run, spec=dataclasses.replace(spec, execution=execution)), laid, note

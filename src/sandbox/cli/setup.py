"""`sandbox setup`: system packages, guest image, template; each only if it is missing."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from sandbox.cli.run import report, run
from sandbox.config import TemplateConfig
from sandbox.errors import ConfigError
from sandbox.log import log
from sandbox.setup import packages


def run_setup(image: str, *, check_only: bool) -> int:
    try:
        lacking = packages.missing()
        if check_only:
            print(f"missing packages: {' '.join(lacking)}" if lacking else "all system packages are there")
            return 1 if lacking else 0
        if lacking and (status := packages.install()) != 0:
            return status
    except ConfigError as error:
        return report(error, status=1)
    if find_spec("libvirt") is None:
        print("sandbox: libvirt-python is missing; run `pip install libvirt-python`", file=sys.stderr)
        return 1
    return run(_prepare(image))


async def _prepare(image: str) -> int:
    from sandbox.template.template import Template

    template = await Template.ensure(TemplateConfig(image=image))
    log.progress(f"ready: image {image}, {template.spec.memory_mib} MiB, {template.host.platform.accelerator}")
    return 0

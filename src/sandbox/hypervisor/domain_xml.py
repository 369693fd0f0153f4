"""From a spec to libvirt's domain XML: pure, and the single place where the guest's hardware is written down.

Devices: one read-only virtio block device, one virtio-serial channel, a serial console, under KVM vmgenid. No network,
no USB, no graphics, no sound, no balloon, and of what the machine type brings along nothing that can be left out. The
HPET cannot: without it a kernel that boots on a busy host under TCG may take its clock to run at a multiple of the
speed.
`docs/confinement.md` lists what QEMU then reports, and a test compares the two.
"""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import quoteattr

from sandbox.hypervisor.spec import TRANSLATION_MIB, AcceleratorKind, MachineSpec, Platform
from sandbox.wire import PORT_NAME

_COMMAND_LINE = (
    "console=ttyS0 quiet panic=-1 random.trust_cpu=on no_timer_check tsc=reliable nowatchdog noautogroup psi=0"
    " lsm=landlock,yama"
)
"""The options from `nowatchdog` on switch off kernel work that slows down clones and that no guest needs.

Landlock and Yama stay, because programs use or notice them. The other security modules have no policy in a guest.
"""
_EMULATED = "mitigations=off init_on_alloc=0 hardened_usercopy=off"
_TRACED_BOOT = "SANDBOX_TRACE=1"
"""The kernel does not know it, and so makes it a variable of its init: see `images/init`."""
_SLOW_IN_SOFTWARE = ("erms", "fsrm")
"""By these the kernel copies bytes with one instruction, which an emulator carries out byte by byte."""
_NOT_FOR_GUESTS = ("vmx", "svm")
"""With these a guest could run guests of its own: a large part of KVM that it would otherwise never reach."""
_TRACED = (
    "qio_channel_socket_connect_complete",
    "find_ram_offset",
    "qmp_enter_*",
    "qmp_exit_*",
    "migrate_set_state",
)
"""Events that only the host causes: a guest must not be able to fill the host's disk by way of a log."""
DEVICES_VERSION = 6
"""Raised whenever this file changes the hardware that a guest sees: templates baked before are then stale."""


def domain_xml(
    spec: MachineSpec,
    platform: Platform,
    *,
    name: str,
    uuid: str,
    genid: str,
    channel: Path,
    console: Path,
    trace: Path | None = None,
) -> str:
    """Return the XML of a transient domain whose channel and console connect to these listening sockets.

    `trace` is a file that QEMU writes a log of its start to.
    """
    kind = "kvm" if platform.accelerator == "kvm" else "qemu"
    arguments = "".join(f"<qemu:arg value={quoteattr(value)}/>" for value in _arguments(spec, console, trace))
    return f"""\
<domain type='{kind}' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name><uuid>{uuid}</uuid>{_generation(kind, genid)}
  <memory unit='MiB'>{spec.memory_mib}</memory><memoryBacking><nosharepages/></memoryBacking>
  <vcpu>{spec.vcpus}</vcpu>
  <os>
    <type arch='x86_64' machine={quoteattr(platform.machine_type)}>hvm</type>{_kernel(spec, platform)}
  </os>
  <features><acpi/><apic/><smm state='off'/><vmport state='off'/><ps2 state='off'/>{_kind_features(kind)}</features>
  {_processor(platform)}
  <clock offset='utc'/>
  <on_poweroff>destroy</on_poweroff><on_reboot>destroy</on_reboot><on_crash>destroy</on_crash>
  <devices>
    <emulator>{_text(platform.emulator)}</emulator>
    <controller type='usb' model='none'/>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/><source file={quoteattr(str(spec.root))}/>
      <target dev='vda' bus='virtio'/><readonly/>
      <address type='pci' domain='0' bus='0' slot='4' function='0'/>
    </disk>
    <controller type='virtio-serial' index='0' ports='2'>
      <address type='pci' domain='0' bus='0' slot='5' function='0'/>
    </controller>
    <channel type='unix'>
      <source mode='connect' path={quoteattr(str(channel))}/>
      <target type='virtio' name='{PORT_NAME}'/>
    </channel>
    <memballoon model='none'/>
  </devices>
  <seclabel type='none'/>
  <qemu:commandline>{arguments}</qemu:commandline>
  <qemu:capabilities><qemu:del capability='cpu-unavailable-features'/></qemu:capabilities>
</domain>
"""


def command_line(accelerator: AcceleratorKind) -> str:
    """Return the kernel's command line.

    An emulated processor has no flaws to mitigate. The kernel's checks of its own copies and allocations protect one
    guest process from another, not the host, and are slow under emulation.
    """
    return _COMMAND_LINE if accelerator == "kvm" else f"{_COMMAND_LINE} {_EMULATED}"


def _kernel(spec: MachineSpec, platform: Platform) -> str:
    """Return what is booted. A clone never boots: its QEMU need not read a kernel, and its guest cannot restart."""
    if spec.state is not None:
        return ""
    words = command_line(platform.accelerator) + (f" {_TRACED_BOOT}" if spec.is_traced else "")
    return f"<kernel>{_text(spec.kernel)}</kernel><initrd>{_text(spec.initrd)}</initrd><cmdline>{words}</cmdline>"


def _processor(platform: Platform) -> str:
    unwanted = _NOT_FOR_GUESTS if platform.accelerator == "kvm" else _SLOW_IN_SOFTWARE
    without = "".join(f"<feature policy='disable' name='{feature}'/>" for feature in unwanted)
    return f"<cpu mode='{platform.cpu_mode}'>{without}</cpu>"


def _arguments(spec: MachineSpec, console: Path, trace: Path | None) -> list[str]:
    """Return what libvirt's XML cannot say."""
    arguments = [
        *("-chardev", f"socket,id=console0,path={_comma(console)}"),
        *("-device", "isa-serial,chardev=console0"),
        "-machine",
        "sata=off,smbus=off",
        # A guest that powers off ends its QEMU: the agent does so when its host process is gone, and nobody else could.
        *("-action", "shutdown=poweroff"),
    ]
    if spec.memory_file is not None:
        # rom=off with readonly=on: the file is opened read-only, the private mapping of it is writable.
        sharing = "share=on" if spec.memory_shared else "share=off,readonly=on,rom=off"
        sharing += ",merge=off"  # as `nosharepages` says of memory that libvirt asks for
        path = f"mem-path={_comma(spec.memory_file)}"
        arguments += ["-object", f"memory-backend-file,id=ram0,size={spec.memory_bytes},{path},{sharing}"]
        arguments += ["-machine", "memory-backend=ram0"]
    if spec.state is not None:
        arguments += ["-incoming", "defer"]
    if spec.is_traced:
        arguments += ["-machine", "graphics=off"]  # then the firmware writes to the serial console what it does
    if trace is not None:
        arguments += ["-D", str(trace), *(word for event in _TRACED for word in ("-trace", event))]
    return arguments


def _generation(kind: str, genid: str) -> str:
    """Return the generation id, by which a guest's kernel is told that it is a clone.

    Not under TCG, where hearing of it is among the longest things that a clone does before its first answer; see
    docs/decisions/0015. The handshake renews the kernel's randomness in any case, before anything else runs.
    """
    return f"<genid>{genid}</genid>" if kind == "kvm" else ""


def _kind_features(kind: str) -> str:
    """Return the features of one accelerator only.

    KVM: no performance counters, by which a guest could watch what the host's processor does. TCG: the bound on
    translated code; without one a guest can have its QEMU take 1 GiB for it.
    """
    if kind == "kvm":
        return "<pmu state='off'/>"
    return f"<tcg><tb-cache unit='MiB'>{TRANSLATION_MIB}</tb-cache></tcg>"


def _comma(path: Path) -> str:
    return str(path).replace(",", ",,")


def _text(value: object) -> str:
    return str(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

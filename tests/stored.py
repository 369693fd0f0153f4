"""Images and templates as the stores have them, of a few bytes each."""

from __future__ import annotations

from pathlib import Path

from sandbox.image.layer import file_record
from sandbox.image.manifest import ImageManifest
from sandbox.image.recipe import Recipe
from sandbox.image.store import Image, ImageStore
from sandbox.template.lint import RULES, Finding, LintReport
from sandbox.template.manifest import MEMORY, STATE, FileDigest, Requirement, TemplateManifest
from sandbox.template.store import Stored, TemplateStore

ZERO = "0" * 64


def publish_image(
    store: ImageStore,
    name: str,
    content: bytes,
    layer: str = ZERO,
    kernel_layer: str | None = None,
    *,
    recipe: Recipe | None = None,
    inputs: str = ZERO,
    origin: str = "",
) -> Image:
    """Publish an image whose three files have that content; the root is hard-linked from a layer."""
    with store.locked(lambda: None), store.building() as work:
        if not (store.layers / layer).exists():
            target = work / "layer"
            target.mkdir()
            (target / "root.erofs").write_bytes(b"root of " + layer.encode())
            store.publish_layer(target, layer)
        image = work / "image"
        image.mkdir()
        (image / "root.erofs").hardlink_to(store.layers / layer / "root.erofs")
        for file in ("vmlinux", "initrd"):
            (image / file).write_bytes(content)
        manifest = ImageManifest(
            name=name,
            recipe=recipe or Recipe(name=name, packages=("python3",)),
            suite="bookworm",
            arch="amd64",
            kernel="6.12",
            packages=(),
            pip=(),
            files={path.name: file_record(path) for path in image.iterdir()},
            agent=ZERO,
            protocol=1,
            layer=layer,
            kernel_layer=kernel_layer,
            inputs=inputs,
        )
        return store.publish(image, manifest, origin)


def save_template(
    directory: Path, image: str, series: str, generation: int, findings: tuple[Finding, ...] = ()
) -> Stored:
    """Put a template of the image with that digest below `directory`."""
    requirement = Requirement(
        image=image,
        memory_mib=256,
        vcpus=1,
        qemu_version="10",
        libvirt_version="9.0.0",
        machine_type="q35",
        accelerator="tcg",
        cpu="max",
        command_line="quiet",
    )
    place = TemplateStore(directory).place(requirement, generation)
    place.mkdir(parents=True)
    for name in (MEMORY, STATE):
        (place / name).write_bytes(name.encode())
    manifest = TemplateManifest(
        requirement=requirement,
        series=series,
        generation=generation,
        agent=2,
        created="2026-01-01T00:00:00.000+00:00",
        freeze_seconds=0.03,
        files={name: FileDigest.of(place / name) for name in (MEMORY, STATE)},
        lint=LintReport(rules=tuple(RULES), findings=findings),
    )
    manifest.save(place)
    return Stored(place, manifest)

"""Which GPUs cubins are made for, and by which compiler.

A cubin needs its exact SM and a driver of the compiler's CUDA major or newer, so the compiler follows the JetPack: NVRTC 11.8 for
Xavier (JetPack 5), 12.9 for Orin under JetPack 6, 13.0 for Orin and Thor under JetPack 7. Desktop GPUs get 12.9's: drivers of CUDA 12 and
13 load them. NVIDIA publishes each NVRTC as a wheel on PyPI; they install side by side, each in its own folder.
"""

from __future__ import annotations

import msgspec

from jetfleet_contract.errors import InputError
from jetfleet_contract.kernels import named


class Toolchain(msgspec.Struct, frozen=True):
    """One NVRTC. `package` and `version` name the wheel, `megabytes` its download; `library` and `builtins` lie below `folder` in it."""

    cuda: int
    package: str
    version: str
    megabytes: int
    folder: str
    library: str
    builtins: str

    @property
    def requirement(self) -> str:
        """As pip takes it."""
        return f"{self.package}=={self.version}"


class Target(msgspec.Struct, frozen=True):
    """One cubin to make: a GPU, by the toolchain whose CUDA major is `cuda`."""

    sm: int
    cuda: int
    boards: str

    @property
    def file(self) -> str:
        """The cubin's name in a folder of them."""
        return f"jetfleet.sm_{self.sm}.cu{self.cuda}.cubin"


TOOLCHAINS = {
    toolchain.cuda: toolchain for toolchain in (
        Toolchain(11, "nvidia-cuda-nvrtc-cu11", "11.8.89", 23, "nvidia/cuda_nvrtc/lib", "libnvrtc.so.11.2", "libnvrtc-builtins.so.11.8"),
        Toolchain(12, "nvidia-cuda-nvrtc-cu12", "12.9.86", 90, "nvidia/cuda_nvrtc/lib", "libnvrtc.so.12", "libnvrtc-builtins.so.12.9"),
        Toolchain(13, "nvidia-cuda-nvrtc", "13.0.88", 90, "nvidia/cu13/lib", "libnvrtc.so.13", "libnvrtc-builtins.so.13.0"),
    )
}
TARGETS = (
    Target(72, 11, "Xavier NX, AGX Xavier (JetPack 5)"),
    Target(75, 12, "GeForce 20, T4"),
    Target(80, 12, "A100, A30"),
    Target(86, 12, "GeForce 30, A10, A2"),
    Target(87, 12, "Orin (JetPack 6)"),
    Target(87, 13, "Orin (JetPack 7)"),
    Target(89, 12, "GeForce 40, L4, L40"),
    Target(90, 12, "H100, H200"),
    Target(110, 13, "Thor (JetPack 7)"),
    Target(120, 12, "GeForce 50, RTX PRO"),
)


def chosen(sms: tuple[int, ...]) -> tuple[Target, ...]:
    """The targets of these SMs; of no SM, all.

    Raises:
        InputError: `kernels.sm` for an SM that has none, with the nearest that has.
    """
    known = {target.sm for target in TARGETS}
    for sm in sms:
        if sm not in known:
            nearest = min(known, key=lambda other: (abs(other - sm), other))
            raise InputError("kernels.sm", f"no kernels are made for sm_{sm}", where="--sm",
                             remedy=f"the nearest is sm_{nearest}, but a cubin runs on its own SM only; there are {named(known)}")
    return tuple(target for target in TARGETS if not sms or target.sm in sms)

"""The table of wheels: which files of which packages make libtorch on which platform, pinned by sha256.

The digests are the package index's own; those of the x86-64 CPU set and of the other two `torch` wheels were also
computed from the files. Only the x86-64 CPU set has been run; every other row is marked so.
"""

from __future__ import annotations

from dataclasses import dataclass

from .say import UNSUPPORTED, Problem

VERSION = "2.13.0"
"""The libtorch that tch 0.26 expects; its build script reads it from the file `build-version`."""

EVERY_LIBRARY = ("*",)
"""Of a wheel: all of its shared libraries."""

LINKER_SCRIPT = "INPUT(-ltorch_cpu -lc10)\n"
"""Stands in for the wheel's `libtorch.so`, which would ask for the CUDA libraries."""


@dataclass(frozen=True)
class Wheel:
    """One file of the package index. `bytes` is None where it was not measured; `libraries` are those to take."""

    file: str
    sha256: str
    bytes: int | None = None
    libraries: tuple[str, ...] = EVERY_LIBRARY

    @property
    def name(self) -> str:
        """The package's name, as pip is asked for it."""
        return self.file.split("-")[0].replace("_", "-")

    @property
    def version(self) -> str:
        """The package's version."""
        return self.file.split("-")[1]

    @property
    def tag(self) -> str:
        """The platform that pip is asked for; a wheel may name several, the first is enough."""
        return self.file[: -len(".whl")].split("-")[-1].split(".")[0]


@dataclass(frozen=True)
class Set:
    """One libtorch: the wheels that it is made of. `bytes` is its size on disk, about."""

    backend: str
    platform: str
    run: bool
    bytes: int
    wheels: tuple[Wheel, ...]

    @property
    def name(self) -> str:
        """The folder's name in the cache directory."""
        return f"{VERSION}-{self.backend}-{self.platform.replace('-linux', '')}"

    @property
    def linker_script(self) -> bool:
        """Whether `libtorch.so` is the linker script and not the wheel's."""
        return self.backend == "cpu" and self.platform.endswith("-linux")


TORCH_X86_64 = (
    "torch-2.13.0-cp312-cp312-manylinux_2_28_x86_64.whl",
    "796633c4cdf0fe2cdced72d8f88f22e73dbcfce83132763162f6d4bff13b820b", 526_605_292,
)
TORCH_AARCH64 = (
    "torch-2.13.0-cp312-cp312-manylinux_2_28_aarch64.whl",
    "572df8be8ffb4599c88cbd6a0726f1f854f4da65d2e3c09f0e2c2283333cd6d4", 427_210_998,
)
CUDART_X86_64 = (
    "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
    "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548", 2_243_632,
)
CUDART_AARCH64 = (
    "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
    "ef9bcbe90493a2b9d810e43d249adb3d02e98dd30200d86607d8d02687c43f55", None,
)
CUPTI_X86_64 = (
    "nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_x86_64.whl",
    "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8", 10_715_597,
)
CUPTI_AARCH64 = (
    "nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_aarch64.whl",
    "796bd679890ee55fb14a94629b698b6db54bcfd833d391d5e94017dd9d7d3151", None,
)

# What libtorch_cpu.so asks for at its start on every Linux, CUDA or not.
CUDART = ("libcudart.so.13",)
CUPTI = ("libcupti.so.13",)

SETS = (
    Set("cpu", "x86_64-linux", True, 490_000_000, (
        Wheel(*TORCH_X86_64, ("libtorch_cpu.so", "libc10.so", "libgomp.so.1")),
        Wheel(*CUDART_X86_64, CUDART),
        Wheel(*CUPTI_X86_64, CUPTI),
    )),
    # Not run.
    Set("cpu", "aarch64-linux", False, 350_000_000, (
        Wheel(*TORCH_AARCH64, (
            "libtorch_cpu.so", "libc10.so", "libgomp.so.1", "libgfortran.so.5", "libarm_compute.so",
            "libarm_compute_graph.so", "libnvpl_blas_core.so.0", "libnvpl_blas_lp64_gomp.so.0",
            "libnvpl_lapack_core.so.0", "libnvpl_lapack_lp64_gomp.so.0",
        )),
        Wheel(*CUDART_AARCH64, CUDART),
        Wheel(*CUPTI_AARCH64, CUPTI),
    )),
    # Not run.
    Set("cpu", "aarch64-macos", False, 390_000_000, (
        Wheel(
            "torch-2.13.0-cp312-cp312-macosx_14_0_arm64.whl",
            "2fe228aba290d14b9f31b049be550dbd469c3fd3013d7a19705b30454da97027", 111_213_045,
            ("libtorch_cpu.dylib", "libtorch.dylib", "libc10.dylib", "libomp.dylib"),
        ),
    )),
    # Not run; the libraries' references to each other were checked with ldd.
    Set("cuda", "x86_64-linux", False, 3_700_000_000, (
        Wheel(*TORCH_X86_64),
        Wheel(*CUDART_X86_64),
        Wheel(*CUPTI_X86_64),
        Wheel("nvidia_cublas-13.1.1.3-py3-none-manylinux_2_27_x86_64.whl",
              "37936a16db8fe4ac1f065c2139360608a543a09275cb1a1af612e08cfa065436"),
        Wheel("nvidia_cuda_nvrtc-13.0.88-py3-none-manylinux2010_x86_64.manylinux_2_12_x86_64.whl",
              "ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575"),
        Wheel("nvidia_cudnn_cu13-9.20.0.48-py3-none-manylinux_2_27_x86_64.whl",
              "0c45dd8eeb50b603f07995b1b300c62ffe6a1980482b82b3bcf94a4ca9d49304"),
        Wheel("nvidia_cufft-12.0.0.61-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
              "6c44f692dce8fd5ffd3e3df134b6cdb9c2f72d99cf40b62c32dde45eea9ddad3"),
        Wheel("nvidia_cufile-1.15.1.6-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
              "08a3ecefae5a01c7f5117351c64f17c7c62efa5fffdbe24fc7d298da19cd0b44"),
        Wheel("nvidia_curand-10.4.0.35-py3-none-manylinux_2_27_x86_64.whl",
              "1aee33a5da6e1db083fe2b90082def8915f30f3248d5896bcec36a579d941bfc"),
        Wheel("nvidia_cusolver-12.0.4.66-py3-none-manylinux_2_27_x86_64.whl",
              "0a759da5dea5c0ea10fd307de75cdeb59e7ea4fcb8add0924859b944babf1112"),
        Wheel("nvidia_cusparse-12.6.3.3-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
              "2b3c89c88d01ee0e477cb7f82ef60a11a4bcd57b6b87c33f789350b59759360b"),
        Wheel("nvidia_cusparselt_cu13-0.8.1-py3-none-manylinux2014_x86_64.whl",
              "786ce87568c303fadb5afcc7102d454cd3040d75f6f8626f5db460d1871f4dd0"),
        Wheel("nvidia_nccl_cu13-2.29.7-py3-none-manylinux_2_18_x86_64.whl",
              "edd81538446786ec3b73972543e53bb43bcaf0bfc8ef76cb679fcc390ffe136d"),
        Wheel("nvidia_nvjitlink-13.5.37-py3-none-manylinux2010_x86_64.manylinux_2_12_x86_64.whl",
              "280d7cb9649704145f074b8dbde500de04ce02d0872e066e20a83c17bcaa93eb"),
        Wheel("nvidia_nvshmem_cu13-3.4.5-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
              "290f0a2ee94c9f3687a02502f3b9299a9f9fe826e6d0287ee18482e78d495b80"),
        Wheel("nvidia_nvtx-13.0.85-py3-none-manylinux1_x86_64.manylinux_2_5_x86_64.whl",
              "4936d1d6780fbe68db454f5e72a42ff64d1fd6397df9f363ae786930fd5c1cd4"),
    )),
    # Not run.
    Set("cuda", "aarch64-linux", False, 3_500_000_000, (
        Wheel(*TORCH_AARCH64),
        Wheel(*CUDART_AARCH64),
        Wheel(*CUPTI_AARCH64),
        Wheel("nvidia_cublas-13.1.1.3-py3-none-manylinux_2_27_aarch64.whl",
              "b7a210458267ac818974c53038fbec2e969d5c99f305ab15c72522fa9f001dd5"),
        Wheel("nvidia_cuda_nvrtc-13.0.88-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
              "d27f20a0ca67a4bb34268a5e951033496c5b74870b868bacd046b1b8e0c3267b"),
        Wheel("nvidia_cudnn_cu13-9.20.0.48-py3-none-manylinux_2_27_aarch64.whl",
              "e31454ae00094b0c55319d9d15b6fa2fc50a9e1c0f5c8c80fb75258234e731e1"),
        Wheel("nvidia_cufft-12.0.0.61-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
              "2708c852ef8cd89d1d2068bdbece0aa188813a0c934db3779b9b1faa8442e5f5"),
        Wheel("nvidia_cufile-1.15.1.6-py3-none-manylinux_2_27_aarch64.whl",
              "bdc0deedc61f548bddf7733bdc216456c2fdb101d020e1ab4b88d232d5e2f6d1"),
        Wheel("nvidia_curand-10.4.0.35-py3-none-manylinux_2_27_aarch64.whl",
              "133df5a7509c3e292aaa2b477afd0194f06ce4ea24d714d616ff36439cee349a"),
        Wheel("nvidia_cusolver-12.0.4.66-py3-none-manylinux_2_27_aarch64.whl",
              "02c2457eaa9e39de20f880f4bd8820e6a1cfb9f9a34f820eb12a155aa5bc92d2"),
        Wheel("nvidia_cusparse-12.6.3.3-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
              "80bcc4662f23f1054ee334a15c72b8940402975e0eab63178fc7e670aa59472c"),
        Wheel("nvidia_cusparselt_cu13-0.8.1-py3-none-manylinux2014_aarch64.whl",
              "4dca476c50bf4780d46cd0bfbd82e2bc10a08e4fef7950917ce8d7578d22a23f"),
        Wheel("nvidia_nccl_cu13-2.29.7-py3-none-manylinux_2_18_aarch64.whl",
              "674a12383e3c38a1bcccae7d4f3633b37852230b6047883cb2f4c2d1b36d9bf5"),
        Wheel("nvidia_nvjitlink-13.5.37-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
              "893f6f9a55b2720ed94913b5ba3332e972da8c78dfa2863d0244403dbd528ffc"),
        Wheel("nvidia_nvshmem_cu13-3.4.5-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
              "6dc2a197f38e5d0376ad52cd1a2a3617d3cdc150fd5966f4aee9bcebb1d68fe9"),
        Wheel("nvidia_nvtx-13.0.85-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl",
              "cb7780edb6b14107373c835bf8b72e7a178bac7367e23da7acb108f973f157a6"),
    )),
)


def find(backend: str, platform: str) -> Set:
    """The set for a backend and a platform; a Problem that lists what there is otherwise."""
    for row in SETS:
        if (row.backend, row.platform) == (backend, platform):
            return row
    known = ", ".join(f"{row.backend} on {row.platform}" for row in SETS)
    raise Problem(
        UNSUPPORTED,
        f"no libtorch {VERSION} is known for {backend} on {platform}",
        why=f"the table of wheels has {known}",
        todo="use a libtorch of your own (export LIBTORCH=/its/folder and call cargo),\n"
        "or build `levain` alone: cargo build --release --no-default-features",
    )


# ruff: noqa: F403, F405
from spack.package import *


class Cpnsa(CMakePackage, CudaPackage):
    """Native Sparse Attention over sequences sharded across ranks."""

    homepage = "https://arxiv.org/abs/2502.11089"

    license("Apache-2.0")

    version("0.1.0")  # by `spack dev-build` in a checkout

    variant("mpi", default=True, description="The MPI transport")
    variant("nccl", default=True, when="+cuda", description="The NCCL transport")
    variant("shared", default=False, description="Shared C++ libraries")

    depends_on("c", type="build")
    depends_on("cxx", type="build")
    depends_on("cmake@3.25:", type="build")
    depends_on("fmt", type="build")
    depends_on("cli11", type="build")
    depends_on("nlohmann-json", type="build")
    depends_on("mpi", when="+mpi")
    depends_on("cuda@12.8:", when="+cuda")
    depends_on("nccl@2.27:", when="+nccl")

    conflicts("%gcc@:10", msg="needs C++20")

    def cmake_args(self):
        arguments = [
            self.define_from_variant("CPNSA_MPI", "mpi"),
            self.define_from_variant("CPNSA_CUDA", "cuda"),
            self.define("CPNSA_NCCL", "+nccl" in self.spec),
            self.define_from_variant("BUILD_SHARED_LIBS", "shared"),
            self.define("CPNSA_TESTS", False),
            self.define("CPNSA_EXAMPLES", False),
        ]
        if self.spec.satisfies("target=x86_64:"):
            arguments.append(self.define("CPNSA_CPU_ARCH", str(self.spec.target).replace("_", "-")))
        if "+cuda" in self.spec:
            # Hopper's kernels are always compiled for 9.0a; PTX of 8.0 serves later GPUs.
            arguments.append(self.define("CMAKE_CUDA_ARCHITECTURES", "80;90a-real"))
        return arguments

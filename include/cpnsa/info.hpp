#pragma once

// Facts about this build and this machine, for reports and for comparing the ranks of a job. cpnsa/cuda/info.hpp,
// cpnsa/mpi/info.hpp and cpnsa/nccl/info.hpp have the functions of the backends.

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "cpnsa/names.hpp"

namespace cpnsa {

struct BuildInfo {
  std::string_view version;     ///< "0.1.0"
  std::string_view commit;      ///< of the sources when CMake last configured them, "unknown" outside of a repository
  std::string_view compiler;    ///< "GNU 12.2.0"
  std::string_view build_type;  ///< "Release"
  std::string_view cpu_arch;    ///< the CPU that the CPU device was compiled for, as -march names it
};
const BuildInfo& build_info();

/// A library that a backend uses: the version whose headers it was compiled with, and the version that is loaded; empty
/// if none is.
struct LibraryVersion {
  std::string name;
  std::string compiled;
  std::string found;
};

struct GpuInfo {
  int index;       ///< the CUDA runtime's
  int capability;  ///< compute capability, 10 * major + minor
  std::string name;
  std::string uuid;
  std::string bus;  ///< PCI address
  int multiprocessors;
  std::size_t memory_bytes;
  std::size_t free_bytes;  ///< at the time of the query
  int clock_mhz;           ///< the maximum of the multiprocessors
  bool error_correction;   ///< of its memory
};

enum class KernelFamily { portable, hopper };
constexpr auto names_of(KernelFamily) {
  return std::to_array<std::string_view>({"portable", "hopper"});
}

/// The kernels that run an op of a layer on a GPU.
struct OpKernel {
  std::string_view op;  ///< the struct of ops.hpp in snake case, e.g. "selected_attention_backward"
  KernelFamily family;
  std::string reason;  ///< why a Hopper GPU runs portable kernels, or what the choice depends on; may be empty
};

}  // namespace cpnsa

#include "cpnsa/info.hpp"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <optional>

#include "backends/backends.hpp"
#include "src/bindings.hpp"
#include "src/names.hpp"

namespace cpnsa::python {
namespace {

nb::dict facts(const GpuInfo& gpu) {
  nb::dict all;
  all["index"] = gpu.index;
  all["name"] = gpu.name;
  all["capability"] = gpu.capability;
  all["uuid"] = gpu.uuid;
  all["bus"] = gpu.bus;
  all["multiprocessors"] = gpu.multiprocessors;
  all["memory_bytes"] = gpu.memory_bytes;
  all["free_bytes"] = gpu.free_bytes;
  all["clock_mhz"] = gpu.clock_mhz;
  all["error_correction"] = gpu.error_correction;
  return all;
}

nb::dict build_facts() {
  const BuildInfo& build = build_info();
  nb::dict all, libraries;
  all["version"] = build.version;
  all["commit"] = build.commit;
  all["compiler"] = build.compiler;
  all["build_type"] = build.build_type;
  all["cpu_arch"] = build.cpu_arch;
  all["has_cuda"] = backends::has_cuda;
  for (const LibraryVersion& library : backends::cuda_versions()) {
    nb::dict versions;
    versions["compiled"] = library.compiled;
    versions["found"] = library.found;
    libraries[library.name.c_str()] = versions;
  }
  all["libraries"] = libraries;
  nb::list gpus;
  for (const GpuInfo& gpu : backends::cuda_gpus()) gpus.append(facts(gpu));
  all["gpus"] = gpus;
  return all;
}

nb::dict kernels_of(const Config& config, std::string_view dtype, int capability) {
  nb::dict all;
  for (const OpKernel& kernel : backends::cuda_kernels_of(config, named<DType>("dtype", dtype), capability)) {
    nb::dict entry;
    entry["kernels"] = name_of(kernel.family);
    entry["reason"] = kernel.reason;
    all[nb::str(kernel.op.data(), kernel.op.size())] = entry;
  }
  return all;
}

}  // namespace

void bind_info(nb::module_& module) {
  using namespace nb::literals;
  module.def("info", &build_facts, "Version, commit, compiler, versions of CUDA, and the GPUs that this process sees.");
  module.def("kernels_of", &kernels_of, "config"_a, "dtype"_a = "bf16", "capability"_a = 90,
             "The kernels that run each op on a GPU of this compute capability, and why; needs no GPU. Raises "
             "UnsupportedError where none serves the layer, and in a package built without CUDA.");
}

}  // namespace cpnsa::python

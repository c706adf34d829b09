#include "cpnsa/device.hpp"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/unique_ptr.h>

#include "backends/backends.hpp"
#include "cpnsa/cpu/device.hpp"
#include "src/bindings.hpp"
#include "src/buffer.hpp"
#include "src/names.hpp"

namespace cpnsa::python {

void bind_device(nb::module_& module) {
  using namespace nb::literals;
  nb::class_<Buffer>(module, "Buffer", "Memory of a device, for callers with no framework that allocates.")
      .def_prop_ro("nbytes", &Buffer::bytes);
  nb::class_<Device>(module, "Device", "What computes: cpu_device() or cuda_device().")
      .def_prop_ro("name", &Device::name)
      .def_prop_ro("description", &Device::description)
      .def(
          "allocate",
          [](std::shared_ptr<Device> self, std::size_t bytes) {
            return std::make_unique<Buffer>(std::move(self), bytes);
          },
          "nbytes"_a)
      .def(
          "check_supported",
          [](const Device& self, const Config& config, std::string_view dtype) {
            self.check_supported(config, named<DType>("dtype", dtype));
          },
          "config"_a, "dtype"_a, "Raises UnsupportedError, listing what is supported, unless every stage runs.");
  module.def(
      "cpu_device", [] { return std::shared_ptr<Device>(cpu::make_device()); },
      "The CPU: float64, float32, bfloat16, float16, on the calling thread.");
  module.def(
      "cuda_device",
      [](std::optional<int> index) {
        if (index && *index < 0)
          throw ArgumentError(fmt::format("cuda_device: found index {}, expected 0 or more", *index));
        if (!backends::has_cuda)
          throw UnsupportedError(
              "cuda device: found a cpnsa built without CUDA, expected one installed with "
              "--config-settings=cmake.define.CPNSA_CUDA=ON; supported here is the CPU");
        return std::shared_ptr<Device>(backends::make_cuda_device(index.value_or(-1)));
      },
      "index"_a = nb::none(), "An NVIDIA GPU, the current one unless given: bfloat16 and float16.");
  module.attr("has_cuda") = backends::has_cuda;
}

}  // namespace cpnsa::python

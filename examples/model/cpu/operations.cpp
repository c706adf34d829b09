#include "examples/model/cpu/operations.hpp"

#include <string>

#include "cpnsa/error.hpp"

namespace model {

std::unique_ptr<Operations> make_cpu_operations(cpnsa::Device& device, DType dtype) {
  if (dtype != DType::f64 && dtype != DType::f32)
    throw cpnsa::UnsupportedError("--dtype: found " + std::string(name_of(dtype)) +
                                  ", expected f64 or f32: the model on the CPU");
  return std::make_unique<CpuOperations>(device, dtype);
}

}  // namespace model

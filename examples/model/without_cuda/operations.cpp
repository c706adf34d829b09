#include "examples/model/operations.hpp"

#include "cpnsa/error.hpp"

namespace model {

std::unique_ptr<Operations> make_cuda_operations(cpnsa::Device&, DType) {
  throw cpnsa::UnsupportedError("found a CUDA device, expected the CPU's: this build has no CUDA (CPNSA_CUDA is OFF)");
}

}  // namespace model

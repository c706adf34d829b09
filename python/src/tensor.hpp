#pragma once

#include <memory>
#include <vector>

#include "cpnsa/device.hpp"
#include "cpnsa/tensor_view.hpp"
#include "src/bindings.hpp"

namespace cpnsa::python {

/// Owners of the memory that the views of a call look at: tensors and their exports, which may be copies for one view.
/// Lives, and ends, where the interpreter's lock is held.
struct Owners {
  std::vector<nb::object> objects;
  std::vector<std::shared_ptr<void>> exports;
};

/// A view of a caller's tensor, no copy: a PyTorch tensor, or anything with DLPack or a buffer (NumPy, CuPy, JAX ...).
/// None is "not given". ArgumentError names the tensor where it lies on another device than `device`, is not C
/// contiguous, or is of a type that the library has not. The view is valid while `owners` lives.
TensorView view_of(nb::handle object, const char* name, const Device& device, bool written, Owners& owners);

/// The memory of a caller's int32 tensor of `count` elements.
void* indices_of(nb::handle object, const char* name, const Device& device, std::size_t count, Owners& owners);

/// At least `bytes` bytes of a caller's flat buffer: a tensor of any type, or a Buffer of the device. Allocators of
/// frameworks align to 64 bytes on the CPU and to 256 or more on GPUs. Null where 0 bytes are wanted.
void* memory_of(nb::handle object, const char* name, const Device& device, std::size_t bytes, Owners& owners);

}  // namespace cpnsa::python

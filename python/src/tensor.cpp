#include "src/tensor.hpp"

#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <utility>
#include <vector>

#include "cpnsa/schema.hpp"
#include "src/buffer.hpp"
#include "src/names.hpp"

namespace cpnsa::python {
namespace {

/// Attributes that are read of a PyTorch tensor. They cost a twentieth of its __dlpack__, which also refuses tensors
/// that require gradients. cpnsa.torch hands them over, so that this module does not need PyTorch.
struct Torch {
  nb::handle tensor_type;
  std::vector<std::pair<nb::handle, DType>> dtypes;
  nb::handle strided;  ///< the layout
  nb::handle data_ptr, is_contiguous, is_cpu, is_cuda, is_neg, shape, dtype, device, element_size, layout;
  std::vector<nb::handle> parameter_names;
};
std::optional<Torch> torch;

nb::handle forever(const char* name) {
  return nb::handle(PyUnicode_InternFromString(name));
}

void use_torch(nb::object tensor_type, nb::object strided, nb::dict dtypes) {
  if (torch) return;
  Torch known;
  known.tensor_type = tensor_type.release();  // for the life of the process, as PyTorch itself
  known.strided = strided.release();
  for (auto [type, name] : dtypes)
    known.dtypes.emplace_back(nb::borrow(type).release(), named<DType>("dtype", nb::cast<const char*>(name)));
  known.data_ptr = forever("data_ptr");
  known.is_contiguous = forever("is_contiguous");
  known.is_cpu = forever("is_cpu");
  known.is_cuda = forever("is_cuda");
  known.is_neg = forever("is_neg");
  known.layout = forever("layout");
  known.shape = forever("shape");
  known.dtype = forever("dtype");
  known.device = forever("device");
  known.element_size = forever("element_size");
  for (const schema::Tensor& parameter : schema::key_parameters)
    known.parameter_names.push_back(forever(parameter.name.c_str()));
  torch = std::move(known);
}

bool is_torch(nb::handle object) {
  return torch && PyObject_TypeCheck(object.ptr(), reinterpret_cast<PyTypeObject*>(torch->tensor_type.ptr()));
}

nb::object get(nb::handle object, nb::handle name) {
  PyObject* const value = PyObject_GetAttr(object.ptr(), name.ptr());
  if (!value) nb::raise_python_error();
  return nb::steal(value);
}

nb::object call(nb::handle object, nb::handle name) {
  PyObject* const self[] = {object.ptr()};
  PyObject* const value = PyObject_VectorcallMethod(name.ptr(), self, 1 | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr);
  if (!value) nb::raise_python_error();
  return nb::steal(value);
}

/// True for a PyTorch tensor of that type, in C order, that holds the numbers themselves.
bool is_dense(nb::handle tensor, nb::handle dtype) {
  return is_torch(tensor) && get(tensor, torch->dtype).is(dtype) && get(tensor, torch->layout).is(torch->strided) &&
         call(tensor, torch->is_contiguous).ptr() == Py_True && call(tensor, torch->is_neg).ptr() == Py_False;
}

/// Numbers the tensors of a step as tensors.py does, which is slower and says what is wrong.
class Numbering {
 public:
  explicit Numbering(nb::handle dtype) : dtype_(dtype) {}

  /// The next flat input; false where it is not as a layer of that type takes it.
  bool add(nb::handle tensor) {
    if (!is_dense(tensor, dtype_)) return false;
    indices_.append(unique_.size());
    unique_.append(tensor);
    return true;
  }
  bool add_branches(nb::handle tensors) {
    if (!nb::isinstance<nb::tuple>(tensors) && !nb::isinstance<nb::list>(tensors)) {
      if (!add(tensors)) return false;
      for (std::size_t others = 1; others < schema::branches.size(); ++others) indices_.append(unique_.size() - 1);
      return true;
    }
    if (nb::len(tensors) != schema::branches.size()) return false;
    for (const nb::handle tensor : tensors)
      if (!add(tensor)) return false;
    return true;
  }
  bool add_compressor(nb::handle parameters) {
    const bool given = !parameters.is_none();
    if (given && !PyDict_CheckExact(parameters.ptr())) return false;
    Py_ssize_t found = 0;
    for (const nb::handle name : torch->parameter_names) {
      const nb::handle parameter = given ? PyDict_GetItemWithError(parameters.ptr(), name.ptr()) : nullptr;
      if (PyErr_Occurred()) nb::raise_python_error();
      if (parameter) ++found;
      if (!parameter || parameter.is_none()) {
        indices_.append(-1);
      } else if (!add(parameter)) {
        return false;
      }
    }
    return !given || found == PyDict_Size(parameters.ptr());
  }
  void add_none() { indices_.append(-1); }
  nb::object result() const { return nb::make_tuple(nb::tuple(indices_), unique_); }

 private:
  nb::handle dtype_;
  nb::list indices_, unique_;
};

/// The index of each flat input among the different tensors, and these tensors; None unless all are as the layer takes
/// them. Of a step without tensors that options declare.
nb::object numbered(nb::handle dtype, nb::handle q, nb::handle k, nb::handle v, nb::handle gate, nb::handle compress_k,
                    nb::handle compress_v) {
  Numbering numbering(dtype);
  const bool right = numbering.add(q) && numbering.add_branches(k) && numbering.add_branches(v) && numbering.add(gate);
  if (!right) return nb::none();
  for (std::size_t rest = 8; rest < schema::num_token_tensors; ++rest) numbering.add_none();  // q_cmp
  if (!numbering.add_compressor(compress_k) || !numbering.add_compressor(compress_v)) return nb::none();
  for (std::size_t sink = 0; sink < schema::num_sinks; ++sink) numbering.add_none();
  return numbering.result();
}

std::string text(nb::handle object) {
  return nb::str(object).c_str();
}

[[noreturn]] void wrong_device(const char* name, const std::string& found, const Device& device) {
  throw ArgumentError(fmt::format("{}: found a tensor on {}, expected one on {}", name, found, device.name()));
}

[[noreturn]] void not_contiguous(const char* name) {
  throw ArgumentError(fmt::format("{}: found a tensor that is not contiguous, expected one in C order", name));
}

void check_rank(const char* name, std::size_t rank) {
  if (rank > TensorView::max_rank)
    throw ArgumentError(
        fmt::format("{}: found {} dimensions, expected at most {}", name, rank, TensorView::max_rank + 0));
}

/// Checks where a PyTorch tensor lies and that it is dense; returns its data.
void* data_of_torch(nb::handle tensor, const char* name, const Device& device) {
  const nb::handle on_device = device.host_accessible() ? torch->is_cpu : torch->is_cuda;
  if (get(tensor, on_device).ptr() != Py_True) wrong_device(name, text(get(tensor, torch->device)), device);
  if (call(tensor, torch->is_contiguous).ptr() != Py_True) not_contiguous(name);
  return PyLong_AsVoidPtr(call(tensor, torch->data_ptr).ptr());
}

TensorView view_of_torch(nb::handle tensor, const char* name, const Device& device) {
  TensorView view;
  const nb::object dtype = get(tensor, torch->dtype);
  bool known = false;
  for (const auto& [type, value] : torch->dtypes)
    if (type.is(dtype)) {
      view.dtype = value;
      known = true;
    }
  if (!known)
    throw ArgumentError(
        fmt::format("{}: found a tensor of {}, expected float64, float32, bfloat16 or float16", name, text(dtype)));
  view.data = data_of_torch(tensor, name, device);
  const nb::object shape = get(tensor, torch->shape);
  const Py_ssize_t rank = PyTuple_Size(shape.ptr());
  check_rank(name, static_cast<std::size_t>(rank));
  view.rank = static_cast<int>(rank);
  for (Py_ssize_t i = 0; i < rank; ++i)
    view.shape[static_cast<std::size_t>(i)] = PyLong_AsLongLong(PyTuple_GetItem(shape.ptr(), i));
  if (PyErr_Occurred()) nb::raise_python_error();
  view.given = true;
  return view;
}

std::string device_text(int type, int id) {
  switch (type) {
    case nb::device::cpu::value: return "cpu";
    case nb::device::cuda::value: return fmt::format("cuda:{}", id);
    case nb::device::cuda_host::value: return "cpu (pinned)";
    case nb::device::cuda_managed::value: return "cuda (managed)";
    default: return fmt::format("device {}:{} of DLPack", type, id);
  }
}

bool lies_on(const Device& device, int type) {
  if (type == nb::device::cuda_managed::value) return true;
  return device.host_accessible() ? type == nb::device::cpu::value || type == nb::device::cuda_host::value
                                  : type == nb::device::cuda::value;
}

template <class Array>
void check_place(const Array& array, const char* name, const Device& device) {
  if (!lies_on(device, array.device_type()))
    wrong_device(name, device_text(array.device_type(), array.device_id()), device);
  std::int64_t expected = 1;
  for (std::size_t i = array.ndim(); i-- > 0; expected *= static_cast<std::int64_t>(array.shape(i)))
    if (array.shape(i) > 1 && array.stride(i) != expected && array.size() > 0) not_contiguous(name);
}

std::optional<DType> dtype_of(nb::dlpack::dtype type) {
  constexpr auto brain_float = static_cast<std::uint8_t>(nb::dlpack::dtype_code::Bfloat);
  constexpr auto ieee_float = static_cast<std::uint8_t>(nb::dlpack::dtype_code::Float);
  if (type.lanes != 1) return {};
  if (type.code == brain_float && type.bits == 16) return DType::bf16;
  if (type.code != ieee_float) return {};
  switch (type.bits) {
    case 64: return DType::f64;
    case 32: return DType::f32;
    case 16: return DType::f16;
    default: return {};
  }
}

template <class Array>
TensorView view_of_array(const Array& array, const char* name, const Device& device) {
  check_rank(name, array.ndim());
  const std::optional<DType> dtype = dtype_of(array.dtype());
  if (!dtype)
    throw ArgumentError(fmt::format(
        "{}: found elements of {} bits and DLPack type code {}, expected float64, float32, bfloat16 or float16", name,
        static_cast<int>(array.dtype().bits), static_cast<int>(array.dtype().code)));
  check_place(array, name, device);
  TensorView view;
  view.data = const_cast<void*>(static_cast<const void*>(array.data()));
  view.dtype = *dtype;
  view.rank = static_cast<int>(array.ndim());
  for (std::size_t i = 0; i < array.ndim(); ++i) view.shape[i] = static_cast<std::int64_t>(array.shape(i));
  view.given = true;
  return view;
}

template <class Array>
void keep(const Array& array, Owners& owners) {
  owners.exports.push_back(std::make_shared<Array>(array));
}

[[noreturn]] void no_tensor(nb::handle object, const char* name, const char* wanted) {
  throw ArgumentError(
      fmt::format("{}: found an object of type {}, expected {}", name, Py_TYPE(object.ptr())->tp_name, wanted));
}

}  // namespace

TensorView view_of(nb::handle object, const char* name, const Device& device, bool written, Owners& owners) {
  if (object.is_none()) return {};
  owners.objects.push_back(nb::borrow(object));
  if (is_torch(object)) return view_of_torch(object, name, device);
  if (written) {
    nb::ndarray<> array;
    if (!nb::try_cast(object, array, false)) no_tensor(object, name, "a writable tensor (PyTorch, NumPy, DLPack)");
    keep(array, owners);
    return view_of_array(array, name, device);
  }
  nb::ndarray<nb::ro> array;
  if (!nb::try_cast(object, array, false)) no_tensor(object, name, "a tensor (PyTorch, NumPy, DLPack)");
  keep(array, owners);
  return view_of_array(array, name, device);
}

void* memory_of(nb::handle object, const char* name, const Device& device, std::size_t bytes, Owners& owners) {
  if (bytes == 0) return nullptr;
  owners.objects.push_back(nb::borrow(object));
  void* data = nullptr;
  std::size_t found = 0;
  if (nb::isinstance<Buffer>(object)) {
    const auto& buffer = nb::cast<const Buffer&>(object);
    if (&buffer.device() != &device)
      throw ArgumentError(
          fmt::format("{}: found a buffer of another device, expected one of this {} device", name, device.name()));
    data = buffer.data();
    found = buffer.bytes();
  } else if (is_torch(object)) {
    data = data_of_torch(object, name, device);
    found = nb::cast<std::size_t>(object.attr("numel")()) * nb::cast<std::size_t>(call(object, torch->element_size));
  } else {
    nb::ndarray<> array;
    if (!nb::try_cast(object, array, false))
      no_tensor(object, name, "a cpnsa Buffer or a writable tensor (PyTorch, NumPy, DLPack)");
    keep(array, owners);
    check_place(array, name, device);
    data = array.data();
    found = array.nbytes();
  }
  if (!data || found < bytes)
    throw ArgumentError(fmt::format("{}: found {} bytes, expected {}", name, data ? found : 0, bytes));
  const std::size_t alignment = device.host_accessible() ? 64 : 256;
  if (reinterpret_cast<std::uintptr_t>(data) % alignment != 0)
    throw ArgumentError(fmt::format("{}: found address {}, expected a multiple of {}", name, data, alignment));
  return data;
}

void* indices_of(nb::handle object, const char* name, const Device& device, std::size_t count, Owners& owners) {
  owners.objects.push_back(nb::borrow(object));
  void* data = nullptr;
  std::size_t found = 0;
  bool int32 = false;
  if (is_torch(object)) {
    data = data_of_torch(object, name, device);
    found = nb::cast<std::size_t>(object.attr("numel")());
    int32 = text(get(object, torch->dtype)) == "torch.int32";
  } else {
    nb::ndarray<> array;
    if (!nb::try_cast(object, array, false)) no_tensor(object, name, "a writable tensor (PyTorch, NumPy, DLPack)");
    keep(array, owners);
    check_place(array, name, device);
    data = array.data();
    found = array.size();
    int32 = array.dtype() == nb::dtype<std::int32_t>();
  }
  if (!int32 || found != count)
    throw ArgumentError(fmt::format("{}: found {} elements{}, expected {} of int32", name, found,
                                    int32 ? "" : " of another type", count));
  return data;
}

void bind_tensor(nb::module_& module) {
  using namespace nb::literals;
  module.def("_numbered", &numbered, "dtype"_a, "q"_a.none(), "k"_a.none(), "v"_a.none(), "gate"_a.none(),
             "compress_k"_a.none(), "compress_v"_a.none());
  module.def("_use_torch", &use_torch, "Tells which type is PyTorch's tensor, and what its dtypes are called here.");
}

}  // namespace cpnsa::python

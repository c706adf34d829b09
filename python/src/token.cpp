#include <nanobind/ndarray.h>

#include <cstdint>
#include <map>
#include <memory>

#include "src/bindings.hpp"
#include "src/names.hpp"

namespace cpnsa::python {
namespace {

// The graphs of a compiler hold and return tensors alone, so other objects travel through them as tensors of one
// number. The tensor's memory keeps its object alive. Used only where the interpreter's lock is held.
std::map<std::int64_t, PyObject*> by_number;
std::int64_t numbers = 0;

struct Token {
  std::int64_t number;
  nb::object object;
};

nb::ndarray<nb::array_api, std::int64_t, nb::ndim<1>, nb::device::cpu> token_of(nb::object object) {
  auto token = std::make_unique<Token>(Token{++numbers, std::move(object)});
  by_number[token->number] = token->object.ptr();
  std::int64_t* const number = &token->number;
  const nb::capsule owner(token.release(), [](void* pointer) noexcept {
    const std::unique_ptr<Token> ended(static_cast<Token*>(pointer));
    by_number.erase(ended->number);
  });
  return {number, {std::size_t{1}}, owner};
}

nb::object object_of(std::int64_t number) {
  const auto found = by_number.find(number);
  if (found == by_number.end())
    throw ArgumentError(fmt::format("token: found number {}, expected that of a tensor which still exists", number));
  return nb::borrow(found->second);
}

}  // namespace

void bind_token(nb::module_& module) {
  using namespace nb::literals;
  module.def("token", &token_of, "object"_a,
             "int64 [1], a DLPack array whose memory keeps the object alive: for operators, which take tensors alone.");
  module.def("of_token", &object_of, "number"_a,
             "The object of the token with this number; ArgumentError if it is gone.");
}

}  // namespace cpnsa::python

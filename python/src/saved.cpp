#include "src/saved.hpp"

#include <nanobind/ndarray.h>

#include <map>
#include <mutex>

#include "src/bindings.hpp"
#include "src/names.hpp"

namespace cpnsa::python {
namespace {

// Operators that a compiler traces return tensors alone, so there a Saved travels as a tensor of one number. The
// tensor's memory keeps it alive, and a number whose tensor is gone is found to be so.
std::mutex mutex;
std::map<std::int64_t, std::weak_ptr<SavedForward>> by_number;
std::int64_t numbers = 0;

struct Token {
  std::int64_t number;
  std::shared_ptr<SavedForward> forward;
};

nb::ndarray<nb::array_api, std::int64_t, nb::ndim<1>, nb::device::cpu> token_of(const Saved& saved) {
  auto token = std::make_unique<Token>();
  token->forward = saved.forward;
  {
    const std::lock_guard lock(mutex);
    token->number = ++numbers;
    by_number[token->number] = saved.forward;
  }
  std::int64_t* const number = &token->number;
  const nb::capsule owner(token.release(), [](void* pointer) noexcept {
    const std::unique_ptr<Token> ended(static_cast<Token*>(pointer));
    const std::lock_guard lock(mutex);
    by_number.erase(ended->number);
  });
  return {number, {std::size_t{1}}, owner};
}

Saved saved_of(std::int64_t number) {
  const std::lock_guard lock(mutex);
  const auto found = by_number.find(number);
  std::shared_ptr<SavedForward> forward = found == by_number.end() ? nullptr : found->second.lock();
  if (!forward)
    throw ArgumentError(fmt::format("saved: found number {}, which is no forward's or one that is gone", number));
  return {std::move(forward)};
}

}  // namespace

void bind_saved(nb::module_& module) {
  using namespace nb::literals;
  nb::class_<Saved>(module, "Saved", "What a forward leaves for its backward, less its memory.")
      .def(nb::init<>())
      .def("token", &token_of, "int64 [1], which keeps this alive: for operators that return tensors alone.")
      .def_static("of_token", &saved_of, "number"_a);
}

}  // namespace cpnsa::python

#include "src/saved.hpp"

#include "src/bindings.hpp"

namespace cpnsa::python {

void bind_saved(nb::module_& module) {
  nb::class_<Saved>(module, "Saved", "What a forward leaves for its backward, less its memory.").def(nb::init<>());
}

}  // namespace cpnsa::python

#include "src/bindings.hpp"
#include "src/signals.hpp"

NB_MODULE(_core, module) {
  using namespace cpnsa::python;
  module.doc() = "cpnsa's C++ interface. The package cpnsa re-exports what is public of it.";
  nb::set_leak_warnings(false);  // a framework may end after the interpreter does, and keep what it was given
  bind_errors(module);
  handle_signals();
  bind_log(module);
  bind_info(module);
  bind_config(module);
  bind_partition(module);
  bind_forecast(module);
  bind_tensor(module);
  bind_device(module);
  bind_communicator(module);
  bind_saved(module);
  bind_step_record(module);
  bind_token(module);
  bind_attention(module);
  bind_page_allocator(module);
  bind_decoder(module);
}

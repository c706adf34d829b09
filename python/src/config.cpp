#include "cpnsa/config.hpp"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>

#include "src/bindings.hpp"
#include "src/names.hpp"

namespace cpnsa::python {
namespace {

Compressor compressor_named(std::string_view name) {
  return named("compressor", name, {Compressor::mean, Compressor::linear, Compressor::mlp});
}
Activation activation_named(std::string_view name) {
  return named("activation", name, {Activation::silu, Activation::relu, Activation::gelu});
}
GateKind gate_named(std::string_view name) {
  return named("gate", name, {GateKind::logits, GateKind::values});
}

Config make_config(std::int64_t num_q_heads, std::int64_t num_kv_heads, std::int64_t head_dim_qk,
                   std::int64_t head_dim_v, std::int64_t compress_block, std::int64_t compress_stride,
                   std::int64_t select_block, std::int64_t select_count, std::int64_t init_blocks,
                   std::int64_t local_blocks, std::int64_t window, std::optional<double> softmax_scale,
                   std::string_view compressor, std::string_view activation, std::string_view gate,
                   std::int64_t compress_hidden_k, std::int64_t compress_hidden_v) {
  Config config;
  config.num_q_heads = num_q_heads;
  config.num_kv_heads = num_kv_heads;
  config.head_dim_qk = head_dim_qk;
  config.head_dim_v = head_dim_v;
  config.compress_block = compress_block;
  config.compress_stride = compress_stride;
  config.select_block = select_block;
  config.select_count = select_count;
  config.init_blocks = init_blocks;
  config.local_blocks = local_blocks;
  config.window = window;
  config.softmax_scale = softmax_scale;
  config.compressor = compressor_named(compressor);
  config.activation = activation_named(activation);
  config.gate = gate_named(gate);
  config.compress_hidden_k = compress_hidden_k;
  config.compress_hidden_v = compress_hidden_v;
  config.validate();
  return config;
}

/// What makes an equal one, as keyword arguments.
nb::dict keywords_of(const Config& config) {
  nb::dict all;
  all["num_q_heads"] = config.num_q_heads;
  all["num_kv_heads"] = config.num_kv_heads;
  all["head_dim_qk"] = config.head_dim_qk;
  all["head_dim_v"] = config.head_dim_v;
  all["compress_block"] = config.compress_block;
  all["compress_stride"] = config.compress_stride;
  all["select_block"] = config.select_block;
  all["select_count"] = config.select_count;
  all["init_blocks"] = config.init_blocks;
  all["local_blocks"] = config.local_blocks;
  all["window"] = config.window;
  all["softmax_scale"] = config.softmax_scale;
  all["compressor"] = name_of(config.compressor);
  all["activation"] = name_of(config.activation);
  all["gate"] = name_of(config.gate);
  all["compress_hidden_k"] = config.compress_hidden_k;
  all["compress_hidden_v"] = config.compress_hidden_v;
  return all;
}

}  // namespace

void bind_config(nb::module_& module) {
  using namespace nb::literals;
  const Config defaults;
  nb::class_<Config>(module, "Config",
                     "Hyperparameters of one layer, validated and then fixed; the paper's defaults. docs/algorithm.md "
                     "has the formulas that they appear in.")
      .def(
          "__init__",
          [](Config* self, std::int64_t H, std::int64_t G, std::int64_t dk, std::int64_t dv, std::int64_t l,
             std::int64_t s, std::int64_t m, std::int64_t n, std::int64_t init, std::int64_t local, std::int64_t w,
             std::optional<double> scale, std::string_view compressor, std::string_view activation,
             std::string_view gate, std::int64_t hidden_k, std::int64_t hidden_v) {
            new (self) Config(make_config(H, G, dk, dv, l, s, m, n, init, local, w, scale, compressor, activation, gate,
                                          hidden_k, hidden_v));
          },
          nb::kw_only(), "num_q_heads"_a, "num_kv_heads"_a, "head_dim_qk"_a, "head_dim_v"_a,
          "compress_block"_a = defaults.compress_block, "compress_stride"_a = defaults.compress_stride,
          "select_block"_a = defaults.select_block, "select_count"_a = defaults.select_count,
          "init_blocks"_a = defaults.init_blocks, "local_blocks"_a = defaults.local_blocks,
          "window"_a = defaults.window, "softmax_scale"_a = nb::none(), "compressor"_a = name_of(defaults.compressor),
          "activation"_a = name_of(defaults.activation), "gate"_a = name_of(defaults.gate),
          "compress_hidden_k"_a = defaults.compress_hidden_k, "compress_hidden_v"_a = defaults.compress_hidden_v)
      .def_ro("num_q_heads", &Config::num_q_heads)
      .def_ro("num_kv_heads", &Config::num_kv_heads)
      .def_ro("head_dim_qk", &Config::head_dim_qk)
      .def_ro("head_dim_v", &Config::head_dim_v)
      .def_ro("compress_block", &Config::compress_block)
      .def_ro("compress_stride", &Config::compress_stride)
      .def_ro("select_block", &Config::select_block)
      .def_ro("select_count", &Config::select_count)
      .def_ro("init_blocks", &Config::init_blocks)
      .def_ro("local_blocks", &Config::local_blocks)
      .def_ro("window", &Config::window)
      .def_prop_ro("softmax_scale", &Config::scale)
      .def_prop_ro("compressor", [](const Config& self) { return name_of(self.compressor); })
      .def_prop_ro("activation", [](const Config& self) { return name_of(self.activation); })
      .def_prop_ro("gate", [](const Config& self) { return name_of(self.gate); })
      .def_ro("compress_hidden_k", &Config::compress_hidden_k)
      .def_ro("compress_hidden_v", &Config::compress_hidden_v)
      .def("to_dict", &keywords_of, "The keyword arguments that make an equal one.")
      .def("__getstate__", &keywords_of)
      .def("__setstate__",
           [](Config& self, const nb::dict& keywords) {
             new (&self) Config(nb::cast<Config>(nb::type<Config>()(**keywords)));
           })
      .def("__repr__", [](const Config& self) { return fmt::format("cpnsa.Config({})", self.describe()); })
      .def("__eq__", [](const Config& self, const Config& other) { return self.describe() == other.describe(); })
      .def("__hash__", [](const Config& self) { return nb::hash(nb::str(self.describe().c_str())); });
}

}  // namespace cpnsa::python

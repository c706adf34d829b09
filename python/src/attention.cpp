#include "src/attention.hpp"

#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>

#include <array>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "cpnsa/schema.hpp"
#include "src/arguments.hpp"
#include "src/names.hpp"
#include "src/tensor.hpp"

namespace cpnsa::python {
namespace {

template <class Names>
nb::tuple tuple_of(const Names& names) {
  nb::list list;
  for (const std::string_view name : names) list.append(nb::str(name.data(), name.size()));
  return nb::tuple(list);
}

nb::dict dictionary_of(const Statistics& statistics) {
  nb::dict received, predicted, seconds, all;
  for (int i = 0; i < traffic_kinds; ++i) {
    const auto name = std::string(name_of(static_cast<Traffic>(i)));
    received[name.c_str()] = statistics.bytes_received[static_cast<std::size_t>(i)];
    predicted[name.c_str()] = statistics.bytes_predicted[static_cast<std::size_t>(i)];
  }
  for (int i = 0; i < stage_count; ++i)
    seconds[std::string(name_of(static_cast<Stage>(i))).c_str()] = statistics.seconds[static_cast<std::size_t>(i)];
  all["exchange"] = std::string(name_of(statistics.exchange));
  all["bytes_received"] = received;
  all["bytes_predicted"] = predicted;
  all["blocks_needed"] = statistics.blocks_needed;
  all["blocks_fetched"] = statistics.blocks_fetched;
  all["workspace_bytes"] = statistics.workspace_bytes;
  all["seconds"] = seconds;
  return all;
}

}  // namespace

SharedAttention::SharedAttention(const Config& config, const Partition& partition, std::shared_ptr<Device> device,
                                 const SharedCommunicator& communicator, const AttentionOptions& options)
    : config_(config), device_(std::move(device)), communicator_(communicator) {
  Communicator& transport = communicator_.get();
  communicator_.run([&] { attention_ = std::make_unique<Attention>(config, partition, *device_, transport, options); });
  rows_ = attention_->rows();
  workspace_bytes_ = attention_->workspace_bytes();
  saved_bytes_ = attention_->saved_bytes();
}

SharedAttention::~SharedAttention() {
  const nb::gil_scoped_release released;
  attention_.reset();
}

Attention& SharedAttention::open() const {
  if (!attention_) throw ArgumentError("attention: found one that was closed, expected an open one");
  communicator_.get();
  return *attention_;
}

void SharedAttention::close() {
  communicator_.run([&] {
    const std::lock_guard lock(lock_);
    attention_.reset();
  });
}

void SharedAttention::refuse(const std::string& problem) {
  communicator_.run([&] {
    const std::lock_guard lock(lock_);
    open().refuse(problem);
  });
}

void SharedAttention::refuse_and_throw(const std::string& problem) {
  open().refuse(problem);
  throw ArgumentError(problem);
}

/// int32 [rows, G, n], or none.
std::int32_t* SharedAttention::selection(nb::handle object, const char* name, Owners& owners) const {
  if (object.is_none()) return nullptr;
  const auto count = static_cast<std::size_t>(rows_ * config_.num_kv_heads * config_.select_count);
  return static_cast<std::int32_t*>(indices_of(object, name, *device_, count, owners));
}

void SharedAttention::read_extras(nb::handle extras, AttentionInputs& inputs, Owners& owners) const {
  if (extras.is_none()) return;
  const auto given = nb::cast<nb::dict>(extras);
  if (given.contains("given")) inputs.selected = selection(given["given"], "given_selection", owners);
  if (!given.contains("rotation")) return;
  const nb::object rotation = given["rotation"];
  inputs.summary_rotation.cos = view_of(rotation[0], "summary_rotation.cos", *device_, false, owners);
  inputs.summary_rotation.sin = view_of(rotation[1], "summary_rotation.sin", *device_, false, owners);
  inputs.summary_rotation.interleaved = nb::cast<bool>(given["interleaved"]);
}

void SharedAttention::forward(nb::sequence inputs, nb::handle out, nb::handle selected, Saved* saved,
                              nb::handle saved_memory, nb::handle workspace, std::uintptr_t stream, nb::handle indices,
                              std::int64_t layer, nb::handle extras) {
  open();
  Owners owners;
  AttentionInputs in;
  TensorView result;
  BranchTensors log_sum_exp;
  std::int32_t* blocks = nullptr;
  void *memory = nullptr, *work = nullptr;
  const std::string problem = problem_of([&] {
    in = views_of<AttentionInputs>(inputs, indices, false, *device_, owners);
    in.layer = layer;
    read_extras(extras, in, owners);
    if (!extras.is_none() && nb::cast<nb::dict>(extras).contains("log_sum_exp")) {
      const nb::object wanted = extras["log_sum_exp"];
      log_sum_exp = {view_of(wanted[0], "log_sum_exp.cmp", *device_, true, owners),
                     view_of(wanted[1], "log_sum_exp.slc", *device_, true, owners),
                     view_of(wanted[2], "log_sum_exp.win", *device_, true, owners)};
    }
    result = view_of(out, "out", *device_, true, owners);
    blocks = selection(selected, "selected", owners);
    if (saved) memory = memory_of(saved_memory, "saved", *device_, saved_bytes_, owners);
    work = memory_of(workspace, "workspace", *device_, workspace_bytes_, owners);
  });
  communicator_.run([&] {
    const std::lock_guard lock(lock_);
    if (!problem.empty()) refuse_and_throw(problem);
    if (saved) saved->forward->memory = memory;
    open().forward(in, result, blocks, saved ? saved->forward.get() : nullptr, work, {reinterpret_cast<void*>(stream)},
                   log_sum_exp);
  });
}

void SharedAttention::backward(nb::sequence inputs, nb::handle dout, const Saved& saved, nb::handle saved_memory,
                               nb::sequence gradients, nb::handle workspace, std::uintptr_t stream, nb::handle indices,
                               std::int64_t layer, nb::handle extras) {
  open();
  Owners owners;
  AttentionInputs in;
  AttentionGradients to;
  TensorView from;
  void *memory = nullptr, *work = nullptr;
  const std::string problem = problem_of([&] {
    in = views_of<AttentionInputs>(inputs, indices, false, *device_, owners);
    in.layer = layer;
    read_extras(extras, in, owners);
    from = view_of(dout, "dout", *device_, false, owners);
    to = views_of<AttentionGradients>(gradients, indices, true, *device_, owners);
    memory = memory_of(saved_memory, "saved", *device_, saved_bytes_, owners);
    work = memory_of(workspace, "workspace", *device_, workspace_bytes_, owners);
  });
  communicator_.run([&] {
    const std::lock_guard lock(lock_);
    if (!problem.empty()) refuse_and_throw(problem);
    saved.forward->memory = memory;
    open().backward(in, from, *saved.forward, to, work, {reinterpret_cast<void*>(stream)});
  });
}

Statistics SharedAttention::statistics() {
  Statistics statistics;
  communicator_.run([&] {
    const std::lock_guard lock(lock_);
    statistics = open().statistics();
  });
  return statistics;
}

StepRecord SharedAttention::record() {
  StepRecord record;
  communicator_.run([&] {
    const std::lock_guard lock(lock_);
    record = open().record();
  });
  return record;
}

void bind_attention(nb::module_& module) {
  using namespace nb::literals;
  std::vector<std::string_view> tensors, parameters;
  for (const schema::Tensor& tensor : schema::tensors) tensors.push_back(tensor.name);
  for (const schema::Tensor& parameter : schema::key_parameters) parameters.push_back(parameter.name);
  module.attr("tensor_names") = tuple_of(tensors);
  module.attr("branch_names") = tuple_of(schema::branches);
  module.attr("parameter_names") = tuple_of(parameters);

  nb::class_<SharedAttention>(module, "Attention",
                              "One attention layer over a sequence sharded over the ranks of a communicator. Making "
                              "it, forward() and backward() are collective.")
      .def(
          "__init__",
          [](SharedAttention* self, const Config& config, const Partition& partition, std::shared_ptr<Device> device,
             const SharedCommunicator& communicator, std::string_view dtype, std::string_view exchange,
             std::optional<std::string> gradient_dtype, std::optional<std::string> parameter_gradient_dtype,
             bool backward, bool refetch_blocks, bool recompute_branches, bool reuse_saved,
             bool sum_parameter_gradients, bool timing, bool compare_parameters, bool compressed_query, bool sinks,
             bool given_selection) {
            AttentionOptions options;
            const std::string problem = problem_of([&] {
              options.dtype = named<DType>("dtype", dtype);
              options.exchange = named<Exchange>("exchange", exchange);
              if (gradient_dtype) options.gradient_dtype = named<DType>("gradient_dtype", *gradient_dtype);
              if (parameter_gradient_dtype)
                options.parameter_gradient_dtype = named<DType>("parameter_gradient_dtype", *parameter_gradient_dtype);
            });
            if (!problem.empty()) {
              communicator.refuse(problem);
              throw ArgumentError(problem);
            }
            options.backward = backward;
            options.refetch_blocks = refetch_blocks;
            options.recompute_branches = recompute_branches;
            options.reuse_saved = reuse_saved;
            options.sum_parameter_gradients = sum_parameter_gradients;
            options.compare_parameters = compare_parameters;
            options.timing = timing;
            options.compressed_query = compressed_query;
            options.sinks = sinks;
            options.given_selection = given_selection;
            new (self) SharedAttention(config, partition, std::move(device), communicator, options);
          },
          "config"_a, "partition"_a, "device"_a, "communicator"_a, nb::kw_only(), "dtype"_a, "exchange"_a = "auto",
          "gradient_dtype"_a = nb::none(), "parameter_gradient_dtype"_a = nb::none(), "backward"_a = true,
          "refetch_blocks"_a = true, "recompute_branches"_a = false, "reuse_saved"_a = false,
          "sum_parameter_gradients"_a = false, "timing"_a = false, "compare_parameters"_a = true,
          "compressed_query"_a = false, "sinks"_a = false, "given_selection"_a = false)
      .def("forward", &SharedAttention::forward, "inputs"_a, "out"_a, "selected"_a.none(), "saved"_a.none(),
           "saved_memory"_a.none(), "workspace"_a.none(), "stream"_a, "indices"_a = nb::none(), "layer"_a = 0,
           "extras"_a = nb::none())
      .def("backward", &SharedAttention::backward, "inputs"_a, "dout"_a, "saved"_a, "saved_memory"_a.none(),
           "gradients"_a, "workspace"_a.none(), "stream"_a, "indices"_a = nb::none(), "layer"_a = 0,
           "extras"_a = nb::none())
      .def("refuse", &SharedAttention::refuse, "problem"_a,
           "Takes the place of this rank's next forward() or backward(), which it cannot make: the others' raises "
           "ArgumentError with the problem.")
      .def("statistics", [](SharedAttention& self) { return dictionary_of(self.statistics()); })
      .def("record", &SharedAttention::record,
           "This rank's part of the last step, stage by stage; has spans if timing. Waits for the step.")
      .def("close", &SharedAttention::close)
      .def_prop_ro("rows", &SharedAttention::rows)
      .def_prop_ro("workspace_bytes", &SharedAttention::workspace_bytes)
      .def_prop_ro("saved_bytes", &SharedAttention::saved_bytes);
}

}  // namespace cpnsa::python

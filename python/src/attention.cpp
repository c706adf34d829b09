#include "src/attention.hpp"

#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>

#include <array>
#include <mutex>
#include <optional>
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

void read(std::string_view name, nb::handle found, bool& value) {
  if (!nb::try_cast(found, value))
    throw ArgumentError(fmt::format("{}: found {}, expected True or False", name, nb::repr(found).c_str()));
}
template <NamedEnum Enum>
void read(std::string_view name, nb::handle found, Enum& value) {
  std::string text;
  if (!nb::try_cast(found, text))
    throw ArgumentError(fmt::format("{}: found {}, expected a string", name, nb::repr(found).c_str()));
  value = named<Enum>(name, text);
}
template <NamedEnum Enum>
void read(std::string_view name, nb::handle found, std::optional<Enum>& value) {
  if (!found.is_none()) read(name, found, value.emplace());
}

AttentionOptions options_of(const nb::kwargs& keywords) {
  AttentionOptions options;
  std::size_t known = 0;
  schema::for_each_option(options, [&](const schema::OptionKey& key, auto& value) {
    const nb::str name(key.name.data(), key.name.size());
    if (!keywords.contains(name)) return;
    ++known;
    read(key.name, keywords[name], value);
  });
  if (known < keywords.size())
    throw ArgumentError(
        fmt::format("options: found {}, expected those of cpnsa.AttentionOptions alone", nb::repr(keywords).c_str()));
  return options;
}

nb::object to_python(bool value) {
  return nb::cast(value);
}
template <NamedEnum Enum>
nb::object to_python(Enum value) {
  return nb::cast(name_of(value));
}
template <NamedEnum Enum>
nb::object to_python(std::optional<Enum> value) {
  return value ? to_python(*value) : nb::none();
}

/// Every option and its default.
nb::dict option_defaults() {
  nb::dict all;
  schema::for_each_option(AttentionOptions(), [&](const schema::OptionKey& key, const auto& value) {
    all[key.name.data()] = to_python(value);
  });
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
  module.attr("option_defaults") = option_defaults();

  nb::class_<SharedAttention>(module, "Attention",
                              "One attention layer over a sequence sharded over the ranks of a communicator. Making "
                              "it, forward() and backward() are collective.")
      .def(
          "__init__",
          [](SharedAttention* self, const Config& config, const Partition& partition, std::shared_ptr<Device> device,
             const SharedCommunicator& communicator, const nb::kwargs& keywords) {
            AttentionOptions options;
            const std::string problem = problem_of([&] { options = options_of(keywords); });
            if (!problem.empty()) {
              communicator.refuse(problem);
              throw ArgumentError(problem);
            }
            new (self) SharedAttention(config, partition, std::move(device), communicator, options);
          },
          "config"_a, "partition"_a, "device"_a, "communicator"_a, "options"_a,
          "The options are those of cpnsa.AttentionOptions, and `dtype`, by name.")
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

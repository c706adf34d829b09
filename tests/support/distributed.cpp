#include "tests/support/distributed.hpp"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <stdexcept>

namespace cpnsa::test {
namespace {

// All-gathers byte strings of different lengths.
std::vector<std::vector<std::byte>> share(Communicator& communicator, const std::vector<std::byte>& own) {
  const auto ranks = static_cast<std::size_t>(communicator.size());
  const std::uint64_t own_size = own.size();
  std::vector<std::uint64_t> sizes(ranks);
  communicator.all_gather_host(&own_size, sizes.data(), sizeof own_size);
  const std::uint64_t longest = *std::max_element(sizes.begin(), sizes.end());
  std::vector<std::byte> padded = own, all(ranks * longest);
  padded.resize(longest);
  communicator.all_gather_host(padded.data(), all.data(), longest);
  std::vector<std::vector<std::byte>> result;
  for (std::size_t rank = 0; rank < ranks; ++rank) {
    const auto begin = all.begin() + static_cast<std::ptrdiff_t>(rank * longest);
    result.emplace_back(begin, begin + static_cast<std::ptrdiff_t>(sizes[rank]));
  }
  return result;
}

template <class T>
std::vector<std::vector<T>> share(Communicator& communicator, const std::vector<T>& own) {
  std::vector<std::byte> bytes(own.size() * sizeof(T));
  if (!own.empty()) std::memcpy(bytes.data(), own.data(), bytes.size());
  std::vector<std::vector<T>> result;
  for (const std::vector<std::byte>& part : share(communicator, bytes)) {
    result.emplace_back(part.size() / sizeof(T));
    if (!part.empty()) std::memcpy(result.back().data(), part.data(), part.size());
  }
  return result;
}

// The packed tensor, gathered from the ranks' rows.
template <class T>
std::vector<T> gather_rows(const Partition& partition, const std::vector<std::vector<T>>& parts) {
  std::size_t elements = 0;
  for (const std::vector<T>& part : parts) elements += part.size();
  std::vector<T> packed(elements);
  const std::size_t row_bytes = elements / static_cast<std::size_t>(partition.tokens()) * sizeof(T);
  for (std::size_t rank = 0; rank < parts.size(); ++rank)
    partition.gather(parts[rank].data(), packed.data(), static_cast<int>(rank), row_bytes);
  return packed;
}

Values scatter_rows(const Partition& partition, int rank, const Values& packed) {
  const std::size_t width = packed.size() / static_cast<std::size_t>(partition.tokens());
  Values local(static_cast<std::size_t>(partition.local_tokens(rank)) * width);
  partition.scatter(packed.data(), local.data(), rank, width * sizeof(double));
  return local;
}

TensorView view_of(const DeviceBuffer& buffer, DType dtype, const Shape& shape) {
  switch (shape.size()) {
    case 1: return {buffer.data(), dtype, {shape[0]}};
    case 2: return {buffer.data(), dtype, {shape[0], shape[1]}};
    case 3: return {buffer.data(), dtype, {shape[0], shape[1], shape[2]}};
    default: throw std::logic_error("a layer's tensors have 1 to 3 dimensions");
  }
}

template <class Views>
void share_branches(const Problem& problem, Views& views) {
  if (problem.shared_k) views.k.slc = views.k.win = views.k.cmp;
  if (problem.shared_v) views.v.slc = views.v.win = views.v.cmp;
}

void add(Values& sum, const Values& terms) {
  sum.resize(terms.size());
  for (std::size_t i = 0; i < terms.size(); ++i) sum[i] += terms[i];
}

}  // namespace

RankTensors::RankTensors(const Problem& problem, const Partition& partition, int rank, const LayerSetting& setting,
                         Device& device)
    : setting_(setting) {
  const Config& config = problem.config;
  const std::int64_t rows = partition.local_tokens(rank);
  const DType accumulate = accumulate_dtype(setting.dtype);
  const auto input = [&](const Values& values) {
    std::vector<std::byte> content = encode(setting.dtype, values);
    return Tensor{DeviceBuffer(device, content), content, setting.dtype};
  };
  const TensorSet<Shape> shapes = shapes_of(config, rows);

  for_each_token_tensor(
      [&](auto, const Values& values, const Shape& shape, Tensor& in, Tensor& gradient, TensorView& in_view,
          TensorView& gradient_view) {
        if (values.empty()) return;
        in = input(scatter_rows(partition, rank, values));
        in_view = view_of(in.buffer, setting.dtype, shape);
        const DType dtype = setting.gradient_dtype.value_or(accumulate);
        gradient = {DeviceBuffer(device, static_cast<std::size_t>(elements_of(shape)) * size_of(dtype)), {}, dtype};
        gradient_view = view_of(gradient.buffer, dtype, shape);
      },
      problem.inputs, shapes, input_memory_, gradient_memory_, inputs, gradients);
  for_each_parameter(
      [&](auto, const Values& values, const Shape& shape, Tensor& in, Tensor& gradient, TensorView& in_view,
          TensorView& gradient_view) {
        if (values.empty()) return;
        in = input(values);
        in_view = view_of(in.buffer, setting.dtype, shape);
        const DType dtype = setting.parameter_gradient_dtype.value_or(accumulate);
        gradient = {DeviceBuffer(device, values.size() * size_of(dtype)), {}, dtype};
        gradient_view = view_of(gradient.buffer, dtype, shape);
      },
      problem.inputs, shapes, input_memory_, gradient_memory_, inputs, gradients);
  share_branches(problem, inputs);
  share_branches(problem, gradients);

  const auto table = [&](const Values& values, Tensor& memory, TensorView& view) {
    if (values.empty()) return;
    const std::vector<std::byte> content = encode(accumulate, values);
    memory = {DeviceBuffer(device, content), content, accumulate};
    const std::int64_t summaries = config.summaries_of(problem.tokens());
    view = view_of(memory.buffer, accumulate, {summaries, static_cast<std::int64_t>(values.size()) / summaries});
  };
  table(problem.rotation_cos, cos_, inputs.summary_rotation.cos);
  table(problem.rotation_sin, sin_, inputs.summary_rotation.sin);
  inputs.summary_rotation.interleaved = problem.rotation_interleaved;
  if (!problem.given_selection.empty()) {
    const std::size_t width = problem.given_selection.size() / static_cast<std::size_t>(problem.tokens());
    std::vector<std::int32_t> local(static_cast<std::size_t>(rows) * width);
    partition.scatter(problem.given_selection.data(), local.data(), rank, width * sizeof(std::int32_t));
    given_selection_ = DeviceBuffer(device, local);
    inputs.selected = static_cast<const std::int32_t*>(given_selection_.data());
  }
  if (setting.log_sum_exp)
    for (int branch = 0; branch < 3; ++branch) {
      if (!config.has_branch(branch)) continue;
      const std::array views{&log_sum_exp.cmp, &log_sum_exp.slc, &log_sum_exp.win};
      const Shape shape{rows, config.num_q_heads};
      const auto at = static_cast<std::size_t>(branch);
      log_sum_exp_[at] = DeviceBuffer(device, static_cast<std::size_t>(elements_of(shape)) * size_of(accumulate));
      *views[at] = view_of(log_sum_exp_[at], accumulate, shape);
    }

  const Shape out_shape{rows, config.num_q_heads, config.head_dim_v};
  dout_ = input(scatter_rows(partition, rank, problem.dout));
  dout = view_of(dout_.buffer, setting.dtype, out_shape);
  out_ = DeviceBuffer(device, static_cast<std::size_t>(elements_of(out_shape)) * size_of(setting.dtype));
  out = view_of(out_, setting.dtype, out_shape);
  selected_ = poisoned_indices(device, rows * config.num_kv_heads * config.select_count);
  selected = config.has_branch(1) ? static_cast<std::int32_t*>(selected_.data()) : nullptr;
}

std::array<Values, 3> RankTensors::log_sum_exp_values() const {
  std::array<Values, 3> values;
  for (std::size_t branch = 0; branch < values.size(); ++branch)
    if (log_sum_exp_[branch].data()) values[branch] = log_sum_exp_[branch].values(accumulate_dtype(setting_.dtype));
  return values;
}

Tensors RankTensors::gradient_values() const {
  Tensors result;
  for_each_tensor(
      [](auto, Values& values, const Tensor& tensor) {
        if (tensor.buffer.data()) values = tensor.buffer.values(tensor.dtype);
      },
      result, gradient_memory_);
  return result;
}

bool RankTensors::inputs_unchanged() const {
  bool unchanged = dout_.buffer.read() == dout_.content;
  for_each_tensor(
      [&](auto, const Tensor& tensor) {
        if (tensor.buffer.data()) unchanged = unchanged && tensor.buffer.read() == tensor.content;
      },
      input_memory_);
  return unchanged;
}

LayerMemory::LayerMemory(const Attention& layer, Device& device)
    : workspace_(device, layer.workspace_bytes()), saved_memory_(device, layer.saved_bytes()) {
  saved.memory = saved_memory_.data();
}

AttentionOptions options_of(const LayerSetting& setting) {
  return {.dtype = setting.dtype,
          .exchange = setting.exchange,
          .gradient_dtype = setting.gradient_dtype.value_or(accumulate_dtype(setting.dtype)),
          .parameter_gradient_dtype = setting.parameter_gradient_dtype,
          .backward = setting.backward,
          .refetch_blocks = setting.refetch_blocks,
          .recompute_branches = setting.recompute_branches,
          .reuse_saved = setting.reuse_saved,
          .sum_parameter_gradients = setting.sum_parameter_gradients,
          .timing = setting.timing};
}

LayerResult collect(const Problem& problem, const Partition& partition, const LayerSetting& setting,
                    const RankTensors& tensors, const Statistics& statistics, Communicator& communicator) {
  if (!tensors.inputs_unchanged()) throw std::logic_error("a step changed its inputs");

  LayerResult result;
  result.out = gather_rows(partition, share(communicator, tensors.out_values()));
  result.selected = gather_rows(partition, share(communicator, tensors.selected_indices()));
  const std::array<Values, 3> log_sum_exps = tensors.log_sum_exp_values();
  for (std::size_t branch = 0; branch < log_sum_exps.size(); ++branch)
    if (setting.log_sum_exp && problem.config.has_branch(static_cast<int>(branch)))
      result.log_sum_exp[branch] = gather_rows(partition, share(communicator, log_sum_exps[branch]));
  for (const auto& one : share(communicator, std::vector<Statistics>{statistics})) result.statistics.push_back(one[0]);
  if (!setting.backward) return result;

  const Tensors own = tensors.gradient_values();
  for_each_token_tensor(
      [&](auto, Values& packed, const Values& local, const Values& input) {
        if (!input.empty()) packed = gather_rows(partition, share(communicator, local));
      },
      result.gradients, own, problem.inputs);
  result.parameters_of.resize(static_cast<std::size_t>(communicator.size()));
  for_each_parameter(
      [&](const schema::Tensor& tensor, Values& total, const Values& local) {
        const std::vector<Values> parts = share(communicator, local);
        for (std::size_t rank = 0; rank < parts.size(); ++rank) {
          for_each_parameter(
              [&](const schema::Tensor& other, Values& part) {
                if (&other == &tensor) part = parts[rank];
              },
              result.parameters_of[rank]);
          if (rank == 0 || !setting.sum_parameter_gradients) add(total, parts[rank]);
        }
      },
      result.gradients, own);
  return result;
}

LayerResult run_rank(const Problem& problem, const Partition& partition, const LayerSetting& setting,
                     const DeviceBackend& backend, Communicator& communicator) {
  const std::unique_ptr<Device> device = backend.make();
  device->activate();
  AttentionOptions options = options_of(setting);
  options.compressed_query = !problem.inputs.q_cmp.empty();
  options.sinks = !problem.inputs.sink_slc.empty() || !problem.inputs.sink_win.empty();
  options.given_selection = !problem.given_selection.empty();
  Attention layer(problem.config, partition, *device, communicator, options);
  RankTensors tensors(problem, partition, communicator.rank(), setting, *device);
  LayerMemory memory(layer, *device);

  layer.forward(tensors.inputs, tensors.out, tensors.selected, setting.backward ? &memory.saved : nullptr,
                memory.workspace(), Stream{}, tensors.log_sum_exp);
  device->synchronize(Stream{});
  if (setting.backward) {
    memory.poison_workspace();
    layer.backward(tensors.inputs, tensors.dout, memory.saved, tensors.gradients, memory.workspace(), Stream{});
    device->synchronize(Stream{});
  }
  return collect(problem, partition, setting, tensors, layer.statistics(), communicator);
}

LayerResult run_distributed(const Problem& problem, const Partition& partition, const LayerSetting& setting,
                            const DeviceBackend& device, const TransportBackend& transport) {
  LayerResult result;
  std::mutex mutex;
  transport.run(partition.ranks(), [&](Communicator& communicator) {
    communicator.set_deadline(std::chrono::minutes(2));
    LayerResult own = run_rank(problem, partition, setting, device, communicator);
    const std::lock_guard lock(mutex);  // ranks that are threads of this process share `result`
    result = std::move(own);
  });
  return result;
}

}  // namespace cpnsa::test

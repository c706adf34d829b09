// Layers run from C come to what the oracle says, on every device and transport that the executable was linked with.

#include "tests/c/layer.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <mutex>

#include "cpnsa/error.hpp"
#include "tests/c/convert.hpp"
#include "tests/c/transports.hpp"
#include "tests/support/distributed.hpp"
#include "tests/support/partitions.hpp"
#include "tests/support/seeds.hpp"
#include "tests/support/tolerance.hpp"

namespace cpnsa::test {

std::vector<CTransport>& c_transports() {
  static std::vector<CTransport> registry;
  return registry;
}

namespace {

cpnsa_device make_c_device(const std::string& name) {
  cpnsa_device device = nullptr;
  check_c(name == "cpu" ? cpnsa_device_create_cpu(&device) : cpnsa_device_create_cuda(-1, &device));
  return device;
}

// Poisoned memory of a device, as long as the owner lives.
class Memory {
 public:
  explicit Memory(Device& device) : device_(device) {}
  static void* allocate(void* self, std::size_t bytes) {
    auto& memory = *static_cast<Memory*>(self);
    memory.buffers_.emplace_back(memory.device_, bytes);
    return memory.buffers_.back().data();
  }
  static void deallocate(void*, void*) {}

 private:
  Device& device_;
  std::vector<DeviceBuffer> buffers_;
};

Statistics from_c(const cpnsa_statistics& c) {
  Statistics statistics;
  std::copy_n(c.bytes_received, traffic_kinds, statistics.bytes_received.begin());
  std::copy_n(c.bytes_predicted, traffic_kinds, statistics.bytes_predicted.begin());
  statistics.blocks_needed = c.blocks_needed, statistics.blocks_fetched = c.blocks_fetched;
  statistics.workspace_bytes = c.workspace_bytes;
  return statistics;
}

LayerResult run_rank_in_c(const Problem& problem, const Partition& partition, const LayerSetting& setting,
                          const DeviceBackend& backend, Communicator& communicator, cpnsa_communicator handle) {
  const std::unique_ptr<Device> device = backend.make();
  device->activate();
  RankTensors tensors(problem, partition, communicator.rank(), setting, *device);
  Memory memory(*device);
  layer_call call{};
  AttentionOptions options = options_of(setting);
  options.compressed_query = !problem.inputs.q_cmp.empty();
  options.sinks = !problem.inputs.sink_slc.empty();
  options.given_selection = !problem.given_selection.empty();
  call.config = to_c(problem.config), call.options = to_c(options);
  call.partition = to_c(partition), call.device = make_c_device(backend.name), call.communicator = handle;
  call.inputs = to_c(tensors.inputs), call.gradients = to_c(tensors.gradients);
  call.out = to_c(tensors.out), call.dout = to_c(tensors.dout), call.selected = tensors.selected;
  call.log_sum_exp = {to_c(tensors.log_sum_exp.cmp), to_c(tensors.log_sum_exp.slc), to_c(tensors.log_sum_exp.win)};
  call.allocate = Memory::allocate, call.deallocate = Memory::deallocate, call.user = &memory;
  check_c(run_layer(&call));
  check_c(cpnsa_device_destroy(call.device));
  check_c(cpnsa_partition_destroy(call.partition));
  return collect(problem, partition, setting, tensors, from_c(call.statistics), communicator);
}

LayerResult run_in_c(const Problem& problem, const Partition& partition, const LayerSetting& setting,
                     const DeviceBackend& device, const CTransport& transport) {
  LayerResult result;
  std::mutex mutex;
  transport.run(partition.ranks(), [&](Communicator& communicator, cpnsa_communicator handle) {
    check_c(cpnsa_communicator_set_deadline(handle, 120'000));
    LayerResult own = run_rank_in_c(problem, partition, setting, device, communicator, handle);
    const std::lock_guard lock(mutex);
    result = std::move(own);
  });
  return result;
}

bool supported(const DeviceBackend& device, const Config& config, DType dtype) {
  try {
    device.make()->check_supported(config, dtype);
    return true;
  } catch (const UnsupportedError&) {
    return false;
  }
}

// Another setting with each seed.
LayerSetting setting_of(std::uint64_t seed, DType dtype) {
  constexpr Exchange exchanges[] = {Exchange::fetch, Exchange::gather, Exchange::automatic};
  LayerSetting setting{.dtype = dtype, .exchange = exchanges[seed % 3]};
  if (seed % 2 == 0) setting.gradient_dtype = dtype;
  if (seed % 3 == 0) setting.parameter_gradient_dtype = dtype;
  setting.refetch_blocks = seed % 3 != 0;
  setting.recompute_branches = seed % 4 == 1;
  setting.reuse_saved = seed % 4 >= 2;
  return setting;
}

TEST(Layer, FromCIsWhatTheOracleSays) {
  ASSERT_FALSE(devices().empty());
  ASSERT_FALSE(c_transports().empty());
  int compared = 0;
  for (const DeviceBackend& device : devices())
    for (const std::uint64_t seed : seeds(6)) {
      const DType dtype = device.dtypes[seed % device.dtypes.size()];
      const Problem problem = rounded(random_problem(seed, 200, device.dim_step), dtype);
      if (!supported(device, problem.config, dtype)) continue;
      for (const CTransport& transport : c_transports())
        for (const int ranks : transport.rank_counts()) {
          SCOPED_TRACE(device.name + ", " + transport.name + ", " + std::to_string(ranks) + " ranks, " +
                       describe(problem));
          LayerSetting setting = setting_of(seed, dtype);
          if (setting.exchange == Exchange::automatic && transport.name == "threads") setting.exchange = Exchange::pull;
          const Partition partition = make_partition(partition_kinds[seed % 4], problem, ranks);
          const LayerResult result = run_in_c(problem, partition, setting, device, transport);
          const Truth truth(problem, dtype, result.selected);
          EXPECT_TRUE(truth.selection_is_right());
          EXPECT_TRUE(truth.out_agrees(result.out));
          const DType accumulate = accumulate_dtype(dtype);
          EXPECT_TRUE(truth.gradients_agree(result.gradients, setting.gradient_dtype.value_or(accumulate),
                                            setting.parameter_gradient_dtype.value_or(accumulate)));
          for (const Statistics& statistics : result.statistics) {
            EXPECT_EQ(statistics.bytes_received, statistics.bytes_predicted);
            EXPECT_GT(statistics.workspace_bytes, 0);
          }
          ++compared;
        }
    }
  EXPECT_GT(compared, 0);
}

// A query of its own for the compressed branch, sinks, rotated summaries, given blocks, and the log-sum-exps.
TEST(Layer, VariantsFromCAreWhatTheOracleSays) {
  int compared = 0;
  for (const DeviceBackend& device : devices())
    for (const std::uint64_t seed : seeds(2)) {
      const DType dtype = device.dtypes[seed % device.dtypes.size()];
      Config config;
      config.num_q_heads = 4, config.num_kv_heads = 2, config.head_dim_qk = 16, config.head_dim_v = 8;
      config.compress_block = 8, config.compress_stride = 4, config.select_block = 8, config.select_count = 3;
      config.window = 11;
      config.compressor = Compressor::mean;
      config = config.with_defaults();
      Problem problem = make_problem(config, {0, 61, 150}, seed, {.q_cmp = true, .sinks = true, .rotated_pairs = 8});
      problem.rotation_interleaved = seed % 2 == 1;
      problem = rounded(std::move(problem), dtype);
      if (!supported(device, config, dtype)) continue;
      LayerSetting setting = setting_of(seed, dtype);
      setting.log_sum_exp = true;
      for (const CTransport& transport : c_transports()) {
        SCOPED_TRACE(device.name + ", " + transport.name + ", " + describe(problem));
        const Partition partition = make_partition(PartitionKind::zigzag, problem, transport.rank_counts().back());
        const LayerResult chosen = run_in_c(problem, partition, setting, device, transport);
        Problem given = problem;
        given.given_selection = chosen.selected;
        for (const LayerResult& result : {chosen, run_in_c(given, partition, setting, device, transport)}) {
          const Truth truth(problem, dtype, result.selected);
          EXPECT_EQ(result.selected, chosen.selected);
          EXPECT_TRUE(truth.selection_is_right());
          EXPECT_TRUE(truth.out_agrees(result.out));
          const DType accumulate = accumulate_dtype(dtype);
          EXPECT_TRUE(truth.gradients_agree(result.gradients, setting.gradient_dtype.value_or(accumulate),
                                            setting.parameter_gradient_dtype.value_or(accumulate)));
          EXPECT_FALSE(result.gradients.q_cmp.empty());
          EXPECT_FALSE(result.gradients.sink_win.empty());
          const std::array expected{&truth.forward().lse_cmp, &truth.forward().lse_slc, &truth.forward().lse_win};
          for (std::size_t branch = 0; branch < expected.size(); ++branch) {
            const Values& found = result.log_sum_exp[branch];
            ASSERT_EQ(found.size(), expected[branch]->size());
            for (std::size_t i = 0; i < found.size(); ++i) {
              const double right = (*expected[branch])[i], tolerance = dtype == DType::f64 ? 1e-12 : 0.05;
              ASSERT_TRUE(found[i] == right || std::abs(found[i] - right) <= tolerance * (1 + std::abs(right))) << i;
            }
          }
          ++compared;
        }
      }
    }
  EXPECT_GT(compared, 0);
}

TEST(Layer, WithoutABackward) {
  const DeviceBackend& device = devices().front();
  const DType dtype = device.dtypes.front();
  LayerSetting setting{.dtype = dtype};
  setting.backward = false;
  for (std::uint64_t seed = 1;; ++seed) {
    const Problem problem = rounded(random_problem(seed, 200, device.dim_step), dtype);
    if (!supported(device, problem.config, dtype)) continue;
    for (const CTransport& transport : c_transports()) {
      const Partition partition = make_partition(PartitionKind::zigzag, problem, transport.rank_counts().back());
      const LayerResult result = run_in_c(problem, partition, setting, device, transport);
      EXPECT_TRUE(Truth(problem, dtype, result.selected).out_agrees(result.out)) << transport.name;
    }
    return;
  }
}

}  // namespace
}  // namespace cpnsa::test

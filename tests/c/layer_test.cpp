// Layers run from C come to what the oracle says, on every device and transport that the executable was linked with.

#include "tests/c/layer.h"

#include <gtest/gtest.h>

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
  call.config = to_c(problem.config), call.options = to_c(options_of(setting));
  call.partition = to_c(partition), call.device = make_c_device(backend.name), call.communicator = handle;
  call.inputs = to_c(tensors.inputs), call.gradients = to_c(tensors.gradients);
  call.out = to_c(tensors.out), call.dout = to_c(tensors.dout), call.selected = tensors.selected;
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

// Layers on devices that have no memory left, that are busy, or whose work never ends.

#include <gmock/gmock.h>

#include "cpnsa/error.hpp"
#include "cpnsa/threads/communicator.hpp"
#include "kernels/cpu/device.hpp"
#include "tests/conformance/attention/attention_test.hpp"
#include "tests/support/wrapped_communicator.hpp"

namespace cpnsa::test {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class DeviceWithoutHostMemory final : public cpu::CpuDevice {
 public:
  void* allocate_host(std::size_t) override { throw DeviceError("no pinned memory left"); }
};

TEST(DevicesThatFail, APlanWithoutMemoryOnOneRankEndsAll) {
  const Problem problem = make_problem(small_config(), {0, 96}, 1);
  for (const int ranks : {1, 2, 4}) {
    const Partition partition = make_partition(PartitionKind::contiguous, problem, ranks);
    const int odd = ranks - 1;
    std::atomic<int> told = 0;
    threads::run_ranks(ranks, [&](Communicator& communicator) {
      communicator.set_deadline(std::chrono::minutes(2));
      cpu::CpuDevice usual;
      DeviceWithoutHostMemory full;
      const bool fails = communicator.rank() == odd;
      Device& device = fails ? static_cast<Device&>(full) : usual;
      const AttentionOptions options = options_of({});
      try {
        Attention(problem.config, partition, device, communicator, options);
      } catch (const DeviceError& error) {
        told += fails && std::string_view(error.what()) == "no pinned memory left";
      } catch (const ArgumentError& error) {
        EXPECT_THAT(error.what(), AllOf(HasSubstr("rank " + std::to_string(odd)), HasSubstr("no pinned memory left")));
        told += !fails;
      }
      // The communicator still works.
      const Attention layer(problem.config, partition, usual, communicator, options);
      EXPECT_EQ(layer.rows(), partition.local_tokens(communicator.rank()));
    });
    EXPECT_EQ(told, ranks);
  }
}

TEST(DevicesThatFail, SizesWhoseProductsDoNotFitAreRefused) {
  const std::vector<std::int64_t> token{0, 1};
  cpu::CpuDevice device;
  threads::run_ranks(1, [&](Communicator& communicator) {
    const auto plan = [&](const char* name, auto change) {
      Config config = small_config();
      change(config);
      const Partition partition = Partition::contiguous(token, config.select_block, 1);
      try {
        Attention(config, partition, device, communicator, options_of({}));
        ADD_FAILURE() << name << ": found no exception";
      } catch (const ConfigError& error) {
        EXPECT_THAT(error.what(), HasSubstr(name));
      }
    };
    const std::int64_t large = std::int64_t{1} << 31;
    plan("num_q_heads * head_dim_qk", [&](Config& c) { c.num_q_heads = c.head_dim_qk = large; });
    plan("num_q_heads * head_dim_v", [&](Config& c) { c.num_q_heads = c.head_dim_v = large; });
    plan("num_kv_heads * select_count", [&](Config& c) { c.num_q_heads = c.num_kv_heads = c.select_count = large; });
    plan("num_kv_heads * (head_dim_qk", [&](Config& c) { c.select_block = large, c.head_dim_v = large; });
    plan("parameters of compress_k", [&](Config& c) { c.head_dim_qk = c.compress_hidden_k = large; });
    plan("parameters of compress_v", [&](Config& c) { c.compress_hidden_v = large, c.head_dim_v = 1 << 20; });
  });
}

class CommunicatorOfAnotherDevice final : public WrappedCommunicator {
 public:
  using WrappedCommunicator::WrappedCommunicator;
  void check_device(Device&) const override { throw ArgumentError("device: found cuda device 1, expected another"); }
  void exchange(std::span<const SendMessage>, std::span<const ReceiveMessage>, Device&, Stream) override {
    ADD_FAILURE() << "moves memory that it cannot";
  }
};

TEST(DevicesThatFail, ADeviceThatTheTransportDoesNotServeEndsAll) {
  const Problem problem = make_problem(small_config(), {0, 96}, 1);
  const Partition partition = make_partition(PartitionKind::contiguous, problem, 2);
  std::atomic<int> told = 0;
  threads::run_ranks(2, [&](Communicator& communicator) {
    cpu::CpuDevice device;
    CommunicatorOfAnotherDevice other(communicator);
    Communicator& used = communicator.rank() == 1 ? static_cast<Communicator&>(other) : communicator;
    try {
      Attention(problem.config, partition, device, used, options_of({}));
    } catch (const ArgumentError& error) {
      EXPECT_THAT(error.what(), HasSubstr("device: found cuda device 1"));
      ++told;
    }
  });
  EXPECT_EQ(told, 2);
}

/// Once `stuck` is set, enqueued work never ends.
class StuckDevice final : public cpu::CpuDevice {
 public:
  bool done(Event event) override { return !stuck && cpu::CpuDevice::done(event); }
  void synchronize(Stream stream) override {
    if (stuck) ADD_FAILURE() << "would wait for ever";
    cpu::CpuDevice::synchronize(stream);
  }
  void deallocate_host(void* pointer) noexcept override {
    if (stuck) ++freed;
    cpu::CpuDevice::deallocate_host(pointer);
  }
  bool stuck = false;
  int freed = 0;
};

class LostCommunicator final : public WrappedCommunicator {
 public:
  using WrappedCommunicator::WrappedCommunicator;
  void wait(Device& device, Stream stream) override {
    if (lost) throw CommunicationError("the other ranks are gone");
    WrappedCommunicator::wait(device, stream);
  }
  bool lost = false;
};

/// A rank's layer with the arguments of its forward. It uses Exchange::gather, so that no rank waits to read the block
/// requests.
struct RanksLayer {
  RanksLayer(Device& device, Communicator& communicator)
      : partition(make_partition(PartitionKind::contiguous, problem, communicator.size())),
        attention(problem.config, partition, device, communicator, options_of(setting)),
        tensors(problem, partition, communicator.rank(), setting, device),
        memory(attention, device) {}
  void forward() {
    attention.forward(tensors.inputs, tensors.out, nullptr, &memory.saved, memory.workspace(), Stream{});
  }

  LayerSetting setting{.exchange = Exchange::gather, .gradient_dtype = {}};
  Problem problem = make_problem(small_config(), {0, 96}, 1);
  Partition partition;
  Attention attention;
  RankTensors tensors;
  LayerMemory memory;
};

TEST(DevicesThatFail, ALayerWhoseStepNeverEndsIsLeftBehind) {
  threads::run_ranks(1, [&](Communicator& communicator) {
    LostCommunicator lost(communicator);
    StuckDevice device;
    {
      RanksLayer layer(device, lost);
      layer.forward();
      EXPECT_NO_THROW(layer.attention.statistics());
      device.stuck = lost.lost = true;
      EXPECT_THROW(layer.attention.statistics(), CommunicationError);
    }
    EXPECT_EQ(device.freed, 0) << "what the step reads was freed under it";
  });
}

class DeviceWhoseEventsStayAway final : public cpu::CpuDevice {
 public:
  bool done(Event event) override { return !away && cpu::CpuDevice::done(event); }
  bool away = false;
};

// The index lists of the previous call may still be queued behind work that waits for ranks that never come.
TEST(DevicesThatFail, ACallAfterOneThatNeverEndsHasADeadline) {
  threads::run_ranks(2, [&](Communicator& communicator) {
    LostCommunicator lost(communicator);
    DeviceWhoseEventsStayAway device;
    RanksLayer layer(device, lost);
    layer.forward();
    device.away = lost.lost = true;
    EXPECT_THROW(layer.forward(), CommunicationError);
    device.away = lost.lost = false;
  });
}

/// The host cannot access its memory, and its default stream waits for all other streams.
class DeviceWithABusyDefaultStream final : public cpu::CpuDevice {
 public:
  bool host_accessible() const override { return false; }
  Stream create_stream() override { return {&own_stream_}; }
  void synchronize(Stream stream) override { busy_waits += stream.handle == nullptr; }
  void copy(void* destination, const void* source, std::size_t bytes, Stream stream) override {
    busy_waits += stream.handle == nullptr;
    cpu::CpuDevice::copy(destination, source, bytes, stream);
  }
  int busy_waits = 0;

 private:
  int own_stream_ = 0;
};

TEST(DevicesThatFail, APlanDoesNotWaitForTheCallersStreams) {
  const Problem problem = make_problem(small_config(), {0, 96}, 1);
  const Partition partition = make_partition(PartitionKind::zigzag, problem, 2);
  threads::run_ranks(2, [&](Communicator& communicator) {
    DeviceWithABusyDefaultStream device;
    const Attention layer(problem.config, partition, device, communicator, options_of({}));
    EXPECT_EQ(device.busy_waits, 0);
  });
}

}  // namespace
}  // namespace cpnsa::test

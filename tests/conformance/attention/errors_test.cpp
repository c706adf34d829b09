// An error on one rank is an exception on every rank: no rank hangs, and the message describes the error.

#include <gmock/gmock.h>

#include <atomic>

#include "cpnsa/error.hpp"
#include "tests/conformance/attention/attention_test.hpp"
#include "tests/support/wrapped_communicator.hpp"

namespace cpnsa::test {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

CPNSA_ATTENTION_SUITE(Errors);

enum class Kind { none, config, argument, unsupported, mismatch, communication, other };

struct Thrown {
  Kind kind = Kind::none;
  std::string text;
};

Thrown thrown_by(const std::function<void()>& call) {
  try {
    call();
  } catch (const ConfigError& error) {
    return {Kind::config, error.what()};
  } catch (const ArgumentError& error) {
    return {Kind::argument, error.what()};
  } catch (const UnsupportedError& error) {
    return {Kind::unsupported, error.what()};
  } catch (const MismatchError& error) {
    return {Kind::mismatch, error.what()};
  } catch (const CommunicationError& error) {
    return {Kind::communication, error.what()};
  } catch (const std::exception& error) {
    return {Kind::other, error.what()};
  }
  return {};
}

Problem plain_problem() {
  return make_problem(small_config(), {0, 96}, 1);
}

// One rank's layer and its tensors.
struct Layer {
  Layer(const Problem& problem, const Partition& partition, const LayerSetting& setting, Communicator& communicator,
        Device& device)
      : attention(problem.config, partition, device, communicator, options_of(setting)),
        tensors(problem, partition, communicator.rank(), setting, device),
        memory(attention, device) {}
  void* workspace() const { return static_cast<std::byte*>(memory.workspace()) + workspace_offset; }
  void forward() {
    attention.forward(tensors.inputs, tensors.out, tensors.selected, &memory.saved, workspace(), Stream{});
  }
  void backward() {
    attention.backward(tensors.inputs, tensors.dout, memory.saved, tensors.gradients, workspace(), Stream{});
  }

  Attention attention;
  RankTensors tensors;
  LayerMemory memory;
  std::ptrdiff_t workspace_offset = 0;
};

struct Disagreement {
  std::string word;  // the word that the message must contain
  std::function<void(Problem&, LayerSetting&)> change;
  std::vector<std::int64_t> cu_seqlens = {0, 96};  // of the other ranks
};

std::vector<Disagreement> disagreements() {
  return {
      {"window=", [](Problem& problem, LayerSetting&) { problem.config.window += 1; }},
      {"select_count=", [](Problem& problem, LayerSetting&) { problem.config.select_count += 1; }},
      {"num_q_heads=", [](Problem& problem, LayerSetting&) { problem.config.num_q_heads *= 2; }},
      {"softmax_scale=", [](Problem& problem, LayerSetting&) { problem.config.softmax_scale = 0.123; }},
      {"compressor=", [](Problem& problem, LayerSetting&) { problem.config.compressor = Compressor::mean; }},
      {"gate=", [](Problem& problem, LayerSetting&) { problem.config.gate = GateKind::values; }},
      {"tokens=",
       [](Problem& problem, LayerSetting&) {
         problem.cu_seqlens = {0, 97};
       }},
      {"documents=",
       [](Problem& problem, LayerSetting&) {
         problem.cu_seqlens = {0, 40, 96};
       }},
      {"cu_seqlens=[0,41,96]",
       [](Problem& problem, LayerSetting&) {
         problem.cu_seqlens = {0, 41, 96};
       },
       {0, 40, 96}},
      {"refetch_blocks=", [](Problem&, LayerSetting& setting) { setting.refetch_blocks = !setting.refetch_blocks; }},
      {"recompute_branches=", [](Problem&, LayerSetting& setting) { setting.recompute_branches = true; }},
      {"reuse_saved=", [](Problem&, LayerSetting& setting) { setting.reuse_saved = true; }},
      {"exchange=", [](Problem&, LayerSetting& setting) { setting.exchange = Exchange::gather; }},
      {"backward=", [](Problem&, LayerSetting& setting) { setting.backward = false; }},
      {"sum_parameter_gradients=", [](Problem&, LayerSetting& setting) { setting.sum_parameter_gradients = false; }},
  };
}

TEST_P(Errors, RanksMustBeGivenTheSame) {
  const DType dtype = widest_dtype();
  if (!supported(small_config(), dtype)) return;
  for (const int ranks : rank_counts(2))
    for (const Disagreement& disagreement : disagreements())
      for (const int odd : {0, ranks - 1}) {
        SCOPED_TRACE(disagreement.word + " on rank " + std::to_string(odd) + " of " + std::to_string(ranks));
        on_ranks(ranks, [&](Communicator& communicator, Device& own) {
          Problem problem = plain_problem();
          problem.cu_seqlens = disagreement.cu_seqlens;
          LayerSetting setting{.dtype = dtype};
          if (communicator.rank() == odd) disagreement.change(problem, setting);
          const Partition partition = make_partition(PartitionKind::contiguous, problem, ranks);
          const Thrown thrown =
              thrown_by([&] { Attention(problem.config, partition, own, communicator, options_of(setting)); });
          EXPECT_EQ(thrown.kind, Kind::mismatch) << thrown.text;
          EXPECT_THAT(thrown.text, HasSubstr(disagreement.word));
        });
      }
}

TEST_P(Errors, RanksMustComputeInTheSameType) {
  const std::vector<DType>& types = device().dtypes;
  if (types.size() < 2 || !supported(small_config(), types[0]) || !supported(small_config(), types[1])) return;
  for (const int ranks : rank_counts(2))
    on_ranks(ranks, [&](Communicator& communicator, Device& own) {
      const Problem problem = plain_problem();
      const Partition partition = make_partition(PartitionKind::contiguous, problem, ranks);
      const DType dtype = communicator.rank() == 1 ? types[1] : types[0];
      const Thrown thrown =
          thrown_by([&] { Attention(problem.config, partition, own, communicator, options_of({.dtype = dtype})); });
      EXPECT_EQ(thrown.kind, Kind::mismatch) << thrown.text;
      EXPECT_THAT(thrown.text, HasSubstr("rank 1: found \"dtype="));
    });
}

TEST_P(Errors, RanksMustWantGradientsOfTheSameTypes) {
  const DType dtype = device().dtypes.back(), wide = accumulate_dtype(dtype);  // 16 bits: only these have a choice
  if (dtype == wide || !supported(small_config(), dtype)) return;
  for (const auto& [word, odd] :
       {std::pair("\"gradient_dtype=", LayerSetting{.dtype = dtype, .gradient_dtype = wide}),
        {"\"parameter_gradient_dtype=", LayerSetting{.dtype = dtype, .parameter_gradient_dtype = dtype}}})
    for (const int ranks : rank_counts(2))
      on_ranks(ranks, [&, word = word, odd = odd](Communicator& communicator, Device& own) {
        const Problem problem = plain_problem();
        const Partition partition = make_partition(PartitionKind::contiguous, problem, ranks);
        LayerSetting setting{.dtype = dtype, .gradient_dtype = dtype, .parameter_gradient_dtype = wide};
        if (communicator.rank() == 1) {
          setting.gradient_dtype = odd.gradient_dtype == wide ? wide : dtype;
          setting.parameter_gradient_dtype = odd.parameter_gradient_dtype == dtype ? dtype : wide;
        }
        const Thrown thrown =
            thrown_by([&] { Attention(problem.config, partition, own, communicator, options_of(setting)); });
        EXPECT_EQ(thrown.kind, Kind::mismatch) << thrown.text;
        EXPECT_THAT(thrown.text, HasSubstr(word));
      });
}

TEST_P(Errors, RanksMustHaveTheSamePartition) {
  const DType dtype = widest_dtype();
  if (!supported(small_config(), dtype)) return;
  for (const int ranks : rank_counts(2))
    on_ranks(ranks, [&](Communicator& communicator, Device& own) {
      const Problem problem = plain_problem();
      const PartitionKind kind = communicator.rank() == 1 ? PartitionKind::zigzag : PartitionKind::contiguous;
      const Thrown thrown = thrown_by([&] {
        Attention(problem.config, make_partition(kind, problem, ranks), own, communicator,
                  options_of({.dtype = dtype}));
      });
      EXPECT_EQ(thrown.kind, Kind::mismatch) << thrown.text;
      EXPECT_THAT(thrown.text, HasSubstr("partition"));
    });
}

TEST_P(Errors, RanksMustCallTheSame) {
  const DType dtype = widest_dtype();
  if (!supported(small_config(), dtype)) return;
  for (const int ranks : rank_counts(2))
    on_ranks(ranks, [&](Communicator& communicator, Device& own) {
      const Problem problem = plain_problem();
      const Partition partition = make_partition(PartitionKind::contiguous, problem, ranks);
      Layer layer(problem, partition, {.dtype = dtype}, communicator, own);
      layer.forward();
      const Thrown thrown = thrown_by([&] { communicator.rank() == 1 ? layer.backward() : layer.forward(); });
      EXPECT_EQ(thrown.kind, Kind::mismatch) << thrown.text;
      EXPECT_THAT(thrown.text, AllOf(HasSubstr("forward"), HasSubstr("backward")));
      layer.forward();  // no work was started, so the layer still works
      layer.backward();
    });
}

TEST_P(Errors, ABadConfigurationOnOneRankEndsAll) {
  const DType dtype = widest_dtype();
  if (!supported(small_config(), dtype)) return;
  for (const int ranks : rank_counts())
    on_ranks(ranks, [&](Communicator& communicator, Device& own) {
      Problem problem = plain_problem();
      const Partition partition = make_partition(PartitionKind::contiguous, problem, ranks);
      const bool bad = communicator.rank() == ranks - 1;
      if (bad) problem.config.init_blocks = problem.config.select_count + 1;
      const Thrown thrown =
          thrown_by([&] { Attention(problem.config, partition, own, communicator, options_of({.dtype = dtype})); });
      EXPECT_EQ(thrown.kind, bad ? Kind::config : Kind::argument) << thrown.text;
      EXPECT_THAT(thrown.text, HasSubstr("init_blocks"));
    });
}

TEST_P(Errors, ThePartitionMustFit) {
  const DType dtype = widest_dtype();
  const Problem problem = plain_problem();
  if (!supported(problem.config, dtype)) return;
  for (const int ranks : rank_counts())
    on_ranks(ranks, [&](Communicator& communicator, Device& own) {
      for (const Partition& partition :
           {Partition::contiguous(problem.cu_seqlens, problem.config.select_block, ranks + 1),
            Partition::contiguous(problem.cu_seqlens, 16, ranks)}) {
        const Thrown thrown =
            thrown_by([&] { Attention(problem.config, partition, own, communicator, options_of({.dtype = dtype})); });
        EXPECT_EQ(thrown.kind, Kind::argument) << thrown.text;
        EXPECT_THAT(thrown.text, AllOf(HasSubstr("partition"), HasSubstr("found"), HasSubstr("expected")));
      }
    });
}

TEST_P(Errors, AGradientTypeMustBeTheLayersOrTheAccumulating) {
  const DType dtype = widest_dtype();
  const DType wrong = dtype == DType::f16 ? DType::bf16 : DType::f16;
  const Problem problem = plain_problem();
  if (!supported(problem.config, dtype)) return;
  on_ranks(max_ranks(), [&](Communicator& communicator, Device& own) {
    const Partition partition = make_partition(PartitionKind::contiguous, problem, communicator.size());
    const auto refused = [&](const LayerSetting& setting, const char* name) {
      const Thrown thrown =
          thrown_by([&] { Attention(problem.config, partition, own, communicator, options_of(setting)); });
      EXPECT_EQ(thrown.kind, Kind::argument) << thrown.text;
      EXPECT_THAT(thrown.text, StartsWith(name));
    };
    refused({.dtype = dtype, .gradient_dtype = wrong}, "gradient_dtype");
    refused({.dtype = dtype, .parameter_gradient_dtype = wrong}, "parameter_gradient_dtype");
  });
}

void move_by_bytes(void*& data, std::ptrdiff_t bytes) {
  data = static_cast<std::byte*>(data) + bytes;
}

struct Misuse {
  std::string name;  // the name that the message must contain
  std::function<void(Layer&)> break_it;
};

std::vector<Misuse> forward_misuses() {
  return {
      {"q", [](Layer& layer) { layer.tensors.inputs.q.shape[0] += 1; }},
      {"q", [](Layer& layer) { layer.tensors.inputs.q.shape[1] += 1; }},
      {"q", [](Layer& layer) { layer.tensors.inputs.q.rank = 2; }},
      {"q", [](Layer& layer) { layer.tensors.inputs.q.data = nullptr; }},
      {"q", [](Layer& layer) { layer.tensors.inputs.q = {}; }},
      {"k_cmp", [](Layer& layer) { layer.tensors.inputs.k.cmp.shape[2] -= 1; }},
      {"k_slc", [](Layer& layer) { layer.tensors.inputs.k.slc = {}; }},
      {"k_win", [](Layer& layer) { layer.tensors.inputs.k.win.data = nullptr; }},
      {"v_cmp", [](Layer& layer) { layer.tensors.inputs.v.cmp.shape[1] += 1; }},
      {"v_slc", [](Layer& layer) { layer.tensors.inputs.v.slc = layer.tensors.inputs.q; }},
      {"v_win", [](Layer& layer) { layer.tensors.inputs.v.win = {}; }},
      {"gate", [](Layer& layer) { layer.tensors.inputs.gate.shape[2] = 2; }},
      {"gate",
       [](Layer& layer) {
         DType& dtype = layer.tensors.inputs.gate.dtype;
         dtype = dtype == DType::f32 ? DType::f64 : DType::f32;
       }},
      {"compress_k_w1", [](Layer& layer) { layer.tensors.inputs.compress_k.w1 = {}; }},
      {"compress_k_pos", [](Layer& layer) { layer.tensors.inputs.compress_k.pos.shape[1] += 1; }},
      {"compress_v_b1", [](Layer& layer) { layer.tensors.inputs.compress_v.b1.data = nullptr; }},
      {"compress_v_weight",
       [](Layer& layer) { layer.tensors.inputs.compress_v.weight = layer.tensors.inputs.compress_v.w1; }},
      {"out", [](Layer& layer) { layer.tensors.out.shape[2] += 1; }},
      {"out", [](Layer& layer) { layer.tensors.out.data = nullptr; }},
      {"q", [](Layer& layer) { move_by_bytes(layer.tensors.inputs.q.data, 2); }},
      {"out", [](Layer& layer) { move_by_bytes(layer.tensors.out.data, 2); }},
      {"workspace", [](Layer& layer) { layer.workspace_offset = 8; }},
      {"saved", [](Layer& layer) { move_by_bytes(layer.memory.saved.memory, 8); }},
      {"saved", [](Layer& layer) { layer.memory.saved.memory = nullptr; }},
  };
}

std::vector<Misuse> backward_misuses() {
  return {
      {"dout", [](Layer& layer) { layer.tensors.dout.shape[0] += 1; }},
      {"dout", [](Layer& layer) { layer.tensors.dout.data = nullptr; }},
      {"dk_win", [](Layer& layer) { move_by_bytes(layer.tensors.gradients.k.win.data, 2); }},
      {"workspace", [](Layer& layer) { layer.workspace_offset = 8; }},
      {"dq", [](Layer& layer) { layer.tensors.gradients.q = {}; }},
      {"dk_cmp", [](Layer& layer) { layer.tensors.gradients.k.cmp.shape[1] += 1; }},
      {"dv_win", [](Layer& layer) { layer.tensors.gradients.v.win.data = nullptr; }},
      {"dgate", [](Layer& layer) { layer.tensors.gradients.gate.dtype = DType::bf16; }},
      {"dcompress_k_w2", [](Layer& layer) { layer.tensors.gradients.compress_k.w2.shape[2] += 1; }},
      {"dcompress_v_pos", [](Layer& layer) { layer.tensors.inputs.compress_v.pos = {}; }},
      {"saved", [](Layer& layer) { layer.memory.saved = SavedForward(); }},
  };
}

TEST_P(Errors, AWrongTensorOnOneRankEndsAll) {
  const DType dtype = widest_dtype();
  const Problem problem = plain_problem();
  if (!supported(problem.config, dtype)) return;
  for (const int ranks : rank_counts()) {
    const Partition partition = make_partition(PartitionKind::contiguous, problem, ranks);
    const int odd = ranks / 2;
    for (const bool forward : {true, false})
      for (const Misuse& misuse : forward ? forward_misuses() : backward_misuses()) {
        SCOPED_TRACE(misuse.name + ", " + std::to_string(ranks) + " ranks");
        on_ranks(ranks, [&](Communicator& communicator, Device& own) {
          Layer layer(problem, partition, {.dtype = dtype}, communicator, own);
          if (!forward) layer.forward();
          if (communicator.rank() == odd) misuse.break_it(layer);
          const Thrown thrown = thrown_by([&] { forward ? layer.forward() : layer.backward(); });
          EXPECT_EQ(thrown.kind, Kind::argument) << thrown.text;
          EXPECT_THAT(thrown.text, HasSubstr(misuse.name + ": found"));
          const std::string named = communicator.rank() == odd ? "" : "rank " + std::to_string(odd);
          EXPECT_THAT(thrown.text, HasSubstr(named));
        });
      }
  }
}

TEST_P(Errors, NothingIsWrittenByACallThatFails) {
  const DType dtype = widest_dtype();
  const Problem problem = plain_problem();
  if (!supported(problem.config, dtype)) return;
  on_ranks(max_ranks(), [&](Communicator& communicator, Device& own) {
    const Partition partition = make_partition(PartitionKind::contiguous, problem, communicator.size());
    Layer layer(problem, partition, {.dtype = dtype}, communicator, own);
    if (communicator.rank() == 0) layer.tensors.inputs.gate.shape[2] = 2;
    EXPECT_EQ(thrown_by([&] { layer.forward(); }).kind, Kind::argument);
    for (const double value : layer.tensors.out_values()) ASSERT_TRUE(std::isnan(value));
  });
}

TEST_P(Errors, ABackwardNeedsItsForward) {
  const DType dtype = widest_dtype();
  const Problem problem = plain_problem();
  if (!supported(problem.config, dtype)) return;
  on_ranks(max_ranks(), [&](Communicator& communicator, Device& own) {
    const Partition partition = make_partition(PartitionKind::contiguous, problem, communicator.size());
    Layer layer(problem, partition, {.dtype = dtype}, communicator, own);
    const Thrown thrown = thrown_by([&] { layer.backward(); });
    EXPECT_EQ(thrown.kind, Kind::argument);
    EXPECT_THAT(thrown.text, HasSubstr("saved"));
  });
}

// A communicator whose n-th transfer fails.
class FailingCommunicator final : public WrappedCommunicator {
 public:
  FailingCommunicator(Communicator& inner, int calls_left) : WrappedCommunicator(inner), calls_left_(calls_left) {}
  void exchange(std::span<const SendMessage> sends, std::span<const ReceiveMessage> receives, Device& device,
                Stream stream) override {
    count();
    WrappedCommunicator::exchange(sends, receives, device, stream);
  }
  void all_gather(const void* own, void* all, std::span<const std::size_t> bytes, Device& device,
                  Stream stream) override {
    count();
    WrappedCommunicator::all_gather(own, all, bytes, device, stream);
  }

 private:
  void count() {
    if (calls_left_-- == 0) throw DeviceError("the GPU fell off the bus");
  }
  int calls_left_;
};

TEST_P(Errors, ARankThatFailsInTheMiddleReleasesTheOthers) {
  if (!transport().tells_other_ranks) GTEST_SKIP() << "the transport does not carry reasons to other ranks";
  const DType dtype = widest_dtype();
  const Problem problem = plain_problem();
  if (!supported(problem.config, dtype)) return;
  for (const int ranks : rank_counts(2)) {
    const Partition partition = make_partition(PartitionKind::zigzag, problem, ranks);
    const int odd = ranks - 1;
    // A transport between processes may take a while to give up, so fewer transfers are tested there.
    const bool processes = transport().rank_counts().size() == 1;
    for (int transfer = 0; transfer < 20; transfer += processes ? 4 : 1) {
      SCOPED_TRACE("transfer " + std::to_string(transfer) + ", " + std::to_string(ranks) + " ranks");
      std::atomic<bool> failed = false;
      on_ranks(ranks, [&](Communicator& communicator, Device& own) {
        FailingCommunicator failing(communicator, communicator.rank() == odd ? transfer : -1);
        const Thrown thrown = thrown_by([&] {
          Layer layer(problem, partition, {.dtype = dtype}, failing, own);
          layer.forward();
          layer.backward();
          failing.barrier();
        });
        if (communicator.rank() == odd) {
          failed = thrown.kind != Kind::none;
          EXPECT_TRUE(thrown.kind == Kind::none || thrown.text == "the GPU fell off the bus") << thrown.text;
        } else if (thrown.kind != Kind::none) {
          EXPECT_EQ(thrown.kind, Kind::communication) << thrown.text;
          EXPECT_THAT(thrown.text, HasSubstr("the GPU fell off the bus"));
        }
      });
      if (HasFailure()) return;
      if (!processes && !failed) break;  // the step has no more transfers
    }
  }
}

}  // namespace
}  // namespace cpnsa::test

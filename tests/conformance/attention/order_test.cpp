// Calls that do not match the earlier calls of the rank or the calls of the other ranks.

#include <gmock/gmock.h>

#include "cpnsa/error.hpp"
#include "tests/conformance/attention/attention_test.hpp"

namespace cpnsa::test {
namespace {

using testing::HasSubstr;

CPNSA_ATTENTION_SUITE(Order);

struct Layer {
  Layer(const Problem& problem, DType dtype, Communicator& communicator, Device& device, bool reuse_saved = false)
      : partition(make_partition(PartitionKind::contiguous, problem, communicator.size())),
        attention(problem.config, partition, device, communicator,
                  options_of({.dtype = dtype, .reuse_saved = reuse_saved})),
        tensors(problem, partition, communicator.rank(), {.dtype = dtype}, device),
        memory(attention, device) {}
  void forward(LayerMemory& to) {
    attention.forward(tensors.inputs, tensors.out, tensors.selected, &to.saved, memory.workspace(), Stream{});
  }
  void backward(LayerMemory& from) {
    attention.backward(tensors.inputs, tensors.dout, from.saved, tensors.gradients, memory.workspace(), Stream{});
  }

  Partition partition;
  Attention attention;
  RankTensors tensors;
  LayerMemory memory;
};

template <class Expected>
void expect_thrown(const std::function<void()>& call, const char* text) {
  try {
    call();
    ADD_FAILURE() << "found no exception, expected one with " << text;
  } catch (const Expected& error) {
    EXPECT_THAT(error.what(), HasSubstr(text));
  }
}

// A layer rejects what another layer saved, whose blocks and documents differ.
TEST_P(Order, ABackwardNeedsAForwardOfItsOwnLayer) {
  const DType dtype = widest_dtype();
  const Problem problem = make_problem(small_config(), {0, 96}, 1);
  if (!supported(problem.config, dtype)) return;
  on_ranks(max_ranks(), [&](Communicator& communicator, Device& own) {
    Layer layer(problem, dtype, communicator, own), other(problem, dtype, communicator, own);
    layer.forward(layer.memory), other.forward(other.memory);
    expect_thrown<ArgumentError>([&] { layer.backward(other.memory); }, "saved: found that of another layer's forward");
    layer.backward(layer.memory), other.backward(other.memory);
  });
}

TEST_P(Order, ASavedForwardThatIsReusedHasOneBackward) {
  const DType dtype = widest_dtype();
  const Problem problem = make_problem(small_config(), {0, 96}, 1);
  if (!supported(problem.config, dtype)) return;
  on_ranks(max_ranks(), [&](Communicator& communicator, Device& own) {
    Layer keeping(problem, dtype, communicator, own), reusing(problem, dtype, communicator, own, true);
    keeping.forward(keeping.memory), reusing.forward(reusing.memory);
    keeping.backward(keeping.memory), reusing.backward(reusing.memory);
    keeping.backward(keeping.memory);
    expect_thrown<ArgumentError>([&] { reusing.backward(reusing.memory); },
                                 "saved: found that of a forward whose backward has run");
    reusing.forward(reusing.memory);
    reusing.backward(reusing.memory);
  });
}

TEST_P(Order, RanksMustGoBackThroughTheSameForward) {
  const DType dtype = widest_dtype();
  const Problem problem = make_problem(small_config(), {0, 96}, 1);
  if (!supported(problem.config, dtype)) return;
  for (const int ranks : rank_counts(2))
    on_ranks(ranks, [&](Communicator& communicator, Device& own) {
      Layer layer(problem, dtype, communicator, own);
      LayerMemory second(layer.attention, own);
      layer.forward(layer.memory), layer.forward(second);
      expect_thrown<MismatchError>([&] { layer.backward(communicator.rank() == 1 ? second : layer.memory); },
                                   "of_call=");
    });
}

TEST_P(Order, RanksMustCallTheirLayersInOneOrder) {
  const DType dtype = widest_dtype();
  const Problem problem = make_problem(small_config(), {0, 96}, 1), longer = make_problem(small_config(), {0, 300}, 1);
  if (!supported(problem.config, dtype)) return;
  for (const int ranks : rank_counts(2))
    on_ranks(ranks, [&](Communicator& communicator, Device& own) {
      Layer one(problem, dtype, communicator, own), two(longer, dtype, communicator, own);
      Layer& called = communicator.rank() == 1 ? two : one;
      expect_thrown<MismatchError>([&] { called.forward(called.memory); }, "layer=");
      one.forward(one.memory), two.forward(two.memory);  // both layers still work
      one.backward(one.memory), two.backward(two.memory);
    });
}

TEST_P(Order, EqualLayersMustBeCalledInOneOrder) {
  const DType dtype = widest_dtype();
  const Problem problem = make_problem(small_config(), {0, 96}, 1);
  if (!supported(problem.config, dtype)) return;
  for (const int ranks : rank_counts(2))
    on_ranks(ranks, [&](Communicator& communicator, Device& own) {
      Layer one(problem, dtype, communicator, own), two(problem, dtype, communicator, own);
      const bool odd = communicator.rank() == 1;
      Layer& first = odd ? two : one;
      expect_thrown<MismatchError>([&] { first.forward(first.memory); },
                                   "rank 1: found \"layer=2\", expected \"layer=1\"");
      one.forward(one.memory), two.forward(two.memory);  // and go on
      Layer& last = odd ? one : two;
      expect_thrown<MismatchError>([&] { last.backward(last.memory); },
                                   "rank 1: found \"layer=1\", expected \"layer=2\"");
      two.backward(two.memory), one.backward(one.memory);
    });
}

// One Attention serves two layers, which the caller numbers.
TEST_P(Order, LayersOfOneAttentionMustBeCalledInOneOrder) {
  const DType dtype = widest_dtype();
  const Problem problem = make_problem(small_config(), {0, 96}, 1);
  if (!supported(problem.config, dtype)) return;
  for (const int ranks : rank_counts(2))
    on_ranks(ranks, [&](Communicator& communicator, Device& own) {
      Layer layer(problem, dtype, communicator, own);
      LayerMemory memories[] = {{layer.attention, own}, {layer.attention, own}};
      const auto forward = [&](int number) {
        layer.tensors.inputs.layer = number;
        layer.forward(memories[number]);
      };
      const auto backward = [&](int number, int of) {
        layer.tensors.inputs.layer = number;
        layer.backward(memories[of]);
      };
      const int other = communicator.rank() == 1 ? 1 : 0;
      expect_thrown<MismatchError>([&] { forward(other); }, "rank 1: found \"callers_layer=1\"");
      forward(0), forward(1);
      expect_thrown<MismatchError>([&] { backward(1 - other, 1 - other); }, "rank 1: found \"callers_layer=0\"");
      expect_thrown<ArgumentError>([&] { backward(1, 0); }, "layer: found 1, expected 0, that of the forward");
      backward(1, 1), backward(0, 0);
    });
}

TEST_P(Order, RanksMustHoldTheSameParameters) {
  const DType dtype = widest_dtype();
  const Problem problem = make_problem(small_config(), {0, 96}, 1), other = make_problem(small_config(), {0, 96}, 2);
  if (!supported(problem.config, dtype)) return;
  for (const int ranks : rank_counts(2))
    for (const bool compares : {true, false})
      on_ranks(ranks, [&](Communicator& communicator, Device& own) {
        const Partition partition = make_partition(PartitionKind::contiguous, problem, ranks);
        AttentionOptions options = options_of({.dtype = dtype});
        options.compare_parameters = compares;
        Attention attention(problem.config, partition, own, communicator, options);
        RankTensors tensors(communicator.rank() == 1 ? other : problem, partition, communicator.rank(),
                            {.dtype = dtype}, own);
        LayerMemory memory(attention, own);
        const auto forward = [&] {
          attention.forward(tensors.inputs, tensors.out, nullptr, &memory.saved, memory.workspace(), Stream{});
        };
        if (!compares) return forward();
        expect_thrown<MismatchError>(forward, "rank 1: found \"compress_k_pos=");
        expect_thrown<MismatchError>(forward, "rank 1: found \"compress_k_pos=");  // until they are the same
      });
}

}  // namespace
}  // namespace cpnsa::test

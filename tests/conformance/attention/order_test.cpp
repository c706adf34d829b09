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

}  // namespace
}  // namespace cpnsa::test

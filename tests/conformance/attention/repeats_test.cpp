// A repeated step gives the same bits: no sum depends on the order of arrival.

#include "tests/conformance/attention/attention_test.hpp"

namespace cpnsa::test {
namespace {

CPNSA_ATTENTION_SUITE(Repeats);

constexpr int repeats = 200;

// All repeats run even after a failure, so that no rank leaves the others waiting. The workspace is poisoned before
// each, so that none reads what the previous one left.
void repeat(Attention& layer, RankTensors& tensors, LayerMemory& memory, Device& device) {
  Values out;
  Tensors gradients;
  for (int i = 0; i < repeats; ++i) {
    memory.poison_workspace();
    layer.forward(tensors.inputs, tensors.out, tensors.selected, &memory.saved, memory.workspace(), Stream{});
    device.synchronize(Stream{});
    memory.poison_workspace();
    layer.backward(tensors.inputs, tensors.dout, memory.saved, tensors.gradients, memory.workspace(), Stream{});
    device.synchronize(Stream{});
    if (i == 0) {
      out = tensors.out_values();
      gradients = tensors.gradient_values();
      continue;
    }
    if (testing::Test::HasNonfatalFailure()) continue;  // one report is enough
    EXPECT_EQ(tensors.out_values(), out) << "repeat " << i;
    for_each_tensor(
        [&](const schema::Tensor& tensor, const Values& found, const Values& first) {
          EXPECT_EQ(found, first) << tensor.gradient_name().view() << ", repeat " << i;
        },
        tensors.gradient_values(), gradients);
  }
}

TEST_P(Repeats, AreEqualToTheLastBit) {
  const DType dtype = device().dtypes.back();
  const Problem problem = rounded(make_problem(small_config(), {0, 93, 160}, 1), dtype);
  if (!supported(problem.config, dtype)) return;
  const LayerSetting setting{.dtype = dtype, .exchange = Exchange::fetch};
  for (const int ranks : rank_counts()) {
    if (ranks > 2) continue;
    SCOPED_TRACE(std::to_string(ranks) + " ranks");
    const Partition partition = make_partition(PartitionKind::zigzag, problem, ranks);
    on_ranks(ranks, [&](Communicator& communicator, Device& own) {
      Attention layer(problem.config, partition, own, communicator, options_of(setting));
      RankTensors tensors(problem, partition, communicator.rank(), setting, own);
      LayerMemory memory(layer, own);
      repeat(layer, tensors, memory, own);
    });
  }
}

}  // namespace
}  // namespace cpnsa::test

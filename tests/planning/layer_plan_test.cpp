// What a layer decides before anything runs, without a device.

#include "src/layer/layer_plan.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <functional>
#include <vector>

#include "src/layer/buffers.hpp"

namespace cpnsa::test {
namespace {

Config config_of_heads(std::int64_t q_heads, std::int64_t kv_heads) {
  Config config;
  config.num_q_heads = q_heads, config.num_kv_heads = kv_heads;
  config.head_dim_qk = 8, config.head_dim_v = 4;
  config.compress_block = 8, config.compress_stride = 4, config.select_block = 16;
  config.select_count = 4, config.window = 24;
  config.compressor = Compressor::linear;
  return config;
}

struct Planned {
  explicit Planned(const AttentionOptions& options, int ranks = 2, DeviceFacts facts = {})
      : config(config_of_heads(4, 2)),
        partition(Partition::contiguous(cu_seqlens, config.select_block, ranks)),
        plan(config, partition, 0, options),
        layer(config, options, plan, facts) {}

  const std::int64_t cu_seqlens[2] = {0, 160};
  Config config;
  Partition partition;
  planning::Plan plan;
  LayerPlan layer;
};

TEST(LayerPlans, HaveTheTypesOfTheOptions) {
  const Planned usual({.dtype = DType::bf16});
  EXPECT_EQ(usual.layer.accumulate, DType::f32);
  EXPECT_EQ(usual.layer.gradient_dtype, DType::bf16);
  EXPECT_EQ(usual.layer.parameter_gradient_dtype, DType::f32);
  const Planned wide({.dtype = DType::f64, .parameter_gradient_dtype = DType::f64});
  EXPECT_EQ(wide.layer.accumulate, DType::f64);
  EXPECT_EQ(wide.layer.parameter_gradient_dtype, DType::f64);
}

TEST(LayerPlans, CountTheParametersOfBothCompressors) {
  // G (l d + l d d) for d = 8 and d = 4, with G 2 and l 8.
  EXPECT_EQ(Planned({}).layer.parameter_elements, 2 * (8 * 8 + 8 * 8 * 8) + 2 * (8 * 4 + 8 * 4 * 4));
}

TEST(LayerPlans, SaveWhatTheOptionsAskFor) {
  const Planned usual({}), blocks({.refetch_blocks = false}), without_branches({.recompute_branches = true});
  EXPECT_GT(usual.layer.saved_bytes, 0u);
  EXPECT_GT(without_branches.layer.saved_bytes, 0u);
  EXPECT_LT(without_branches.layer.saved_bytes, usual.layer.saved_bytes);
  EXPECT_GT(without_branches.layer.backward_bytes, 0u);

  // Rank 0 reaches no block of rank 1, which comes later in the document; rank 1 reaches all of rank 0.
  EXPECT_EQ(blocks.layer.saved_bytes, usual.layer.saved_bytes);
  const planning::Plan plan(usual.config, usual.partition, 1, {});
  const LayerPlan refetches(usual.config, {}, plan, {}), saves(usual.config, {.refetch_blocks = false}, plan, {});
  const auto slot_bytes = static_cast<std::size_t>(16 * (8 + 4)) * 4;  // one KV head's keys and values of a block
  EXPECT_EQ(saves.saved_bytes - refetches.saved_bytes, 5 * 2 * slot_bytes);

  const Planned inference({.backward = false});
  EXPECT_EQ(inference.layer.saved_bytes, 0u);
  EXPECT_EQ(inference.layer.backward_bytes, 0u);
  EXPECT_GT(inference.layer.forward_bytes, 0u);
}

TEST(LayerPlans, CountTheDevicesScratch) {
  const Planned without({}), with({}, 2, {.scratch_bytes = 1024});
  EXPECT_EQ(with.layer.forward_bytes - without.layer.forward_bytes, 2 * 1024u);  // of both streams
  EXPECT_EQ(with.layer.backward_bytes - without.layer.backward_bytes, 1024u);
}

TEST(LayerPlans, LeaveOutAnOutputThatNothingReads) {
  const AttentionOptions inference{.backward = false};
  const Planned separate(inference), combined(inference, 2, {.combines_selected = true});
  const std::size_t output_bytes = 80 * 4 * 4 * sizeof(float);  // [rows, H, d_v], a multiple of the alignment
  EXPECT_EQ(separate.layer.forward_bytes - combined.layer.forward_bytes, output_bytes);
}

TEST(LayerPlans, ReadNeedsWhereTheyDecideWhatIsExchanged) {
  EXPECT_TRUE(Planned({}).layer.reads_needs());
  EXPECT_TRUE(Planned({.exchange = Exchange::fetch}).layer.reads_needs());
  EXPECT_FALSE(Planned({.exchange = Exchange::gather}).layer.reads_needs());
  EXPECT_FALSE(Planned({.exchange = Exchange::pull}).layer.reads_needs());
  EXPECT_FALSE(Planned({}, 1).layer.reads_needs());
  EXPECT_TRUE(Planned({}, 1).layer.alone());
}

// The window begins the workspace, and each of its parts has the same offset on every rank.
TEST(LayerPlans, WindowsAreLaidOutAlikeOnEveryRank) {
  const Config config = config_of_heads(4, 2);
  const std::int64_t cu_seqlens[] = {0, 90, 160, 165};
  const AttentionOptions options{.exchange = Exchange::pull};
  const Partition partition = Partition::contiguous(cu_seqlens, config.select_block, 3);
  std::vector<std::vector<std::ptrdiff_t>> offsets;
  for (int rank = 0; rank < 3; ++rank) {
    const planning::Plan plan(config, partition, rank, options);
    const LayerPlan layer(config, options, plan, {});
    std::vector<std::byte> memory(std::max(layer.forward_bytes, layer.backward_bytes));
    Arena forward_arena(memory.data()), backward_arena(memory.data());
    const ForwardWindow forward(forward_arena, layer);
    const BackwardWindow backward(backward_arena, layer);
    EXPECT_EQ(forward.blocks.k, memory.data());
    EXPECT_EQ(backward.blocks.k, memory.data());
    EXPECT_EQ(BackwardBuffers(backward_arena, layer, {}, backward).dpools[0], backward.dpools[0]);
    std::vector<std::ptrdiff_t>& of_rank = offsets.emplace_back();
    for (const void* part : {forward.blocks.v, forward.summary_halo, forward.window_halo, forward.gathered,
                             backward.blocks.v, backward.dpools[0], backward.dpools[1], backward.summary_halo,
                             backward.window_halo, backward.summaries, static_cast<void*>(backward.needs)})
      of_rank.push_back(static_cast<const std::byte*>(part) - memory.data());
    EXPECT_EQ(offsets.front(), of_rank);
    EXPECT_GT(std::count_if(of_rank.begin(), of_rank.end(), [](std::ptrdiff_t offset) { return offset > 0; }), 8);
  }
}

TEST(LayerPlans, LayBuffersOutWithoutOverlap) {
  const Planned planned({});
  const planning::Plan plan(planned.config, planned.partition, 1, {});  // of the rank that receives halos and blocks
  const LayerPlan layer(planned.config, {}, plan, {});
  std::vector<std::byte> memory(layer.backward_bytes);
  Arena arena(memory.data());
  const BackwardWindow window(arena, layer);
  const BackwardBuffers buffers(arena, layer, {}, window);
  EXPECT_EQ(arena.used(), layer.backward_bytes);
  const std::array<void*, 9> pieces{buffers.exchange.table, buffers.weights,        buffers.deltas,
                                    buffers.dpools[0],      buffers.dpools[1],      buffers.dsummaries.k,
                                    buffers.dsummaries.v,   buffers.dwindow_halo.k, buffers.dwindow_halo.v};
  EXPECT_TRUE(std::is_sorted(pieces.begin(), pieces.end(), std::less_equal<>()));  // each begins behind the one before
  EXPECT_GE(pieces.front(), memory.data());
  EXPECT_LT(pieces.back(), memory.data() + memory.size());
}

}  // namespace
}  // namespace cpnsa::test

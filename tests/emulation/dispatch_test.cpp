// Which kernels serve a layer: the table of Hopper's shapes, and that nothing else runs on its kernels.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <set>

#include "cpnsa/cuda/device.hpp"
#include "cpnsa/cuda/info.hpp"
#include "cpnsa/error.hpp"
#include "kernels/cuda/sm90/run_op.hpp"
#include "kernels/cuda/sm90/shapes.hpp"

namespace cpnsa::test {
namespace {

namespace sm90 = cuda::sm90;

Config layer(std::int64_t d_qk, std::int64_t d_v, std::int64_t heads_per_group) {
  Config config;
  config.num_q_heads = heads_per_group, config.num_kv_heads = 1;
  config.head_dim_qk = d_qk, config.head_dim_v = d_v;
  return config;
}

template <class Stage>
Stage stage_of(const Config& config, DType dtype = DType::bf16) {
  Stage stage{};
  stage.config = &config;
  stage.dtype = dtype;
  return stage;
}

TEST(Dispatch, HopperServesTheHeadDimensionsOfTheTableAndNoOthers) {
  int served = 0;
  for (std::int64_t d_qk = 8; d_qk <= 272; d_qk += 8)
    for (std::int64_t d_v = 8; d_v <= 272; d_v += 8)
      for (const std::int64_t heads : {1, 2, 4, 8, 15, 16, 17, 32, 64}) {
        const bool holds = std::ranges::any_of(cuda::hopper_tiles(), [&](const cuda::HopperTile& tile) {
          return tile.head_dim_qk >= d_qk && tile.head_dim_v >= d_v;
        });
        const Config config = layer(d_qk, d_v, heads);
        EXPECT_EQ(sm90::serves(config, DType::bf16), holds) << d_qk << ' ' << d_v << ' ' << heads;
        EXPECT_EQ(sm90::serves(config, DType::f16), holds);
        EXPECT_FALSE(sm90::serves(config, DType::f32));
        served += holds;
      }
  EXPECT_EQ(served, 32 * 32 * 9);  // all up to 256
}

// The kernels for a fixed number of heads are the fastest for their shapes.
TEST(Dispatch, ALayerRunsOnTheRowOfItsOwnHeads) {
  for (const sm90::Shape& shape : sm90::shapes) {
    const bool any = shape.heads_per_group == sm90::any_heads;
    const Config config = layer(shape.d_qk, shape.d_v, any ? 5 : shape.heads_per_group);
    EXPECT_EQ(&sm90::shapes[sm90::dense_row(config)], &shape);
  }
}

TEST(Dispatch, HeadsLieInTilesWithoutOneTwice) {
  for (const int rows : {16, 32, 64})
    for (int heads = 1; heads <= 128; ++heads) {
      const sm90::HeadSplit split(rows, heads);
      EXPECT_LE(split.queries * split.heads, rows) << rows << ' ' << heads;
      EXPECT_GE(split.queries, 1);
      EXPECT_GE(split.parts * split.heads, heads);
      EXPECT_LT((split.parts - 1) * split.heads, heads);
      EXPECT_EQ(split.parts == 1, heads <= rows);
    }
}

TEST(Dispatch, TheQueryOfALayersKernelsSaysWhatTheDispatchDoes) {
  const auto families = [](const Config& config, int capability) {
    std::set<KernelFamily> found;
    for (const OpKernel& kernel : cuda::kernels_of(config, DType::bf16, capability)) {
      found.insert(kernel.family);
      if (kernel.family == KernelFamily::portable && capability == 90) {
        EXPECT_NE(kernel.reason, "") << kernel.op;
      }
    }
    return found;
  };
  EXPECT_EQ(families(layer(128, 128, 16), 90), std::set{KernelFamily::hopper});
  EXPECT_EQ(families(layer(128, 128, 16), 80), std::set{KernelFamily::portable});
  EXPECT_EQ(families(layer(200, 128, 16), 90), (std::set{KernelFamily::hopper, KernelFamily::portable}));
  Config negative = layer(128, 128, 16);
  negative.softmax_scale = -1;
  EXPECT_EQ(families(negative, 90), std::set{KernelFamily::portable});
  EXPECT_THROW(cuda::kernels_of(layer(12, 128, 16), DType::bf16, 90), UnsupportedError);
  EXPECT_THROW(cuda::kernels_of(layer(128, 128, 16), DType::bf16, 75), UnsupportedError);
}

TEST(Dispatch, HopperServesPositiveScalesAlone) {
  Config config = layer(128, 128, 16);
  EXPECT_TRUE(sm90::serves(config, DType::bf16));
  config.softmax_scale = -1;
  EXPECT_FALSE(sm90::serves(config, DType::bf16));
}

// A kernel that is called with a shape that it is not made for refuses it, and does not run another shape's code.
TEST(Dispatch, HoppersStagesRefuseShapesThatNoTileHolds) {
  const auto refusal = [](const std::function<void()>& call) -> std::string {
    try {
      call();
    } catch (const UnsupportedError& error) {
      return error.what();
    }
    return "none";
  };
  const cuda::Gpu gpu{90, 3};
  for (const Config& config : {layer(264, 128, 16), layer(64, 264, 8)}) {
    const auto stages = {
        std::function([&] { sm90::run_op(stage_of<CompressedAttention>(config), gpu, nullptr); }),
        std::function([&] { sm90::run_op(stage_of<SelectBlocks>(config), gpu, nullptr); }),
        std::function([&] { sm90::run_op(stage_of<SelectedAttention>(config), gpu, nullptr); }),
        std::function([&] { sm90::run_op(stage_of<WindowAttention>(config), gpu, nullptr); }),
        std::function([&] { sm90::run_op(stage_of<CompressedAttentionBackward>(config), gpu, nullptr); }),
        std::function([&] { sm90::run_op(stage_of<SelectedAttentionBackward>(config), gpu, nullptr); }),
        std::function([&] { sm90::run_op(stage_of<WindowAttentionBackward>(config), gpu, nullptr); })};
    for (const auto& stage : stages)
      EXPECT_THAT(refusal(stage), testing::HasSubstr("found head dimensions " + std::to_string(config.head_dim_qk) +
                                                     " and " + std::to_string(config.head_dim_v)));
  }
}

TEST(Dispatch, SelectionNeedsItsBlocks) {
  for (const std::int64_t heads : {1, 3, 16, 40, 64})
    for (const std::int64_t block : {32, 64, 128, 192, 256}) {
      Config config = layer(128, 128, heads);
      config.select_block = block;
      EXPECT_TRUE(sm90::serves(stage_of<SelectBlocks>(config))) << heads << ' ' << block;
      EXPECT_TRUE(sm90::serves(stage_of<SelectedAttention>(config))) << heads << ' ' << block;
      EXPECT_TRUE(sm90::serves(stage_of<SelectedAttentionBackward>(config))) << heads << ' ' << block;
    }
  Config config = layer(128, 128, 16);
  config.select_block = 48;
  EXPECT_TRUE(sm90::serves(stage_of<SelectBlocks>(config)));
  EXPECT_FALSE(sm90::serves(stage_of<SelectedAttention>(config)));
  EXPECT_FALSE(sm90::serves(stage_of<SelectedAttentionBackward>(config)));
  config = layer(128, 128, 16);
  config.select_count = 131;  // and three are forced
  EXPECT_TRUE(sm90::serves(stage_of<SelectBlocks>(config)));
  config.select_count = 132;
  EXPECT_FALSE(sm90::serves(stage_of<SelectBlocks>(config)));
}

// Or the suites would test the kernels for every GPU twice.
TEST(Dispatch, ADeviceOfCapability90RunsHoppersKernels) {
  const Config config = layer(128, 128, 16);
  for (const bool hopper : {true, false}) {
    ASSERT_EQ(setenv("CPNSA_EMULATED_CAPABILITY", hopper ? "90" : "80", 1), 0);
    const auto device = cuda::make_device();
    EXPECT_EQ(device->combines_selected(config, DType::bf16, *device->schedule({}, config)), hopper);
  }
  ASSERT_EQ(unsetenv("CPNSA_EMULATED_CAPABILITY"), 0);
}

}  // namespace
}  // namespace cpnsa::test

// Which kernels serve a layer: the table of Hopper's shapes, and that nothing else runs on its kernels.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "cpnsa/cuda/device.hpp"
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

TEST(Dispatch, HopperServesTheShapesOfTheTableAndNoOthers) {
  int served = 0;
  for (std::int64_t d_qk = 8; d_qk <= 256; d_qk += 8)
    for (std::int64_t d_v = 8; d_v <= 256; d_v += 8)
      for (const std::int64_t heads : {1, 2, 4, 8, 15, 16, 17, 32, 64}) {
        const auto listed = std::ranges::count_if(cuda::hopper_shapes(), [&](const cuda::HopperShape& shape) {
          return shape.head_dim_qk == d_qk && shape.head_dim_v == d_v && shape.heads_per_group == heads;
        });
        const Config config = layer(d_qk, d_v, heads);
        ASSERT_LE(listed, 1);
        EXPECT_EQ(sm90::serves(config, DType::bf16), listed == 1) << d_qk << ' ' << d_v << ' ' << heads;
        EXPECT_EQ(sm90::serves(config, DType::f16), listed == 1);
        EXPECT_FALSE(sm90::serves(config, DType::f32));
        served += static_cast<int>(listed);
      }
  EXPECT_EQ(served, static_cast<int>(std::size(sm90::shapes)));
  EXPECT_GE(served, 3);
}

TEST(Dispatch, HopperServesPositiveScalesAlone) {
  Config config = layer(128, 128, 16);
  EXPECT_TRUE(sm90::serves(config, DType::bf16));
  config.softmax_scale = -1;
  EXPECT_FALSE(sm90::serves(config, DType::bf16));
}

// A kernel that is called with a shape that it is not made for refuses it, and does not run another shape's code.
TEST(Dispatch, HoppersStagesRefuseShapesThatAreNotInTheTable) {
  const auto refusal = [](const std::function<void()>& call) -> std::string {
    try {
      call();
    } catch (const UnsupportedError& error) {
      return error.what();
    }
    return "none";
  };
  const cuda::Gpu gpu{90, 3};
  for (const Config& config : {layer(96, 128, 16), layer(256, 256, 16), layer(64, 128, 16), layer(128, 128, 8)}) {
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
  Config config = layer(128, 128, 16);
  EXPECT_TRUE(sm90::serves(stage_of<SelectBlocks>(config)));
  config.select_block = 128;
  EXPECT_FALSE(sm90::serves(stage_of<SelectBlocks>(config)));
  EXPECT_FALSE(sm90::serves(stage_of<SelectedAttention>(config)));
  EXPECT_FALSE(sm90::serves(stage_of<SelectedAttentionBackward>(config)));
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

// Products of sizes that do not fit in 63 bits are errors, never small numbers.

#include "src/planning/checked.hpp"

#include <gmock/gmock.h>

#include "cpnsa/error.hpp"
#include "cpnsa/tensor_view.hpp"

namespace cpnsa::test {
namespace {

using testing::HasSubstr;

constexpr std::int64_t large = std::int64_t{1} << 31;

template <class Call>
std::string error_of(const Call& call) {
  try {
    call();
  } catch (const ArgumentError& error) {
    return error.what();
  }
  return "no error";
}

TEST(CheckedProducts, ThatDoNotFitAreRefused) {
  EXPECT_EQ(checked_product({large, large}, "size"), std::int64_t{1} << 62);
  EXPECT_EQ(checked_product({large, large, 0}, "size"), 0);
  EXPECT_EQ(checked_product({}, "size"), 1);
  EXPECT_EQ(error_of([] {
              checked_product({large, large, 2}, "size");
            }),
            "size: found 2147483648 * 2147483648 * 2, expected a product below 2^63");
  EXPECT_EQ(error_of([] {
              checked_product({large, large, 8}, "size");
            }),  // 0 in 64 bits
            "size: found 2147483648 * 2147483648 * 8, expected a product below 2^63");
  EXPECT_THAT(error_of([] { checked_bytes(large, large, 8); }), HasSubstr("bytes: found 2147483648 * 2147483648 * 8"));
}

TEST(CheckedProducts, TensorsCountTheirElementsSo) {
  std::byte memory{};
  EXPECT_EQ(TensorView(&memory, DType::f32, {1, large, large}).elements(), std::int64_t{1} << 62);
  EXPECT_THAT(error_of([&] {
                TensorView(&memory, DType::f32, {4, large, large}).elements();
              }),
              HasSubstr("expected a product below 2^63"));
}

}  // namespace
}  // namespace cpnsa::test

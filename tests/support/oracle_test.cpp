// Tests of the oracle: against the golden cases, and its gradients against finite differences.

#include "tests/support/oracle.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/golden_case.hpp"
#include "tests/support/tolerance.hpp"

namespace cpnsa::test {
namespace {

double inner_product(const Values& a, const Values& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

class OracleOnGolden : public testing::TestWithParam<std::string> {};

TEST_P(OracleOnGolden, Agrees) {
  const GoldenCase golden = read_golden_case(GetParam());
  const Precision f64{DType::f64, true};
  const OracleForward forward = oracle_forward(golden.problem, f64);
  EXPECT_EQ(forward.selected, golden.selected);
  EXPECT_TRUE(within("out", forward.out, golden.out, 1e-7));
  const double floor = 1e-14 * norm_of(golden.gradients);
  for_each_tensor([&](const schema::Tensor& tensor, const Values& found,
                      const Values& expected) { EXPECT_TRUE(within(tensor.name.str(), found, expected, 1e-7, floor)); },
                  oracle_backward(golden.problem, f64, forward.selected), golden.gradients);
  for (std::size_t i = 0; i < golden.margin.size(); ++i)
    if (std::isfinite(golden.margin[i])) {
      ASSERT_NEAR(forward.margin[i], golden.margin[i], 1e-6);
    } else {
      ASSERT_EQ(forward.margin[i], golden.margin[i]);
    }
}

INSTANTIATE_TEST_SUITE_P(Cases, OracleOnGolden, testing::ValuesIn(golden_case_names()),
                         [](const auto& test) { return test.param; });

TEST(Oracle, GradientsAreFiniteDifferences) {
  for (std::uint64_t seed = 1; seed <= 40; ++seed) {
    Problem problem = random_problem(seed, 40);
    SCOPED_TRACE(describe(problem));
    if (problem.config.activation == Activation::relu)
      problem.config.activation = Activation::gelu;  // finite differences need a smooth activation
    const Precision f64{DType::f64, false};
    const std::vector<std::int32_t> selected = oracle_forward(problem, f64).selected;
    const Tensors gradients = oracle_backward(problem, f64, selected);
    Random random(seed);
    for_each_tensor(
        [&](const schema::Tensor& tensor, Values& values, const Values& gradient) {
          ASSERT_EQ(values.size(), gradient.size()) << tensor.name.view();
          const Values before = values, direction = random.normals(static_cast<std::int64_t>(values.size()));
          constexpr double step = 1e-5;
          const auto loss_at = [&](double distance) {
            for (std::size_t i = 0; i < values.size(); ++i) values[i] = before[i] + distance * direction[i];
            return inner_product(oracle_forward(problem, f64, &selected).out, problem.dout);
          };
          const double slope = (loss_at(step) - loss_at(-step)) / (2 * step);
          values = before;
          const double size = std::sqrt(inner_product(gradient, gradient));
          EXPECT_NEAR(inner_product(gradient, direction), slope, 1e-6 * (1 + size)) << tensor.name.view();
        },
        problem.inputs, gradients);
  }
}

}  // namespace
}  // namespace cpnsa::test

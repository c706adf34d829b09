// The library's gradients compared with finite differences of its forward, on devices whose widest type allows it.

#include <cmath>

#include "tests/conformance/attention/attention_test.hpp"
#include "tests/support/seeds.hpp"

namespace cpnsa::test {
namespace {

CPNSA_ATTENTION_SUITE(Gradients);

double inner_product(const Values& a, const Values& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

TEST_P(Gradients, AreFiniteDifferencesOfTheForward) {
  if (widest_dtype() != DType::f64) GTEST_SKIP() << "finite differences need f64";
  const int ranks = rank_counts().size() > 1 ? 3 : max_ranks();
  for (const std::uint64_t seed : seeds(12)) {
    Problem problem = random_problem(7000 + seed, 40, device().dim_step);
    if (problem.config.activation == Activation::relu)
      problem.config.activation = Activation::silu;  // finite differences need a smooth activation
    SCOPED_TRACE(describe(problem));
    if (!supported(problem.config, DType::f64)) continue;
    const Partition partition = make_partition(partition_kinds[seed % 4], problem, ranks);
    const LayerResult at = run(problem, partition, {});
    Random random(seed);
    for_each_tensor(
        [&](const schema::Tensor& tensor, Values& values, const Values& gradient) {
          ASSERT_EQ(values.size(), gradient.size()) << tensor.name.view();
          if (values.empty()) return;
          const Values before = values, direction = random.normals(static_cast<std::int64_t>(values.size()));
          constexpr double step = 1e-5;
          bool same_selection = true;
          const auto loss_at = [&](double distance) {
            for (std::size_t i = 0; i < values.size(); ++i) values[i] = before[i] + distance * direction[i];
            const LayerResult result = run(problem, partition, {.backward = false});
            same_selection = same_selection && result.selected == at.selected;
            return inner_product(result.out, problem.dout);
          };
          const double slope = (loss_at(step) - loss_at(-step)) / (2 * step);
          values = before;
          if (!same_selection) return;  // the gradient holds the selection fixed
          const double size = std::sqrt(inner_product(gradient, gradient));
          EXPECT_NEAR(inner_product(gradient, direction), slope, 1e-6 * (1 + size)) << tensor.name.view();
        },
        problem.inputs, at.gradients);
  }
}

}  // namespace
}  // namespace cpnsa::test
